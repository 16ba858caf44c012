"""Round to nearest: b-bit integers with a scale and an integer zero per row and block (METHOD 7)."""

import torch
from torch import Tensor

from sab.binarizers.block import BlockContext
from sab.binarizers.codes import IntegerCodes
from sab.binarizers.signs import to_half


def grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Asymmetric grid of `weight` [n, k]: scale f16 [n] as stored and zero float [n] in 0 .. 2^b - 1.

    The grid always holds 0 exactly, so rows of zeros and dead columns stay 0.
    """
    steps = 2**bits - 1
    low = weight.amin(1).clamp_max(0.0)
    high = weight.amax(1).clamp_min(0.0)
    scale = to_half((high - low) / steps)
    step = scale.float()
    return scale, torch.where(step > 0, -low / step, 0.0).round().clamp(0, steps)


def nearest_levels(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest level of each weight, float, for broadcastable float `scale` and `zero`."""
    steps = torch.where(scale > 0, weight / scale, 0.0).round()
    return (steps + zero).clamp(0, 2**bits - 1)


def fit_block(method: str, weight: Tensor, context: BlockContext, bits: int) -> IntegerCodes:
    """Codes of a block `weight` [n, k], every weight by itself."""
    scale, zero = grid(weight, bits)
    levels = nearest_levels(weight, scale.float()[:, None], zero[:, None], bits)
    return integer_block(method, levels, scale, zero, bits, context.block_size)


def integer_block(method: str, levels: Tensor, scale: Tensor, zero: Tensor, bits: int, block_size: int) -> IntegerCodes:
    """Codes of one block from `levels` [n, k], `scale` [n] and `zero` [n]."""
    return IntegerCodes(
        method=method,
        shape=(levels.shape[0], levels.shape[1]),
        block_size=block_size,
        bits=bits,
        levels=levels.to(torch.uint8),
        scale=scale[None],
        zero=zero.to(torch.uint8)[None],
    )
