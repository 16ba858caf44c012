"""Codes arranged for `cpu.c`: sixteen rows side by side, salient columns last in their block, nothing stored twice.

In a block of k columns (padded to a multiple of 32) those that are not salient come first, then padding, then the
salient ones, so that each part of the product reads whole units of 16 columns; one unit may hold both. A cell is
four columns: `cell[j]` is column 4 i + j of the arranged block. A unit's four cells lie in the bytes of a dword, in
the low nibbles for an even unit, in the high ones for an odd unit. A nibble with bit 3 set has its bits 0..2
inverted (cpu.c says why).

    words          int32 [blocks, tiles, planes, units / 2, 16]   signs a, and b = a * (-1)^group; or bit planes
    second         int32 [ceil(tail units / 2), tiles, 16]        residual signs of units that hold salient columns
    scale          int16 or int8 [blocks, tiles, parameters, 16]  row scales, second row scales, row means; [1, ...]
                                                                  where all blocks share them
    step           int16 [tiles, 16]                              what int8 scales are multiples of
    zero           uint8 [blocks, tiles, 16]                      zeros of the integer formats
    column         int16 [1 or 2, blocks, 16 units]               column scales
    second_column  int16 [residuals, 16 tail units]
    order          int16 [blocks, 16 units]                       column inside the block, -1 for padding
    start          int32 [blocks]                                 place of the first salient column

Kept weights (pb-llm) are listed row by row, and by column in a row, instead of marked by a bitmap: an index of 8 bits
for each of a tenth of the weights takes less room than a bit for every weight, and finds its input at once.

    kept_level, kept_index  uint8 [kept + 16]         level, column inside the block; then zeros, read and not used
    kept_count              uint8 [n, blocks]         how many a row keeps in a block
    kept_start              int64 [n]                 where a row begins in the two above
    kept_scale, kept_zero   int16, uint8 [tiles, 16]

Every method's codes fit, but kept weights in blocks of more than 128 columns; these, and what else the stored format
allows (means together with column scales or with a step, salient rows split with means), are left to the reference.

`arrange_stored` and `stored` go there and back from the stored tensors (layout.py), bit for bit, some rows at a time,
so that a linear's bits are never all unpacked at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sab.binarizers.codes import BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.layout import pack_bits, pack_planes
from sab.packing import rows_of

LANES = 16
UNIT = 16  # columns
CELL = 4
ONE, SHARED, SPLIT, INTEGER, NONE = range(5)  # what cpu.c looks up in a part of a block
LARGEST_BLOCK = 4096
LARGEST_KEPT_BLOCK = 128  # as in cpu.c
WEIGHTS_AT_ONCE = 1 << 20
LISTED = ("kept_level", "kept_index")
TILED = {  # tensors with rows or tiles in them: along which dimension
    **{"words": 1, "second": 1, "scale": 1, "zero": 1, "step": 0, "kept_scale": 0, "kept_zero": 0},
    **{"kept_level": 0, "kept_index": 0, "kept_count": 0, "kept_start": 0},
}


@dataclass(frozen=True)
class Tiles:
    """`tensors` and the integers of the C structure `Layer`, by their names there."""

    shape: tuple[int, int]
    sizes: dict[str, int]
    tensors: dict[str, Tensor]


def arrange(codes: LinearCodes) -> Tiles | None:
    """The arrangement of a linear's codes; None where only the reference takes them."""
    if codes.block_size > LARGEST_BLOCK:
        return None
    if isinstance(codes, IntegerCodes):
        return _arrange_integer(codes)
    if isinstance(codes, KeptCodes):
        return _arrange_kept(codes) if codes.block_size <= LARGEST_KEPT_BLOCK else None
    return _arrange_binary(codes) if _supported(codes) else None


