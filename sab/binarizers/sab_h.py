"""SAB-H: codes and scales fitted in the metric of the layer's own inputs (METHOD 8, ours).

After the best compensation of later columns the error E of a block costs tr(E G Eᵀ), G = U_bb⁻¹ U_bb⁻ᵀ. At the
stored format of `sab`, or a smaller one, three steps in turn lower it:

    codes     scales fixed: columns left to right, each takes the nearest of its levels, and what is left over is
              carried into the columns after it (`feedback.settle`). Nearest means over groups as well: the
              group bit says which magnitude a weight takes, not on which side of a break-point it lies, so one
              bit plane more makes four levels, and a salient column has eight.
    rows      codes fixed: a row's scales by least squares in G, p <= 6 unknowns: (X G Xᵀ) r = X G w
    columns   one solve shared by all rows: (G ∘ YᵀY) c = Σ_i y_i ∘ G w_i, Y the block without column scales

Everything starts from the block as it entered. A round is kept only if it lowers `context.judge`, the loss on
inputs that the fit has not seen. Cost per round: one walk over k columns of n rows, and products of n p k².
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import BinaryCodes
from sab.binarizers.feedback import Sums, nearest_sum, settle
from sab.binarizers.signs import as_float, positive, to_half
from sab.structure import search_published

PATIENCE = 2  # rounds without a lower loss after which a block is done
SPLIT_STEPS = 8  # of the two-means that starts the groups
ROW_RIDGE, COLUMN_RIDGE = 1e-6, 1e-3  # relative to the diagonal; columns are pulled to what they were
COLUMN_SCALE_ROWS = 1024  # column scales are kept where they cost less than 1/64 bit a weight
LARGEST_INT8 = 127.0
HEADROOM = 1.5  # of the int8 range over the scales before any round


@dataclass(frozen=True)
class Layout:
    """What is stored for a whole linear, fixed before its first block is fitted.

    `bitmap`: two groups; `salient` bool [m], or None where each block searches as published; `row_step` f16 [n]
    for int8 row scales, or None for float16; `column_scale`: whether each column has one; `residual`: whether
    there are second scales, as any salient column needs.
    """

    bitmap: bool
    salient: Tensor | None
    row_step: Tensor | None
    column_scale: bool
    residual: bool

    def columns(self, here: slice) -> "Layout":
        """The layout of some of the columns."""
        return replace(self, salient=None if self.salient is None else self.salient[here])


@dataclass(frozen=True)
class _Levels:
    """Magnitudes of a block: `row` [slots, n], `second` [residuals, n], `column` [k]; `salient` bool [k]."""

    row: Tensor
    second: Tensor
    column: Tensor
    salient: Tensor

    @property
    def groups(self) -> int:
        return len(self.row) - len(self.second) if len(self.second) else len(self.row)

    def stored(self, step: Tensor | None) -> "_Levels":
        """As the file will hold them."""
        row, second = (_to_float(_to_stored(values, step), step) for values in (self.row, self.second))
        return _Levels(row, second, to_half(self.column).float(), self.salient)

    def magnitudes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Per group [groups, n, k]: the larger and the smaller magnitude of each weight's sum (the smaller is 0
        on ordinary columns), and whether the larger one is the first sign's."""
        groups = self.groups
        first = self.row[:groups, :, None].expand(-1, -1, len(self.column))
        second = torch.zeros_like(first)
        if len(self.second):
            first = torch.where(self.salient, self.row[groups:, :, None], first)
            second = torch.where(self.salient, self.second[:, :, None], second)
        first, second = first * self.column, second * self.column
        return torch.maximum(first, second), torch.minimum(first, second), first >= second


@dataclass(frozen=True)
class _Picked:
    """Codes of a block: `dense` [n, k], and bool [n, k] `first`, `group`, `second` (False on ordinary columns)."""

    dense: Tensor
    first: Tensor
    group: Tensor
    second: Tensor


