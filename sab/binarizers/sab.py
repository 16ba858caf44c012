"""SAB: row and column scales fitted under the significance weighting Λ (METHOD 4 and 5).

`arb-rc-cgb` with `Λ * (W - W_hat)` as the loss; the same stored format and size.
"""

from torch import Tensor

from sab.binarizers.alternate import fit_groups, fit_scales, trace_scales
from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes, GroupCodes, Groups, Round
from sab.stack import Stack


def fit(
    weight: Tensor, mask: Tensor, order: int, *, significance: Tensor | None = None, iterations: int = 15
) -> GroupCodes:
    """Codes of one group, `weight`, `mask` and `significance` (Λ; None for 1) [n, k]."""
    return fit_scales(weight, mask, order, significance, iterations)


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k], weighted by `context.weighting`."""

    def fit_both(part: Tensor, masks: Tensor, order: int, weighting: Tensor | None, stack: Stack) -> Groups:
        return fit_groups(part, masks, order, weighting, stack, context.iterations, context.emphasis)

    return fit_structured("sab", weight, context, fit_both, split_salient=True)


def trace(weight: Tensor, *, significance: Tensor | None = None, order: int = 1, iterations: int = 15) -> list[Round]:
    """States of the fit of `weight` [n, k] as one group under Λ: the start and every round."""
    return trace_scales(weight, order, significance, iterations)
