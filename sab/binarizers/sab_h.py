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

The linears of a stack (stack.py) are walked and solved together, whatever their layouts: one without the bitmap has
two equal groups, and one without salient columns has scales that nothing uses. Which rounds are kept is decided for
each linear where the tensors are: no round asks the host, but on a CPU, where it costs nothing to ask whether all are
done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import BinaryCodes
from sab.binarizers.feedback import Sums, nearest_sum, settle
from sab.binarizers.signs import as_float, positive, to_half
from sab.stack import Stack
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

    @staticmethod
    def stacked(layouts: Sequence["Layout"]) -> "Layouts":
        """Those of the linears of a stack."""
        return Layouts(tuple(layouts))


@dataclass(frozen=True)
class Layouts:
    """The layout of each linear of a stack."""

    parts: tuple[Layout, ...]

    def columns(self, here: slice) -> "Layouts":
        """The layouts of some of the columns."""
        return Layouts(tuple(part.columns(here) for part in self.parts))


@dataclass(frozen=True)
class _Levels:
    """Magnitudes of a block: `row` [slots, n], `second` [residuals, n], `column` [s, k]; `salient` bool [s, k];
    `split` bool [n]: rows with two groups, None where all rows have as many."""

    stack: Stack
    row: Tensor
    second: Tensor
    column: Tensor
    salient: Tensor
    split: Tensor | None = None

    @property
    def groups(self) -> int:
        return len(self.row) - len(self.second) if len(self.second) else len(self.row)

    def stored(self, step: Tensor | None) -> "_Levels":
        """As the file will hold them."""
        row, second = (_to_float(_to_stored(values, step), step) for values in (self.row, self.second))
        return replace(self, row=row, second=second, column=to_half(self.column).float())

    def magnitudes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Per group [groups, n, k]: the larger and the smaller magnitude of each weight's sum (the smaller is 0
        on ordinary columns), and whether the larger one is the first sign's."""
        groups, salient, column = self.groups, self.stack.spread(self.salient), self.stack.spread(self.column)

        def by_group(values: Tensor) -> Tensor:
            """[groups, n, 1], the same twice where a row has one: of equal groups the first is taken."""
            alike = values if self.split is None else torch.where(self.split, values, values[:1])
            return alike[:, :, None]

        first = by_group(self.row[:groups]).expand(-1, -1, self.column.shape[1])
        second = torch.zeros_like(first)
        if len(self.second):
            first = torch.where(salient, by_group(self.row[groups:]), first)
            second = torch.where(salient, by_group(self.second), second)
        first, second = first * column, second * column
        return torch.maximum(first, second), torch.minimum(first, second), first >= second


@dataclass(frozen=True)
class _Picked:
    """Codes of a block, bool [n, k]: `first`, `group`, `second` (False on ordinary columns)."""

    first: Tensor
    group: Tensor
    second: Tensor


