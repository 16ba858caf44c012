"""What a binarizer returns: bits and scales, never only dense weights.

Packing, bit counts, pictures and `.dense()` all read these. Four kinds:
  GroupCodes    one group of one block: the result of a method's `fit`
  BinaryCodes   sign planes, group bits, salient columns, float16 scales; one block or a whole linear
  IntegerCodes  b-bit integers with scale and zero per row and block (rtn, gptq)
  KeptCodes     a sign plane, and single weights kept at 8 bits (pb-llm)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from sab.binarizers.signs import as_float

KEPT_BITS = 8


@dataclass(frozen=True)
class GroupCodes:
    """`W_hat = mean + sum_o row_o column_o sign_o` on the mask, 0 elsewhere.

    `mask` bool [n, k]; `signs` bool [order, n, k]; `row_scale` f16 [order, n]; `column_scale` f16
    [order, k] or None; `row_mean` f16 [n] or None.
    """

    mask: Tensor
    signs: Tensor
    row_scale: Tensor
    column_scale: Tensor | None = None
    row_mean: Tensor | None = None

    def dense(self) -> Tensor:
        """`[n, k]` float32."""
        scale = self.row_scale.float()[:, :, None]
        if self.column_scale is not None:
            scale = scale * self.column_scale.float()[:, None, :]
        total = (as_float(self.signs) * scale).sum(0)
        if self.row_mean is not None:
            total = total + self.row_mean.float()[:, None]
        return torch.where(self.mask, total, 0.0)


@dataclass(frozen=True)
class Groups:
    """GroupCodes of several groups of a stack of linears: `signs` bool [order, g, n, k], `row_scale` f16
    [order, g, n], `column_scale` f16 [order, g, s, k] or None, `row_mean` f16 [g, n] or None."""

    signs: Tensor
    row_scale: Tensor
    column_scale: Tensor | None = None
    row_mean: Tensor | None = None

    def one(self, mask: Tensor) -> GroupCodes:
        """The only group of the only linear, whose members are `mask` [n, k]."""
        column_scale = None if self.column_scale is None else self.column_scale[:, 0, 0]
        row_mean = None if self.row_mean is None else self.row_mean[0]
        return GroupCodes(mask, self.signs[:, 0], self.row_scale[:, 0], column_scale, row_mean)


@dataclass(frozen=True)
class BinaryCodes:
    """Codes of a linear of `shape` (n, m), in blocks of `block_size` columns (the last may be narrower).

    `first` bool [n, m]: signs of order 1; `second` bool [n, c]: residual signs of the c salient columns;
    `salient` bool [m]; `group` bool [n, m] or None: above the break-point.
    A weight's slot is its group bit (0 without groups), plus the number of groups on salient columns:
    `row_scale` f16 [slots, blocks, n] with, without groups, 1 slot or 2 (salient columns), and with them 3
    (salient columns not split) or 4; `row_mean` f16 [slots, blocks, n] or None;
    `second_row_scale` f16 [residuals, blocks, n], one for each slot of salient columns: slots less the groups;
    `column_scale` f16 [2, m] by group bit with `second_column_scale` f16 [residuals, c]; or f16 [1, m] alone,
    which then multiplies all of a column; or None.
    `row_step` f16 [n] or None: where given, row_scale and second_row_scale are int8 multiples of it.
    """

    method: str
    shape: tuple[int, int]
    block_size: int
    first: Tensor
    group: Tensor | None
    salient: Tensor
    second: Tensor
    row_scale: Tensor
    second_row_scale: Tensor
    row_mean: Tensor | None = None
    column_scale: Tensor | None = None
    second_column_scale: Tensor | None = None
    row_step: Tensor | None = None

    def to(self, device: torch.device) -> "BinaryCodes":
        """The same codes on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return BinaryCodes(**vars(self) | tensors)

    def some_rows(self, here: slice) -> "BinaryCodes":
        """Codes of some of the rows; salient columns and column scales stay those of all."""
        return replace(
            self,
            shape=(here.stop - here.start, self.shape[1]),
            first=self.first[here],
            group=None if self.group is None else self.group[here],
            second=self.second[here],
            row_scale=self.row_scale[..., here],
            second_row_scale=self.second_row_scale[..., here],
            row_mean=None if self.row_mean is None else self.row_mean[..., here],
            row_step=None if self.row_step is None else self.row_step[here],
        )

    @property
    def salient_fraction(self) -> float:
        """c / m."""
        return self.second.shape[1] / self.shape[1]

    @property
    def groups(self) -> int:
        """1, or 2 with the group bitmap."""
        return 1 if self.group is None else 2

    @property
    def splits_salient(self) -> bool:
        """Whether group bits divide the salient columns too; where they do not, they are 0 there."""
        return len(self.row_scale) == 2 * self.groups

    def signs(self) -> Tensor:
        """Signs of order 1, int8 [n, m], -1 or +1."""
        return self.first.to(torch.int8) * 2 - 1

    def slots(self) -> Tensor:
        """Slot of each weight, uint8 [n, m] (see the class)."""
        group = torch.zeros_like(self.first) if self.group is None else self.group
        return group.to(torch.uint8) + self.groups * self.salient.to(torch.uint8)

    def dense(self) -> Tensor:
        """`[n, m]` float32. Differentiable in the scales where they are floats that ask for gradients."""
        return self.with_signs(as_float(self.first), as_float(self.second))

    def with_signs(self, first: Tensor, second: Tensor) -> Tensor:
        """`dense` with float signs [n, m] and [n, c] in place of the stored ones; differentiable in them too."""
        scale = self._per_weight(self.row_scales()[0])
        if self.column_scale is not None and len(self.column_scale) == 2 and self.group is not None:
            low, high = self.column_scale.float()
            scale = scale * torch.where(self.group, high, low)
        total = first * scale
        if self.second.shape[1]:
            columns = self.salient.nonzero()[:, 0]
            total = total.index_add(1, columns, second * self._second_scale(columns))
        if self.column_scale is not None and len(self.column_scale) == 1:
            total = total * self.column_scale.float()
        if self.row_mean is not None:
            total += self._per_weight(self.row_mean.float())
        return total

    def row_scales(self) -> tuple[Tensor, Tensor]:
        """Row scales [slots, blocks, n] and second row scales [residuals, blocks, n], float32."""
        step = 1.0 if self.row_step is None else self.row_step.float()
        return self.row_scale.float() * step, self.second_row_scale.float() * step

    def _per_weight(self, values: Tensor) -> Tensor:
        """Row parameters [slots, blocks, n] spread over the weights, [n, m] float32."""

        def of_group(group: int) -> Tensor:
            ordinary, salient = self._wide(values[group]), values[self.groups :]
            if not len(salient):
                return ordinary
            return torch.where(self.salient, self._wide(salient[group]) if group < len(salient) else 0.0, ordinary)

        return of_group(0) if self.group is None else torch.where(self.group, of_group(1), of_group(0))

    def _wide(self, values: Tensor) -> Tensor:
        return values.T.repeat_interleave(self.block_size, 1)[:, : self.shape[1]]

    def _second_scale(self, columns: Tensor) -> Tensor:
        """Residual scale of the salient columns, whose indices are `columns`: [n, c] float32, without the scale of a
        whole column."""
        # not by the columns' blocks: gradients of a place read often are added up in any order
        scale = torch.stack([self._wide(values) for values in self.row_scales()[1]])[..., columns]  # [s, n, c]
        if self.second_column_scale is not None:
            scale = scale * self.second_column_scale.float()[:, None, :]
        if len(scale) == 2 and self.group is not None:
            return torch.where(self.group[:, columns], scale[1], scale[0])
        return scale[0]


