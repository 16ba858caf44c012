"""From a matrix of any size to a tile a screen can show: pooling pyramids and 16-bit log codes.

Two ways of pooling a square of f × f weights (f a power of two) into one cell:

- "max": the cell shows its *representative*, the weight whose stronger significance is the largest. The
  pyramid stores where that weight is, so that every quantity shown in the cell (both significances, value,
  error, class) belongs to one real weight, and its class under any thresholds is exact. Rare salient
  weights stay visible at every zoom.
- "mean": the cell shows the mean of each quantity over its weights.

Cost for a 4096 × 11008 matrix: about a second to build the index pyramid once, then a few milliseconds a
tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POOLINGS = ("max", "mean")
MAX_CELLS = 256 * 256  # more cells than this make linked, dragged views stutter
LOG2_LOW, LOG2_HIGH = -40.0, 24.0  # range of log2 of a mean-normalised significance that the codes keep
CODES = 65535
LOG2_STEP = (LOG2_HIGH - LOG2_LOW) / (CODES - 1)  # 0.001: one code is a 0.07 % step of the significance


def encode(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """16-bit log codes of non-negative values: 0 stands for zero, code c ≥ 1 for 2^(LOG2_LOW + (c−1)·step).
    Values beyond the range take the nearest code."""
    with np.errstate(divide="ignore"):
        place = (np.log2(values, dtype=np.float32) - np.float32(LOG2_LOW)) / np.float32(LOG2_STEP)
    codes = np.clip(np.rint(place), 0, CODES - 1).astype(np.uint16) + np.uint16(1)
    codes[np.asarray(values) <= 0] = 0
    return codes


def decode(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values that the codes stand for."""
    values = np.exp2(LOG2_LOW + (codes.astype(np.float32) - 1.0) * LOG2_STEP).astype(np.float32)
    values[codes == 0] = 0.0
    return values


def largest_pair_index(key: NDArray[np.uint16]) -> list[NDArray[np.uint32]]:
    """Index pyramid over a key [n, m]: entry k−1 holds, for every 2^k × 2^k square, the flat index into
    the matrix of the square's largest key (the first one of equals, row by row). Stops at one cell."""
    rows, columns = key.shape
    index = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    levels: list[NDArray[np.uint32]] = []
    while max(key.shape) > 1:
        key, index = _halve(key, index)
        levels.append(index)
    return levels


def _halve(
    key: NDArray[np.uint16], index: NDArray[np.uint32]
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The larger of each pair along the rows, then along the columns; an odd end stands alone."""
    for axis in (1, 0):
        length = key.shape[axis]
        even = [slice(None), slice(None)]
        odd = [slice(None), slice(None)]
        even[axis], odd[axis] = slice(0, length, 2), slice(1, length, 2)
        best, place = key[tuple(even)].copy(), index[tuple(even)].copy()
        other, other_place = key[tuple(odd)], index[tuple(odd)]
        paired = [slice(None), slice(None)]
        paired[axis] = slice(0, other.shape[axis])
        view, view_place = best[tuple(paired)], place[tuple(paired)]
        # Of equals the lower flat index wins, so that the choice does not hang on the order of the axes.
        wins = (other > view) | ((other == view) & (other_place < view_place))
        np.copyto(view, other, where=wins)
        np.copyto(view_place, other_place, where=wins)
        key, index = best, place
    return key, index


def mean_pool(values: NDArray[np.floating], factor: int) -> NDArray[np.float32]:
    """Mean over squares of factor × factor; squares at the far edges average what they have."""
    rows, columns = values.shape
    row_starts = np.arange(0, rows, factor)
    column_starts = np.arange(0, columns, factor)
    summed = np.add.reduceat(values, column_starts, axis=1, dtype=np.float32)
    summed = np.add.reduceat(summed, row_starts, axis=0, dtype=np.float32)
    heights = np.diff(np.append(row_starts, rows))
    widths = np.diff(np.append(column_starts, columns))
    return (summed / (heights[:, None] * widths[None, :])).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """A rectangle of cells: cells [row0, row1) × [column0, column1) of the matrix pooled by `factor`."""

    factor: int
    row0: int
    row1: int
    column0: int
    column1: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.row1 - self.row0, self.column1 - self.column0


def window(
    shape: tuple[int, int], top: float, left: float, bottom: float, right: float, cells: int = MAX_CELLS
) -> Window:
    """The sharpest window of at most `cells` cells that covers a rectangle given in weights. The rectangle
    is clamped to the matrix and widened to whole cells; it always holds at least one cell."""
    rows, columns = shape
    top, left = min(max(top, 0.0), rows - 1.0), min(max(left, 0.0), columns - 1.0)
    bottom, right = min(max(bottom, top + 1.0), float(rows)), min(max(right, left + 1.0), float(columns))
    factor = 1
    while True:
        row0, column0 = int(top // factor), int(left // factor)
        row1, column1 = int(-(-bottom // factor)), int(-(-right // factor))
        if (row1 - row0) * (column1 - column0) <= cells or factor >= max(rows, columns):
            return Window(factor, row0, row1, column0, column1)
        factor *= 2


class Pyramid:
    """Pooled views of the quantities of one linear; the representative is chosen by both significances.

    language, vision: significances [n, m], float32, mean 1 (or all zero).
    """

    def __init__(self, language: NDArray[np.float32], vision: NDArray[np.float32]) -> None:
        if language.shape != vision.shape:
            raise ValueError(f"Maps of one linear differ in shape: {language.shape} and {vision.shape}.")
        self.shape: tuple[int, int] = (language.shape[0], language.shape[1])
        self._values = {"language": language, "vision": vision}
        self._levels = largest_pair_index(np.maximum(encode(language), encode(vision)))

    def tile(self, name: str, view: Window, pooling: str) -> NDArray[np.float32]:
        """One significance ("language" or "vision") in a window, float32 [rows, columns]."""
        return self.tile_of(self._values[name], view, pooling)

    def tile_of(self, values: NDArray[np.float32], view: Window, pooling: str) -> NDArray[np.float32]:
        """Any matrix of the same shape in a window: the representative's entry, or the mean of the cell."""
        if pooling not in POOLINGS:
            raise ValueError(f"Pooling is “max” or “mean”, not “{pooling}”.")
        if values.shape != self.shape:
            raise ValueError(f"A matrix of {values.shape} is not of this linear, which is {self.shape}.")
        if view.factor == 1:
            return values[view.row0 : view.row1, view.column0 : view.column1]
        if pooling == "max":
            chosen = self.representative(view)
            return values.reshape(-1)[chosen]
        rows = slice(view.row0 * view.factor, view.row1 * view.factor)
        columns = slice(view.column0 * view.factor, view.column1 * view.factor)
        return mean_pool(values[rows, columns], view.factor)

    def representative(self, view: Window) -> NDArray[np.uint32]:
        """Flat index of the representative weight of every cell of a window with factor ≥ 2."""
        level = self._levels[view.factor.bit_length() - 2]
        return level[view.row0 : view.row1, view.column0 : view.column1]
