"""BiLLM: per group and row a mean and a scale, in closed form; salient columns get a residual (METHOD 7).

    mu = mean(w),  alpha = mean|w - mu|,  B = sign(w - mu);  order 2 does the same to what remains.

The two means of order 2 act as one number and are stored as one. Huang et al. 2024, code and paper.
"""

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes, GroupCodes, Groups
from sab.binarizers.signs import as_float, positive, to_half


def closed_form(weight: Tensor, masks: Tensor, order: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Sign bits [g, n, k] and row scales [g, n] per order of groups `masks` [g, n, k] of `weight` [n, k], and the row
    means [g, n] summed over the orders."""
    size = masks.sum(-1).clamp_min(1)
    rest, mean_total = weight, weight.new_zeros(size.shape)
    signs: list[Tensor] = []
    scales: list[Tensor] = []
    for _ in range(order):
        mean = (rest * masks).sum(-1) / size
        centred = rest - mean[..., None]
        scale = (centred.abs() * masks).sum(-1) / size
        signs.append(positive(centred))
        scales.append(scale)
        mean_total = mean_total + mean
        rest = centred - as_float(signs[-1]) * scale[..., None]
    return signs, scales, mean_total


def fit(
    weight: Tensor, mask: Tensor, order: int, *, significance: Tensor | None = None, iterations: int = 15
) -> GroupCodes:
    """Codes of one group, `weight` and `mask` [n, k]; significance and iterations play no part."""
    return fit_groups(weight, mask[None], order).one(mask)


def fit_groups(weight: Tensor, masks: Tensor, order: int) -> Groups:
    """Codes of several groups, `masks` [g, n, k], of one `weight` [n, k]."""
    signs, scales, mean = closed_form(weight, masks, order)
    row_mean, row_scale = to_half(mean), to_half(torch.stack(scales))
    remaining = weight - row_mean.float()[..., None]
    if order == 2:  # the first signs split at the first mean, as published; the last ones see stored scales
        remaining = remaining - as_float(signs[0]) * row_scale[0].float()[..., None]
    signs[-1] = positive(remaining)
    return Groups(torch.stack(signs), row_scale, row_mean=row_mean)


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]: two ordinary groups at order 1, the salient columns at
    order 2."""
    return fit_structured(
        "billm",
        weight,
        context,
        lambda part, masks, order, *_: fit_groups(part, masks, order),
        split_salient=False,
    )
