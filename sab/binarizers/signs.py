"""Signs and stored precision, shared by every binarizer.

`torch.sign(0)` is 0, which has no bit; here the sign of 0 is +1. Scales live as float16 and are rounded
*before* the last signs are picked, so that what is stored is what was fitted.
"""

import torch
from torch import Tensor

LARGEST_HALF = 65504.0


def positive(values: Tensor) -> Tensor:
    """Sign bits: True for +1, which includes 0."""
    return values >= 0


def as_float(bits: Tensor) -> Tensor:
    """Sign bits to -1.0 / +1.0."""
    return bits.float().mul_(2.0).sub_(1.0)


def to_half(scale: Tensor) -> Tensor:
    """float16 as stored; what would overflow is held at the largest finite value."""
    return scale.clamp(-LARGEST_HALF, LARGEST_HALF).half()


def nearest_signs(target: Tensor, magnitudes: list[Tensor]) -> list[Tensor]:
    """Sign bits per order that bring `sum_o sign_o * magnitude_o` nearest to `target` [n, k].

    `magnitudes` >= 0, one (order 1) or two (order 2), each broadcastable to [n, k]. With two, the four
    sums lie symmetrically around 0: the larger magnitude takes the sign of the target and the smaller one
    the sign of what then remains.
    """
    first = positive(target)
    if len(magnitudes) == 1:
        return [first]
    one, two = magnitudes
    rest = target - as_float(first) * torch.maximum(one, two)
    second = positive(rest)
    leading = one >= two
    return [torch.where(leading, first, second), torch.where(leading, second, first)]
