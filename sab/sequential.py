"""The one loop over blocks: sensitivities first, then collect, fit and propagate, block by block.

Forward order: the blocks of the vision tower, the projector, the blocks of the decoder, as far as the recipe
names them; each part sees what the binarized ones before it make of the pictures.

Sensitivities (sensitivities.py) describe the full-precision model and are computed once, in one pass over it, before
anything is binarized. Then each block takes two passes (METHOD 1): *collect* feeds the compensation Hessians of all its
linears and both modalities at once, on activations of the binarized predecessors; after the fits, *propagate*
runs the binarized block to give the next one its inputs. Cost per block: two forward passes of one block over
the calibration samples, one m×m product per distinct input and modality, and the fits. In front of the decoder
there are only vision tokens: no map, Hessians of vision alone, and one pass through tower and projector per
block.

Methods that judge their rounds get a second Hessian, of one batch in eight, which the first then leaves out.
Where the codes of a block are refined together (refine.py), a full-precision stream runs alongside (one pass more
per block), and the reports of a block come when all of it is done.

Every finished linear is on disk before its report is yielded. A continued run collects a half-done block on
the block's original weights, as the uninterrupted one did, and so ends with the same codes.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sab import calibration, distributed, runs
from sab.binarizers import METHODS, BinaryCodes, LinearCodes
from sab.calibrated import Calibrated, Maps, Moments, groups_of, through_block, through_tower
from sab.calibration import Sample
from sab.capture import Batch, picture_batches
from sab.compensate import FactoredHessian, LinearFit, factor_hessian, fit_linears, quadratic
from sab.errors import SabError
from sab.hessian import combine
from sab.memory import HOST, Fallback, warn_of_host, with_host
from sab.models import LVLM, fingerprint
from sab.packing import count_bits, pack, unpack
from sab.progress import Listener, silent
from sab.recipes import Recipe
from sab.refine import Refinement, refine_block
from sab.runs import LinearReport, Run
from sab.sensitivities import known_maps
from sab.significance import SignificanceMap, significance_map

TOKENS_PER_INPUT = 8  # fewer per input and modality make noisy maps (METHOD 1)
ONLY_VISION = "only vision tokens exist in front of the decoder: weighting is off"
Refine = Callable[[dict[str, BinaryCodes]], Refinement]
Fitted = tuple[LinearCodes, Tensor, LinearReport]  # codes, their dense weight, what became of the linear


def quantize(
    lvlm: LVLM,
    recipe: Recipe,
    run_dir: str | Path | None = None,
    stop: threading.Event | None = None,
    *,
    samples: Sequence[Sample] | None = None,
    sensitivities: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    calibrated: Calibrated | None = None,
    progress: Listener | None = None,
) -> Iterator[LinearReport]:
    """Binarize the recipe's parts of `lvlm` in place, yielding a report per linear; an ended iterator leaves
    the binarized weights (dequantized) in `lvlm` and, given `run_dir`, a finished run there. A streamed model needs
    a `run_dir`; it holds one decoder block at a time, and afterwards reads what is binarized from the run.

    A directory that holds the same run, unfinished, is continued; reports of its finished linears come first.
    `stop` ends the loop between two linears (of those that share an input, after the last), or while samples and
    sensitivities are prepared: what is done is kept and can be continued. `samples` replace those of the recipe's
    source, `sensitivities` (of `sensitivities.maps`, same samples) save computing them again, and so does `calibrated`,
    of the full-precision model with this recipe's samples and split (it then stands for `samples` too);
    `progress(stage, fraction)` hears about the work between reports. Of several processes (distributed.py) the one that
    leads writes the run, and the others take part with the same arguments. Raises SabError for an invalid recipe, a
    foreign or damaged directory, a full disk, and weights or activations that are not finite.
    """
    recipe.validate()
    if calibrated is not None and (calibrated.split, calibrated.lvlm.fingerprint) != (recipe.split, lvlm.fingerprint):
        raise SabError("The calibration that was handed over is of another split or model; leave it out.")
    if stop is not None and distributed.size() > 1:
        raise ValueError("several processes cannot be stopped between two linears")
    names = chosen_linears(lvlm, recipe)
    tell = progress or silent
    distributed.check_alike("weights", lvlm.fingerprint)
    run = runs.start(run_dir, recipe, lvlm, names) if run_dir is not None and distributed.leads() else None
    fallback = partial(_note_host, run)
    if lvlm.streamed is not None and run_dir is None:
        raise SabError("A streamed model has no room for what is binarized; name a directory for the run.")
    if _binarized(lvlm):
        raise SabError("This model has been binarized before; load it afresh, or copy the full-precision one.")
    if run is not None and run.finished:
        run.verify()
    finished = _finished(lvlm, run, names, together=recipe.refine_epochs > 0)
    yield from finished.values()
    if run_dir is not None and len(finished) == len(names):
        if run is not None:
            run.apply(lvlm)
            if not run.finished:  # it ended between its last linear and its manifest
                _finish(run)
        return
    prepare = partial(_tell_unless_stopped, stop, tell)
    known = calibrated
    if known is None:
        chosen = samples if samples is not None else _chosen(run, recipe)
        known = Calibrated(lvlm, chosen, recipe.split, progress=prepare, fallback=fallback)
    drawn = calibration.as_set(known.samples)
    distributed.check_alike("calibration samples", drawn.fingerprint)
    if run is not None:
        runs.settle_calibration(run, drawn)
    decoder = [name for name in names if lvlm.info[name].part == "decoder"]
    outside = [name for name in names if name not in decoder]
    given = {recipe.sensitivity: dict(sensitivities)} if sensitivities is not None else {}
    found: Maps = {}
    try:
        prepare("calibration samples", 0.0)
        if decoder:
            tokens: dict[str, int] = {}
            for modality in ("language", "vision"):
                own = sum(int(getattr(batch, modality).sum()) for batch in known.batches)
                tokens[f"tokens_{modality}"] = distributed.total_count(own)
                _warn_of_few_tokens(lvlm, decoder, modality, tokens[f"tokens_{modality}"])
            if run is not None:
                runs.settle_calibration(run, drawn, **tokens)
            found = _all_maps(known, recipe, run, run_dir is not None, decoder, given, prepare)
    except _Stopped:
        if run is not None:
            runs.log_event(run, "stopped", done=len(finished), total=len(names))
        return
    if run is not None:
        runs.log_event(run, "started", done=len(finished), total=len(names))
    work = _Work(lvlm, recipe, run, dict(finished), found, _Clock(lvlm, names, finished), stop, tell, fallback)
    if outside:
        with lvlm.holding_front():
            pictures = picture_batches(lvlm, known.samples)
            for _, block in groupby(outside, lambda name: (lvlm.info[name].part, lvlm.info[name].block)):
                if not (yield from work.block(list(block), partial(through_tower, lvlm, pictures, fallback=fallback))):
                    return
            known = Calibrated(lvlm, known.samples, recipe.split, 0, tell, fallback)  # the pictures have changed
            if decoder:
                _ = known.batches  # while the binarized tower is there
    last = max((lvlm.info[name].block for name in decoder), default=-1)
    epochs, judged = recipe.refine_epochs, METHODS[recipe.method].judged
    if decoder:
        known.rewind()
    behind: list[Batch] | None = None  # None while no block before is binarized: what full precision has is there then
    for index in range(last + 1):
        inside = [name for name in decoder if lvlm.info[name].block == index]
        if not inside and behind is None:
            continue
        with lvlm.holding_block(index):
            entered = known.before(index) if behind is None else behind
            refine: Refine | None = None
            if epochs:
                full = known.before(index + 1)  # before any weight of this block is replaced
                refine = partial(refine_block, lvlm, index, entered, full, epochs=epochs, seed=recipe.seed)
            collect = partial(_moments, lvlm, index, entered, judged, fallback)
            if behind is None and known.keeps:
                collect = partial(known.moments, index, judged=judged)
            if not (yield from work.block(inside, collect, refine)):
                return
            if index < last:
                tell(f"block {index}, binarized", work.clock.share)
                behind = through_block(lvlm, index, entered, [])[1]
    if run is not None:
        _finish(run)
        if lvlm.streamed is not None:
            run.apply(lvlm)


class _Stopped(Exception):
    """The work was to end before the first linear was fitted."""


def _tell_unless_stopped(stop: threading.Event | None, tell: Listener, stage: str, share: float) -> None:
    if stop is not None and stop.is_set():
        raise _Stopped
    tell(stage, share)


def _finish(run: Run) -> None:
    runs.log_event(run, "finished", seconds=round(run.seconds, 3))
    runs.write_manifest(run)


@dataclass
class _Work:
    """What the loop over blocks needs at every block; `said` holds what was warned of once."""

    lvlm: LVLM
    recipe: Recipe
    run: Run | None
    finished: dict[str, LinearReport]
    found: Maps
    clock: _Clock
    stop: threading.Event | None
    tell: Listener
    fallback: Fallback
    said: set[str] = field(default_factory=set)

    def block(
        self,
        inside: list[str],
        collect: Callable[[list[str]], dict[str, Moments]],
        refine: Refine | None = None,
    ) -> Generator[LinearReport, None, bool]:
        """Collect, fit and replace the linears `inside` one block; False where `stop` left some undone.

        With `refine` they are stored and reported when all of them are fitted and refined together.
        """
        waiting = [name for name in inside if name not in self.finished]
        # kept aside until the block is fitted: a continued run must collect on the original weights too
        dense = {name: self._stored(name).dense() for name in inside if name in self.finished}
        if waiting:
            self.tell(f"block {self.lvlm.info[waiting[0]].block}, Hessians", self.clock.share)
        # of a block that was begun before all inputs are looked at: its stacks are fitted whole, as they first were
        moments = collect(inside) if waiting else {}
        fits: dict[str, tuple[LinearCodes, LinearReport]] = {}
        for codes, weight, report in self._fits(waiting, moments):
            self._say_what_is_unusual(report)
            if refine is not None:
                fits[report.name] = codes, report
                continue
            if self.run is not None:
                runs.store_linear(self.run, report, codes)
            dense[report.name] = weight.to(self.lvlm.linears[report.name].weight.dtype)
            yield report
        if fits and len(fits) == len(waiting) and refine is not None:
            self.tell(f"block {self.lvlm.info[waiting[0]].block}, codes refined together", self.clock.share)
            binary = {
                name: codes.to(self.lvlm.device)  # the host may have fitted some
                for name, (codes, _) in fits.items()
                if isinstance(codes, BinaryCodes)
            }
            refined = self._refined(binary, refine)
            for name, (_, report) in fits.items():
                dense[name] = refined[name].dense()
                measure = partial(self._loss, name, moments[name], dense[name])
                loss = with_host(f"{name}, its loss", measure, self.lvlm.device, self.fallback)
                report = replace(report, relative_loss=report.relative_loss if loss is None else loss)
                if self.run is not None:
                    runs.store_linear(self.run, report, refined[name])
                yield report
        for name, weight in dense.items():
            runs.put_weight(self.lvlm, name, weight)
        if len(dense) < len(inside) and self.run is not None:
            runs.log_event(self.run, "stopped", done=len(self.run.reports), total=self.clock.total)
        return len(dense) == len(inside)

    def _refined(self, codes: dict[str, BinaryCodes], refine: Refine) -> dict[str, BinaryCodes]:
        """The block's codes refined, or as they are where the device has no memory for its gradients: on the host a
        large block would take hours. Several processes must take their steps together, so there it is an error."""
        try:
            return refine(codes).codes
        except torch.cuda.OutOfMemoryError as error:
            if distributed.size() > 1:
                raise SabError("The device has no memory to refine a block; leave it out with --refine 0.") from error
        torch.cuda.empty_cache()
        block = self.lvlm.info[next(iter(codes))].block
        warnings.warn(
            f"block {block} is left as it was fitted: the device has no memory to refine its codes together.",
            stacklevel=2,
        )
        if self.run is not None:
            runs.log_event(self.run, "out_of_memory", not_refined=block)
        return codes

    def _stored(self, name: str) -> LinearCodes:
        """Codes of a linear that was finished before, which the leader has."""
        if self.run is not None and distributed.size() == 1:
            return self.run.codes(name)
        packed = pack(self.run.codes(name)) if self.run is not None else ({}, {})
        return unpack(*distributed.hand_round(*packed))

    def _fits(self, waiting: Sequence[str], moments: Mapping[str, Moments]) -> Iterator[Fitted]:
        """Fit linears in their order, those of one input in one go, until `stop`."""
        by_input: dict[int, list[str]] = {}
        for name in self.clock.weights:  # all that is to be fitted, in its order
            if name in moments:
                by_input.setdefault(id(moments[name]), []).append(name)
        stacks = [names for names in by_input.values() if any(name in waiting for name in names)]
        fits = self._own_fits(stacks, moments) if distributed.size() == 1 else self._shared_fits(stacks, moments)
        for codes, weight, report in fits:
            if report.name not in waiting:
                continue
            self.clock.count(report.name)
            counted = replace(report, done=self.clock.done, eta_seconds=self.clock.eta)
            yield codes, weight, counted

    def _own_fits(self, stacks: Sequence[list[str]], moments: Mapping[str, Moments]) -> Iterator[Fitted]:
        for names in stacks:
            if self.stop is not None and self.stop.is_set():
                return
            self.tell(names[0], self.clock.share)
            yield from self._fit(names, moments[names[0]])

    def _shared_fits(self, stacks: Sequence[list[str]], moments: Mapping[str, Moments]) -> Iterator[Fitted]:
        """Fit the stacks that are dealt to this process, then hand all linears round."""
        costs = []
        for names in stacks:
            shapes = [self.lvlm.linears[name].weight.shape for name in names]
            columns = shapes[0][1]
            costs.append(sum(rows for rows, _ in shapes) * columns**2 + columns**3)
        owners = distributed.deal(costs)
        dealt = [names for names, owner in zip(stacks, owners, strict=True) if owner == distributed.rank()]
        own = {fitted[2].name: fitted for fitted in self._own_fits(dealt, moments)}
        for names, owner in zip(stacks, owners, strict=True):
            for name in names:
                tensors: dict[str, Tensor] = {}
                said: dict[str, Any] = {}
                if name in own:
                    tensors, said["codes"] = pack(own[name][0])
                    said["report"] = asdict(own[name][2])
                tensors, said = distributed.hand_round(tensors, said, owner)
                codes = unpack(tensors, said["codes"])
                yield codes, codes.dense(), LinearReport.from_json(said["report"])

    def _fit(self, names: list[str], moments: Moments) -> list[Fitted]:
        """Fit linears of one input, on the host where the device has no room for them and their Hessian."""
        maps = [self.found.get(name) for name in names]

        def fit(device: torch.device) -> list[tuple[LinearFit, SignificanceMap]]:
            return _fit(self.lvlm, self.recipe, names, moments, maps, self._factored(names[0], moments, device))

        what = f"{', '.join(names)}, {'its' if len(names) == 1 else 'their'} fit"
        fits = with_host(what, fit, self.lvlm.device, self.fallback)
        return [
            (
                fitted.codes,
                fitted.weight,
                _report(self.lvlm, name, moments, fitted, significance, found is None, self.clock),
            )
            for name, found, (fitted, significance) in zip(names, maps, fits, strict=True)
        ]

    def _factored(self, name: str, moments: Moments, device: torch.device) -> FactoredHessian:
        """The compensation Hessian of the linears that share their moments with this one, factored."""
        hessian = _compensation_hessian(self.recipe, moments, self.found.get(name), device)
        try:
            return factor_hessian(hessian, self.recipe.damping)
        except SabError as refusal:
            raise SabError(f"{name}: {refusal}") from refusal

    def _loss(self, name: str, moments: Moments, dense: Tensor, device: torch.device) -> float | None:
        """tr(ΔHΔᵀ)/tr(WHWᵀ) of other weights [n, m]; None where the linear's inputs are all zero."""
        hessian = _compensation_hessian(self.recipe, moments, self.found.get(name), device)
        weight = self.lvlm.linears[name].weight.detach().to(device).float()
        energy = quadratic(weight, hessian)
        return quadratic(weight - dense.to(device), hessian) / energy if energy > 0 else None

    def _say_what_is_unusual(self, report: LinearReport) -> None:
        if report.part != "decoder" and "few " + report.part not in self.said:
            self.said.add("few " + report.part)
            same = [name for name in self.clock.weights if self.lvlm.info[name].part == report.part]
            _warn_of_few_tokens(self.lvlm, same, "vision", report.tokens_vision)
        if report.damping_used is not None and report.damping_used > self.recipe.damping:
            self._say_once(
                "damping",
                f"{report.name}: its Hessian took a damping of {report.damping_used:g} instead of "
                f"{self.recipe.damping:g} to become positive definite; the reports tell of any other linear.",
            )
        if self.recipe.bits is not None and report.bits_all_in > self.recipe.bits:
            self._say_once(
                "budget",
                f"{report.name}: {report.bits_all_in:.2f} bits a weight are the fewest that this format stores in a "
                f"layer of its size, more than the budget of {self.recipe.bits:g}; the same may hold for others.",
            )
        if report.switched_off is not None and METHODS[self.recipe.method].uses_significance:
            self._say_once(report.switched_off, f"{report.name}: {report.switched_off}; the same may hold for others.")

    def _say_once(self, key: str, text: str) -> None:
        if key not in self.said:
            self.said.add(key)
            warnings.warn(text, stacklevel=2)


