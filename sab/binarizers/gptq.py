"""GPTQ: integers with column-wise error feedback inside the block (METHOD 7). Frantar et al. 2023.

    q_i = nearest level of w_i,  err_i = (w_i - q_i) / U_ii,  w_j -= err_i U_ij for j > i

The grid is set from the block as it enters, one group per block, no reordering. Between blocks the driver's
exact compensation is the same feedback: the errors above satisfy `W_b - W_hat_b = err U_bb`. Columns are
walked one by one because each depends on the last, all rows at once.
"""

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import IntegerCodes
from sab.binarizers.rtn import grid, integer_block, nearest_levels


def fit_block(method: str, weight: Tensor, context: BlockContext, bits: int) -> IntegerCodes:
    """Codes of a block `weight` [n, k] with feedback through `context.inverse_factor`."""
    scale, zero = grid(weight, bits)
    step = scale.float()
    factor = context.inverse_factor
    # [k, n], so that the walk touches contiguous memory; a copy also where one row already is contiguous
    columns = weight.T.clone(memory_format=torch.contiguous_format)
    levels = torch.empty_like(columns)
    for index in range(columns.shape[0]):
        levels[index] = nearest_levels(columns[index], step, zero, bits)
        error = (columns[index] - step * (levels[index] - zero)) / factor[index, index]
        columns[index + 1 :] -= factor[index, index + 1 :, None] * error
    return integer_block(method, levels.T.contiguous(), scale, zero, bits, context.block_size)
