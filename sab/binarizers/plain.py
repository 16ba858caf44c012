"""One block of `sab` written straight from METHOD 5: every candidate is really fitted, one after the other.

Nothing in the pipeline calls this. It is what the batched search (structure.py) and the batched fit
(alternate.py) are timed against by `python -m sab bench pipeline`, and what tests compare them with. Cost: 130
candidates, a fit of [n, k] on each of their two sides, in place of one sort and its prefix sums.
"""

import numpy as np
import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.structure import PERCENTILES


def fit_block(weight: Tensor, context: BlockContext) -> Tensor:
    """What `sab` makes of a block `weight` [n, k], dense [n, k]; scales as stored, emphasis constant."""
    columns, group = search(weight, context.inverse_factor, context.max_salient)
    weighting = torch.ones_like(weight) if context.weighting is None else context.weighting
    total = torch.zeros_like(weight)
    for salient in (False, True):
        for upper in (False, True):
            mask = (columns == salient) & (group == upper)
            total += fit_group(weight, mask, 2 if salient else 1, weighting, context.iterations)
    return total


def search(weight: Tensor, inverse_factor: Tensor, max_salient: int) -> tuple[Tensor, Tensor]:
    """Salient columns bool [k] of a block `weight` [n, k], and what lies above its two break-points, bool [n, k]; by
    trying every candidate."""
    saliency = weight.square() / inverse_factor.diagonal().square()
    ranked = saliency.sum(0).argsort(descending=True, stable=True)
    errors = []
    for count in range(1, min(max_salient, weight.shape[1] - 1) + 1):
        inside = torch.zeros_like(saliency, dtype=torch.bool)
        inside[:, ranked[:count]] = True
        errors.append(closed_form_error(saliency, inside, 2) + closed_form_error(saliency, ~inside, 2))
    salient = torch.zeros(weight.shape[1], dtype=torch.bool)
    if errors:
        salient[ranked[: 1 + int(np.argmin(errors))]] = True
    group = torch.zeros_like(saliency, dtype=torch.bool)
    for columns, order in ((~salient, 1), (salient, 2)):
        eligible = columns.expand_as(saliency)
        # the percentiles of the ordinary columns see the salient ones as zeros
        seen = saliency * eligible if order == 1 else saliency[:, columns]
        points = np.quantile(seen.double().numpy(), np.linspace(*PERCENTILES)) if seen.numel() else []
        errors = []
        for point in points:
            lower, upper = eligible & (saliency <= point), eligible & (saliency > point)
            errors.append(closed_form_error(saliency, lower, order) + closed_form_error(saliency, upper, order))
        if errors:
            group |= eligible & (saliency > points[int(np.argmin(errors))])
    return salient, group


def closed_form_error(values: Tensor, mask: Tensor, order: int) -> float:
    """Squared error of BiLLM's fit of `values` [n, k] where `mask` [n, k] is set, row by row."""
    size = mask.sum(1).clamp_min(1)
    rest = values
    for _ in range(order):
        rest = rest - ((rest * mask).sum(1) / size)[:, None]
        scale = (rest.abs() * mask).sum(1) / size
        rest = rest - sign(rest) * scale[:, None]
    return float((rest * mask).square().sum(dtype=torch.float64))


def fit_group(weight: Tensor, mask: Tensor, order: int, weighting: Tensor, iterations: int) -> Tensor:
    """One group of `weight` [n, k] in alternating rounds under `weighting` Λ; dense, 0 outside `mask`."""
    square = weighting.square() * mask
    members = mask.any(0).float()
    signs, rows, columns = [], [], []
    rest = weight
    for _ in range(order):
        signs.append(sign(rest))
        rows.append(ratio((square * signs[-1] * rest).sum(1), square.sum(1)))
        columns.append(members)
        rest = rest - signs[-1] * torch.outer(rows[-1], columns[-1])
    for _ in range(iterations):
        for o in range(order):
            residual = weight
            for other in range(order):
                if other != o:
                    residual = residual - signs[other] * torch.outer(rows[other], columns[other])
            over = square * columns[o] * signs[o] * residual
            rows[o] = ratio(over.sum(1), (square * columns[o].square()).sum(1))
            over = square * rows[o][:, None] * signs[o] * residual
            columns[o] = ratio(over.sum(0), (square * rows[o].square()[:, None]).sum(0))
        signs = nearest(weight, [torch.outer(*pair) for pair in zip(rows, columns, strict=True)])
    for o in range(order):
        mean = columns[o].sum() / members.sum().clamp_min(1)
        if mean > 0:
            rows[o], columns[o] = rows[o] * mean, columns[o] / mean
        rows[o], columns[o] = rows[o].half().float(), columns[o].half().float()
    outers = [torch.outer(*pair) for pair in zip(rows, columns, strict=True)]
    signs = nearest(weight, outers)
    return mask * sum(part * outer for part, outer in zip(signs, outers, strict=True))


def nearest(weight: Tensor, outers: list[Tensor]) -> list[Tensor]:
    """Per weight the signs whose sum of `outers`, one or two [n, k], lies nearest: all choices are tried."""
    choices = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] if len(outers) == 2 else [(1.0,), (-1.0,)]
    best = [torch.ones_like(weight) for _ in outers]
    least = torch.full_like(weight, torch.inf)
    for choice in choices:
        distance = (weight - sum(part * outer for part, outer in zip(choice, outers, strict=True))).abs()
        closer = distance < least
        least = torch.where(closer, distance, least)
        best = [torch.where(closer, part, signs) for part, signs in zip(choice, best, strict=True)]
    return best


def sign(values: Tensor) -> Tensor:
    """-1.0 or +1.0, which is also the sign of 0."""
    return torch.where(values >= 0, 1.0, -1.0)


def ratio(over: Tensor, under: Tensor) -> Tensor:
    """Quotient, 0 where there is nothing to divide by."""
    return torch.where(under > 0, over / under, 0.0)