def _chosen(run: Run | None, recipe: Recipe) -> Sequence[Sample]:
    """The samples of the recipe's source. Where there are none, a run that has just been begun leaves nothing behind,
    so that its directory can be named again with another source."""
    try:
        return calibration.choose(recipe.calibration, recipe.samples, recipe.seed, recipe.split)
    except SabError:
        if run is not None and not run.reports and "calibration" not in run.header:
            run.withdraw()
        raise


def _all_maps(
    known: Calibrated,
    recipe: Recipe,
    run: Run | None,
    kept: bool,
    names: Sequence[str],
    given: Mapping[str, Maps],
    tell: Listener,
) -> Maps:
    """The recipe's sensitivities: given, or stored in the run, or computed. Where a run is `kept`, by this process or
    the one that leads, it keeps input ones too."""
    kinds = ("input", recipe.sensitivity) if kept else (recipe.sensitivity,)
    found: Maps = {}
    for kind in dict.fromkeys(kinds):
        found = _stored_maps(run, kind)
        if any(name not in found for name in names):
            found = given[kind] if kind in given else known_maps(known, names, kind, recipe.damping, tell)
            if any(name not in found for name in names):
                raise SabError("The given sensitivities do not cover every linear of the recipe.")
            if run is not None:
                runs.store_sensitivities(run, kind, {name: found[name] for name in names})
    return found


