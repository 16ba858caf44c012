"""Column-wise error feedback inside a block (Frantar et al. 2023): each column's error moves the ones after it.

    err_i = (w_i - stored(w_i)) / U_ii,    w_j -= err_i U_ij for j > i

Between blocks the driver's exact compensation is the same feedback, as the errors satisfy `W_b - W_hat_b = err
U_bb`. Columns are walked one by one because each depends on the last, all rows at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def settle(weight: Tensor, inverse_factor: Tensor, stored: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Each column of `weight` [n, k] as it stands when its turn comes, [n, k]; U_bb is `inverse_factor`.

    `stored(column, index)`: what is kept of column `index` [n]. Encoding the result with the same rule gives
    the codes.
    """
    # [k, n], so that the walk touches contiguous memory; a copy also where one row already is contiguous
    columns = weight.T.clone(memory_format=torch.contiguous_format)
    for index in range(columns.shape[0]):
        error = (columns[index] - stored(columns[index], index)) / inverse_factor[index, index]
        columns[index + 1 :] -= inverse_factor[index, index + 1 :, None] * error
    return columns.T.contiguous()
