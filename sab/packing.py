"""Codes to bit planes and back, and the bit count read off the result (METHOD 9). `layout` says what is stored."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import KEPT_BITS, BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.errors import SabError
from sab.layout import (
    FORMAT_VERSION,
    OPTIONAL,
    as_half,
    check,
    complete,
    damaged,
    pack_bits,
    pack_planes,
    sizes,
    unpack_bits,
    unpack_planes,
)


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
            "codes": pack_planes(planes, codes.block_size),
            "scale": _stored(codes.scale),
            "zero": pack_bits(zeros),
        }
        return tensors, metadata | {"layout": "integer", "bits": codes.bits}
    if isinstance(codes, KeptCodes):
        tensors = {
            "codes": pack_planes([codes.first, codes.kept], codes.block_size),
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
        "codes": pack_planes(planes, codes.block_size),
        "row_scale": _stored(codes.row_scale),
        "salient": pack_bits(codes.salient),
        "second": pack_bits(codes.second),
        "second_row_scale": _stored(codes.second_row_scale),
    }
    for name in OPTIONAL:
        values = getattr(codes, name)
        if values is not None:
            tensors[name] = _stored(values)
    scale_type = "fp16" if codes.row_step is None else "int8"
    return tensors, metadata | {"layout": "binary", "planes": len(planes), "scale_type": scale_type}


def unpack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> LinearCodes:
    """Exact inverse of `pack`, on the tensors' device. SabError where tensors and metadata do not fit together."""
    full = complete(tensors, metadata)
    check(tensors, full)
    shape = (full["shape"][0], full["shape"][1])
    if full["layout"] == "integer":
        return _unpack_integer(tensors, full, shape)
    if "kept_bits" in full:
        return _unpack_kept(tensors, full, shape)
    return _unpack_binary(tensors, full, shape)


def rows_of(tensors: dict[str, Tensor], metadata: dict[str, Any], rows: slice, kept: int = 0) -> LinearCodes:
    """Codes of some rows of a linear, as `unpack` gives them; `kept`: how many kept values the rows before have."""
    shape = (rows.stop - rows.start, metadata["shape"][1])
    by_line = ("codes", "second", "row_step", "kept_zero")
    part = {name: values[rows] for name, values in tensors.items() if name in by_line}
    if metadata["layout"] == "integer":
        blocks, total = tensors["scale"].shape
        zero = unpack_bits(tensors["zero"], (metadata["bits"], blocks * total)).reshape(-1, blocks, total)[..., rows]
        part |= {"scale": tensors["scale"][:, rows], "zero": pack_bits(zero.flatten(1))}
    if "kept_bits" in metadata:
        count = int(unpack_planes(part["codes"], 2, shape, metadata["block_size"])[1].sum())
        part["kept"] = tensors["kept"][kept : kept + count]
    by_row = ("row_scale", "second_row_scale", "row_mean", "kept_scale")
    part |= {name: values[..., rows] for name, values in tensors.items() if name in by_row}
    return unpack(tensors | part, metadata | {"shape": list(shape)})


def count_bits(codes: LinearCodes) -> BitCount:
    """Bits of a linear as `pack` stores it."""
    return count_stored(complete(*pack(codes)))


def count_stored(metadata: dict[str, Any]) -> BitCount:
    """Bits of a linear that is stored as its complete metadata says (`layout.sizes`)."""
    stored = {name: 8 * math.prod(shape) * dtype.itemsize for name, (dtype, shape) in sizes(metadata).items()}
    weights = math.prod(metadata["shape"])
    if metadata["layout"] == "integer":
        nominal = float(metadata["bits"])
        breakdown = {"levels": stored["codes"], "scales": stored["scale"], "zeros": stored["zero"]}
    elif "kept_bits" in metadata:
        nominal = 1.0 + (KEPT_BITS - 1) * metadata["kept"] / weights
        breakdown = {
            "signs": stored["codes"] // 2,
            "kept bitmap": stored["codes"] // 2,
            "kept values": stored["kept"],
            "row scales": stored["row_scale"] + stored["kept_scale"],
            "row means": stored["row_mean"],
            "zeros": stored["kept_zero"],
        }
    else:
        nominal = 1.0 + metadata["salient"] / metadata["shape"][1]
        planes = metadata["planes"]
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
    return BitCount(nominal, total / weights, total // 8, breakdown)


def _unpack_binary(tensors: dict[str, Tensor], full: dict[str, Any], shape: tuple[int, int]) -> BinaryCodes:
    planes = unpack_planes(tensors["codes"], full["planes"], shape, full["block_size"])
    return BinaryCodes(
        method=full["method"],
        shape=shape,
        block_size=full["block_size"],
        first=planes[0],
        group=planes[1] if full["planes"] == 2 else None,
        salient=unpack_bits(tensors["salient"], shape[1:]),
        second=unpack_bits(tensors["second"], (shape[0], full["salient"])),
        row_scale=_loaded(tensors["row_scale"]),
        second_row_scale=_loaded(tensors["second_row_scale"]),
        **{name: _loaded(tensors[name]) for name in full["optional"]},
    )


def _unpack_kept(tensors: dict[str, Tensor], full: dict[str, Any], shape: tuple[int, int]) -> KeptCodes:
    first, kept = unpack_planes(tensors["codes"], 2, shape, full["block_size"])
    if int(kept.sum()) != full["kept"]:
        raise damaged(f"it holds {full['kept']} kept values for {int(kept.sum())} places")
    if bool((first & kept).any()):
        raise damaged("a kept weight has a sign bit")
    levels = torch.zeros(shape, dtype=torch.uint8, device=kept.device)
    levels[kept] = tensors["kept"]
    return KeptCodes(
        method=full["method"],
        shape=shape,
        block_size=full["block_size"],
        first=first,
        levels=levels,
        kept=kept,
        row_mean=_loaded(tensors["row_mean"]),
        row_scale=_loaded(tensors["row_scale"]),
        kept_scale=_loaded(tensors["kept_scale"]),
        kept_zero=tensors["kept_zero"],
    )


def _unpack_integer(tensors: dict[str, Tensor], full: dict[str, Any], shape: tuple[int, int]) -> IntegerCodes:
    blocks, rows = tensors["scale"].shape
    zero = unpack_bits(tensors["zero"], (full["bits"], blocks * rows))
    return IntegerCodes(
        method=full["method"],
        shape=shape,
        block_size=full["block_size"],
        bits=full["bits"],
        levels=_number(unpack_planes(tensors["codes"], full["bits"], shape, full["block_size"])),
        scale=_loaded(tensors["scale"]),
        zero=_number(list(zero)).reshape(blocks, rows),
    )


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


def _loaded(stored: Tensor) -> Tensor:
    """int16 back to float16; int8 as it is."""
    return as_half(stored) if stored.dtype == torch.int16 else stored