def _stored_maps(run: Run | None, kind: str) -> Maps:
    """Sensitivities that the leader's run holds, for every process."""
    sides = ("language", "vision")
    own = run.sensitivities(kind) if run is not None else {}
    if distributed.size() == 1:
        return own
    tensors = {f"{name}.{side}": pair[place] for name, pair in own.items() for place, side in enumerate(sides)}
    found = distributed.hand_round(tensors, {})[0]
    names = [key.removesuffix(".language") for key in found if key.endswith(".language")]
    return {name: (found[f"{name}.language"], found[f"{name}.vision"]) for name in names}


def _binarized(lvlm: LVLM) -> bool:
    if lvlm.streamed is not None:
        return bool(lvlm.streamed.replaced)
    return fingerprint(lvlm.model.config, lvlm.linears.items()) != lvlm.fingerprint


def _moments(
    lvlm: LVLM, index: int, entered: Sequence[Batch], judged: bool, fallback: Fallback, names: Sequence[str]
) -> dict[str, Moments]:
    groups = groups_of(entered, judged)
    return through_block(lvlm, index, entered, names, groups, fallback=fallback, to_the_end=False)[0]


def _note_host(run: Run | None, what: str) -> None:
    """The host takes over what the device has no memory for: a warning, and a line in the run's log."""
    warn_of_host(what)
    if run is not None:
        runs.log_event(run, "out_of_memory", on_host=what)


