"""Refine the scales of a whole block against the full-precision block's output (METHOD 8, ours).

Each linear was fitted by itself, and to inputs that already carry the error of the blocks before. Here the signs
stay, and the scales of all linears of a block move together so that the block's output comes near to what the
full-precision model has at this place:

    min  mean over batches of |f(x; scales) - y|² / |y|²      x: binarized predecessors, y: full precision

by Adam on the logarithms of the scales, so that they keep their sign and zeros stay zero. The stored format is the
same, so no bit is spent. Naive output matching is reported to hurt at one bit: one batch in eight is held out,
and the rounded result stays only if the loss fell there. Cost per epoch: one forward and backward pass of the
block over the calibration samples, and the dense weights once per batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sab import distributed
from sab.binarizers.codes import BinaryCodes
from sab.binarizers.sab_h import restore
from sab.capture import Batch, patched, replay_block
from sab.models import LVLM

HELD_OUT = 8  # one batch in so many is held out
RATE = 5e-3  # of the scales' logarithms; falls linearly to zero
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Refinement:
    """`codes` of the block's linears, refined or as they were; held-out relative error `before` and `after`."""

    codes: dict[str, BinaryCodes]
    before: float
    after: float


def is_held_out(position: int) -> bool:
    """Whether the batch at this position takes no part in fits."""
    return position % HELD_OUT == 1


def refine_block(
    lvlm: LVLM,
    index: int,
    batches: Sequence[Batch],
    targets: Sequence[Batch],
    codes: Mapping[str, BinaryCodes],
    epochs: int,
    seed: int = 0,
) -> Refinement:
    """Move the scales of `codes`, which are linears of decoder block `index`, for `epochs` over the batches.

    `batches` stand before the block (binarized predecessors), `targets` behind it (full precision). The model's
    own weights are left alone. A single batch leaves none to judge by: nothing is changed. Of several processes
    each has some of the batches and they take their steps in turn, so this takes as long as with one process.
    """
    places = range(distributed.total_count(len(batches)))
    held = [place for place in places if is_held_out(place)]
    fitted = [place for place in places if not is_held_out(place)]
    own = {batch.position: (batch, target) for batch, target in zip(batches, targets, strict=True)}

    def error(place: int) -> Tensor:
        batch, target = own[place]
        chosen = batch.language | batch.vision
        wanted = _states(target.hidden)[chosen].float()
        found = _states(replay_block(lvlm, index, batch))[chosen].float()
        return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)

    def judged(weights: Mapping[str, Tensor]) -> float:
        with torch.no_grad(), _weights(lvlm, weights):
            errors = sum(float(error(place)) for place in held if place in own)
        return float(distributed.total(torch.tensor(errors, dtype=torch.float64))) / len(held)

    if not held or not epochs:
        return Refinement(dict(codes), float("nan"), float("nan"))
    moved = {name: _Moved(linear) for name, linear in codes.items()}
    before = judged({name: linear.dense() for name, linear in codes.items()})
    optimizer = torch.optim.Adam([p for m in moved.values() for p in m.logarithms], lr=RATE, betas=BETAS)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * len(fitted)
    for step in range(steps):
        if step % len(fitted) == 0:
            shuffled = torch.randperm(len(fitted), generator=order).tolist()
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        place = fitted[shuffled[step % len(fitted)]]
        if place in own:
            with torch.enable_grad():
                weights = {name: linear.codes().dense() for name, linear in moved.items()}
                with _weights(lvlm, weights):
                    loss = error(place)
                loss.backward()
        _pool_gradients(optimizer)
        optimizer.step()
    refined = {name: linear.rounded() for name, linear in moved.items()}
    after = judged({name: linear.dense() for name, linear in refined.items()})
    return Refinement(refined if after < before else dict(codes), before, min(before, after))


def _pool_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give every process the gradients of the one that had the batch."""
    if distributed.size() > 1:
        for scale in optimizer.param_groups[0]["params"]:
            scale.grad = distributed.total(torch.zeros_like(scale) if scale.grad is None else scale.grad)


class _Moved:
    """Codes whose scales are multiplied by exp of trained logarithms."""

    def __init__(self, codes: BinaryCodes) -> None:
        self.start = codes
        self.scales = [*codes.row_scales(), *([] if codes.column_scale is None else [codes.column_scale.float()])]
        self.logarithms = [torch.zeros_like(scale, requires_grad=True) for scale in self.scales]

    def _now(self) -> tuple[Tensor, Tensor, Tensor | None]:
        moved = [scale * by.exp() for scale, by in zip(self.scales, self.logarithms, strict=True)]
        return moved[0], moved[1], moved[2] if len(moved) > 2 else None

    def codes(self) -> BinaryCodes:
        """Float scales that gradients reach."""
        row, second, column = self._now()
        return replace(self.start, row_scale=row, second_row_scale=second, column_scale=column, row_step=None)

    def rounded(self) -> BinaryCodes:
        """As they will be stored."""
        with torch.no_grad():
            return restore(self.start, *self._now())


@contextmanager
def _weights(lvlm: LVLM, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let linears compute with other weights while the context is open."""

    def product(weight: Tensor, bias: Tensor | None, inputs: Tensor, *_: Any) -> Tensor:
        return F.linear(inputs, weight.to(inputs.dtype), bias)

    with ExitStack() as stack:
        for name, weight in weights.items():
            linear = lvlm.linears[name]
            stack.enter_context(patched(linear, partial(product, weight, linear.bias)))
        yield


def _states(hidden: Any) -> Tensor:
    return hidden[0] if isinstance(hidden, tuple) else hidden