@dataclass(frozen=True)
class _Round:
    """What a round has come to: the stored levels, the codes, and each linear's loss [s]."""

    levels: _Levels
    picked: _Picked
    loss: Tensor

    def where(self, kept: Tensor, other: "_Round") -> "_Round":
        """This round for the linears that are `kept`, bool [s], and the `other` for the rest."""
        rows, mine, theirs = self.levels.stack.spread(kept), self.picked, other.picked
        cells = rows[:, None]
        levels = replace(
            self.levels,
            row=torch.where(rows, self.levels.row, other.levels.row),
            second=torch.where(rows, self.levels.second, other.levels.second),
            column=torch.where(kept[:, None], self.levels.column, other.levels.column),
        )
        picked = _Picked(
            torch.where(cells, mine.first, theirs.first),
            torch.where(cells, mine.group, theirs.group),
            torch.where(cells, mine.second, theirs.second),
        )
        return _Round(levels, picked, torch.where(kept, self.loss, other.loss))


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k] under `context.plan`, Layouts; without one, in `sab`'s own
    layout.

    With `context.weighting` Λ [n, k] the error of each column counts by its mean Λ over the stack.
    """
    stack = context.stack or Stack((len(weight),))
    plan = context.plan or Layouts(tuple(published(rows) for rows in stack.rows))
    layouts = plan.parts
    factor = context.inverse_factor
    if context.weighting is not None:
        factor = factor / context.weighting.mean(0)
    best = fit_rounds(weight, factor, _salient(weight, context, layouts, stack), layouts, context, stack)
    return [
        _codes(best, number, layout, context.block_size, here)
        for number, (layout, here) in enumerate(zip(layouts, stack.places, strict=True))
    ]


def fit_rounds(
    weight: Tensor,
    factor: Tensor,
    salient: Tensor,
    layouts: Sequence[Layout],
    context: BlockContext,
    stack: Stack,
) -> _Round:
    """The best round of each linear: `factor` U_bb [k, k] under the weighting, `salient` bool [s, k]."""
    root = torch.linalg.solve_triangular(factor, torch.eye(len(factor), device=factor.device), upper=True)
    metric = root @ root.T  # G [k, k]

    def own_loss(error: Tensor) -> Tensor:
        return stack.sums((error @ root).square().sum(1, dtype=torch.float64))

    judge = context.judge or own_loss
    steps = [layout.row_step for layout in layouts if layout.row_step is not None]
    assert len(steps) in (0, len(layouts))
    step = torch.cat(steps) if steps else None
    levels = _start(weight, salient, layouts, stack)
    best = found = _walk_and_judge(weight, factor, levels.stored(step), judge)
    idle = torch.zeros_like(best.loss, dtype=torch.int32)  # rounds without a lower loss
    for _ in range(context.iterations):
        levels = _solve(weight, metric, found.picked, levels, [layout.column_scale for layout in layouts])
        found = _walk_and_judge(weight, factor, levels.stored(step), judge)
        kept = (found.loss < best.loss) & (idle < PATIENCE)
        best, idle = found.where(kept, best), torch.where(kept, 0, idle + 1)
        if idle.is_cpu and bool((idle >= PATIENCE).all()):
            break
    return best


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
    stack, bare = Stack((rows,)), Layout(bitmap, chosen, None, column_scale, False)
    if count > 0:
        costs = []
        for start in range(0, width, block_size):
            here = slice(start, min(start + block_size, width))
            part, factor = weight[:, here], inverse_factor[here, here]
            dense = _walk(part, factor, _start(part, chosen[None, here], [bare], stack))[0]
            carried = torch.linalg.solve_triangular(factor, part - dense, upper=True, left=False)
            costs.append(carried.square().sum(0))
        chosen[torch.cat(costs).topk(count).indices] = True
    largest = torch.zeros(rows, device=weight.device)
    for start in range(0, width, block_size):
        here = slice(start, min(start + block_size, width))
        begun = _start(weight[:, here], chosen[None, here], [replace(bare, residual=count > 0)], stack)
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


def _salient(weight: Tensor, context: BlockContext, layouts: Sequence[Layout], stack: Stack) -> Tensor:
    """The salient columns of each linear, bool [s, k]: as planned, or searched as published."""
    planned = [layout.salient for layout in layouts if layout.salient is not None]
    if planned:
        assert len(planned) == len(layouts)
        return torch.stack(planned)
    found = search_published(weight, context.inverse_factor, context.max_salient, False, stack).salient
    return torch.stack([found.chosen(number, weight.shape[1]) for number in range(len(layouts))])


def _codes(best: _Round, number: int, layout: Layout, block_size: int, here: slice) -> BinaryCodes:
    """What a file holds of linear `number`, the rows `here`; of the slots, those that its layout has."""
    levels, picked = best.levels, best.picked
    own, salient = 1 + layout.bitmap, levels.salient[number]
    row, second = levels.row[:own, here], levels.second[: own if layout.residual else 0, here]
    if layout.residual:
        row = torch.cat([row, levels.row[levels.groups : levels.groups + own, here]])
    return BinaryCodes(
        method="sab-h",
        shape=(here.stop - here.start, len(salient)),
        block_size=block_size,
        first=picked.first[here],
        group=picked.group[here] if layout.bitmap else None,
        salient=salient,
        second=picked.second[here][:, salient],
        row_scale=_to_stored(row, layout.row_step)[:, None],
        second_row_scale=_to_stored(second, layout.row_step)[:, None],
        column_scale=to_half(levels.column[number])[None] if layout.column_scale else None,
        row_step=layout.row_step,
    )


def _start(weight: Tensor, salient: Tensor, layouts: Sequence[Layout], stack: Stack) -> _Levels:
    """Magnitudes to begin with: two-means of |w| per row for the groups; a residual for salient columns, bool [s, k],
    in every block of a linear that has any, so that all of them store the same slots."""
    magnitude, chosen = weight.abs(), stack.spread(salient)
    bitmaps = [layout.bitmap for layout in layouts]
    split = None
    if any(bitmaps) and not all(bitmaps):
        each = zip(stack.rows, bitmaps, strict=True)
        split = torch.cat([weight.new_full((rows,), has, dtype=torch.bool) for rows, has in each])
    row: list[Tensor] = []
    second: list[Tensor] = []
    for columns in [~chosen, chosen] if any(layout.residual for layout in layouts) else [~chosen]:
        kept, number = magnitude * columns, columns.sum(1)
        middle = kept.sum(1) / number.clamp_min(1)
        if all(bitmaps):
            low, high = _two_means(kept, number, middle)
            row += [low, high]
            second += [low / 2, (high - low).clamp_min(0.0) / 2]
            continue
        off = ((magnitude - middle[:, None]).abs() * columns).sum(1) / number.clamp_min(1)
        if split is None:
            row += [middle]
            second += [off]
        else:
            low, high = _two_means(kept, number, middle)
            row += [torch.where(split, low, middle), high]
            second += [torch.where(split, low / 2, off), (high - low).clamp_min(0.0) / 2]
    groups = 1 + any(bitmaps)
    residual = torch.stack(second[groups:]) if len(second) > groups else weight.new_zeros(0, len(weight))
    return _Levels(stack, torch.stack(row), residual, torch.ones_like(salient, dtype=weight.dtype), salient, split)


def _two_means(kept: Tensor, number: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Two centres, the lower first, of the `number` [n or 1] magnitudes of each row of `kept` [n, k], whose mean is
    `middle` [n]; elsewhere `kept` is 0."""
    low, high = middle / 2, middle * 1.6
    for _ in range(SPLIT_STEPS):
        upper = kept > ((low + high) / 2)[:, None]
        above = upper.sum(1)
        below = number - above
        high = torch.where(above > 0, (kept * upper).sum(1) / above.clamp_min(1), high)
        low = torch.where(below > 0, (kept * ~upper).sum(1) / below.clamp_min(1), low)
    return low, high