def _warn_of_few_tokens(lvlm: LVLM, names: Sequence[str], modality: str, tokens: int) -> None:
    widest = max(lvlm.linears[name].in_features for name in names)
    if tokens < TOKENS_PER_INPUT * widest:
        warnings.warn(
            f"{tokens} {modality} tokens calibrate linears of up to {widest} inputs; "
            f"at least {TOKENS_PER_INPUT * widest} are advised (more samples).",
            stacklevel=3,
        )


def _finished(lvlm: LVLM, run: Run | None, names: Sequence[str], together: bool) -> dict[str, LinearReport]:
    """Reports of the linears that need not be fitted again; `together`: only those of whole blocks."""
    done = run.reports if run is not None else {}
    if distributed.size() > 1:
        stored = distributed.hand_round({}, {name: asdict(report) for name, report in done.items()})[1]
        done = {name: LinearReport.from_json(values) for name, values in stored.items()}
    if not together:
        return done
    place = {name: (lvlm.info[name].part, lvlm.info[name].block) for name in names}
    broken = {place[name] for name in names if name not in done}
    return {name: report for name, report in done.items() if place[name] not in broken}


def _compensation_hessian(
    recipe: Recipe, moments: Moments, sensitivity: tuple[Tensor, Tensor] | None, device: torch.device
) -> Tensor:
    """H [m, m] of a language and a vision accumulator on a device, mixed by the recipe's beta in the decoder; mixed
    where the sums are, so that the device holds one matrix of those of a streamed model."""
    language, vision = (group.to(HOST) if device == HOST else group for group in moments[:2])
    beta = recipe.beta if sensitivity is not None else None
    return combine(language.hessian, vision.hessian, language.tokens, vision.tokens, beta).to(device)


