"""The codebook: one code vector per label value, by which tower and decoder speak to each other.

A visual token is taught to be the sum of the codes of what lies there. A checkpoint keeps its codes by name
("colour/red"), so that a world that has since learned new values goes on with the old ones unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sab.demo.scenes import SLOTS
from sab.errors import SabError

CODEBOOK_SEED = 11
CODEBOOK_FILE = "codebook.safetensors"


def value_names() -> list[str]:
    """The names of the codebook's rows, "slot/value"; a slot's first value is empty."""
    return [f"{slot}/{value}" for slot, values in SLOTS.items() for value in values]


def slot_offsets() -> NDArray[np.int64]:
    """Where each slot's values start in the codebook, [slots]."""
    sizes = [len(values) for values in SLOTS.values()]
    return np.cumsum([0, *sizes[:-1]])


def codebook(width: int) -> Tensor:
    """One fixed random code per label value, [values, width], length about 1; the empty value's code is zero."""
    generator = torch.Generator().manual_seed(CODEBOOK_SEED)
    codes = torch.randn(len(value_names()), width, generator=generator) * width**-0.5
    codes[slot_offsets()] = 0.0
    return codes


def save_codes(codes: Tensor, directory: Path) -> None:
    """Write a checkpoint's codes with the names of their rows."""
    names = {"values": json.dumps(value_names())}
    save_file({"codes": codes.cpu().contiguous()}, directory / CODEBOOK_FILE, metadata=names)


def load_codes(directory: Path) -> Tensor:
    """A checkpoint's codes in this world's order; values it does not know get the code of a fresh codebook.

    Files without names hold the leading values of today's world. Raises `SabError` where rows and names disagree.
    """
    with safe_open(directory / CODEBOOK_FILE, "pt") as file:
        kept, names = file.get_tensor("codes"), (file.metadata() or {}).get("values")
    codes = codebook(kept.shape[1])
    rows = {name: index for index, name in enumerate(value_names())}
    known = json.loads(names) if names else list(rows)[: len(kept)]
    if len(known) != len(kept):
        raise SabError(f"The codebook in {directory} names {len(known)} values but holds {len(kept)}; export it again.")
    for name, code in zip(known, kept, strict=True):
        if name in rows:
            codes[rows[name]] = code
    return codes
