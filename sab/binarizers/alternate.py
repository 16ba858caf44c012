"""Alternating row and column scales, in closed form (METHOD 5; ARB-LLM's RC form, weighted).

    min  | Λ * mask * (W - sum_o (row_o column_o^T) * B_o) |_F²
    row_o    <-  sum_j Λ² column B R / sum_j Λ² column²         R: residual of the other order
    column_o <-  the same over rows
    B        <-  nearest of the 2^order sums, per weight

Each step is a least-squares optimum of one factor, so no round raises the loss while Λ is constant.
Used by arb-rc, arb-rc-cgb and sab, for the groups of a block and the linears of a stack at once. Everything is done
in |W|: the larger of two magnitudes has the weight's own sign, so that only the smaller one's sign is looked for. Cost
per round: four matrix-vector products at order 1, whose signs never change (scales are not negative, so B = sign(W)
and B R = |W|); about eight passes over [n, k] per order at 2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sab.binarizers.codes import GroupCodes, Groups, Round
from sab.binarizers.signs import as_float, nearest_signs, positive, to_half
from sab.stack import Stack

EMPHASES = ("constant", "ramp")
SMALLEST = torch.finfo(torch.float32).tiny
Step = tuple[list[Tensor], list[Tensor], list[Tensor]]  # per order: row [g, n], column [g, s, k], sign beside W's
State = tuple[list[Tensor], list[Tensor], list[Tensor]]  # per order: signs bool [n, k], row [n], column [k]


def fit_scales(
    weight: Tensor, mask: Tensor, order: int, weighting: Tensor | None, iterations: int = 15, emphasis: str = "constant"
) -> GroupCodes:
    """Codes of one group: `weight`, `mask` [n, k], `weighting` Λ [n, k] or None for 1."""
    return fit_groups(weight, mask[None], order, weighting, Stack((len(weight),)), iterations, emphasis).one(mask)


def fit_groups(
    weight: Tensor,
    masks: Tensor,
    order: int,
    weighting: Tensor | None,
    stack: Stack,
    iterations: int = 15,
    emphasis: str = "constant",
) -> Groups:
    """Codes of several groups, `masks` [g, n, k], of one `weight` [n, k] whose rows are those of a stack."""
    *_, (rows, columns, _) = _steps(weight, masks, order, weighting, iterations, emphasis, stack)
    members = _members(masks, stack)
    gauged = [_gauge(row, column, members, stack) for row, column in zip(rows, columns, strict=True)]
    row_scale = to_half(torch.stack([row for row, _ in gauged]))
    column_scale = to_half(torch.stack([column for _, column in gauged]))
    pairs = zip(row_scale.float(), column_scale.float(), strict=True)
    signs = nearest_signs(weight, [stack.outer(row, column) for row, column in pairs])
    return Groups(torch.stack([bits.expand(masks.shape) for bits in signs]), row_scale, column_scale)


def trace_scales(weight: Tensor, order: int, weighting: Tensor | None, iterations: int = 15) -> list[Round]:
    """The start and every round of a fit of all of `weight` [n, k] as one group, scales not yet rounded."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    square = _square(mask, weighting)
    states = []
    for signs, rows, columns in rounds(weight, mask, order, weighting, iterations):
        rest = weight
        for bits, row, column in zip(signs, rows, columns, strict=True):
            rest = rest - as_float(bits) * (row[:, None] * column)
        loss = float((square * rest.square()).sum(dtype=torch.float64))
        planes = torch.stack(signs).to(torch.int8) * 2 - 1
        states.append(Round(planes, torch.stack(rows), torch.stack(columns), None, loss))
    return states


def rounds(
    weight: Tensor, mask: Tensor, order: int, weighting: Tensor | None, iterations: int, emphasis: str = "constant"
) -> Iterator[State]:
    """One group of one linear, `mask` [n, k]: yields the start (column scales 1, orders one after the other), then the
    state after each round; per order signs [n, k], row [n] and column scales [k].

    Scales are non-negative, column scales have mean 1 over the columns that have members.
    """
    stack, above = Stack((len(weight),)), positive(weight)
    members = _members(mask[None], stack)
    for rows, columns, beside in _steps(weight, mask[None], order, weighting, iterations, emphasis, stack):
        gauged = [_gauge(row, column, members, stack) for row, column in zip(rows, columns, strict=True)]
        signs = [above == positive(sign[0]) for sign in beside]
        yield signs, [row[0] for row, _ in gauged], [column[0, 0] for _, column in gauged]