def fit_block(weight: Tensor, context: BlockContext) -> BinaryCodes:
    """Codes of a block `weight` [n, k] under `context.plan`, a Layout; without one, in `sab`'s own layout.

    With `context.weighting` Λ [n, k] the error of each column counts by its mean Λ.
    """
    layout = context.plan if isinstance(context.plan, Layout) else published(len(weight))
    salient = layout.salient
    if salient is None:
        found = search_published(weight, context.inverse_factor, context.max_salient, False).salient
        salient = found.chosen(0, weight.shape[1])
    factor = context.inverse_factor
    if context.weighting is not None:
        factor = factor / context.weighting.mean(0)
    root = torch.linalg.solve_triangular(factor, torch.eye(len(factor), device=factor.device), upper=True)
    metric = root @ root.T  # G [k, k]

    def own_loss(error: Tensor) -> float:
        return float((error @ root).square().sum(dtype=torch.float64))

    judge = context.judge or own_loss
    levels = _start(weight, salient, layout.bitmap, layout.residual)
    best: tuple[float, _Levels, _Picked] | None = None
    idle = 0
    for step in range(context.iterations + 1):
        stored = levels.stored(layout.row_step)
        picked = _walk(weight, factor, stored)
        loss = judge(weight - picked.dense)
        idle = 0 if best is None or loss < best[0] else idle + 1
        if not idle:
            best = loss, stored, picked
        if idle == PATIENCE or step == context.iterations:
            break
        levels = _solve(weight, metric, picked, levels, layout.column_scale)
    assert best is not None
    _, levels, picked = best
    return BinaryCodes(
        method="sab-h",
        shape=(weight.shape[0], weight.shape[1]),
        block_size=context.block_size,
        first=picked.first,
        group=picked.group if layout.bitmap else None,
        salient=salient,
        second=picked.second[:, salient],
        row_scale=_to_stored(levels.row, layout.row_step)[:, None],
        second_row_scale=_to_stored(levels.second, layout.row_step)[:, None],
        column_scale=to_half(levels.column)[None] if layout.column_scale else None,
        row_step=layout.row_step,
    )


def published(rows: int) -> Layout:
    """The layout of `sab`: bitmap, float16 row scales, salient columns as published."""
    return Layout(bitmap=True, salient=None, row_step=None, column_scale=rows >= COLUMN_SCALE_ROWS, residual=True)


