"""ARB: BiLLM's mean, scale and signs, refined in turn (METHOD 7). Li et al. 2025.

    mu      += mean residual
    alpha_o <- mean B_o (W - mu - other order)
    B       <- nearest of the 2^order sums around mu, per weight

Zero rounds are BiLLM's own fit. Each step is optimal in its part, so no round raises the loss.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sab.binarizers import billm
from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes, GroupCodes, Groups, Round
from sab.binarizers.signs import as_float, nearest_signs, to_half

State = tuple[list[Tensor], list[Tensor], Tensor]  # signs [g, n, k] and row scales [g, n] per order, row mean [g, n]


def fit(
    weight: Tensor, mask: Tensor, order: int, *, significance: Tensor | None = None, iterations: int = 15
) -> GroupCodes:
    """Codes of one group, `weight` and `mask` [n, k]; significance plays no part."""
    return fit_groups(weight, mask[None], order, iterations).one(mask)


def fit_groups(weight: Tensor, masks: Tensor, order: int, iterations: int) -> Groups:
    """Codes of several groups, `masks` [g, n, k], of one `weight` [n, k]."""
    if not iterations:
        return billm.fit_groups(weight, masks, order)
    *_, (_, scales, mean) = rounds(weight, masks, order, iterations)
    row_mean, row_scale = to_half(mean), to_half(torch.stack(scales))
    magnitudes = list(row_scale.float()[..., None])
    signs = nearest_signs(weight - row_mean.float()[..., None], magnitudes)
    return Groups(torch.stack(signs), row_scale, row_mean=row_mean)


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]: two ordinary groups at order 1, the salient columns at
    order 2."""
    return fit_structured(
        "arb",
        weight,
        context,
        lambda part, masks, order, *_: fit_groups(part, masks, order, context.iterations),
        split_salient=False,
    )


def trace(weight: Tensor, *, significance: Tensor | None = None, order: int = 1, iterations: int = 15) -> list[Round]:
    """States of the fit of `weight` [n, k] as one group: the start and every round, scales not rounded."""
    states = []
    for signs, scales, mean in rounds(weight, torch.ones_like(weight, dtype=torch.bool)[None], order, iterations):
        rest = weight - mean[0, :, None]
        for bits, scale in zip(signs, scales, strict=True):
            rest = rest - as_float(bits[0]) * scale[0, :, None]
        planes = torch.cat(signs).to(torch.int8) * 2 - 1
        states.append(Round(planes, torch.cat(scales), None, mean[0], float(rest.square().sum(dtype=torch.float64))))
    return states


def rounds(weight: Tensor, masks: Tensor, order: int, iterations: int) -> Iterator[State]:
    """Yields BiLLM's fit of `masks` [g, n, k], then the state after each round. Scales are non-negative."""
    signs, scales, mean = billm.closed_form(weight, masks, order)
    size = masks.sum(-1).clamp_min(1)
    yield signs, scales, mean
    for _ in range(iterations):
        factors = [as_float(bits) * masks for bits in signs]
        rest = (weight - mean[..., None]) * masks
        for factor, scale in zip(factors, scales, strict=True):
            rest = rest - factor * scale[..., None]
        step = rest.sum(-1) / size
        mean, rest, scales = mean + step, rest - masks * step[..., None], list(scales)
        for index, factor in enumerate(factors):
            change = (factor * rest).sum(-1) / size  # least squares: sum B² is the number of members
            scales[index] = scales[index] + change
            rest = rest - factor * change[..., None]
        # the sums +-alpha_1 +-alpha_2 do not change with the scales' signs, and signs are picked anew
        scales = [scale.abs() for scale in scales]
        signs = nearest_signs(weight - mean[..., None], [scale[..., None] for scale in scales])
        yield signs, scales, mean
