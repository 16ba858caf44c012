"""`feedback.settle` as one Triton kernel: the columns one after the other, the rows all at once.

A program holds a few rows of the block in registers and walks its columns; what `settle` does in ten launches per
column is one launch per block. Every operation is rounded as in torch (no fused multiply-add, exact division, half to
even), so that the codes are the same bit for bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CELLS = 512  # of a program: rows times columns

LEVELS, KEPT, SUMS = range(3)


@triton.jit
def _level(column, step, zero, TOP: tl.constexpr):
    """The nearest of the levels step * (0 .. TOP, less zero)."""
    some = step > 0
    ratio = tl.where(some, tl.div_rn(column, tl.where(some, step, 1.0)), 0.0)
    ratio = tl.minimum(tl.maximum(ratio, -1048576.0), 1048576.0)  # far outside of the levels, exactly rounded below
    whole = (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: half to even, as torch rounds
    return step * (tl.minimum(tl.maximum(whole + zero, 0.0), TOP) - zero)


@triton.jit
def _settle(weight, factor, settled, one, two, three, four, mask, n, width, stride, KIND: tl.constexpr,
            SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """`weight` and `settled` [n, width], `factor` [width, width] with `stride` from row to row.

    LEVELS, KEPT: `one`, `two` step and zero [n], SIZE the highest level, `three`, `four` mean and scale [n] where not
    `mask` [n, width]. SUMS: `one`, `two` the larger and smaller magnitudes [width, SIZE, n].
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    live = rows < n
    inside = live[:, None] & (columns < width)[None, :]
    place = rows.to(tl.int64)[:, None] * width + columns[None, :]
    values = tl.load(weight + place, mask=inside, other=0.0) + 0.0
    if KIND != 2:
        step = tl.load(one + rows, mask=live, other=0.0)
        zero = tl.load(two + rows, mask=live, other=0.0)
    if KIND == 1:
        mean = tl.load(three + rows, mask=live, other=0.0)
        scale = tl.load(four + rows, mask=live, other=0.0)
    for index in range(width):
        column = tl.sum(tl.where((columns == index)[None, :], values, 0.0), 1)
        if KIND == 2:
            size = tl.abs(column)
            at = index * (SIZE * n) + rows
            larger, smaller = tl.load(one + at, mask=live, other=0.0), tl.load(two + at, mask=live, other=0.0)
            chosen = larger + tl.where(size >= larger, smaller, -smaller)
            if SIZE == 2:
                larger = tl.load(one + at + n, mask=live, other=0.0)
                smaller = tl.load(two + at + n, mask=live, other=0.0)
                high = larger + tl.where(size >= larger, smaller, -smaller)
                chosen = tl.where(tl.abs(size - high) < tl.abs(size - chosen), high, chosen)
            stored = tl.where(column >= 0, chosen, -chosen)
        else:
            stored = _level(column, step, zero, SIZE)
            if KIND == 1:
                kept = tl.load(mask + rows.to(tl.int64) * width + index, mask=live, other=0) != 0
                stored = tl.where(kept, stored, mean + tl.where(column - mean >= 0, scale, -scale))
        error = tl.div_rn(column - stored, tl.load(factor + index * (stride + 1)))
        later = (columns > index) & (columns < width)
        line = tl.load(factor + index * stride + columns, mask=later, other=0.0)
        values = tl.where(later[None, :], values - line[None, :] * error[:, None], values)
    tl.store(settled + place, values, mask=inside)


def settle(weight: Tensor, inverse_factor: Tensor, kind: int, size: int, *parameters: Tensor | None) -> Tensor:
    """As `feedback.settle` for float32 `weight` [n, k], k <= WIDEST, by the rule that `_settle` describes."""
    rows, width = weight.shape
    weight, factor = weight.contiguous(), inverse_factor
    if factor.stride(1) != 1:
        factor = factor.contiguous()
    settled = torch.empty_like(weight)
    wide = triton.next_power_of_2(width)
    together = max(1, CELLS // wide)
    given: list[Any] = [None if values is None else values.contiguous() for values in parameters]
    given += [None] * (5 - len(given))
    with torch.cuda.device_of(weight):
        _settle[(triton.cdiv(rows, together),)](
            weight, factor, settled, *given, rows, width, factor.stride(0), KIND=kind, SIZE=size, WIDTH=wide,
            ROWS=together, num_warps=1 if wide <= CELLS else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return settled
