"""What is stored of a packed linear: format_version 1, read by `packing`, `packed` and `hf`.

k is the block size, c the number of salient columns; bits are stored least significant first, set = +1; scales are
float16 seen as int16, so that no `.to(dtype)` recasts them; odd widths are padded with zero bits to whole blocks.

`binary`
    codes                uint8 [n, blocks, planes * k / 8]   per block the signs, then the group bits
    row_scale            int16 [slots, blocks, n]            slots, residuals: see BinaryCodes
    row_mean             int16 [slots, blocks, n]            methods with means
    column_scale         int16 [2, m] by group bit, or [1, m]
    salient              uint8 [ceil(m / 8)]                 which columns are salient
    second               uint8 [n, ceil(c / 8)]              residual signs of the salient columns
    second_row_scale     int16 [residuals, blocks, n], second_column_scale int16 [residuals, c]
    row_step             int16 [n]                           where it is, the row scales are int8 multiples of it
`binary` with kept values (its metadata says kept_bits)
    codes                uint8 [n, blocks, 2 k / 8]          per block the signs, then which weights are kept
    kept                 uint8 [kept weights]                their levels, row after row
    row_mean, row_scale  int16 [n]                           of the other weights, for the whole width
    kept_scale, kept_zero  int16 [n], uint8 [n]
`integer`
    codes                uint8 [n, blocks, b * k / 8]        per block bit 0 of all levels, then bit 1, ...
    scale                int16 [blocks, n]
    zero                 uint8 [b, ceil(blocks * n / 8)]     bit planes

The first sign and the group bit of a salient column lie in the main plane; only its second sign is extra. The
sign bit of a kept weight is 0 and says nothing.

`sizes` gives types and shapes from metadata alone. Those depend on a few numbers beside what `packing.pack` writes:
`complete` reads them off the tensors, so that whoever writes them down (`hf`) can know every size before a tensor
is read.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sab.binarizers.codes import KEPT_BITS
from sab.errors import SabError

FORMAT_VERSION = 1
OPTIONAL = ("row_mean", "column_scale", "second_column_scale", "row_step")
RESIDUALS = {1: {1: 0, 2: 1}, 2: {2: 0, 3: 1, 4: 2}}  # planes: slots: second row scales per block
FLOATS = ("row_scale", "second_row_scale", *OPTIONAL, "kept_scale", "scale")  # float16 where they are int16
LARGEST = 1 << 24  # rows, columns and block size at most: above any model's, far below any overflow

Size = tuple[torch.dtype, tuple[int, ...]]


def damaged(reason: str) -> SabError:
    """The error of a packed linear that is not what it says."""
    return SabError(f"this packed linear is damaged ({reason}): write it again")


def complete(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with what sizes depend on: `slots`, `salient` (their number) and the names of `optional` tensors,
    or the number of `kept` weights. SabError where a tensor that tells one of them is missing or of another kind."""
    try:
        width = metadata["shape"][1]
        if metadata["layout"] == "integer":
            return dict(metadata)
        if "kept_bits" in metadata:
            return metadata | {"kept": tensors["kept"].numel()}
        return metadata | {
            "slots": tensors["row_scale"].shape[0],
            "salient": int(unpack_bits(tensors["salient"], (width,)).sum()),
            "optional": [name for name in OPTIONAL if name in tensors],
        }
    except (KeyError, TypeError, IndexError) as error:
        raise damaged(f"{type(error).__name__} {error}") from error