def _walk(weight: Tensor, factor: Tensor, levels: _Levels) -> tuple[Tensor, _Picked]:
    """`weight` [n, k] as it is stored, and its codes: column by column, each error carried into those after it."""
    larger, smaller, leading = levels.magnitudes()
    by_column = [values.permute(2, 0, 1).contiguous() for values in (larger, smaller)]  # [k, groups, n]
    settled = settle(weight, factor, Sums(*by_column))
    dense, group = nearest_sum(settled, larger, smaller)
    own, first_leads = (torch.where(group, values[-1], values[0]) for values in (larger, leading))
    outer = positive(settled)
    inner = outer == (settled.abs() >= own)
    first, second = torch.where(first_leads, outer, inner), torch.where(first_leads, inner, outer)
    return dense, _Picked(first, group, second & levels.stack.spread(levels.salient))


def _walk_and_judge(weight: Tensor, factor: Tensor, levels: _Levels, judge: Callable[[Tensor], Tensor]) -> _Round:
    dense, picked = _walk(weight, factor, levels)
    return _Round(levels, picked, judge(weight - dense))


def _solve(weight: Tensor, metric: Tensor, picked: _Picked, levels: _Levels, column_scales: Sequence[bool]) -> _Levels:
    """Least-squares row scales, then the column scales of the linears that have such, in the metric G [k, k];
    magnitudes stay non-negative."""
    groups, stack = levels.groups, levels.stack
    slot = picked.group.to(torch.uint8) + groups * stack.spread(levels.salient).to(torch.uint8)
    first, second = as_float(picked.first), as_float(picked.second)
    owned = [(first, number) for number in range(len(levels.row))]
    owned += [(second, number + groups) for number in range(len(levels.second))]
    stacked = torch.stack([signs * (slot == number) for signs, number in owned], 1)  # [n, p, k]
    scaled = stacked * stack.spread(levels.column)[:, None]
    weighed = scaled @ metric  # [n, p, k]
    normal = weighed @ scaled.transpose(1, 2)
    target = (weighed @ weight[:, :, None])[..., 0]
    size = normal.diagonal(dim1=1, dim2=2)
    ridge = torch.where(size > 0, ROW_RIDGE * size.amax(1, keepdim=True), 1.0)
    before = torch.cat([levels.row, levels.second]).T  # [n, p]
    # solve_ex: solve itself asks the host whether it went well
    found, _ = torch.linalg.solve_ex(normal + torch.diag_embed(ridge), target + ridge * before)
    row = torch.where(torch.isfinite(found), found, before).abs()
    columns = list(levels.column)
    for number, here in enumerate(stack.places):
        if column_scales[number]:
            plain = (stacked[here] * row[here, :, None]).sum(1)  # Y [n, k]
            columns[number], factor = _column_scales(plain, weight[here], metric, columns[number])
            row[here] *= factor
    row = row.T
    return replace(levels, row=row[: len(levels.row)], second=row[len(levels.row) :], column=torch.stack(columns))


def _column_scales(plain: Tensor, weight: Tensor, metric: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Column scales [k] of a linear whose block is Y, `plain` [n, k], without them, at a mean of 1, and the factor
    that its row scales take instead."""
    system = (plain.T @ plain) * metric
    pull = COLUMN_RIDGE * system.diagonal()
    pull = torch.where(pull > 0, pull, 1.0)
    right = (plain * (weight @ metric)).sum(0)
    solved = torch.linalg.solve_ex(system + torch.diag(pull), right + pull * before).result.abs()
    solved = torch.where(torch.isfinite(solved), solved, before)
    mean = solved.mean()
    factor = torch.where(mean > 0, mean, 1.0)
    return torch.where(mean > 0, solved / factor, before), factor
