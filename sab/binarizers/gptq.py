"""GPTQ: integers with column-wise error feedback inside the block (METHOD 7). Frantar et al. 2023.

The grid is set from the block as it enters, one group per block, no reordering.
"""

from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import IntegerCodes
from sab.binarizers.feedback import Levels, settle
from sab.binarizers.rtn import grid, integer_block, nearest_levels


def fit_block(method: str, weight: Tensor, context: BlockContext, bits: int) -> IntegerCodes:
    """Codes of a block `weight` [n, k] with feedback through `context.inverse_factor`."""
    scale, zero = grid(weight, bits)
    step = scale.float()
    settled = settle(weight, context.inverse_factor, Levels(step, zero, bits))
    levels = nearest_levels(settled, step[:, None], zero[:, None], bits)
    return integer_block(method, levels, scale, zero, bits, context.block_size)