def _fit(
    lvlm: LVLM,
    recipe: Recipe,
    names: Sequence[str],
    moments: Moments,
    maps: Sequence[tuple[Tensor, Tensor] | None],
    hessian: FactoredHessian,
) -> list[tuple[LinearFit, SignificanceMap]]:
    """Fit linears of one input on the device of their Hessian. Without a sensitivity, in front of the decoder, there is
    vision alone, hence no map."""
    device = hessian.factor.device
    weights = [lvlm.linears[name].weight.detach().to(device).float() for name in names]
    inputs = torch.ones(weights[0].shape[1], device=device)
    significances = []
    for name, weight, sensitivity in zip(names, weights, maps, strict=True):
        try:
            significances.append(significance_map(weight, *(sensitivity or (0 * inputs, inputs)), recipe.thresholds))
        except SabError as refusal:
            raise SabError(f"{name}: {refusal}") from refusal
    held_out = moments[2:]
    unseen = _compensation_hessian(recipe, held_out, maps[0], device) if held_out else None
    if unseen is not None and not bool(unseen.any()):
        unseen = None  # too few samples to hold any out
    fit = partial(fit_linears, hessian=hessian, method=recipe.method, settings=recipe.fit_settings, held_out=unseen)
    try:
        fits = fit(weights, significances=significances, names=names)
    except torch.cuda.OutOfMemoryError:
        if len(names) == 1:
            raise
        fits = []
    if not fits:  # there may be room for one after the other
        torch.cuda.empty_cache()
        each = zip(weights, significances, names, strict=True)
        fits = [fit([weight], significances=[found], names=[name])[0] for weight, found, name in each]
    return list(zip(fits, significances, strict=True))


