"""Codes to bit planes and back, and the bit count read off the result (METHOD 9).

Packed layout, format_version 1 (DESIGN.md). k is the block size, c the number of salient columns; bits are
stored least significant first, set = +1; scales are float16 seen as int16, so that no `.to(dtype)` recasts
them; odd widths are padded with zero bits to whole blocks.

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
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sab.binarizers.codes import KEPT_BITS, BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.errors import SabError

FORMAT_VERSION = 1
OPTIONAL = ("row_mean", "column_scale", "second_column_scale", "row_step")
RESIDUALS = {1: {1: 0, 2: 1}, 2: {2: 0, 3: 1, 4: 2}}  # planes: slots: second row scales per block


@dataclass(frozen=True)
class BitCount:
    """`nominal`: what the papers print, 1 + c/m, b, or 1 + 7 for each kept weight; `all_in`: every stored bit
    over n m; `bytes`: of all tensors (not the file's header); `breakdown`: bits by what they hold, adding up to
    8 * bytes.
    """

    nominal: float
    all_in: float
    bytes: int
    breakdown: dict[str, int]


def pack(codes: LinearCodes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON-able metadata of a linear's codes; `unpack` gives back exactly the same codes.

    SabError for scales that are not finite.
    """
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "method": codes.method,
        "shape": list(codes.shape),
        "block_size": codes.block_size,
    }
    if isinstance(codes, IntegerCodes):
        planes = [(codes.levels >> bit & 1).bool() for bit in range(codes.bits)]
        zeros = torch.stack([(codes.zero >> bit & 1).bool().reshape(-1) for bit in range(codes.bits)])
        tensors = {
            "codes": _pack_planes(planes, codes.block_size),
            "scale": _stored(codes.scale),
            "zero": _pack_bits(zeros),
        }
        return tensors, metadata | {"layout": "integer", "bits": codes.bits}
    if isinstance(codes, KeptCodes):
        tensors = {
            "codes": _pack_planes([codes.first, codes.kept], codes.block_size),
            "kept": codes.levels[codes.kept].cpu(),
            "row_mean": _stored(codes.row_mean),
            "row_scale": _stored(codes.row_scale),
            "kept_scale": _stored(codes.kept_scale),
            "kept_zero": codes.kept_zero.cpu(),
        }
        more = {"layout": "binary", "planes": 2, "scale_type": "fp16", "kept_bits": KEPT_BITS}
        return tensors, metadata | more
    planes = [codes.first] if codes.group is None else [codes.first, codes.group]
    tensors = {
        "codes": _pack_planes(planes, codes.block_size),
        "row_scale": _stored(codes.row_scale),
        "salient": _pack_bits(codes.salient),
        "second": _pack_bits(codes.second),
        "second_row_scale": _stored(codes.second_row_scale),
    }
    for name in OPTIONAL:
        values = getattr(codes, name)
        if values is not None:
            tensors[name] = _stored(values)
    scale_type = "fp16" if codes.row_step is None else "int8"
    return tensors, metadata | {"layout": "binary", "planes": len(planes), "scale_type": scale_type}


