"""ARB-RC with the column-group bitmap: the salient columns are split in two as well (METHOD 7).

The control for `sab`, which differs from it by the weighting alone. Li et al. 2025.
"""

from torch import Tensor

from sab.binarizers import arb_rc
from sab.binarizers.alternate import fit_groups
from sab.binarizers.block import BlockContext, fit_structured
from sab.binarizers.codes import BinaryCodes

fit = arb_rc.fit
trace = arb_rc.trace


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]; the salient columns form two groups."""
    return fit_structured(
        "arb-rc-cgb",
        weight,
        context,
        lambda part, masks, order, _, stack: fit_groups(part, masks, order, None, stack, context.iterations),
        split_salient=True,
    )
