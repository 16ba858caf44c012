"""The product from the stored tensors (format_version 1), in torch, on any device: oracle and fallback.

A few rows at a time are unpacked, dequantized and multiplied, so that n m floats are never held at once. It saves
memory and no time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import KeptCodes
from sab.packing import rows_of

WEIGHTS_AT_ONCE = 1 << 20


def linear(x: Tensor, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Tensor:
    """`x` [..., m] times the packed weight, [..., n] in the dtype of x. Tensors as `packing.pack` gives them."""
    parts = [torch.nn.functional.linear(x, dense.to(x.dtype)) for dense in dense_rows(tensors, metadata)]
    return torch.cat(parts, -1)


def dense_rows(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Iterator[Tensor]:
    """The dequantized weight, float32 [some rows, m] at a time, on the tensors' device."""
    rows, width = metadata["shape"]
    step = max(1, WEIGHTS_AT_ONCE // width)
    kept = 0
    for first in range(0, rows, step):
        codes = rows_of(tensors, metadata, slice(first, min(first + step, rows)), kept)
        if isinstance(codes, KeptCodes):
            kept += int(codes.kept.sum())
        yield codes.dense()