def arrange_stored(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Tiles | None:
    """The arrangement of a linear as it is stored; None where only the reference takes it."""
    rows, width = metadata["shape"]
    parts, kept = [], 0
    for here in _row_ranges(rows, width):
        codes = rows_of(tensors, metadata, here, kept)
        part = arrange(codes)
        if part is None:
            return None
        if isinstance(codes, KeptCodes):
            here_kept = int(codes.kept.sum())
            unpadded = {name: part.tensors[name][:here_kept] for name in LISTED}
            part.tensors.update(unpadded, kept_start=part.tensors["kept_start"] + kept)
            kept += here_kept
        parts.append(part)
    joined = {
        name: torch.cat([part.tensors[name] for part in parts], TILED[name]) if name in TILED else values
        for name, values in parts[0].tensors.items()
    }
    joined.update({name: torch.nn.functional.pad(joined[name], (0, LANES)) for name in LISTED if name in joined})
    return Tiles((rows, width), parts[0].sizes | {"rows": rows, "tiles": -(-rows // LANES)}, joined)


def stored(tiles: Tiles) -> dict[str, Tensor]:
    """The stored tensors of a linear from its arrangement: the inverse of `arrange_stored`."""
    of, tensors = tiles.sizes, tiles.tensors
    rows, width, block_size = of["rows"], of["width"], of["block_size"]
    place = _Places(tiles.shape, block_size, _salient(tiles))
    integer = of["main_kind"] == INTEGER
    codes = []
    for here in _row_ranges(rows, width):
        count = here.stop - here.start
        words = tensors["words"][:, here.start // LANES : -(-here.stop // LANES)]
        bits = _bits(words.permute(1, 4, 0, 2, 3))  # [tiles, 16, blocks, planes, places]
        planes = place.to_columns(bits.flatten(0, 1)[:count].transpose(1, 2))  # [rows here, planes, m]
        first, *others = planes.unbind(1)
        if of["kept_blocks"]:
            others = [_kept(tiles, here)]
        elif not integer:
            others = [first ^ other for other in others]
        codes.append(pack_planes([first, *others], block_size))
    scale = tensors["scale"].permute(2, 0, 1, 3).flatten(2)[..., :rows].contiguous()  # [parameters, blocks, n]
    if integer:
        zero = tensors["zero"].flatten(1)[:, :rows].reshape(-1)
        planes = torch.stack([(zero >> bit & 1).bool() for bit in range(of["planes"])])
        return {"codes": torch.cat(codes), "scale": scale[0], "zero": pack_bits(planes)}
    if of["kept_blocks"]:
        found = {"codes": torch.cat(codes), "row_scale": scale[0, 0], "row_mean": scale[1, 0]}
        found |= {"kept": tensors["kept_level"][:-LANES]}
        found |= {name: tensors[name].flatten()[:rows] for name in ("kept_scale", "kept_zero")}
        return {name: values.clone() for name, values in found.items()}
    found = {
        "codes": torch.cat(codes),
        "row_scale": scale[: of["slots"]],
        "salient": pack_bits(_salient(tiles)),
        "second": pack_bits(_second(tensors["second"], place)[:rows]),
        "second_row_scale": scale[of["slots"] : of["slots"] + of["residuals"]],
    }
    if of["means"]:
        found["row_mean"] = scale[of["slots"] + of["residuals"] :]
    if of["columns"]:
        found["column_scale"] = place.to_columns(tensors["column"])
    if of["second_columns"]:
        found["second_column_scale"] = tensors["second_column"][:, place.is_salient]
    if of["small"]:
        found["row_step"] = tensors["step"].flatten()[:rows]
    return {name: values.clone() for name, values in found.items()}  # nothing keeps the arrangement


def _row_ranges(rows: int, width: int) -> Iterator[slice]:
    """Whole tiles with about a million weights at a time."""
    step = LANES * max(1, WEIGHTS_AT_ONCE // (LANES * width))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _salient(tiles: Tiles) -> Tensor:
    """Which columns are salient, bool [m]: those in the places from `start` on."""
    order, start = tiles.tensors["order"].long(), tiles.tensors["start"].long()
    blocks, places = order.shape
    column = order + tiles.sizes["block_size"] * torch.arange(blocks)[:, None]
    salient = torch.zeros(tiles.shape[1], dtype=torch.bool)
    salient[column[torch.arange(places)[None] >= start[:, None]]] = True
    return salient


def _kept(tiles: Tiles, here: slice) -> Tensor:
    """Which weights of some rows are kept, bool [rows here, m]."""
    of, tensors = tiles.sizes, tiles.tensors
    count = tensors["kept_count"][here].long()
    first = int(tensors["kept_start"][here.start])
    column = torch.arange(of["blocks"]).repeat(len(count)).repeat_interleave(count.flatten()) * of["block_size"]
    column += tensors["kept_index"][first : first + int(count.sum())]
    kept = torch.zeros(len(count), of["width"], dtype=torch.bool)
    kept[torch.arange(len(count)).repeat_interleave(count.sum(1)), column] = True
    return kept


def _second(words: Tensor, place: "_Places") -> Tensor:
    """int32 [ceil(tail units / 2), tiles, 16] to residual signs, bool [16 tiles, c]."""
    bits = _bits(words.permute(1, 2, 0)).flatten(0, 1)  # [16 tiles, places of whole dwords]
    return bits[:, : len(place.salient)][:, place.is_salient]


def _bits(dwords: Tensor) -> Tensor:
    """int32 [..., p / 32] to bool [..., p] in the order of the places: the inverse of `_Places._dwords`."""
    halves = dwords.contiguous()[..., None].view(torch.uint8)  # [..., p / 32, 4]
    nibbles = torch.stack([halves & 15, halves >> 4], -2)  # [..., p / 32, 2, 4]
    top = nibbles >> 3
    cells = torch.stack([nibbles & 1 ^ top, nibbles >> 1 & 1 ^ top, nibbles >> 2 & 1 ^ top, top], -1)
    return cells.flatten(-4).bool()


def _supported(codes: BinaryCodes) -> bool:
    columns = 0 if codes.column_scale is None else len(codes.column_scale)
    slots, grouped = len(codes.row_scale), codes.group is not None
    if codes.row_mean is not None and (columns or codes.row_step is not None or slots == 4):
        return False
    if columns == 2 and not grouped:
        return False
    if codes.second_column_scale is not None and columns != 2:
        return False
    if codes.group is not None and not codes.splits_salient and bool((codes.group & codes.salient).any()):
        return False
    return not bool(codes.salient.any()) or slots > codes.groups


def _arrange_binary(codes: BinaryCodes) -> Tiles:
    place = _Places(codes.shape, codes.block_size, codes.salient)
    planes = [codes.first] if codes.group is None else [codes.first, codes.first ^ codes.group]
    parameters = [codes.row_scale, codes.second_row_scale, *([] if codes.row_mean is None else [codes.row_mean])]
    columns = 0 if codes.column_scale is None else len(codes.column_scale)
    slots, residuals = len(codes.row_scale), len(codes.second_row_scale)
    grouped = len(planes) == 2
    main = ONE if not grouped else SPLIT if columns == 2 else SHARED
    tail = NONE if not residuals else ONE if residuals == 1 else main
    tensors = {
        "words": place.words(planes),
        "second": place.second(codes.second),
        "scale": place.by_tile(torch.cat(parameters)),
        "order": place.order,
        "start": place.start.to(torch.int32),
    }
    if codes.row_step is not None:
        tensors["step"] = place.by_row(codes.row_step.view(torch.int16))
    if codes.column_scale is not None:
        tensors["column"] = place.columns(codes.column_scale.view(torch.int16))
    if codes.second_column_scale is not None:
        tensors["second_column"] = place.salient_columns(codes.second_column_scale.view(torch.int16))
    sizes = {
        "planes": len(planes),
        "main_kind": main,
        "tail_kind": tail,
        "slots": slots,
        "residuals": residuals,
        "means": int(codes.row_mean is not None),
        "parameters": sum(len(part) for part in parameters),
        "small": int(codes.row_step is not None),
        "columns": columns,
        "second_columns": 0 if codes.second_column_scale is None else len(codes.second_column_scale),
        **place.sizes,
    }
    return Tiles(codes.shape, sizes, tensors)


def _arrange_integer(codes: IntegerCodes) -> Tiles:
    place = _Places(codes.shape, codes.block_size, torch.zeros(codes.shape[1], dtype=torch.bool))
    tensors = {
        "words": place.words([(codes.levels >> bit & 1).bool() for bit in range(codes.bits)]),
        "scale": place.by_tile(codes.scale[None]),
        "zero": place.by_tile(codes.zero[None])[:, :, 0],
        "order": place.order,
        "start": place.start.to(torch.int32),
    }
    sizes = {"planes": codes.bits, "main_kind": INTEGER, "tail_kind": NONE, "slots": 1, "parameters": 1}
    none = dict.fromkeys(("residuals", "means", "small", "columns", "second_columns"), 0)
    return Tiles(codes.shape, sizes | none | place.sizes, tensors)


def _arrange_kept(codes: KeptCodes) -> Tiles:
    width = codes.shape[1]
    place = _Places(codes.shape, codes.block_size, torch.zeros(width, dtype=torch.bool))
    kept = codes.kept.cpu()
    blocks = place.sizes["blocks"]
    in_blocks = torch.nn.functional.pad(kept, (0, blocks * codes.block_size - width)).unflatten(1, (blocks, -1))
    of_row = kept.sum(1)
    tensors = {
        "words": place.words([codes.first]),
        "second": place.second(codes.first[:, :0]),
        "scale": place.by_tile(torch.stack([codes.row_scale, codes.row_mean])[:, None]),
        "order": place.order,
        "start": place.start.to(torch.int32),
        "kept_level": torch.nn.functional.pad(codes.levels.cpu()[kept], (0, LANES)),
        "kept_index": torch.nn.functional.pad(
            (kept.nonzero()[:, 1] % codes.block_size).to(torch.uint8), (0, LANES)
        ),
        "kept_count": in_blocks.sum(2).to(torch.uint8),
        "kept_start": of_row.cumsum(0) - of_row,
        "kept_scale": place.by_row(codes.kept_scale.view(torch.int16)),
        "kept_zero": place.by_row(codes.kept_zero),
    }
    sizes = {"planes": 1, "main_kind": ONE, "tail_kind": NONE, "slots": 1, "means": 1, "parameters": 2}
    none = dict.fromkeys(("residuals", "small", "columns", "second_columns"), 0)
    return Tiles(codes.shape, sizes | none | place.sizes | {"scale_blocks": 1, "kept_blocks": blocks}, tensors)


class _Places:
    """Where the columns of a linear [n, m] go, and how its tensors follow them."""

    def __init__(self, shape: tuple[int, int], block_size: int, salient: Tensor) -> None:
        rows, width = shape
        blocks = -(-width // block_size)
        places = 2 * UNIT * -(-block_size // (2 * UNIT))
        column = torch.arange(blocks * block_size).reshape(blocks, block_size)
        column = torch.nn.functional.pad(column, (0, places - block_size), value=width)
        exists = column < width
        chosen = torch.nn.functional.pad(salient.cpu(), (0, 1))[column.clamp(max=width)] & exists
        rank = torch.where(chosen, 2, torch.where(exists, 0, 1))
        inside = rank.argsort(dim=1, stable=True)
        self.column = torch.where(exists, column, width).gather(1, inside)  # [blocks, places], m for padding
        self.order = torch.where(self.column < width, inside, -1).to(torch.int16)
        self.start = places - chosen.sum(1)
        first_unit = self.start // UNIT
        in_tail = torch.arange(places // UNIT)[None] >= first_unit[:, None]
        tail = in_tail.repeat_interleave(UNIT, 1)
        number = torch.where(torch.arange(places)[None] >= self.start[:, None], 1, 0)
        number = torch.where(number > 0, number.flatten().cumsum(0).reshape(number.shape) - 1, int(chosen.sum()))
        self.salient = number[tail]  # [tail places]: which of the c salient columns, c for none
        self.is_salient = self.salient < chosen.sum()
        self.width = width
        self.tiles = -(-rows // LANES)
        self.padding = self.tiles * LANES - rows
        self.sizes = {
            "rows": rows,
            "width": width,
            "tiles": self.tiles,
            "blocks": blocks,
            "block_size": block_size,
            "units": places // UNIT,
            "tail_units": len(self.salient) // UNIT,
            "scale_blocks": blocks,
            "kept_blocks": 0,
        }

    def words(self, planes: list[Tensor]) -> Tensor:
        """bool [n, m] each to int32 [blocks, tiles, planes, units / 2, 16]."""
        arranged = [self._dwords(self._padded(plane)[:, self.column]) for plane in planes]  # [n, blocks, units / 2]
        stacked = torch.stack(arranged, 2)  # [n, blocks, planes, units / 2]
        tiled = self._tiled(stacked)  # [tiles, 16, blocks, planes, units / 2]
        return tiled.permute(2, 0, 3, 4, 1).contiguous()

    def second(self, second: Tensor) -> Tensor:
        """bool [n, c] to int32 [ceil(tail units / 2), tiles, 16]."""
        bits = self._padded(second)[:, self.salient]
        bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % (2 * UNIT)))
        return self._tiled(self._dwords(bits)).permute(2, 0, 1).contiguous()

    def by_tile(self, values: Tensor) -> Tensor:
        """Row parameters [p, blocks, n] to [blocks, tiles, p, 16]; float16 as int16."""
        stored = values.cpu().view(torch.int16) if values.dtype == torch.float16 else values.cpu()
        padded = torch.nn.functional.pad(stored, (0, self.padding))
        return padded.reshape(*padded.shape[:2], self.tiles, LANES).permute(1, 2, 0, 3).contiguous()

    def by_row(self, values: Tensor) -> Tensor:
        """[n] to [tiles, 16]."""
        return torch.nn.functional.pad(values.cpu(), (0, self.padding)).reshape(self.tiles, LANES)

    def columns(self, values: Tensor) -> Tensor:
        """[p, m] to [p, blocks, places]."""
        return self._padded(values)[:, self.column].contiguous()

    def salient_columns(self, values: Tensor) -> Tensor:
        """[p, c] to [p, tail places]."""
        return self._padded(values)[:, self.salient].contiguous()

    def to_columns(self, values: Tensor) -> Tensor:
        """[..., blocks, places] back to [..., m]."""
        there = self.column < self.width
        columns = values.new_empty(*values.shape[:-2], self.width)
        columns[..., self.column[there]] = values[..., there]
        return columns

    def _padded(self, values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.cpu(), (0, 1))

    def _tiled(self, values: Tensor) -> Tensor:
        padding = [0, 0] * (values.ndim - 1) + [0, self.padding]
        return torch.nn.functional.pad(values, padding).reshape(self.tiles, LANES, *values.shape[1:])

    @staticmethod
    def _dwords(bits: Tensor) -> Tensor:
        """bool [..., p] in the order of the places to int32 [..., p / 32]."""
        cells = bits.reshape(*bits.shape[:-1], bits.shape[-1] // (2 * UNIT), 2, UNIT // CELL, CELL).to(torch.uint8)
        top = cells[..., 3]
        nibbles = (cells[..., 0] ^ top) | (cells[..., 1] ^ top) << 1 | (cells[..., 2] ^ top) << 2 | top << 3
        low, high = nibbles.unbind(-2)  # [..., p / 32, 4]
        return (low | high << 4).contiguous().view(torch.int32)[..., 0]
