"""The inner loops never ask the host for a value: on a GPU each such question would make it wait.

Fake tensors have shapes but no values, so a loop that reads one (`bool(tensor)`, `float(tensor)`, a data-dependent
shape) raises under them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sab.binarizers import alternate, arb, sab_h
from sab.binarizers.feedback import Levels, settle


def alternating(weight: Tensor, order: int) -> object:
    mask = torch.ones_like(weight, dtype=torch.bool)
    return list(alternate.rounds(weight, mask, order, weight.abs(), 3))


def means(weight: Tensor, order: int) -> object:
    return list(arb.rounds(weight, torch.ones_like(weight, dtype=torch.bool), order, 3))


def walked(weight: Tensor, order: int) -> object:
    step = torch.ones(len(weight))
    factor = torch.eye(weight.shape[1])
    return settle(weight, factor, Levels(step, step, 2 * order))


def solved(weight: Tensor, order: int) -> object:
    width = weight.shape[1]
    none = torch.zeros(width, dtype=torch.bool)
    scales = torch.ones(2 * order, len(weight))
    levels = sab_h._Levels(scales, scales[:0], torch.ones(width), none)
    plane = weight > 0
    picked = sab_h._Picked(weight, plane, plane, plane)
    return sab_h._solve(weight, torch.eye(width), picked, levels, True)


@pytest.mark.parametrize("loop", [alternating, means, walked, solved])
@pytest.mark.parametrize("order", [1, 2])
def test_an_inner_loop_never_waits_for_a_value(loop: Callable[[Tensor, int], object], order: int) -> None:
    with FakeTensorMode():
        loop(torch.empty(6, 16), order)


def test_asking_for_a_value_would_be_noticed() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.empty(3).sum() > 0)
