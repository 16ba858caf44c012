"""Refine the codes of a whole block against the full-precision block's output (METHOD 8, ours).

Each linear was fitted by itself, and to inputs that already carry the error of the blocks before. Here the scales and
bits of all linears of a block move together so that the block's output comes near to what the full-precision model has
at this place:

    min  mean over batches of |f(x; scales, bits) - y|² / |y|²      x: binarized predecessors, y: full precision

by Adam on the logarithms of the scales, so that they keep their sign and zeros stay zero, and on a latent number behind
each bit, whose sign is the bit and which takes the bit's own gradient (straight through; Bengio et al. 2013). A latent
number starts as far from 0 as the weight lies from the middle between the two values that its bit decides between, in
mean magnitudes of the row: bits that hardly mattered to the weight itself flip first. The stored format is the same, so
no bit is spent. Naive output matching is reported to hurt at one bit: one batch in eight is held out, and the rounded
result stays only if the loss fell there. Cost per epoch: one forward and backward pass of the block over the
calibration samples, and the dense weights twice per batch, once more with group bits; per bit 12 bytes of numbers and
moments stay while a block is refined.
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
from sab.binarizers.signs import as_float
from sab.capture import Batch, patched, replay_block
from sab.models import LVLM
from sab.packing import pack, unpack

HELD_OUT = 8  # one batch in so many is held out
RATE, BIT_RATE = 5e-3, 2.4e-2  # of the scales' logarithms, and of the numbers behind bits; both fall linearly to zero
NEAREST = 1e-3  # of a number behind a bit to 0, at the start
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
    """Move scales and bits of `codes`, which are linears of decoder block `index`, for `epochs` over the batches.

    `batches` stand before the block (binarized predecessors), `targets` behind it (full precision). The model's
    own weights are left alone. A single batch leaves none to judge by: nothing is changed. Of several processes
    each has some of the batches, and all take the step of each: this takes as long as with one process, and the
    exchange of the gradients.
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
    moved = {name: _Moved(linear, lvlm.linears[name].weight.detach()) for name, linear in codes.items()}
    before = judged({name: linear.dense() for name, linear in codes.items()})
    order = torch.Generator().manual_seed(seed)
    steps = epochs * len(fitted)
    for step in range(steps):
        if step % len(fitted) == 0:
            shuffled = torch.randperm(len(fitted), generator=order).tolist()
        place = fitted[shuffled[step % len(fitted)]]
        gradients: dict[str, Tensor] = {}
        if place in own:
            with torch.no_grad():
                weights = {name: linear.dense().to(lvlm.linears[name].weight.dtype) for name, linear in moved.items()}
            leaves = [weight.requires_grad_() for weight in weights.values()]
            large = _states(own[place][1].hidden).numel() ** 0.5  # float16 has no numbers as small as the gradients
            with torch.enable_grad(), _weights(lvlm, weights):
                found = torch.autograd.grad(large * error(place), leaves, allow_unused=True)
            gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
        for name, linear in moved.items():
            linear.step(_pooled(gradients.pop(name, None), lvlm.linears[name].weight), 1 - step / steps)
    refined = {name: _of_leader(linear.rounded()) for name, linear in moved.items()}
    after = judged({name: linear.dense() for name, linear in refined.items()})
    return Refinement(refined if after < before else dict(codes), before, min(before, after))


class _Moved:
    """Codes whose scales are multiplied by exp of trained logarithms, and whose bits are the signs of trained numbers:
    `latents` [n, m] or [n, c], by the name of their plane in the codes."""

    def __init__(self, codes: BinaryCodes, weight: Tensor) -> None:
        self.start = codes
        self.scales = [*codes.row_scales(), *([] if codes.column_scale is None else [codes.column_scale.float()])]
        self.logarithms = [torch.zeros_like(scale, requires_grad=True) for scale in self.scales]
        weight = weight.float()
        unit = weight.abs().mean(1, keepdim=True)
        unit = torch.where(unit > 0, unit, 1.0)
        self.latents: dict[str, Tensor] = {}
        for plane in ("first", "group", "second"):
            bits = getattr(codes, plane)
            if bits is None or not bits.numel():
                continue
            away = (weight - (codes.dense() + replace(codes, **{plane: ~bits}).dense()) / 2).abs() / unit
            away = away[:, codes.salient] if plane == "second" else away
            self.latents[plane] = (away.clamp_min(NEAREST) * as_float(bits)).requires_grad_()
        groups = [{"params": self.logarithms}, {"params": list(self.latents.values())}]
        # fused: without temporary copies of all numbers; eps: gradients may be of any size
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-20, fused=True)

    def step(self, gradient: Tensor | None, share: float) -> None:
        """Follow the `gradient` of the weights [n, m], in any unit, at a `share` of the rates. Linears take their steps
        one after the other, so that there is room for one graph of many terms a weight."""
        if gradient is not None:
            with torch.enable_grad():
                self.traced().backward(gradient.float())
        for group, rate in zip(self.optimizer.param_groups, (RATE, BIT_RATE), strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _now(self) -> tuple[Tensor, Tensor, Tensor | None]:
        moved = [scale * by.exp() for scale, by in zip(self.scales, self.logarithms, strict=True)]
        return moved[0], moved[1], moved[2] if len(moved) > 2 else None

    def _bits(self) -> BinaryCodes:
        """The first codes with the bits as they are now."""
        bits: dict[str, Any] = {plane: latent.detach() > 0 for plane, latent in self.latents.items()}
        return replace(self.start, **bits)

    def _codes(self) -> BinaryCodes:
        """The codes as they are now, with float scales."""
        row, second, column = self._now()
        return replace(self._bits(), row_scale=row, second_row_scale=second, column_scale=column, row_step=None)

    def dense(self) -> Tensor:
        """Weights [n, m] as they are now."""
        return self._codes().dense()

    def traced(self) -> Tensor:
        """`dense`, with gradients for the scales and for the numbers behind the bits."""
        codes = self._codes()

        def through(plane: str) -> Tensor:
            """Zeros that have the gradients of the bits, -1 or +1."""
            latent = self.latents.get(plane)
            return torch.zeros(1, device=codes.first.device) if latent is None else latent - latent.detach()

        weight = codes.with_signs(as_float(codes.first) + through("first"), as_float(codes.second) + through("second"))
        if codes.group is not None:
            with torch.no_grad():
                half = (weight - replace(codes, group=~codes.group).dense()) / 2 * as_float(codes.group)
                if not codes.splits_salient:
                    half = half.masked_fill(codes.salient, 0.0)
            weight = weight + through("group") * half
        return weight

    def rounded(self) -> BinaryCodes:
        """As they will be stored."""
        with torch.no_grad():
            return restore(self._bits(), *self._now())


def _pooled(gradient: Tensor | None, of: Tensor) -> Tensor | None:
    """The gradient of the one process that has one."""
    if distributed.size() == 1:
        return gradient
    return distributed.total(torch.zeros_like(of, dtype=torch.float32) if gradient is None else gradient.float())


def _of_leader(codes: BinaryCodes) -> BinaryCodes:
    """The codes of the process that leads: where machines differ, their steps may."""
    if distributed.size() == 1:
        return codes
    found = unpack(*distributed.hand_round(*pack(codes)))
    assert isinstance(found, BinaryCodes)
    return found.to(codes.first.device)


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