def _report(
    lvlm: LVLM,
    name: str,
    moments: Moments,
    fit: LinearFit,
    significance: SignificanceMap,
    only_vision: bool,
    clock: _Clock,
) -> LinearReport:
    """Describe what became of a linear that `clock` is about to count."""
    info, bits = lvlm.info[name], count_bits(fit.codes)
    language, vision = moments[:2]
    return LinearReport(
        name=name,
        block=info.block,
        kind=info.kind,
        shape=fit.codes.shape,
        relative_loss=fit.relative_loss,
        salient_fraction=fit.salient_fraction,
        bits_nominal=bits.nominal,
        bits_all_in=bits.all_in,
        bytes=bits.bytes,
        unimodal_ratio=significance.unimodal_ratio,
        counts=significance.counts(),
        seconds=fit.seconds,
        tokens_language=language.tokens,
        tokens_vision=vision.tokens,
        done=clock.done,
        total=clock.total,
        eta_seconds=clock.eta,
        part=info.part,
        damping_used=fit.damping_used,
        switched_off=ONLY_VISION if only_vision else significance.switched_off,
    )


class _Clock:
    """Counts finished linears and estimates the remaining time from the weights fitted since the start."""

    def __init__(self, lvlm: LVLM, names: Sequence[str], finished: Iterable[str]) -> None:
        self.weights = {name: lvlm.linears[name].weight.numel() for name in names}
        self.total = len(names)
        self.before = sum(self.weights[name] for name in finished)
        self.counted = 0
        self.done = len(list(finished))
        self.started = time.perf_counter()

    def count(self, name: str) -> None:
        """`name` is fitted."""
        self.counted += self.weights[name]
        self.done += 1

    @property
    def share(self) -> float:
        """Fitted share of all weights, 0 to 1."""
        return (self.before + self.counted) / sum(self.weights.values())

    @property
    def eta(self) -> float:
        """Seconds until the last linear, at the pace so far."""
        left = sum(self.weights.values()) - self.before - self.counted
        return (time.perf_counter() - self.started) * left / max(1, self.counted)


def chosen_linears(lvlm: LVLM, recipe: Recipe) -> list[str]:
    """Names to binarize, in forward order. SabError for a part or a name that the model does not have."""
    available = [name for name in lvlm.linears if lvlm.info[name].part in recipe.parts]
    absent = [part for part in recipe.parts if part not in {lvlm.info[name].part for name in available}]
    if absent:
        raise SabError(f"No linears of the {lvlm.family} family are known as its {absent[0]}; choose other parts.")
    if recipe.linears is None:
        return available
    unknown = [name for name in recipe.linears if name not in available]
    if unknown:
        raise SabError(
            f"There is no linear {unknown[0]!r} in the {' or the '.join(recipe.parts)}; see `sab.load(...).linears`."
        )
    return [name for name in available if name in recipe.linears]
