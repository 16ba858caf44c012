"""Alternating row and column scales, in closed form (METHOD 5; ARB-LLM's RC form, weighted).

    min  | Λ * mask * (W - sum_o (row_o column_o^T) * B_o) |_F²
    row_o    <-  sum_j Λ² column B R / sum_j Λ² column²         R: residual of the other order
    column_o <-  the same over rows
    B        <-  nearest of the 2^order sums, per weight

Each step is a least-squares optimum of one factor, so no round raises the loss while Λ is constant.
Used by arb-rc, arb-rc-cgb and sab. Cost per round: four matrix-vector products at order 1, whose signs never
change (scales are not negative, so B = sign(W) and B R = |W|); about ten passes over [n, k] per order at 2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sab.binarizers.codes import GroupCodes, Round
from sab.binarizers.signs import as_float, nearest_signs, positive, to_half

EMPHASES = ("constant", "ramp")
State = tuple[list[Tensor], list[Tensor], list[Tensor]]  # signs [n, k], row [n], column [k], per order


def fit_scales(
    weight: Tensor,
    mask: Tensor,
    order: int,
    weighting: Tensor | None,
    iterations: int = 15,
    emphasis: str = "constant",
) -> GroupCodes:
    """Codes of one group: `weight`, `mask` [n, k], `weighting` Λ [n, k] or None for 1."""
    *_, (_, rows, columns) = rounds(weight, mask, order, weighting, iterations, emphasis)
    row_scale, column_scale = to_half(torch.stack(rows)), to_half(torch.stack(columns))
    magnitudes = [_outer(*pair) for pair in zip(row_scale.float(), column_scale.float(), strict=True)]
    return GroupCodes(mask, torch.stack(nearest_signs(weight, magnitudes)), row_scale, column_scale)


def trace_scales(weight: Tensor, order: int, weighting: Tensor | None, iterations: int = 15) -> list[Round]:
    """The start and every round of a fit of all of `weight` [n, k] as one group, scales not yet rounded."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    square = _square(mask, weighting)
    states = []
    for signs, rows, columns in rounds(weight, mask, order, weighting, iterations):
        rest = weight
        for bits, row, column in zip(signs, rows, columns, strict=True):
            rest = rest - as_float(bits) * _outer(row, column)
        loss = float((square * rest.square()).sum(dtype=torch.float64))
        planes = torch.stack(signs).to(torch.int8) * 2 - 1
        states.append(Round(planes, torch.stack(rows), torch.stack(columns), None, loss))
    return states


def rounds(
    weight: Tensor,
    mask: Tensor,
    order: int,
    weighting: Tensor | None,
    iterations: int,
    emphasis: str = "constant",
) -> Iterator[State]:
    """Yields the start (column scales 1, orders one after the other), then the state after each round.

    Scales are non-negative, column scales have mean 1 over the columns that have members.
    """
    members = mask.any(0)
    square = _square(mask, weighting if emphasis == "constant" else None)
    signs: list[Tensor] = []
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    rest, magnitude = weight, weight.abs()
    for _ in range(order):
        bits = positive(rest)
        row = _ratio((square * rest.abs()).sum(1), square.sum(1))
        signs, rows, columns = [*signs, bits], [*rows, row], [*columns, members.to(weight.dtype)]
        rest = rest - as_float(bits) * row[:, None]
    yield signs, rows, columns
    for step in range(1, iterations + 1):
        if emphasis == "ramp" and weighting is not None:
            share = step / iterations
            square = _square(mask, (1.0 - share) + share * weighting)
        rows, columns = list(rows), list(columns)
        factors = [as_float(bits) for bits in signs] if order == 2 else []
        for index in range(order):
            if order == 2:
                other = 1 - index
                residual = weight - factors[other] * _outer(rows[other], columns[other])
                evidence = square * factors[index] * residual
            else:
                evidence = square * magnitude
            rows[index] = _ratio(evidence @ columns[index], square @ columns[index].square())
            columns[index] = _ratio(rows[index] @ evidence, rows[index].square() @ square)
        # the sums +-a_1 +-a_2 do not change with the scales' signs, and the signs are picked anew
        gauged = [_gauge(row.abs(), column.abs(), members) for row, column in zip(rows, columns, strict=True)]
        rows, columns = [row for row, _ in gauged], [column for _, column in gauged]
        if order == 2:
            signs = nearest_signs(weight, [_outer(*pair) for pair in gauged])
        yield signs, rows, columns


def _square(mask: Tensor, weighting: Tensor | None) -> Tensor:
    """Λ² on the mask, 0 elsewhere."""
    return mask.float() if weighting is None else mask * weighting.square()


def _outer(row: Tensor, column: Tensor) -> Tensor:
    return row[:, None] * column


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where a row or column has no members or only zero partners."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _gauge(row: Tensor, column: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the common factor so that column scales average 1 over the columns with members.

    Decided on the device: asking the host in every round would make a GPU wait.
    """
    mean = column.sum() / members.sum().clamp_min(1)
    some = mean > 0  # else a group of zeros
    factor = torch.where(some, mean, 1.0)
    return row * factor, torch.where(some, column / factor, members.to(column.dtype))
