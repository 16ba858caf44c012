"""PB-LLM: a tenth of the weights kept at 8 bits, a sign for each of the others (METHOD 7). Shang et al. 2024.

    kept       the largest |w|, or the largest w² / U_jj²; at most a tenth of the linear
    others     mean + scale * sign(w - mean),  mean and scale of the row of W ⊙ mask, kept places counting as 0
    kept ones  256 levels over the range of the row

Which weights are kept, and every row parameter, is fixed over the whole linear before anything is compensated;
signs and levels are then picked column by column, each error carried into the columns after it. The means and
scales follow the published code: zeros counted, ranges taken over the whole row.
"""

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import KEPT_BITS, KeptCodes, KeptPlan
from sab.binarizers.feedback import Kept, Levels, settle
from sab.binarizers.rtn import grid, nearest_levels
from sab.binarizers.signs import positive, to_half

KEPT_SHARE = 0.10
KEEP = ("magnitude", "hessian")


def plan(weight: Tensor, inverse_factor: Tensor, *, keep: str = "magnitude", **_: object) -> KeptPlan:
    """What is fixed beforehand for `weight` [n, m], with U [m, m]; `keep` is the measure by which weights stay.

    Of weights that tie at the threshold none is kept.
    """
    saliency = weight.abs()
    if keep == "hessian":
        saliency = saliency / inverse_factor.diagonal()  # the root of w² / U_jj², which ranks alike
    others = weight.numel() - int(KEPT_SHARE * weight.numel())
    kept = saliency > saliency.flatten().kthvalue(others).values
    rest = weight * ~kept
    row_mean = to_half(rest.mean(1))
    row_scale = to_half((rest - row_mean.float()[:, None]).abs().mean(1))
    kept_scale, kept_zero = grid(weight, KEPT_BITS)
    return KeptPlan(kept, row_mean, row_scale, kept_scale, kept_zero.to(torch.uint8))


def fit_block(weight: Tensor, context: BlockContext) -> KeptCodes:
    """Codes of a block `weight` [n, k] under `context.plan`; without one the block is taken for the linear."""
    fixed = context.plan or plan(weight, context.inverse_factor)
    mean, scale = fixed.row_mean.float(), fixed.row_scale.float()
    step, zero = fixed.kept_scale.float(), fixed.kept_zero.float()
    rule = Kept(Levels(step, zero, KEPT_BITS), fixed.kept, mean, scale)
    settled = settle(weight, context.inverse_factor, rule)
    levels = nearest_levels(settled, step[:, None], zero[:, None], KEPT_BITS) * fixed.kept
    return KeptCodes(
        method="pb-llm",
        shape=(weight.shape[0], weight.shape[1]),
        block_size=context.block_size,
        first=positive(settled - mean[:, None]) & ~fixed.kept,
        levels=levels.to(torch.uint8),
        kept=fixed.kept,
        row_mean=fixed.row_mean,
        row_scale=fixed.row_scale,
        kept_scale=fixed.kept_scale,
        kept_zero=fixed.kept_zero,
    )
