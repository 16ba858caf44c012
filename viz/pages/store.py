"""What every page of the process shares: the model, the runs, and bounded caches of what follows from them.

One `Store` serves all visitors. It holds tensors; `gr.State` holds only a `Selection`, which is ids and
numbers. torch and transformers are imported on first use, so the page is up before they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from viz.pages.bounded import Bounded
from viz.pages.machine import Machine
from viz.pages.offers import title
from viz.pages.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from sab.models import LVLM
    from sab.runs import Run
    from sab.significance import SignificanceMap, Thresholds
    from viz.pages.selection import Selection

SMALL_MODEL = 100_000_000  # parameters; of a larger one nothing is computed before somebody asks for it
FISHER_SAMPLES = 256  # calibration samples of the Fisher maps that the page computes itself


def version(run: Run) -> str:
    """What caches know a run by: its id, its model, and a digest that changes when a layer of it is finished or made
    anew, for a run may be resumed, or deleted and made again under its name."""
    reports = [vars(report) for report in run.reports.values()]
    content = json.dumps([run.id, run.fingerprint, reports], sort_keys=True, default=str)
    return f"{run.id}@{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class PackedModel:
    """A model that computes on the bits of a run: `kernel` as the runtime names it, `resident_bytes` of everything that
    the model holds."""

    lvlm: LVLM
    kernel: str
    resident_bytes: int


class Store:
    """One model, its runs and what is derived from them, shared by all visitors of its page. `place` is what is loaded:
    of a model of the hub the folder that it was downloaded into."""

    def __init__(
        self,
        model: str | None = None,
        run_directories: Sequence[Path] = (),
        lvlm: LVLM | None = None,
        machine: Machine | None = None,
        place: str | None = None,
    ) -> None:
        self.model = model
        self.place = place or model
        self.machine = machine or Machine()
        self.device_lock = self.machine.device_lock
        self.jobs = self.machine.jobs
        self.gate = self.machine.gate
        self._run_directories = tuple(run_directories)
        self._lvlm = lvlm  # where it is loaded already
        self._lvlm_lock = threading.Lock()
        self._fingerprint = "" if lvlm is None else lvlm.fingerprint
        self._caches: list[Bounded] = []
        self._prepared = False
        self._runs_lock = threading.Lock()
        self._runs: list[Run] = []
        self._runs_read = -math.inf
        self._binarized = self.kept(2)
        self._packed = self.kept(2)
        self._kernel_ready = threading.Event()
        self._maps = self.kept(64e6, cost=lambda found: found.partition.numel())  # 17 bytes a weight
        self._fisher: dict[str, tuple[Tensor, Tensor]] = {}
        self._fisher_work = Work()

    @property
    def model_name(self) -> str:
        """How the header calls the model, without loading it: a folder by its name alone."""
        return title(self.model)

    @property
    def is_embedded(self) -> bool:
        """Whether the model is of the drawn world, the one that ships here or a copy: its codebook lies beside it."""
        return self.model is None or (Path(self.model) / "codebook.safetensors").exists()

    @property
    def lvlm(self) -> LVLM:
        """The full-precision model; the first caller loads it, the others wait. SabError where it cannot be read or
        there is no room for it."""
        with self._lvlm_lock:
            found = self._lvlm
            if found is None:
                from sab import models

                with self.machine.loading:
                    if self.place is not None:  # the embedded model always fits
                        self.machine.make_room(self.model_name, self.place)
                    found = models.load(self.place)
                found.source = self.model or found.source
                self._lvlm, self._fingerprint = found, found.fingerprint
        self.machine.used(self)
        return found

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory already."""
        return self._lvlm is not None

    @property
    def fingerprint(self) -> str:
        """That of the model's weights, once they were in memory; "" before."""
        return self._fingerprint

    def kept(self, limit: float, cost: Callable[[Any], float] = lambda value: 1) -> Bounded:
        """A cache of things that were made from the model and go with it."""
        self._caches.append(Bounded(limit, cost))
        return self._caches[-1]

    def release(self) -> bool:
        """Let the model go, and what was made from it; whoever asks for it loads it again. Nothing happens while it is
        being loaded (False)."""
        if not self._lvlm_lock.acquire(blocking=False):
            return False
        try:
            self._lvlm = None
            self._fisher, self._fisher_work = {}, Work()
            for cache in self._caches:
                cache.clear()
        finally:
            self._lvlm_lock.release()
        free_unused()
        return True

    def load_in_background(self) -> None:
        """Start loading the model without making anybody wait; an error shows when the model is asked for."""

        def load() -> None:
            self.runs()  # first what the overview needs
            _ = self.lvlm
            from sab.packed import has_kernel

            if has_kernel(self.lvlm.device):  # compiled on the very first start, a matter of seconds
                self._kernel_ready.set()

        self._in_background("load-model", load)

    def prepare_runs(self) -> None:
        """Have the worker get ready for a first run, where the model is small. It takes a core for some seconds, so it
        waits until somebody looks at Binarize; later calls do nothing."""
        with self._lvlm_lock:
            if self._prepared:
                return
            self._prepared = True

        def prepare() -> None:
            if sum(weight.numel() for weight in self.lvlm.model.parameters()) <= SMALL_MODEL:
                from sab.recipes import Recipe

                self.jobs.prepare(Recipe(model=self.model), self.place)

        self._in_background("prepare-runs", prepare)

    @staticmethod
    def _in_background(name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except SabError as error:
                logging.getLogger(__name__).error("%s", error)  # the page says so too, where it is needed

        threading.Thread(target=run, name=name, daemon=True).start()

    def runs(self, fresh: bool = False) -> list[Run]:
        """All runs of the model, the shipped ones first; before its weights are known also those that only may be.
        Directories are read anew when the
        last look is older than a second, or at once with `fresh`: a run may just have ended."""
        from sab import runs

        with self._runs_lock:
            if fresh or time.monotonic() - self._runs_read > 1.0:
                self._runs = runs.list_runs(runs.ASSET_RUNS, *(self._run_directories or (runs.USER_RUNS,)))
                self._runs_read = time.monotonic()
            unknown = not self._fingerprint
            return [
                run
                for run in self._runs
                if self.made_from(run) or (unknown and run.directory.parent != runs.ASSET_RUNS)
            ]

    @property
    def new_runs(self) -> Path:
        """Where runs that visitors make are written."""
        if self._run_directories:
            return self._run_directories[0]
        from sab import runs

        return runs.USER_RUNS

    def run(self, run_id: str) -> Run:
        """The run of that id. Raises SabError when there is none."""
        if not run_id:
            raise SabError("There is no run yet: make one in Binarize.")
        for fresh in (False, True):  # a run that is younger than the last look is found by a new one
            for run in self.runs(fresh):
                if run.id == run_id:
                    return run
        raise SabError(f"There is no run “{run_id}” here: choose one from the list at the top.")

    def binarized(self, *run_ids: str) -> LVLM:
        """The model with the runs' dequantized weights in place, of later ones over those of earlier ones; at most two
        such models are kept."""
        found = [self.run(run_id) for run_id in run_ids]

        def build() -> LVLM:
            simulated = self.lvlm.copy()
            for run in found:
                run.apply(simulated)
            return simulated

        return self._binarized.get(tuple(map(version, found)), build)

    def packed(self, run_id: str) -> PackedModel | None:
        """The model with the linears of a run held as bits and multiplied by the C kernel; None where that is not ready
        (yet) or cannot hold one of them. At most two such models are kept."""
        if not self._kernel_ready.is_set():
            return None
        run = self.run(run_id)

        def build() -> PackedModel | None:
            from sab.packed import swap

            packed = self.lvlm.copy()
            swapped = swap(packed, run)
            if len(swapped.kernels) != 1 or "reference" in swapped.kernels:
                return None
            held = [*packed.model.parameters(), *packed.model.buffers()]
            size = sum(values.numel() * values.element_size() for values in held)
            return PackedModel(packed, next(iter(swapped.kernels)), size)

        return self._packed.get(version(run), build)

    def significance(self, run_id: str, linear: str, thresholds: Thresholds, kind: str = "input") -> SignificanceMap:
        """The exact map of one linear under any thresholds. Raises SabError for an unknown run or linear, and
        where nobody has computed this kind of sensitivity."""

        run = self.run(run_id)

        def build() -> SignificanceMap:
            from sab.significance import significance_map

            weight = self.weight(run, linear)
            found = self.sensitivity(run, linear, kind)
            if found is None:
                raise SabError(f"The {kind} sensitivity of this model has not been computed yet.")
            return significance_map(weight, *found, thresholds)

        return self._maps.get((version(run), linear, thresholds, kind), build)

    def sensitivity(self, run: Run, linear: str, kind: str) -> tuple[Tensor, Tensor] | None:
        """What the run holds, or what was computed in this process; None where neither is there. Where language cannot
        come, nothing for language and the same everywhere for vision."""
        if self.without_language(linear):
            import torch

            inputs = self.lvlm.linears[linear].weight.shape[1]
            return torch.zeros(inputs), torch.ones(inputs)
        found = run.sensitivity(linear, kind)
        if found is None and kind == "fisher" and run.fingerprint == self.lvlm.fingerprint:
            found = self._fisher.get(linear)
        return found

    def without_language(self, linear: str) -> bool:
        """Whether a linear lies before the decoder, where vision tokens alone pass."""
        info = self.lvlm.info.get(linear)
        return info is not None and info.part != "decoder"

    def made_from(self, run: Run) -> bool:
        """Whether a run is of the model that is open; before it is loaded, going by what the recipe names."""
        if self._fingerprint:
            return run.fingerprint == self._fingerprint
        return self.is_named(run.recipe.model)

    def is_named(self, model: str | None) -> bool:
        """Whether a recipe that names `model` means the open one, going by names."""
        if self.model is None or model is None:
            return self.model is model
        return model == self.model or Path(model).resolve() == Path(self.model).resolve()

    def first_kind(self, selection: Selection) -> str:
        """The sensitivity to show first: Fisher where the run holds it, for it differs within columns too."""
        run = next((run for run in self.runs() if run.id == selection.run), None)
        held = run is not None and run.sensitivity(selection.linear, "fisher") is not None
        return "fisher" if held else "input"

    def weight(self, run: Run, linear: str) -> Tensor:
        """Full-precision weight [n, m] of one linear of a run, float32, CPU. Raises SabError for an unknown
        name and for a run of another model."""
        module = self.lvlm.linears.get(linear)
        if module is None or linear not in run.names:
            raise SabError(f"The run has no layer “{linear}”: choose one from the grid.")
        if run.fingerprint != self.lvlm.fingerprint:
            raise SabError(
                f"The run “{run.name}” was made from another model than the one that is open: "
                "choose another run, or open that model by the name at the top."
            )
        return module.weight.detach().float().cpu()

    @property
    def fisher_work(self) -> Work:
        """How far the Fisher sensitivities are."""
        return self._fisher_work

    def compute_fisher(self, samples: int = FISHER_SAMPLES) -> None:
        """Start computing the Fisher sensitivities of all linears in the background, unless that is under way
        or done; `fisher_work` tells how far it is."""

        def compute() -> None:
            from sab import calibration, sensitivities

            lvlm = self.lvlm
            with self.device_lock:
                self._fisher = sensitivities.maps(
                    lvlm,
                    calibration.embedded(samples, 0),
                    sensitivity="fisher",
                    progress=lambda _, share: self._fisher_work.advance(share),
                )

        self._fisher_work.start(compute, "fisher")

    def resolve(self, selection: Selection) -> tuple[Selection, str]:
        """A selection that exists, and one sentence about what had to be replaced ('' when nothing)."""
        runs = self.runs()
        if not runs:
            return replace(selection, run="", linear="", pin_a="", pin_b=""), ""
        message = ""
        ids = {run.id for run in runs}
        first, second = (pin if pin in ids else "" for pin in (selection.pin_a, selection.pin_b))
        selection = replace(selection, pin_a=first, pin_b=second)
        run = next((run for run in runs if run.id == selection.run), None)
        if run is None:
            run = max(runs, key=lambda run: (self.made_from(run), run.finished, run.recipe.method == "sab"))
            if selection.run:
                message = f"The link names a run that is not here (“{selection.run}”); this is “{run.name}”."
        names = run.names
        linear = selection.linear
        if linear not in names:
            if linear:
                message = message or f"This run has no layer “{linear}”; showing its first one."
            decoder = (name for name, report in run.reports.items() if report.part == "decoder")
            linear = next(decoder, names[0] if names else "")
        return replace(selection, run=run.id, linear=linear), message


def free_unused() -> None:
    """Give memory that nothing refers to any more back to the system and the device."""
    import gc

    import torch

    from sab.memory import give_back

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back()