def affordable(shape: tuple[int, int], block_size: int, bits: float) -> tuple[bool, int, bool]:
    """What `bits` a weight [n, m] have room for beside signs and int8 row scales: whether the group bitmap, how many
    salient columns, and whether column scales (which cost little in a tall layer)."""
    rows, width = shape
    column_scale = rows >= COLUMN_SCALE_ROWS
    blocks = -(-width // block_size)
    fixed = 16 * rows + width + (16 * width if column_scale else 0)  # row steps, salient index, column scales

    def room(groups: int, salient: bool) -> float:
        """Bits left for second signs."""
        scales = 8 * rows * blocks * groups * (3 if salient else 1)
        return bits * rows * width - fixed - groups * rows * blocks * block_size - scales

    bitmap = room(2, False) >= 0
    count = min(width, 8 * int(room(1 + bitmap, True) // (8 * rows)))  # a row's second signs fill whole bytes
    return bitmap, max(0, count), column_scale


def plan(
    weight: Tensor, inverse_factor: Tensor, *, block_size: int = 128, bits: float | None = None, **_: object
) -> Layout:
    """The layout of `weight` [n, m] that stores at most `bits` a weight, everything counted ("budget" search);
    without `bits` that of `sab`.

    Row scales are int8. With room for two bit planes every weight has the group bit; what is left over goes, as
    second signs, to the columns whose error costs most. That error is |e|², what a walk without salient
    columns carries on: its sum over the columns is the loss. The smallest layout, one plane without salient
    columns, may exceed a very small budget.
    """
    rows, width = weight.shape
    if bits is None:
        return published(rows)
    bitmap, count, column_scale = affordable((rows, width), block_size, bits)
    chosen = torch.zeros(width, dtype=torch.bool, device=weight.device)
    if count > 0:
        costs = []
        for start in range(0, width, block_size):
            here = slice(start, min(start + block_size, width))
            part, factor = weight[:, here], inverse_factor[here, here]
            none = torch.zeros(part.shape[1], dtype=torch.bool, device=weight.device)
            left = part - _walk(part, factor, _start(part, none, bitmap, False)).dense
            carried = torch.linalg.solve_triangular(factor, left, upper=True, left=False)
            costs.append(carried.square().sum(0))
        chosen[torch.cat(costs).topk(count).indices] = True
    largest = torch.zeros(rows, device=weight.device)
    for start in range(0, width, block_size):
        here = slice(start, min(start + block_size, width))
        begun = _start(weight[:, here], chosen[here], bitmap, False)
        largest = torch.maximum(largest, torch.cat([begun.row, begun.second]).amax(0))
    return Layout(bitmap, chosen, to_half(largest * HEADROOM / LARGEST_INT8), column_scale, count > 0)


def restore(codes: BinaryCodes, row: Tensor, second: Tensor, column: Tensor | None) -> BinaryCodes:
    """The same codes with other scales, rounded to what is stored: float [slots, blocks, n], [residuals, blocks,
    n] and [1 or 2, m]; int8 scales get a new step from the largest of each row."""
    step = None
    if codes.row_step is not None:
        step = to_half(torch.cat([row.flatten(0, 1), second.flatten(0, 1)]).abs().amax(0) / LARGEST_INT8)
    return replace(
        codes,
        row_scale=_to_stored(row, step),
        second_row_scale=_to_stored(second, step),
        column_scale=None if column is None else to_half(column),
        row_step=step,
    )


def _to_stored(values: Tensor, step: Tensor | None) -> Tensor:
    if step is None:
        return to_half(values)
    whole = torch.where(step > 0, values / step.float(), 0.0).round()
    return whole.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)


def _to_float(values: Tensor, step: Tensor | None) -> Tensor:
    return values.float() if step is None else values.float() * step.float()


def _start(weight: Tensor, salient: Tensor, bitmap: bool, residual: bool) -> _Levels:
    """Magnitudes to begin with: two-means of |w| per row for the groups; a residual for salient columns, which
    some block of the linear has if `residual`."""
    magnitude = weight.abs()
    row: list[Tensor] = []
    second: list[Tensor] = []
    ordinary, chosen = magnitude[:, ~salient], magnitude[:, salient]
    row += _two_means(ordinary) if bitmap else [_mean(ordinary)]
    if chosen.shape[1]:
        if bitmap:
            low, high = _two_means(chosen)
            row += [low, high]
            second += [low / 2, (high - low).clamp_min(0.0) / 2]
        else:
            middle = _mean(chosen)
            row.append(middle)
            second.append((chosen - middle[:, None]).abs().mean(1))
    elif residual:  # every block of a linear stores the same slots
        groups = 2 if bitmap else 1
        row += [torch.zeros_like(row[0])] * groups
        second += [torch.zeros_like(row[0])] * groups
    none = weight.new_zeros(0, len(weight))
    return _Levels(torch.stack(row), torch.stack(second) if second else none, torch.ones_like(weight[0]), salient)


def _mean(values: Tensor) -> Tensor:
    return values.mean(1) if values.shape[1] else values.new_zeros(len(values))


def _two_means(values: Tensor) -> list[Tensor]:
    """Two centres of each row of `values` >= 0 [n, c], the lower first."""
    if not values.shape[1]:
        return [values.new_zeros(len(values))] * 2
    middle = values.mean(1)
    low, high = middle / 2, middle * 1.6
    for _ in range(SPLIT_STEPS):
        upper = values > ((low + high) / 2)[:, None]
        number = upper.sum(1)
        high = torch.where(number > 0, (values * upper).sum(1) / number.clamp_min(1), high)
        rest = values.shape[1] - number
        low = torch.where(rest > 0, (values * ~upper).sum(1) / rest.clamp_min(1), low)
    return [low, high]


def _walk(weight: Tensor, factor: Tensor, levels: _Levels) -> _Picked:
    """Codes of `weight` [n, k] column by column, each error carried into the columns after it."""
    larger, smaller, leading = levels.magnitudes()
    by_column = [values.permute(2, 0, 1).contiguous() for values in (larger, smaller)]  # [k, groups, n]
    settled = settle(weight, factor, Sums(*by_column))
    dense, group = nearest_sum(settled, larger, smaller)
    own, first_leads = (torch.where(group, values[-1], values[0]) for values in (larger, leading))
    outer = positive(settled)
    inner = outer == (settled.abs() >= own)
    first, second = torch.where(first_leads, outer, inner), torch.where(first_leads, inner, outer)
    return _Picked(dense, first, group, second & levels.salient)


def _solve(weight: Tensor, metric: Tensor, picked: _Picked, levels: _Levels, column_scale: bool) -> _Levels:
    """Least-squares row scales, then column scales, in the metric G [k, k]; magnitudes stay non-negative."""
    groups = levels.groups
    slot = picked.group.to(torch.uint8) + groups * levels.salient.to(torch.uint8)
    first, second = as_float(picked.first), as_float(picked.second)
    features = [first * (slot == number) for number in range(len(levels.row))]
    features += [second * (slot == number + groups) for number in range(len(levels.second))]
    stacked = torch.stack(features, 1)  # [n, p, k]
    scaled = stacked * levels.column
    weighed = scaled @ metric  # [n, p, k]
    normal = weighed @ scaled.transpose(1, 2)
    target = (weighed @ weight[:, :, None])[..., 0]
    size = normal.diagonal(dim1=1, dim2=2)
    ridge = torch.where(size > 0, ROW_RIDGE * size.amax(1, keepdim=True), 1.0)
    before = torch.cat([levels.row, levels.second]).T  # [n, p]
    found = torch.linalg.solve(normal + torch.diag_embed(ridge), target + ridge * before)
    row = torch.where(torch.isfinite(found), found, before).abs()
    column = levels.column
    if column_scale:
        plain = (stacked * row[..., None]).sum(1)  # Y [n, k]
        system = (plain.T @ plain) * metric
        pull = COLUMN_RIDGE * system.diagonal()
        pull = torch.where(pull > 0, pull, 1.0)
        right = (plain * (weight @ metric)).sum(0)
        solved = torch.linalg.solve(system + torch.diag(pull), right + pull * column).abs()
        solved = torch.where(torch.isfinite(solved), solved, column)
        mean = solved.mean()
        factor = torch.where(mean > 0, mean, 1.0)
        column = torch.where(mean > 0, solved / factor, column)
        row = row * factor
    row = row.T
    return _Levels(row[: len(levels.row)], row[len(levels.row) :], column, levels.salient)
