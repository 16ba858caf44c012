"""The inner loops never ask the host for a value: on a GPU each such question would make it wait.

Fake tensors have shapes but no values, so a loop that reads one (`bool(tensor)`, `float(tensor)`, a data-dependent
shape) raises under them. They lie on no CPU, where asking would cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sab.binarizers import BlockContext, alternate, arb, sab_h
from sab.binarizers.feedback import Levels, settle
from sab.stack import Stack


def alternating(weight: Tensor, order: int) -> object:
    mask = torch.ones_like(weight, dtype=torch.bool)
    return list(alternate.rounds(weight, mask, order, weight.abs(), 3))


def means(weight: Tensor, order: int) -> object:
    return list(arb.rounds(weight, torch.ones_like(weight, dtype=torch.bool), order, 3))


def walked(weight: Tensor, order: int) -> object:
    step = torch.ones_like(weight[:, 0])
    factor = torch.eye(weight.shape[1], device=weight.device)
    return settle(weight, factor, Levels(step, step, 2 * order))


def solved(weight: Tensor, order: int) -> object:
    width = weight.shape[1]
    salient, eye = torch.ones_like(weight[:2], dtype=torch.bool), torch.eye(width, device=weight.device)
    layouts = [sab_h.Layout(bitmap, None, None, bitmap, True) for bitmap in (True, order == 2)]
    around = BlockContext(eye, eye, iterations=3)
    return sab_h.fit_rounds(weight, eye, salient, layouts, around, Stack((4, 2)))


@pytest.mark.parametrize("loop", [alternating, means, walked, solved])
@pytest.mark.parametrize("order", [1, 2])
def test_an_inner_loop_never_waits_for_a_value(loop: Callable[[Tensor, int], object], order: int) -> None:
    with FakeTensorMode():
        loop(torch.empty(6, 16, device="meta"), order)


def test_asking_for_a_value_would_be_noticed() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.empty(3, device="meta").sum() > 0)