def _steps(
    weight: Tensor,
    masks: Tensor,
    order: int,
    weighting: Tensor | None,
    iterations: int,
    emphasis: str,
    stack: Stack,
) -> Iterator[Step]:
    """The start, then each round, of `masks` [g, n, k] of `weight` [n, k]; a sign beside that of the weight is -1 or 1,
    [g, n, k] or one for all. Scales are non-negative; a factor that row and column scales share is left where it is.
    """
    square = _square(masks, weighting if emphasis == "constant" else None)
    size = weight.abs()
    member = _members(masks, stack).to(size.dtype)
    beside = [torch.ones(1, 1, 1, device=weight.device)]
    rows, columns = [_ratio(torch.cat([(square * size).sum(-1), square.sum(-1)]))], [member]
    if order == 2:
        rest = size - rows[0][..., None]
        rows.append(_ratio(torch.cat([(square * rest.abs()).sum(-1), square.sum(-1)])))
        columns.append(member)
        beside.append(torch.where(rest >= 0, 1.0, -1.0))
    yield rows, columns, beside
    outers = [stack.outer(row, column) for row, column in zip(rows, columns, strict=True)] if order == 2 else []
    both = torch.cat([square * size, square])  # [2 g, n, k]: what numerators, and what denominators are sums of
    evidence, square = both.chunk(2)
    for step in range(1, iterations + 1):
        if emphasis == "ramp" and weighting is not None:
            share = step / iterations
            square.copy_(_square(masks, (1.0 - share) + share * weighting))
            torch.mul(square, size, out=evidence)
        rows, columns = list(rows), list(columns)
        for index in range(order):
            if order == 2:
                residual = torch.addcmul(size, beside[1 - index], outers[1 - index], value=-1.0)
                torch.mul(residual.mul_(square), beside[index], out=evidence)
            column = columns[index]
            row = _ratio(stack.across(both, torch.cat([column, column.square()])))
            column = _ratio(stack.down(torch.cat([row, row.square()]), both))
            rows[index], columns[index] = row, column
            if order == 2:
                outers[index] = stack.outer(row, column)
        if order == 2:
            # the sums +-a_1 +-a_2 do not change with the scales' signs, and the signs are picked anew
            rows, columns = [row.abs() for row in rows], [column.abs() for column in columns]
            outers = [outer.abs_() for outer in outers]
            one, two = outers
            leads = one >= two
            smaller = torch.where(size >= torch.maximum(one, two), 1.0, -1.0)
            beside = [torch.where(leads, 1.0, smaller), torch.where(leads, smaller, 1.0)]
        yield rows, columns, beside


def _members(masks: Tensor, stack: Stack) -> Tensor:
    """bool [g, s, k]: columns of a linear that have members of a group `masks` [g, n, k]."""
    return torch.stack([part.any(1) for part in stack.split(masks, 1)], 1)


def _square(mask: Tensor, weighting: Tensor | None) -> Tensor:
    """Λ² on the mask, 0 elsewhere."""
    return mask.float() if weighting is None else mask * weighting.square()


def _ratio(both: Tensor) -> Tensor:
    """Numerators over as many denominators behind them; 0 where a row or column has no members or only zero partners:
    both are sums of what is then 0."""
    numerator, denominator = both.chunk(2)
    return numerator / denominator.clamp_min(SMALLEST)


def _gauge(row: Tensor, column: Tensor, members: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """Moves the common factor so that the column scales of a linear average 1 over the columns with members.

    Decided on the device: asking the host in every round would make a GPU wait.
    """
    mean = column.sum(-1) / members.sum(-1).clamp_min(1)  # [g, s]
    some = mean > 0  # else a group of zeros
    factor = torch.where(some, mean, 1.0)
    scaled = torch.where(some[..., None], column / factor[..., None], members.to(column.dtype))
    return row * stack.spread(factor, 1), scaled