def sizes(metadata: dict[str, Any]) -> dict[str, Size]:
    """Type and shape of every tensor of a linear, from its complete metadata. SabError for metadata of no linear."""
    try:
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            raise SabError(f"packed format {version!r} is not known here (only {FORMAT_VERSION}): update")
        rows, width = (_whole(size, 1, LARGEST) for size in metadata["shape"])
        block_size = _whole(metadata["block_size"], 8, LARGEST)
        if block_size % 8 or not isinstance(metadata["method"], str):
            raise damaged("its block size or method makes no sense")
        blocks = -(-width // block_size)
        if metadata["layout"] == "integer":
            bits = _whole(metadata["bits"], 1, 8)
            return {
                "codes": (torch.uint8, (rows, blocks, bits * block_size // 8)),
                "scale": (torch.int16, (blocks, rows)),
                "zero": (torch.uint8, (bits, -(-blocks * rows // 8))),
            }
        planes = _whole(metadata["planes"], 1, 2)
        codes = (torch.uint8, (rows, blocks, planes * block_size // 8))
        if metadata["layout"] != "binary":
            raise damaged(f"layout {metadata['layout']!r} is not known")
        if "kept_bits" in metadata:
            if metadata["kept_bits"] != KEPT_BITS or planes != 2:
                raise damaged("its kept values are of another kind")
            of_rows = dict.fromkeys(("row_mean", "row_scale", "kept_scale"), (torch.int16, (rows,)))
            kept = _whole(metadata["kept"], 0, rows * width)
            return {"codes": codes, "kept": (torch.uint8, (kept,)), **of_rows, "kept_zero": (torch.uint8, (rows,))}
        return {"codes": codes} | _binary_sizes(metadata, rows, width, blocks, planes)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SabError):
            raise
        raise damaged(f"{type(error).__name__} {error}") from error


def _binary_sizes(metadata: dict[str, Any], rows: int, width: int, blocks: int, planes: int) -> dict[str, Size]:
    slots, count, optional = metadata["slots"], _whole(metadata["salient"], 0, width), metadata["optional"]
    if slots not in RESIDUALS[planes]:
        raise damaged(f"{slots} row scales per block")
    if not set(optional) <= set(OPTIONAL):
        raise damaged(f"{sorted(set(optional) - set(OPTIONAL))} does not belong to it")
    residuals = RESIDUALS[planes][slots]
    if count and not residuals:
        raise damaged("its salient columns have no scales")
    scale = torch.int8 if "row_step" in optional else torch.int16
    possible: dict[str, Size] = {
        "row_scale": (scale, (slots, blocks, rows)),
        "salient": (torch.uint8, (-(-width // 8),)),
        "second": (torch.uint8, (rows, -(-count // 8))),
        "second_row_scale": (scale, (residuals, blocks, rows)),
        "row_mean": (torch.int16, (slots, blocks, rows)),
        "column_scale": (torch.int16, (2 if "second_column_scale" in optional else 1, width)),
        "second_column_scale": (torch.int16, (residuals, count)),
        "row_step": (torch.int16, (rows,)),
    }
    return {name: size for name, size in possible.items() if name not in OPTIONAL or name in optional}


def check(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """SabError where the tensors of a linear are not those its complete metadata asks for, or a scale is not finite."""
    expected = sizes(metadata)
    if set(tensors) != set(expected):
        raise damaged(f"its tensors are {', '.join(sorted(tensors))} instead of {', '.join(sorted(expected))}")
    for name, (dtype, shape) in expected.items():
        values = tensors[name]
        if values.dtype != dtype or tuple(values.shape) != shape:
            raise damaged(f"{name} is {values.dtype} {tuple(values.shape)} instead of {dtype} {shape}")
        if name in FLOATS and dtype == torch.int16 and not bool(torch.isfinite(as_half(values)).all()):
            raise damaged(f"{name} holds NaN or infinity")


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise damaged(f"{value!r} is no whole number from {low} to {high}")
    return value


def as_half(stored: Tensor) -> Tensor:
    """The float16 values of scales stored as int16."""
    return stored.contiguous().view(torch.float16)


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., w] to uint8 [..., ceil(w / 8)], least significant bit first."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=-1, bitorder="little"))


def unpack_bits(packed: Tensor, size: tuple[int, ...]) -> Tensor:
    """Inverse of `pack_bits` for bool `size`, on the same device; refuses other shapes and padding that is not zero."""
    expected = (*size[:-1], -(-size[-1] // 8))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        raise damaged(f"bits are {packed.dtype} {tuple(packed.shape)} instead of uint8 {expected}")
    if packed.device.type == "cpu":  # several times as fast as shifts
        bits = torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, bitorder="little")).bool()
    else:
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        bits = (packed[..., None] >> places & 1).bool().flatten(-2)
    if bool(bits[..., size[-1] :].any()):
        raise damaged("its padding is not zero")
    return bits[..., : size[-1]].contiguous()


def pack_planes(planes: list[Tensor], block_size: int) -> Tensor:
    """bool planes [n, m] to uint8 [n, blocks, planes * k / 8]."""
    rows, width = planes[0].shape
    blocks = -(-width // block_size)
    stacked = torch.stack(planes, 1)  # [n, planes, m]
    padded = torch.nn.functional.pad(stacked, (0, blocks * block_size - width))
    per_block = padded.reshape(rows, len(planes), blocks, block_size).transpose(1, 2)
    return pack_bits(per_block.reshape(rows, blocks, -1))


def unpack_planes(packed: Tensor, number: int, shape: tuple[int, int], block_size: int) -> list[Tensor]:
    """Inverse of `pack_planes`."""
    rows, width = shape
    blocks = -(-width // block_size)
    bits = unpack_bits(packed, (rows, blocks, number * block_size))
    wide = bits.reshape(rows, blocks, number, block_size).transpose(1, 2).reshape(rows, number, -1)
    if bool(wide[..., width:].any()):
        raise damaged("its padding is not zero")
    return [wide[:, plane, :width].contiguous() for plane in range(number)]
