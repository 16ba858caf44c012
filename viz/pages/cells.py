"""The cells of a map as a table: what "Export, CSV" writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from viz.downsample import Pyramid, Window
from viz.figures.overview import CLASS_NAMES

if TYPE_CHECKING:
    from sab.significance import SignificanceMap


def cropped(tile: Window, rectangle: tuple[float, float, float, float]) -> Window:
    """The cells of a tile that a rectangle of weights touches, at least one."""
    top, left, bottom, right = (edge / tile.factor for edge in rectangle)
    row0 = min(max(math.floor(top), tile.row0), tile.row1 - 1)
    column0 = min(max(math.floor(left), tile.column0), tile.column1 - 1)
    row1 = min(max(math.ceil(bottom), row0 + 1), tile.row1)
    column1 = min(max(math.ceil(right), column0 + 1), tile.column1)
    return Window(tile.factor, row0, row1, column0, column1)


def cells_csv(pyramid: Pyramid, view: Window, pooling: str, found: SignificanceMap) -> str:
    """One line a cell of a window: its place, how many weights a side it pools, both significances, and its class."""
    rows, columns = np.mgrid[view.row0 : view.row1, view.column0 : view.column1].reshape(2, -1) * view.factor
    head = ["row", "column", "pooled", "significance_language", "significance_vision"]
    partition = found.partition.numpy()
    if view.factor > 1 and pooling == "mean":
        weights = np.minimum(rows + view.factor, partition.shape[0]) - rows
        weights *= np.minimum(columns + view.factor, partition.shape[1]) - columns
        masks = [partition == code for code in range(len(CLASS_NAMES))]
        shares = [pyramid.tile_of(mask, view, pooling).reshape(-1) for mask in masks]
        last = [np.rint(share * weights).astype(int).astype(str) for share in shares]
        head += CLASS_NAMES
    else:
        if view.factor > 1:
            rows, columns = np.divmod(pyramid.representative(view).reshape(-1), partition.shape[1])
        names = np.array(CLASS_NAMES)
        last = [texts(found.sparsity.numpy()[rows, columns]), names[partition[rows, columns]]]
        head += ["sparsity", "class"]
    values = [texts(pyramid.tile(name, view, pooling).reshape(-1)) for name in ("language", "vision")]
    lines = zip(rows.astype(str), columns.astype(str), [str(view.factor)] * rows.size, *values, *last, strict=True)
    return "\n".join([",".join(head), *(",".join(line) for line in lines)]) + "\n"


def texts(values: NDArray[np.float32]) -> list[str]:
    """Nine digits, which read back to the same float32."""
    return [f"{value:.9g}" for value in values.tolist()]
