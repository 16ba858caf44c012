"""Moments of the inputs of linears, and what full precision does with one set of calibration samples.

`through_block` and `through_tower` collect second moments per group of tokens (hessian.py) while they run a part of
the model. `Calibrated` answers the same for the full-precision model: what enters a block, and the moments there. Runs
that share samples may share it, and then neither the samples are read nor the blocks run again: a single linear is
refitted in the time of its fit. What it keeps is what a run without it computes, in the same order of sums, so the
codes are the same to the last bit.

Memory: the hidden states of all samples, once where nothing is kept and at every block where it is, and one m x m
matrix per distinct input and group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from sab import distributed
from sab.calibration import Sample
from sab.capture import Batch, capture, moved, reach_decoder, replay_block, rows_of, watching
from sab.errors import SabError
from sab.hessian import HessianAccumulator
from sab.memory import Fallback, warn_of_host, with_host
from sab.models import LVLM, Inputs
from sab.progress import Listener
from sab.refine import is_held_out

Maps = dict[str, tuple[Tensor, Tensor]]  # language and vision sensitivity by linear
Groups = Sequence[tuple[Tensor, ...]]  # per batch: the positions of each group of tokens, bool [B, S]
Moments = tuple[HessianAccumulator, ...]  # of one distinct input of a block, one per group


class Calibrated:
    """What the full-precision `lvlm` does with `samples`. `limit` bounds the bytes of states and moments that are kept
    for other runs, beside one set of sensitivities of each kind; where they would be more, only the block that was
    asked for last is kept, and blocks must be asked for in forward order and before their own weights are replaced.
    `batches`: what enters the decoder, where it is known already; the samples are then not read."""

    def __init__(
        self,
        lvlm: LVLM,
        samples: Sequence[Sample],
        split: str = "token",
        limit: float = 0,
        progress: Listener | None = None,
        fallback: Fallback = warn_of_host,
        batches: list[Batch] | None = None,
    ) -> None:
        self.lvlm = lvlm
        self.samples = samples
        self.split = split
        self.maps: dict[tuple[str, float], Maps] = {}  # by kind of sensitivity and damping; `sequential` fills it
        self._given = batches
        self._limit = limit
        self.progress = progress  # hears how far `batches` is
        self.fallback = fallback  # hears of sums that the host takes over
        self._reached: list[list[Batch] | None] = []  # what enters block 0, 1 …; None: dropped
        self._moments: dict[tuple[int, bool], dict[str, Moments]] = {}

    @cached_property
    def batches(self) -> list[Batch]:
        """What enters the decoder."""
        if self._given is not None:
            return self._given
        return capture(self.lvlm, self.samples, self.split, progress=self.progress)

    @cached_property
    def keeps(self) -> bool:
        """Whether what was computed is kept."""
        blocks = len(self.lvlm.blocks)
        first = self.batches[0].arguments["inputs_embeds"]
        states = sum(batch.language.numel() for batch in self.batches) * first.shape[-1] * first.element_size()
        linears, info = self.lvlm.decoder_linears, self.lvlm.info
        widths = {(info[name].block, linear.in_features) for name, linear in linears.items()}
        moments = sum(4 * width**2 for _, width in widths) * 8  # two groups, or four, of up to two inputs as wide
        return states * (blocks + 1) + moments <= self._limit

    def rewind(self) -> None:
        """Start again in front of the first block, where nothing is kept."""
        if not self.keeps:
            self._reached = []

    def before(self, index: int) -> list[Batch]:
        """The batches as they enter decoder block `index`; past the last block, as they leave it."""
        if not self._reached:
            self._reached.append(self.batches)
        while len(self._reached) <= index:
            self._advance(through_block(self.lvlm, len(self._reached) - 1, self._last(), [])[1])
        found = self._reached[index]
        if found is None:
            raise ValueError(f"what enters block {index} has not been kept")
        return found

    def moments(self, index: int, names: Sequence[str], judged: bool = False) -> dict[str, Moments]:
        """Moments of the named linears of decoder block `index`: by modality, or as `judged` has them."""
        if not self.keeps:
            entered = self.before(index)
            groups = groups_of(entered, judged)
            return through_block(
                self.lvlm, index, entered, names, groups, fallback=self.fallback, to_the_end=False
            )[0]
        if (index, judged) not in self._moments:
            entered = self.before(index)
            every = [name for name in self.lvlm.decoder_linears if self.lvlm.info[name].block == index]
            groups = groups_of(entered, judged)
            found, behind = through_block(self.lvlm, index, entered, every, groups, False, self.fallback)
            self._moments[index, judged] = found
            if len(self._reached) == index + 1:
                self._advance(behind)
        found = self._moments[index, judged]
        _check(found, names)
        return {name: found[name] for name in names}

    def _last(self) -> list[Batch]:
        last = self._reached[-1]
        assert last is not None  # only earlier ones are dropped
        return last

    def _advance(self, behind: list[Batch]) -> None:
        if not self.keeps:
            self._reached[-1] = None
        self._reached.append(behind)


def by_modality(batches: Sequence[Batch]) -> Groups:
    """Language and vision."""
    return [(batch.language, batch.vision) for batch in batches]


def groups_of(batches: Sequence[Batch], judged: bool) -> Groups:
    """Language and vision; `judged`: of the batches that are fitted to, then of those held out."""
    if not judged:
        return by_modality(batches)
    groups = []
    for batch in batches:
        here, none = (batch.language, batch.vision), (torch.zeros_like(batch.language),) * 2
        groups.append(none + here if is_held_out(batch.position) else here + none)
    return groups


def through_block(
    lvlm: LVLM,
    index: int,
    batches: Sequence[Batch],
    names: Sequence[str],
    groups: Groups | None = None,
    check: bool = True,
    fallback: Fallback = warn_of_host,
    *,
    to_the_end: bool = True,
) -> tuple[dict[str, Moments], list[Batch]]:
    """Run all batches through decoder block `index`: moments of the named linears by group of tokens (language and
    vision when left out), and the batches after it, none where the pass need not go on `to_the_end`. Sums for which the
    device has no room are kept on the host, and `fallback` hears of it. SabError where a linear took no part or saw NaN
    or infinity."""
    groups = by_modality(batches) if groups is None else groups
    linears = {name: lvlm.linears[name] for name in names}

    def run(device: torch.device) -> tuple[dict[str, Moments], list[Batch]]:
        moments: dict[str, Moments] = {}
        behind = []
        for batch, masks in zip(batches, groups, strict=True):
            with watching(linears, partial(_add, moments, masks, device), to_the_end=to_the_end):
                hidden = replay_block(lvlm, index, batch)
            if to_the_end:
                behind.append(replace(batch, hidden=moved(hidden, lvlm.rests_on)))
        return moments, behind

    with lvlm.holding_block(index), torch.no_grad():
        moments, behind = with_host(f"block {index}, sums of the Hessians", run, lvlm.device, fallback)
    _pool(moments)
    if check:
        _check(moments, names)
    return _resting(moments, lvlm.rests_on), behind


def through_tower(
    lvlm: LVLM, pictures: Sequence[Inputs], names: Sequence[str], fallback: Fallback = warn_of_host
) -> dict[str, Moments]:
    """Run all pictures through tower and projector: moments of the named linears, where every row is vision."""
    linears = {name: lvlm.linears[name] for name in names}

    def run(device: torch.device) -> dict[str, Moments]:
        moments: dict[str, Moments] = {}

        def see(together: list[str], inputs: Tensor) -> None:
            everywhere = torch.ones(inputs.shape[:-1], dtype=torch.bool, device=inputs.device)
            _add(moments, (~everywhere, everywhere), device, together, inputs)

        for batch in pictures:
            with watching(linears, see):
                reach_decoder(lvlm, lvlm.place(batch))
        return moments

    with lvlm.holding_front():
        moments = with_host(f"{names[0]} and others, sums of the Hessians", run, lvlm.device, fallback)
    _pool(moments)
    _check(moments, names)
    return _resting(moments, lvlm.rests_on)


def _pool(moments: Mapping[str, Moments]) -> None:
    """Add up the sums of all processes."""
    for shared in {id(shared): shared for shared in moments.values()}.values():
        for group in shared:
            group.pool(distributed.total)


def _resting(moments: dict[str, Moments], device: torch.device) -> dict[str, Moments]:
    """The same moments on a device; linears that share theirs still do."""
    distinct = {id(shared): shared for shared in moments.values()}
    there = {key: tuple(group.to(device) for group in shared) for key, shared in distinct.items()}
    return {name: there[id(shared)] for name, shared in moments.items()}


def _add(
    moments: dict[str, Moments],
    masks: tuple[Tensor, ...],
    device: torch.device,
    together: list[str],
    inputs: Tensor,
) -> None:
    """Add inputs [..., m] of linears that share them to their accumulators on `device`, one per mask [...]."""
    leader = together[0]
    if leader not in moments:
        fresh = tuple(HessianAccumulator(inputs.shape[-1], device) for _ in masks)
        moments.update(dict.fromkeys(together, fresh))
    for group, mask in zip(moments[leader], masks, strict=True):
        group.add(rows_of(inputs, mask, leader))


def _check(moments: Mapping[str, Moments], names: Sequence[str]) -> None:
    """SabError for the first linear that was never called, or that was given NaN or infinity."""
    for name in names:
        if name not in moments:
            raise SabError(f"The linear {name} took no part in the forward pass; leave it out of the recipe.")
        if not all(group.finite for group in moments[name]):
            raise SabError(f"{name}: its calibration activations hold NaN or infinity, or are too large to square.")
