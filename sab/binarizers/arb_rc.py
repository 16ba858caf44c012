"""ARB-RC: alternating row and column scales, no means (METHOD 7). Li et al. 2025."""

from torch import Tensor

from sab.binarizers.alternate import fit_groups, fit_scales, trace_scales
from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes, GroupCodes, Round


def fit(
    weight: Tensor, mask: Tensor, order: int, *, significance: Tensor | None = None, iterations: int = 15
) -> GroupCodes:
    """Codes of one group, `weight` and `mask` [n, k]; significance plays no part."""
    return fit_scales(weight, mask, order, None, iterations)


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]; the salient columns are one group."""
    return fit_structured(
        "arb-rc",
        weight,
        context,
        lambda part, masks, order, _, stack: fit_groups(part, masks, order, None, stack, context.iterations),
        split_salient=False,
    )


def trace(weight: Tensor, *, significance: Tensor | None = None, order: int = 1, iterations: int = 15) -> list[Round]:
    """States of the fit of `weight` [n, k] as one group: the start and every round."""
    return trace_scales(weight, order, None, iterations)
