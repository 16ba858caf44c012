"""The product from the stored tensors (format_version 1), in torch, on any device: oracle and fallback.

A few rows at a time are unpacked, dequantized and multiplied, so that n m floats are never held at once. It saves
memory and no time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.layout import RESIDUALS

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
        codes = _codes(tensors, metadata, slice(first, min(first + step, rows)), kept)
        if isinstance(codes, KeptCodes):
            kept += int(codes.kept.sum())
        yield codes.dense()


def _codes(tensors: dict[str, Tensor], metadata: dict[str, Any], rows: slice, kept: int) -> LinearCodes:
    """Codes of some rows; `kept` is the number of kept values in the rows before."""
    width, block_size = metadata["shape"][1], metadata["block_size"]
    shape = (rows.stop - rows.start, width)
    common = {"method": metadata["method"], "shape": shape, "block_size": block_size}
    if metadata["layout"] == "integer":
        bits = metadata["bits"]
        blocks, total = tensors["scale"].shape
        zeros = _bits(tensors["zero"])[:, : blocks * total].reshape(bits, blocks, total)[..., rows]
        return IntegerCodes(
            bits=bits,
            levels=_number(_planes(tensors["codes"][rows], bits, shape, block_size)),
            scale=_half(tensors["scale"][:, rows]),
            zero=_number(zeros),
            **common,
        )
    first, *others = _planes(tensors["codes"][rows], metadata["planes"], shape, block_size)
    if "kept_bits" in metadata:
        levels = torch.zeros(shape, dtype=torch.uint8, device=first.device)
        levels[others[0]] = tensors["kept"][kept : kept + int(others[0].sum())]
        names = ("row_mean", "row_scale", "kept_scale")
        scales: dict[str, Any] = {name: _half(tensors[name][rows]) for name in names}
        return KeptCodes(
            first=first, levels=levels, kept=others[0], kept_zero=tensors["kept_zero"][rows], **scales, **common
        )
    salient = _bits(tensors["salient"])[:width]
    count = _count(tensors, metadata)
    by_row = ("row_scale", "second_row_scale", "row_mean", "row_step")
    by_column = ("column_scale", "second_column_scale")
    scales = {name: _half(tensors[name][..., rows]) for name in by_row if name in tensors}
    scales |= {name: _half(tensors[name]) for name in by_column if name in tensors}
    return BinaryCodes(
        first=first,
        group=others[0] if others else None,
        salient=salient,
        second=_bits(tensors["second"][rows])[:, :count],
        **scales,
        **common,
    )


def _count(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> int:
    """Number of salient columns: 0 where there are no second row scales."""
    if not RESIDUALS[metadata["planes"]][tensors["row_scale"].shape[0]]:
        return 0
    return int(_bits(tensors["salient"]).sum())


def _bits(packed: Tensor) -> Tensor:
    """uint8 [..., b] to bool [..., 8 b], least significant bit first."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> places & 1).bool().flatten(-2)


def _planes(packed: Tensor, number: int, shape: tuple[int, int], block_size: int) -> Tensor:
    """uint8 [n, blocks, planes k / 8] to bool [planes, n, m]."""
    bits = _bits(packed).reshape(shape[0], packed.shape[1], number, block_size)
    return bits.permute(2, 0, 1, 3).reshape(number, shape[0], -1)[..., : shape[1]]


def _number(planes: Tensor) -> Tensor:
    """bool [b, ...] to uint8 [...], the lowest bit first."""
    values = torch.arange(len(planes), dtype=torch.uint8, device=planes.device)
    return (planes.to(torch.uint8) << values.reshape(-1, *[1] * (planes.ndim - 1))).sum(0, dtype=torch.uint8)


def _half(stored: Tensor) -> Tensor:
    return stored.contiguous().view(torch.float16) if stored.dtype == torch.int16 else stored