@dataclass(frozen=True)
class IntegerCodes:
    """`W_hat = scale * (levels - zero)`, b bits per weight.

    `levels` uint8 [n, m] in 0 .. 2^b - 1; `scale` f16 [blocks, n]; `zero` uint8 [blocks, n].
    """

    method: str
    shape: tuple[int, int]
    block_size: int
    bits: int
    levels: Tensor
    scale: Tensor
    zero: Tensor

    def some_rows(self, here: slice) -> "IntegerCodes":
        """Codes of some of the rows."""
        return replace(
            self,
            shape=(here.stop - here.start, self.shape[1]),
            levels=self.levels[here],
            scale=self.scale[:, here],
            zero=self.zero[:, here],
        )

    @property
    def salient_fraction(self) -> float:
        """0: integer formats have no salient columns."""
        return 0.0

    def signs(self) -> Tensor:
        """The integer codes, int8 [n, m] (for pictures)."""
        return self.levels.to(torch.int8)

    def dense(self) -> Tensor:
        """`[n, m]` float32."""
        return self._wide(self.scale.float()) * (self.levels.float() - self._wide(self.zero.float()))

    def _wide(self, values: Tensor) -> Tensor:
        return values.T.repeat_interleave(self.block_size, 1)[:, : self.shape[1]]


@dataclass(frozen=True)
class KeptPlan:
    """What is fixed for a whole linear before its first block is fitted (pb-llm).

    `kept` bool [n, m]: weights stored at 8 bits; per row, for the whole width: `row_mean`, `row_scale` f16 [n]
    of the signed weights, `kept_scale` f16 [n] and `kept_zero` uint8 [n] of the kept ones.
    """

    kept: Tensor
    row_mean: Tensor
    row_scale: Tensor
    kept_scale: Tensor
    kept_zero: Tensor

    def columns(self, here: slice) -> "KeptPlan":
        """The plan of some of the columns."""
        return replace(self, kept=self.kept[:, here])

    @staticmethod
    def stacked(plans: Sequence["KeptPlan"]) -> "KeptPlan":
        """The plan of a stack of linears, from theirs."""
        return KeptPlan(*(torch.cat(parts) for parts in zip(*(vars(plan).values() for plan in plans), strict=True)))


