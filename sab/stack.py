"""Linears of one input (q, k and v; gate and up), their rows one under the other, so that one fit serves them all.

Rows are fitted alike whatever linear they belong to. What belongs to a linear as a whole, its salient columns,
break-points and column scales, has a leading dimension of linears [s] instead. Where linears differ in how many
columns they take, the narrower ones are filled up at the right with columns that no group has.

Arithmetic on whole rows runs once for the stack; sums over rows and products with column scales run once a linear, on
views. So a stack takes far fewer launches where linears are small, and about the time of its linears where they are
large, but for what fills up those that take few columns. Nothing here moves between host and device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """`rows` of each linear, from the top."""

    rows: tuple[int, ...]

    @property
    def places(self) -> list[slice]:
        """The rows of each linear."""
        ends = list(accumulate(self.rows))
        return [slice(end - rows, end) for end, rows in zip(ends, self.rows, strict=True)]

    def split(self, values: Tensor, dim: int = 0) -> Sequence[Tensor]:
        """Views of the rows of each linear, which lie along `dim` of `values`."""
        return values.split(self.rows, dim)

    def spread(self, values: Tensor, dim: int = 0) -> Tensor:
        """`values`, with one entry a linear along `dim`, for every row; of one linear as they are, to broadcast."""
        if len(self.rows) == 1:
            return values
        parts = zip(values.split(1, dim), self.rows, strict=True)
        return torch.cat([part.expand(*part.shape[:dim], rows, *part.shape[dim + 1 :]) for part, rows in parts], dim)

    def sums(self, values: Tensor, dim: int = 0) -> Tensor:
        """Sums over the rows of each linear: `dim` of `values` has one entry a linear in what is returned."""
        return torch.cat([part.sum(dim, keepdim=True) for part in self.split(values, dim)], dim)

    def across(self, values: Tensor, columns: Tensor) -> Tensor:
        """`values` [g, n, k] times each linear's `columns` [g, s, k]: [g, n]."""
        parts = zip(self.split(values, 1), columns.unbind(1), strict=True)
        return torch.cat([(part @ column[..., None])[..., 0] for part, column in parts], 1)

    def outer(self, rows: Tensor, columns: Tensor) -> Tensor:
        """`rows` [g, n] times the `columns` [g, s, k] of their linears: [g, n, k]."""
        if len(self.rows) == 1:
            return rows[..., None] * columns
        made = rows.new_empty(*rows.shape, columns.shape[-1])
        for number, place in enumerate(self.places):
            torch.mul(rows[:, place, None], columns[:, number, None], out=made[:, place])
        return made

    def down(self, rows: Tensor, values: Tensor) -> Tensor:
        """`rows` [g, n] times `values` [g, n, k], each linear for itself: [g, s, k]."""
        parts = zip(self.split(rows, 1), self.split(values, 1), strict=True)
        return torch.cat([row[:, None] @ part for row, part in parts], 1)


@dataclass(frozen=True)
class Columns:
    """Some columns of each linear of a `stack`: `index` [s, w], of which the first `widths` count."""

    stack: Stack
    index: Tensor
    widths: tuple[int, ...]

    @classmethod
    def of(cls, stack: Stack, chosen: Tensor, widths: Sequence[int]) -> "Columns":
        """The columns `chosen` bool [s, k], in their order; `widths`: how many those are."""
        order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return cls(stack, order[:, : max(widths)], tuple(widths))

    @property
    def width(self) -> int:
        """w, the most that a linear has."""
        return self.index.shape[1]

    def used(self) -> Tensor:
        """bool [n, w]: not filled up; of a single linear, where all are used, [1, w]."""
        places = torch.arange(self.width, device=self.index.device)
        return self.stack.spread(torch.stack([places < width for width in self.widths]))

    def chosen(self, number: int, width: int) -> Tensor:
        """bool [k]: which of all `width` columns of linear `number` these are."""
        found = torch.zeros(width, dtype=torch.bool, device=self.index.device)
        found[self.index[number, : self.widths[number]]] = True
        return found

    def take(self, values: Tensor, fill: float) -> Tensor:
        """These columns of `values` [n, k]: [n, w], `fill` where filled up."""
        if len(self.widths) == 1:
            return values[:, self.index[0]]
        taken = values.new_full((len(values), self.width), fill)
        for place, index, width in zip(self.stack.places, self.index, self.widths, strict=True):
            taken[place, :width] = values[place, index[:width]]
        return taken

    def put(self, target: Tensor, values: Tensor) -> None:
        """Write `values` [n, w] to these columns of `target` [n, k], but for what is filled up."""
        for place, index, width in zip(self.stack.places, self.index, self.widths, strict=True):
            target[place, index[:width]] = values[place, :width]
