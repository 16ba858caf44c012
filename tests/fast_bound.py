"""How far the fast mode of the C kernel may be off, worked out from how it rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from sab.kernels.tiles import INTEGER, UNIT, Tiles


def fast_error_bound(tiles: Tiles, x: Tensor) -> Tensor:
    """How far `fast` can be off besides float32 rounding, [tokens, n], for `x` float32 [tokens, m].

    A table holds the sums +-x +-x +-x +-x of a cell's four inputs (times column scales) as multiples of
    delta = max over the cells of sum |x| / 127, so an entry is off by delta / 2 at most (1e-37 where the largest sum
    is below 1e-35, as then all count as 0). A row adds one entry per cell and plane, times its scale. With two
    planes each scale multiplies half their sum, or their difference.
    """
    of, tensors = tiles.sizes, tiles.tensors
    blocks, places = of["blocks"], of["units"] * UNIT
    column = torch.where(tensors["order"] >= 0, tensors["order"] + of["block_size"] * torch.arange(blocks)[:, None], -1)
    arranged = torch.nn.functional.pad(x, (0, 1))[:, column.long()].double()  # [tokens, blocks, places]
    tail = torch.arange(places)[None] >= tensors["start"][:, None]
    scale = tensors["scale"] if of["small"] else tensors["scale"].view(torch.float16)
    scale = scale.expand(blocks, -1, -1, -1)  # where all blocks share them
    scale = scale.double().abs().permute(2, 0, 1, 3).reshape(of["parameters"], blocks, -1)  # [p, blocks, n]
    if of["small"]:
        scale = scale * tensors["step"].view(torch.float16).double().abs().reshape(-1)

    def off(values: Tensor, here: Tensor) -> Tensor:
        """[tokens, blocks]: what the entries of one plane can be off together, in the places `here`."""
        sums = (values.abs() * here).unflatten(-1, (-1, 4)).sum(-1)
        units = here.unflatten(-1, (-1, UNIT)).any(-1).sum(-1)
        entry = torch.maximum(sums.amax(-1) / 127 / 2 * (1 + 1e-5), torch.tensor(1e-35))
        return entry * units * (UNIT // 4)

    def columns(name: str, count: int) -> Tensor:
        return tensors[name].view(torch.float16).double().reshape(count, 1, *tensors[name].shape[1:-1], -1)

    first = arranged * columns("column", of["columns"]) if of["columns"] else arranged[None]
    main = torch.stack([off(values, ~tail) for values in first])  # [1 or 2, tokens, blocks]
    salient = torch.stack([off(values, tail) for values in first])
    second = salient
    if of["second_columns"]:
        spread = torch.zeros(of["second_columns"], blocks * places, dtype=torch.float64)
        in_units = tail.unflatten(-1, (-1, UNIT)).any(-1).repeat_interleave(UNIT, 1).flatten()
        spread[:, in_units] = tensors["second_column"].view(torch.float16).double()
        weighed = arranged * spread.reshape(-1, 1, blocks, places)
        second = torch.stack([off(values, tail) for values in weighed])
    elif of["columns"] == 2:
        second = off(arranged, tail)[None]
    if of["main_kind"] == INTEGER:
        weights = (2.0 ** of["planes"] - 1) / 2
        return torch.einsum("tb,bn->tn", main[0] * weights, scale[0])[:, : of["rows"]]
    grouped = 1 + (of["planes"] == 2)
    terms = [(slot, main[min(slot, len(main) - 1)]) for slot in range(grouped)]
    terms += [(slot, salient[min(slot - grouped, len(salient) - 1)]) for slot in range(grouped, of["slots"])]
    terms += [(of["slots"] + r, second[min(r, len(second) - 1)]) for r in range(of["residuals"])]
    if of["means"]:
        terms += [(of["slots"] + of["residuals"] + g, main[0] / 2) for g in range(grouped)]
    return sum((torch.einsum("tb,bn->tn", part, scale[slot]) for slot, part in terms), torch.zeros(()))[:, : of["rows"]]