@dataclass(frozen=True)
class KeptCodes:
    """`W_hat = kept_scale * (levels - kept_zero)` where `kept`, else `row_mean + row_scale * sign`.

    `first` bool [n, m]: signs, False where kept; `levels` uint8 [n, m], 0 where not kept; the rest is the
    KeptPlan of the linear.
    """

    method: str
    shape: tuple[int, int]
    block_size: int
    first: Tensor
    levels: Tensor
    kept: Tensor
    row_mean: Tensor
    row_scale: Tensor
    kept_scale: Tensor
    kept_zero: Tensor

    def some_rows(self, here: slice) -> "KeptCodes":
        """Codes of some of the rows."""
        return replace(
            self,
            shape=(here.stop - here.start, self.shape[1]),
            first=self.first[here],
            levels=self.levels[here],
            kept=self.kept[here],
            row_mean=self.row_mean[here],
            row_scale=self.row_scale[here],
            kept_scale=self.kept_scale[here],
            kept_zero=self.kept_zero[here],
        )

    @property
    def salient_fraction(self) -> float:
        """Share of the weights that are kept."""
        return float(self.kept.float().mean())

    def signs(self) -> Tensor:
        """int8 [n, m], -1 or +1: the sign bit, or the sign of a kept weight's value (+1 for 0)."""
        above = torch.where(self.kept, self.levels >= self.kept_zero[:, None], self.first)
        return above.to(torch.int8) * 2 - 1

    def dense(self) -> Tensor:
        """`[n, m]` float32."""
        level = self.kept_scale.float()[:, None] * (self.levels.float() - self.kept_zero.float()[:, None])
        sign = self.row_mean.float()[:, None] + self.row_scale.float()[:, None] * as_float(self.first)
        return torch.where(self.kept, level, sign)


@dataclass(frozen=True)
class Round:
    """State after one alternating round, for pictures; scales as computed, not yet rounded.

    `signs` int8 [order, n, k]; `row_scale` [order, n]; `column_scale` [order, k] or None; `row_mean` [n] or
    None; `weighted_loss` = sum Λ² (W - W_hat)².
    """

    signs: Tensor
    row_scale: Tensor
    column_scale: Tensor | None
    row_mean: Tensor | None
    weighted_loss: float


LinearCodes: TypeAlias = BinaryCodes | IntegerCodes | KeptCodes


def join(blocks: Sequence[LinearCodes]) -> LinearCodes:
    """Codes of a whole linear from its blocks' codes, left to right; all but the last are full."""
    head = blocks[0]
    shape = (head.shape[0], sum(block.shape[1] for block in blocks))
    if isinstance(head, IntegerCodes):
        integer = [block for block in blocks if isinstance(block, IntegerCodes)]
        return IntegerCodes(
            method=head.method,
            shape=shape,
            block_size=head.block_size,
            bits=head.bits,
            levels=torch.cat([block.levels for block in integer], 1),
            scale=torch.cat([block.scale for block in integer]),
            zero=torch.cat([block.zero for block in integer]),
        )
    if isinstance(head, KeptCodes):  # row parameters hold for the whole width, so every block has the same
        partly = [block for block in blocks if isinstance(block, KeptCodes)]
        return replace(
            head,
            shape=shape,
            first=torch.cat([block.first for block in partly], 1),
            levels=torch.cat([block.levels for block in partly], 1),
            kept=torch.cat([block.kept for block in partly], 1),
        )
    binary = [block for block in blocks if isinstance(block, BinaryCodes)]
    return BinaryCodes(
        method=head.method,
        shape=shape,
        block_size=head.block_size,
        first=torch.cat([block.first for block in binary], 1),
        group=_cat([block.group for block in binary], 1),
        salient=torch.cat([block.salient for block in binary]),
        second=torch.cat([block.second for block in binary], 1),
        row_scale=torch.cat([block.row_scale for block in binary], 1),
        second_row_scale=torch.cat([block.second_row_scale for block in binary], 1),
        row_mean=_cat([block.row_mean for block in binary], 1),
        column_scale=_cat([block.column_scale for block in binary], 1),
        second_column_scale=_cat([block.second_column_scale for block in binary], 1),
        row_step=head.row_step,  # holds for the whole width
    )


def _cat(parts: list[Tensor | None], dim: int) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim) if present else None
