"""One block of 128 columns: find its structure, fit each group, assemble the codes (METHOD 5).

Shared by every method with salient columns and a break-point; they differ in how one group is fitted and in
whether the salient columns are split as well (the column-group bitmap).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import BinaryCodes, GroupCodes
from sab.structure import search_published

GroupFit = Callable[[Tensor, Tensor, int, Tensor | None], GroupCodes]


@dataclass(frozen=True)
class BlockContext:
    """What a method may use besides the block's weights.

    `inverse_factor` U_bb [k, k]; `gram` S = mean x x^T of the block's inputs [k, k]; `weighting` Λ [n, k]
    or None for 1; then the search settings (see FitSettings); `plan`: the block's part of what the method
    fixed over the whole linear (KeptPlan of pb-llm, Layout of sab-h), or None; `judge`: the loss of the whole
    linear, but for a constant, with an error E [n, k] in this block, after compensation, on inputs the fit has
    not seen. None: on those it has, tr(E G Eᵀ).
    """

    inverse_factor: Tensor
    gram: Tensor
    weighting: Tensor | None = None
    block_size: int = 128
    iterations: int = 15
    max_salient: int = 49
    emphasis: str = "constant"
    plan: Any = None
    judge: Callable[[Tensor], float] | None = None


def fit_structured(
    method: str, weight: Tensor, context: BlockContext, fit_group: GroupFit, split_salient: bool
) -> BinaryCodes:
    """Codes of a block `weight` [n, k]: ordinary columns at order 1, salient ones at order 2.

    `fit_group(weight, mask, order, weighting)` fits one group. Groups may be empty.
    """
    structure = search_published(weight, context.inverse_factor, context.max_salient, split_salient)
    salient, group = structure.salient, structure.group
    weighting = context.weighting
    ordinary_part, salient_part = weight[:, ~salient], weight[:, salient]
    ordinary_group, salient_group = group[:, ~salient], group[:, salient]
    ordinary_weighting = None if weighting is None else weighting[:, ~salient]
    salient_weighting = None if weighting is None else weighting[:, salient]

    ordinary = [fit_group(ordinary_part, mask, 1, ordinary_weighting) for mask in (~ordinary_group, ordinary_group)]
    masks = (~salient_group, salient_group) if split_salient else (torch.ones_like(salient_group),)
    chosen = [fit_group(salient_part, mask, 2, salient_weighting) for mask in masks]

    first = torch.empty_like(group)
    first[:, ~salient] = _by_group(ordinary, ordinary_group, 0)
    first[:, salient] = _by_group(chosen, salient_group, 0)
    column_scale = second_column_scale = None
    if all(codes.column_scale is not None for codes in ordinary):
        column_scale = torch.zeros(2, weight.shape[1], dtype=torch.float16, device=weight.device)
        column_scale[:, ~salient] = _stack(ordinary, lambda codes: codes.column_scale, 0)
        column_scale[: len(chosen), salient] = _stack(chosen, lambda codes: codes.column_scale, 0)
        second_column_scale = _stack(chosen, lambda codes: codes.column_scale, 1)
    row_mean = None
    if all(codes.row_mean is not None for codes in ordinary):
        row_mean = torch.stack([codes.row_mean for codes in ordinary + chosen if codes.row_mean is not None])
    return BinaryCodes(
        method=method,
        shape=(weight.shape[0], weight.shape[1]),
        block_size=context.block_size,
        first=first,
        group=group,
        salient=salient,
        second=_by_group(chosen, salient_group, 1),
        row_scale=_stack(ordinary + chosen, lambda codes: codes.row_scale, 0)[:, None],
        second_row_scale=_stack(chosen, lambda codes: codes.row_scale, 1)[:, None],
        row_mean=None if row_mean is None else row_mean[:, None],
        column_scale=column_scale,
        second_column_scale=second_column_scale,
    )


def _by_group(parts: list[GroupCodes], group: Tensor, order: int) -> Tensor:
    """Signs of one order of the group each weight belongs to."""
    if len(parts) == 1:
        return parts[0].signs[order]
    return torch.where(group, parts[1].signs[order], parts[0].signs[order])


def _stack(parts: list[GroupCodes], scale: Callable[[GroupCodes], Tensor | None], order: int) -> Tensor:
    """One order's scales of several groups, [groups, n or k]."""
    found = [scale(codes) for codes in parts]
    return torch.stack([values[order] for values in found if values is not None])