def unpack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> LinearCodes:
    """Exact inverse of `pack`. SabError where tensors and metadata do not fit together."""
    try:
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            raise SabError(f"packed format {version!r} is not known here (only {FORMAT_VERSION}): update")
        layout, method = metadata["layout"], str(metadata["method"])
        rows, width = (int(size) for size in metadata["shape"])
        block_size = int(metadata["block_size"])
        if rows < 1 or width < 1 or block_size < 8 or block_size % 8:
            raise _damaged("its shape makes no sense")
        if layout == "integer":
            return _unpack_integer(tensors, method, (rows, width), block_size, int(metadata["bits"]))
        if layout == "binary" and "kept_bits" in metadata:
            if metadata["kept_bits"] != KEPT_BITS or metadata["planes"] != 2:
                raise _damaged("its kept values are of another kind")
            return _unpack_kept(tensors, method, (rows, width), block_size)
        if layout == "binary":
            return _unpack_binary(tensors, method, (rows, width), block_size, int(metadata["planes"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SabError):
            raise
        raise _damaged(f"{type(error).__name__} {error}") from error
    raise _damaged(f"layout {layout!r} is not known")


def count_bits(codes: LinearCodes) -> BitCount:
    """Bits of a linear as `pack` stores it."""
    tensors, _ = pack(codes)
    stored = {name: 8 * values.numel() * values.element_size() for name, values in tensors.items()}
    if isinstance(codes, IntegerCodes):
        nominal = float(codes.bits)
        breakdown = {"levels": stored["codes"], "scales": stored["scale"], "zeros": stored["zero"]}
    elif isinstance(codes, KeptCodes):
        nominal = 1.0 + (KEPT_BITS - 1) * codes.salient_fraction
        breakdown = {
            "signs": stored["codes"] // 2,
            "kept bitmap": stored["codes"] // 2,
            "kept values": stored["kept"],
            "row scales": stored["row_scale"] + stored["kept_scale"],
            "row means": stored["row_mean"],
            "zeros": stored["kept_zero"],
        }
    else:
        nominal = 1.0 + codes.salient_fraction
        planes = 1 if codes.group is None else 2
        breakdown = {
            "signs": stored["codes"] // planes,
            "group bitmap": stored["codes"] // planes * (planes - 1),
            "residual signs": stored["second"],
            "salient index": stored["salient"],
            "row scales": stored["row_scale"] + stored["second_row_scale"] + stored.get("row_step", 0),
            "row means": stored.get("row_mean", 0),
            "column scales": stored.get("column_scale", 0) + stored.get("second_column_scale", 0),
        }
    total = sum(stored.values())
    return BitCount(nominal, total / (codes.shape[0] * codes.shape[1]), total // 8, breakdown)


def _unpack_binary(
    tensors: dict[str, Tensor], method: str, shape: tuple[int, int], block_size: int, number: int
) -> BinaryCodes:
    rows, width = shape
    blocks = _blocks(shape, block_size)
    if number not in (1, 2):
        raise _damaged(f"{number} planes")
    planes = _unpack_planes(tensors["codes"], number, shape, block_size)
    salient = _unpack_bits(tensors["salient"], (width,))
    count = int(salient.sum())
    slots = tensors["row_scale"].shape[0]
    if slots not in RESIDUALS[number]:
        raise _damaged(f"{slots} row scales per block")
    residuals = RESIDUALS[number][slots]
    if count and not residuals:
        raise _damaged("its salient columns have no scales")
    sizes = {
        "row_scale": (slots, blocks, rows),
        "row_mean": (slots, blocks, rows),
        "column_scale": (2 if "second_column_scale" in tensors else 1, width),
        "second_row_scale": (residuals, blocks, rows),
        "second_column_scale": (residuals, count),
        "row_step": (rows,),
    }
    scales = {
        name: _loaded(tensors, name, size, "row_step" in tensors and name in ("row_scale", "second_row_scale"))
        for name, size in sizes.items()
        if name in tensors
    }
    unknown = set(tensors) - set(sizes) - {"codes", "salient", "second"}
    if unknown:
        raise _damaged(f"{', '.join(sorted(unknown))} does not belong to it")
    return BinaryCodes(
        method=method,
        shape=shape,
        block_size=block_size,
        first=planes[0],
        group=planes[1] if number == 2 else None,
        salient=salient,
        second=_unpack_bits(tensors["second"], (rows, count)),
        row_scale=scales["row_scale"],
        second_row_scale=scales["second_row_scale"],
        row_mean=scales.get("row_mean"),
        column_scale=scales.get("column_scale"),
        second_column_scale=scales.get("second_column_scale"),
        row_step=scales.get("row_step"),
    )


def _unpack_kept(tensors: dict[str, Tensor], method: str, shape: tuple[int, int], block_size: int) -> KeptCodes:
    rows = shape[0]
    if set(tensors) != {"codes", "kept", "row_mean", "row_scale", "kept_scale", "kept_zero"}:
        raise _damaged("its tensors are not those of a binary format with kept values")
    first, kept = _unpack_planes(tensors["codes"], 2, shape, block_size)
    values, zero = tensors["kept"], tensors["kept_zero"]
    for name, entries, size in (("kept", values, int(kept.sum())), ("kept_zero", zero, rows)):
        if entries.dtype != torch.uint8 or tuple(entries.shape) != (size,):
            raise _damaged(f"{name} is {entries.dtype} {tuple(entries.shape)} instead of uint8 ({size},)")
    if bool((first & kept).any()):
        raise _damaged("a kept weight has a sign bit")
    levels = torch.zeros(shape, dtype=torch.uint8)
    levels[kept] = values.cpu()
    return KeptCodes(
        method=method,
        shape=shape,
        block_size=block_size,
        first=first,
        levels=levels,
        kept=kept,
        row_mean=_loaded(tensors, "row_mean", (rows,)),
        row_scale=_loaded(tensors, "row_scale", (rows,)),
        kept_scale=_loaded(tensors, "kept_scale", (rows,)),
        kept_zero=zero.cpu(),
    )


def _unpack_integer(
    tensors: dict[str, Tensor], method: str, shape: tuple[int, int], block_size: int, bits: int
) -> IntegerCodes:
    if not 1 <= bits <= 8 or set(tensors) != {"codes", "scale", "zero"}:
        raise _damaged("its tensors are not those of an integer format")
    blocks = _blocks(shape, block_size)
    zero = _unpack_bits(tensors["zero"], (bits, blocks * shape[0]))
    return IntegerCodes(
        method=method,
        shape=shape,
        block_size=block_size,
        bits=bits,
        levels=_number(_unpack_planes(tensors["codes"], bits, shape, block_size)),
        scale=_loaded(tensors, "scale", (blocks, shape[0])),
        zero=_number(list(zero)).reshape(blocks, shape[0]),
    )


def _blocks(shape: tuple[int, int], block_size: int) -> int:
    return -(-shape[1] // block_size)


def _damaged(reason: str) -> SabError:
    return SabError(f"this packed linear is damaged ({reason}): write it again")


def _number(planes: list[Tensor]) -> Tensor:
    """Bit planes, lowest first, to uint8."""
    total = torch.zeros_like(planes[0], dtype=torch.uint8)
    for bit, plane in enumerate(planes):
        total |= plane.to(torch.uint8) << bit
    return total


def _stored(scale: Tensor) -> Tensor:
    """float16 as int16, int8 as it is. SabError for NaN or infinity, which must not reach a file."""
    if scale.dtype == torch.int8:
        return scale.cpu().contiguous()
    if not bool(torch.isfinite(scale).all()):
        raise SabError("a scale is NaN or infinite: the fit has failed")
    return scale.cpu().contiguous().view(torch.int16)


def _loaded(tensors: dict[str, Tensor], name: str, size: tuple[int, ...], small: bool = False) -> Tensor:
    """int16 back to float16, or int8 where it is `small`; checked."""
    values = tensors[name]
    expected = torch.int8 if small else torch.int16
    if values.dtype != expected or tuple(values.shape) != size:
        raise _damaged(f"{name} is {values.dtype} {tuple(values.shape)} instead of {expected} {size}")
    if small:
        return values.cpu()
    scale = values.cpu().contiguous().view(torch.float16)
    if not bool(torch.isfinite(scale).all()):
        raise _damaged(f"{name} holds NaN or infinity")
    return scale


def _pack_bits(bits: Tensor) -> Tensor:
    """bool [..., w] to uint8 [..., ceil(w / 8)], least significant bit first."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=-1, bitorder="little"))


def _unpack_bits(packed: Tensor, size: tuple[int, ...]) -> Tensor:
    """Inverse of `_pack_bits` for bool `size`; refuses other shapes and padding that is not zero."""
    expected = (*size[:-1], -(-size[-1] // 8))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        raise _damaged(f"bits are {packed.dtype} {tuple(packed.shape)} instead of uint8 {expected}")
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, bitorder="little").astype(bool)
    if bits[..., size[-1] :].any():
        raise _damaged("its padding is not zero")
    return torch.from_numpy(np.ascontiguousarray(bits[..., : size[-1]]))


def _pack_planes(planes: list[Tensor], block_size: int) -> Tensor:
    """bool planes [n, m] to uint8 [n, blocks, planes * k / 8]."""
    rows, width = planes[0].shape
    blocks = _blocks((rows, width), block_size)
    stacked = torch.stack(planes, 1)  # [n, planes, m]
    padded = torch.nn.functional.pad(stacked, (0, blocks * block_size - width))
    per_block = padded.reshape(rows, len(planes), blocks, block_size).transpose(1, 2)
    return _pack_bits(per_block.reshape(rows, blocks, -1))


def _unpack_planes(packed: Tensor, number: int, shape: tuple[int, int], block_size: int) -> list[Tensor]:
    """Inverse of `_pack_planes`."""
    rows, width = shape
    blocks = _blocks(shape, block_size)
    bits = _unpack_bits(packed, (rows, blocks, number * block_size))
    wide = bits.reshape(rows, blocks, number, block_size).transpose(1, 2).reshape(rows, number, -1)
    if bool(wide[..., width:].any()):
        raise _damaged("its padding is not zero")
    return [wide[:, plane, :width].contiguous() for plane in range(number)]
