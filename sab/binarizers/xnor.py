"""XNOR: one sign, one mean and one scale per row and block, no groups (METHOD 7). Rastegari et al. 2016."""

import torch
from torch import Tensor

from sab.binarizers import billm
from sab.binarizers.block import BlockContext
from sab.binarizers.codes import BinaryCodes

fit = billm.fit  # one group's closed form is the same


def fit_block(weight: Tensor, context: BlockContext) -> BinaryCodes:
    """Codes of a block `weight` [n, k] as a single group."""
    rows, width = weight.shape
    codes = fit(weight, torch.ones_like(weight, dtype=torch.bool), 1)
    assert codes.row_mean is not None
    return BinaryCodes(
        method="xnor",
        shape=(rows, width),
        block_size=context.block_size,
        first=codes.signs[0],
        group=None,
        salient=torch.zeros(width, dtype=torch.bool, device=weight.device),
        second=torch.zeros(rows, 0, dtype=torch.bool, device=weight.device),
        row_scale=codes.row_scale[:, None],
        second_row_scale=codes.row_scale.new_zeros(0, 1, rows),
        row_mean=codes.row_mean[None, None],
    )
