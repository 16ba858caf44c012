"""Column-wise error feedback inside a block (Frantar et al. 2023): each column's error moves the ones after it.

    err_i = (w_i - stored(w_i)) / U_ii,    w_j -= err_i U_ij for j > i

Between blocks the driver's exact compensation is the same feedback, as the errors satisfy `W_b - W_hat_b = err
U_bb`. Columns are walked one by one because each depends on the last, all rows at once; on a CUDA device a kernel
(`walk.py`) walks them in one launch, with the same result.

What is kept of a column is a rule: `Levels` (gptq), `Kept` (pb-llm) or `Sums` (sab-h). A rule is called with a column
[n] and its index.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sab.binarizers.rtn import nearest_levels
from sab.binarizers.signs import as_float, positive
from sab.devices import takes_triton

WIDEST = 4096  # columns of a block that the kernel takes


@dataclass(frozen=True)
class Levels:
    """The nearest of 2^bits levels of each row: `step` and `zero` float [n]."""

    step: Tensor
    zero: Tensor
    bits: int

    def __call__(self, column: Tensor, index: int) -> Tensor:
        return self.step * (nearest_levels(column, self.step, self.zero, self.bits) - self.zero)


@dataclass(frozen=True)
class Kept:
    """The nearest level where `kept` bool [n, k], else mean and scale with a sign: float [n] each."""

    levels: Levels
    kept: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, column: Tensor, index: int) -> Tensor:
        sign = as_float(positive(column - self.mean))
        return torch.where(self.kept[:, index], self.levels(column, index), self.mean + self.scale * sign)


@dataclass(frozen=True)
class Sums:
    """The nearest sum of two signed magnitudes: `larger`, `smaller` [k, groups, n], one or two groups."""

    larger: Tensor
    smaller: Tensor

    def __call__(self, column: Tensor, index: int) -> Tensor:
        return nearest_sum(column, self.larger[index], self.smaller[index])[0]


Rule: TypeAlias = Levels | Kept | Sums


def nearest_sum(target: Tensor, larger: Tensor, smaller: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest sum of signed magnitudes to each `target` [...], and whether group 1 has it; magnitudes are
    [groups, ...]. The levels lie symmetrically around 0, so the search is one among magnitudes."""
    size = target.abs()
    sums = larger + torch.copysign(smaller, size - larger)
    if len(sums) == 1:
        return torch.copysign(sums[0], target), torch.zeros_like(target, dtype=torch.bool)
    low, high = sums
    nearer = (size - high).abs() < (size - low).abs()
    return torch.copysign(torch.where(nearer, high, low), target), nearer


def settle(weight: Tensor, inverse_factor: Tensor, stored: Rule) -> Tensor:
    """Each column of `weight` [n, k] as it stands when its turn comes, [n, k]; U_bb is `inverse_factor`.

    `stored` says what is kept of a column. Encoding the result with the same rule gives the codes.
    """
    if weight.shape[1] <= WIDEST and takes_triton(weight.device):
        return settle_in_one_launch(weight, inverse_factor, stored)
    return settle_by_columns(weight, inverse_factor, stored)


def settle_by_columns(weight: Tensor, inverse_factor: Tensor, stored: Rule) -> Tensor:
    """`settle` in torch, on any device."""
    # [k, n], so that the walk touches contiguous memory; a copy also where one row already is contiguous. Of the two
    # zeros only +0 is left, whose sign is that of its bit.
    columns = weight.T.clone(memory_format=torch.contiguous_format).add_(0.0)
    for index in range(columns.shape[0]):
        error = (columns[index] - stored(columns[index], index)) / inverse_factor[index, index]
        columns[index + 1 :] -= inverse_factor[index, index + 1 :, None] * error
    return columns.T.contiguous()


def settle_in_one_launch(weight: Tensor, inverse_factor: Tensor, stored: Rule) -> Tensor:
    """`settle` as one Triton kernel, at most WIDEST columns."""
    from sab.binarizers import walk  # here, so that nothing needs Triton before it is used

    if isinstance(stored, Sums):
        return walk.settle(weight, inverse_factor, walk.SUMS, stored.larger.shape[1], stored.larger, stored.smaller)
    levels = stored if isinstance(stored, Levels) else stored.levels
    highest = 2**levels.bits - 1
    if isinstance(stored, Levels):
        return walk.settle(weight, inverse_factor, walk.LEVELS, highest, levels.step, levels.zero)
    kept = stored.kept.to(torch.uint8)
    return walk.settle(
        weight, inverse_factor, walk.KEPT, highest, levels.step, levels.zero, stored.mean, stored.scale, kept
    )
