"""The walk over the columns in one kernel gives what the torch loop gives, bit for bit: interpreted without a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers.feedback import Kept, Levels, Rule, Sums, settle
from sab.compensate import FitSettings, fit_linear
from sab.devices import CHOICE, REFERENCE, TRITON
from sab.significance import significance_map
from tests.test_packing import assert_same
from tests.triton_device import DEVICE, needs_triton

pytestmark = needs_triton


def both(weight: Tensor, factor: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What torch and what the kernel settle."""
    on_device = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    if isinstance(rule, Kept):
        on_device["levels"] = Levels(rule.levels.step.to(DEVICE), rule.levels.zero.to(DEVICE), rule.levels.bits)
    moved = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in on_device.items()}
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for choice in (REFERENCE, TRITON):
            patch.setenv(CHOICE, choice)
            found.append(settle(weight.to(DEVICE), factor.to(DEVICE), type(rule)(**moved)).cpu())
    return found[0], found[1]


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["levels", "kept", "sums 1", "sums 2"]),
    rows=st.integers(1, 7),
    width=st.sampled_from([1, 3, 16, 30]),
    seed=st.integers(0, 999),
    size=st.sampled_from([1.0, 1e-20, 1e20]),
)
def test_the_kernel_settles_what_torch_settles(kind: str, rows: int, width: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = random(rows, width) * size
    weight *= torch.rand(rows, width, generator=generator) < 0.8  # zeros, of either sign
    factor = (0.3 * random(width, width)).triu(1) + torch.diag(0.5 + torch.rand(width, generator=generator))
    step = random(rows).abs() * size * (torch.arange(rows) % 3 != 2)  # some rows have no scale
    levels = Levels(step, torch.randint(0, 8, (rows,), generator=generator).float(), 3)
    rule: Rule = levels
    if kind == "kept":
        kept = torch.rand(rows, width, generator=generator) < 0.3
        rule = Kept(levels, kept, random(rows) * size / 10, random(rows).abs() * size)
    elif kind.startswith("sums"):
        pair = random(2, width, int(kind[-1]), rows).abs() * size
        rule = Sums(pair.amax(0), pair.amin(0) * (torch.arange(width) % 2)[:, None, None])
    torch_s, kernel_s = both(weight, factor, rule)
    assert torch.equal(torch_s, kernel_s)


def test_halves_are_rounded_to_even_and_far_values_held() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, 3.5, 1e30, -1e30, 4194303.5, -0.0]])
    rule = Levels(torch.ones(1), torch.full((1,), 2.0), 4)
    torch_s, kernel_s = both(weight, torch.eye(8), rule)
    assert torch.equal(torch_s, weight)
    assert torch.equal(kernel_s, torch_s)
    factor = torch.eye(8)
    factor[:, -1] = 0.25  # what is left of each value then shows in the last
    factor[-1, -1] = 1.0
    torch_s, kernel_s = both(weight, factor, rule)
    assert not torch.equal(torch_s, weight)
    assert torch.equal(kernel_s, torch_s)


@pytest.mark.parametrize("method", ["gptq2", "gptq4", "pb-llm", "sab-h"])
def test_a_fit_by_the_kernel_has_the_same_codes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 40, generator=generator)
    inputs = torch.randn(160, 40, generator=generator)
    found = significance_map(weight, torch.rand(40, generator=generator), torch.rand(40, generator=generator))
    fits = []
    for choice in (REFERENCE, TRITON):
        monkeypatch.setenv(CHOICE, choice)
        settings_ = FitSettings(block_size=16, iterations=3)
        fits.append(fit_linear(weight.to(DEVICE), (inputs.T @ inputs).to(DEVICE), method, settings_, found).codes)
    assert_same(*fits)
