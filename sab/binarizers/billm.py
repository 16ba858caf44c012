"""BiLLM: per group and row a mean and a scale, in closed form; salient columns get a residual (METHOD 7).

    mu = mean(w),  alpha = mean|w - mu|,  B = sign(w - mu);  order 2 does the same to what remains.

The two means of order 2 act as one number and are stored as one. Huang et al. 2024, code and paper.
"""

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes, GroupCodes
from sab.binarizers.signs import as_float, positive, to_half


def closed_form(weight: Tensor, mask: Tensor, order: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Sign bits [n, k] and row scales [n] per order, and the row means [n] summed over the orders."""
    size = mask.sum(1).clamp_min(1)
    rest, mean_total = weight, weight.new_zeros(weight.shape[0])
    signs: list[Tensor] = []
    scales: list[Tensor] = []
    for _ in range(order):
        mean = (rest * mask).sum(1) / size
        centred = rest - mean[:, None]
        scale = (centred.abs() * mask).sum(1) / size
        signs.append(positive(centred))
        scales.append(scale)
        mean_total = mean_total + mean
        rest = centred - as_float(signs[-1]) * scale[:, None]
    return signs, scales, mean_total


def fit(
    weight: Tensor, mask: Tensor, order: int, *, significance: Tensor | None = None, iterations: int = 15
) -> GroupCodes:
    """Codes of one group, `weight` and `mask` [n, k]; significance and iterations play no part."""
    signs, scales, mean = closed_form(weight, mask, order)
    row_mean, row_scale = to_half(mean), to_half(torch.stack(scales))
    remaining = weight - row_mean.float()[:, None]
    if order == 2:  # the first signs split at the first mean, as published; the last ones see stored scales
        remaining = remaining - as_float(signs[0]) * row_scale[0].float()[:, None]
    signs[-1] = positive(remaining)
    return GroupCodes(mask, torch.stack(signs), row_scale, row_mean=row_mean)


def fit_block(weight: Tensor, context: BlockContext) -> BinaryCodes:
    """Codes of a block `weight` [n, k]: two ordinary groups at order 1, the salient columns at order 2."""
    return fit_structured(
        "billm", weight, context, lambda part, mask, order, _: fit(part, mask, order), split_salient=False
    )
