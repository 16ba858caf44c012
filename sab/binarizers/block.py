"""One block of 128 columns: find its structure, fit each group, assemble the codes (METHOD 5).

Shared by every method with salient columns and a break-point; they differ in how a group is fitted and in
whether the salient columns are split as well (the column-group bitmap). The linears of a stack are fitted at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import BinaryCodes, Groups, LinearCodes
from sab.stack import Columns, Stack
from sab.structure import search_published

GroupsFit = Callable[[Tensor, Tensor, int, Tensor | None, Stack], Groups]


@dataclass(frozen=True)
class BlockContext:
    """What a method may use besides the block's weights.

    `inverse_factor` U_bb [k, k]; `gram` S = mean x x^T of the block's inputs [k, k]; `weighting` Λ [n, k]
    or None for 1; then the search settings (see FitSettings); `plan`: the block's part of what the method
    fixed over the whole linear (KeptPlan of pb-llm, Layouts of sab-h), or None; `judge`: the losses [s] of whole
    linears, but for a constant, with an error E [n, k] in this block, after compensation, on inputs the fit has
    not seen. None: on those it has, tr(E G Eᵀ). `stack`: which rows belong to which linear; None: all to one.
    """

    inverse_factor: Tensor
    gram: Tensor
    weighting: Tensor | None = None
    block_size: int = 128
    iterations: int = 15
    max_salient: int = 49
    emphasis: str = "constant"
    plan: Any = None
    judge: Callable[[Tensor], Tensor] | None = None
    stack: Stack | None = None


def by_rows(fit_block: Callable[..., LinearCodes]) -> Callable[[Tensor, BlockContext], list[LinearCodes]]:
    """The `fit_stack` of a method that fits every row by itself: its `fit_block`, and the codes of each linear."""

    def fit_stack(weight: Tensor, context: BlockContext) -> list[LinearCodes]:
        codes = fit_block(weight, context)
        return [codes.some_rows(here) for here in (context.stack or Stack((len(weight),))).places]

    return fit_stack


def fit_structured(
    method: str, weight: Tensor, context: BlockContext, fit_groups: GroupsFit, split_salient: bool
) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]: ordinary columns at order 1, salient ones at order 2.

    `fit_groups(weight, masks [g, n, w], order, weighting, stack)` fits the groups of some columns. Groups may be empty.
    """
    stack = context.stack or Stack((len(weight),))
    structure = search_published(weight, context.inverse_factor, context.max_salient, split_salient, stack)
    group = structure.group

    def fit(columns: Columns, order: int, split: bool) -> Groups:
        """Fit the two groups of `columns`, or all of them as one; of each weight the signs of its own group."""
        above, used = columns.take(group, False), columns.used()
        masks = torch.stack([used & ~above, above]) if split else used.expand(1, len(weight), -1)
        weighting = None if context.weighting is None else columns.take(context.weighting, 1.0)
        found = fit_groups(columns.take(weight, 0.0), masks, order, weighting, stack)
        own = torch.where(above, found.signs[:, -1], found.signs[:, 0])
        return Groups(own, found.row_scale, found.column_scale, found.row_mean)

    ordinary, salient = structure.ordinary, structure.salient
    one, two = fit(ordinary, 1, True), fit(salient, 2, split_salient)
    first = torch.empty_like(group)
    ordinary.put(first, one.signs[0])
    salient.put(first, two.signs[0])
    row_scale = torch.cat([one.row_scale[0], two.row_scale[0]])  # [slots, n]
    means = [found.row_mean for found in (one, two) if found.row_mean is not None]
    row_mean = torch.cat(means) if means else None
    codes = []
    for number, here in enumerate(stack.places):
        columns, second_columns = _column_scales(number, (ordinary, one), (salient, two), weight.shape[1])
        codes.append(
            BinaryCodes(
                method=method,
                shape=(here.stop - here.start, weight.shape[1]),
                block_size=context.block_size,
                first=first[here],
                group=group[here],
                salient=salient.chosen(number, weight.shape[1]),
                second=two.signs[1, here, : salient.widths[number]],
                row_scale=row_scale[:, None, here],
                second_row_scale=two.row_scale[1][:, None, here],
                row_mean=None if row_mean is None else row_mean[:, None, here],
                column_scale=columns,
                second_column_scale=second_columns,
            )
        )
    return codes


def _column_scales(
    number: int, ordinary: tuple[Columns, Groups], salient: tuple[Columns, Groups], width: int
) -> tuple[Tensor | None, Tensor | None]:
    """Column scales f16 [2, k] of a linear by group bit, and [groups, c] of its salient columns' second signs."""
    scales = None
    for columns, found in (ordinary, salient):
        if found.column_scale is None:
            return None, None
        own = found.column_scale[0, :, number, : columns.widths[number]]  # [groups, w]
        if scales is None:
            scales = own.new_zeros(2, width)
        scales[: len(own), columns.index[number, : columns.widths[number]]] = own
    columns, found = salient
    assert found.column_scale is not None
    return scales, found.column_scale[1, :, number, : columns.widths[number]]
