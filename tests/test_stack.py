"""Linears of one input fitted in one go, against each of them by itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sab import sequential
from sab.binarizers import METHODS, BinaryCodes, BlockContext, alternate
from sab.compensate import FitSettings, factor_hessian, fit_linear, fit_linears
from sab.errors import SabError
from sab.packing import count_bits
from sab.recipes import Recipe
from sab.significance import SignificanceMap, significance_map
from sab.stack import Columns, Stack
from sab.structure import search_published
from tests.tiny import dialogues, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
ROWS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SMALL = FitSettings(block_size=16, iterations=4)


def linears(rows: list[int], width: int, seed: int) -> tuple[list[Tensor], list[SignificanceMap], Tensor]:
    """Weights of very different sizes, their maps and a Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(width, generator=generator) + 0.1
    weights = [torch.randn(n, width, generator=generator) * spread * 10.0**number for number, n in enumerate(rows)]
    inputs = torch.randn(4 * width, width, generator=generator)
    inputs = inputs + 0.5 * inputs.roll(1, 1)
    language, vision = torch.rand(2, width, generator=generator)
    maps = [significance_map(weight, language, vision) for weight in weights]
    return weights, maps, inputs.T @ inputs


@settings(deadline=None, max_examples=30)
@given(ROWS, st.integers(1, 9), st.integers(0, 9999))
def test_what_a_stack_does_with_rows_is_what_a_loop_does(rows: list[int], width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stack, total, many = Stack(tuple(rows)), sum(rows), len(rows)
    values = torch.randn(2, total, width, generator=generator, dtype=torch.float64)
    along, down = torch.randn(2, total, generator=generator).double(), torch.randn(2, many, width).double()
    assert [place.stop - place.start for place in stack.places] == rows
    for number, place in enumerate(stack.places):
        part = values[:, place]
        assert torch.allclose(stack.sums(values, 1)[:, number], part.sum(1))
        spread = stack.spread(down, 1).expand(2, total, width)
        assert torch.equal(spread[:, place], down[:, number, None].expand_as(part))
        assert torch.allclose(stack.across(values, down)[:, place], (part * down[:, number, None]).sum(2))
        assert torch.allclose(stack.down(along, values)[:, number], (along[:, place, None] * part).sum(1))


@settings(deadline=None, max_examples=30)
@given(ROWS, st.integers(1, 12), st.integers(0, 9999))
def test_columns_of_linears_that_take_unlike_many(rows: list[int], width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(rows), width, generator=generator) < torch.rand(len(rows), 1, generator=generator)
    stack, widths = Stack(tuple(rows)), chosen.sum(1).tolist()
    columns = Columns.of(stack, chosen, widths)
    values = torch.randn(sum(rows), width, generator=generator)
    taken, back = columns.take(values, -7.0), torch.full_like(values, -7.0)
    columns.put(back, taken)
    used = columns.used().expand(sum(rows), -1)
    for number, place in enumerate(stack.places):
        assert torch.equal(columns.chosen(number, width), chosen[number])
        assert torch.equal(taken[place, : widths[number]], values[place][:, chosen[number]])
        assert (taken[place, widths[number] :] == -7.0).all()
        assert used[place].sum() == widths[number] * rows[number]
        assert torch.equal(back[place], torch.where(chosen[number], values[place], -7.0))


@settings(deadline=None, max_examples=30)
@given(ROWS, st.integers(1, 20), st.integers(0, 9999), st.integers(0, 9), st.booleans())
def test_each_linear_of_a_stack_has_the_structure_it_has_alone(
    rows: list[int], width: int, seed: int, most: int, split: bool
) -> None:
    weights, _, _ = linears(rows, width, seed)
    factor = torch.rand(width, width, generator=torch.Generator().manual_seed(seed)).triu() + torch.eye(width)
    found = search_published(torch.cat(weights), factor, most, split, Stack(tuple(rows)))
    for number, (weight, group) in enumerate(zip(weights, found.group.split(rows), strict=True)):
        alone = search_published(weight, factor, most, split)
        assert torch.equal(found.salient.chosen(number, width), alone.salient.chosen(0, width))
        assert torch.equal(group, alone.group)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [[24, 8, 8], [1, 40]])
def test_a_stack_is_fitted_as_its_linears_are(method: str, rows: list[int]) -> None:
    weights, maps, hessian = linears(rows, 40, 3)  # the last block is half as wide
    together = fit_linears(weights, hessian, method, SMALL, maps, [f"linear {number}" for number in range(len(rows))])
    for weight, found, fit in zip(weights, maps, together, strict=True):
        alone = fit_linear(weight, hessian, method, SMALL, found)
        assert fit.codes.shape == alone.codes.shape == tuple(weight.shape)
        assert fit.relative_loss == pytest.approx(alone.relative_loss, rel=1e-4)
        assert torch.equal(fit.weight, fit.codes.dense())
        assert (fit.codes.signs() == alone.codes.signs()).float().mean() > 0.999
        assert torch.allclose(fit.weight, alone.weight, rtol=5e-3, atol=5e-3 * float(weight.abs().max()))


@pytest.mark.parametrize(("rows", "bits"), [([1, 40, 40], 3.0), ([1040, 8], 3.2), ([40, 2, 1], 2.6)])
def test_linears_of_unlike_layouts_are_fitted_as_they_are_alone(rows: list[int], bits: float) -> None:
    weights, _, hessian = linears(rows, 80, 5)
    _, _, unseen = linears(rows, 80, 6)
    budget = FitSettings(block_size=40, iterations=6, search="budget", bits=bits)
    layouts = set()
    for weight, fit in zip(weights, fit_linears(weights, hessian, "sab-h", budget, held_out=unseen), strict=True):
        alone = fit_linear(weight, hessian, "sab-h", budget, held_out=unseen)
        codes, expected = fit.codes, alone.codes
        assert isinstance(codes, BinaryCodes)
        assert isinstance(expected, BinaryCodes)
        layouts.add((codes.group is None, codes.column_scale is None, bool(codes.salient.any())))
        assert codes.row_scale.shape == expected.row_scale.shape
        assert codes.second_row_scale.shape == expected.second_row_scale.shape
        assert torch.equal(codes.salient, expected.salient)
        assert fit.relative_loss == pytest.approx(alone.relative_loss, rel=1e-4)
        assert count_bits(codes) == count_bits(expected)
    assert len(layouts) > 1


def test_each_linear_keeps_the_round_that_is_its_own_best() -> None:
    """Losses as given: the first linear is best at the start, the second has none to compare, the third gets better."""
    weights, _, hessian = linears([4, 3, 5], 16, 8)
    factor, rounds = factor_hessian(hessian).factor, itertools.count()
    given = [[1.0, 2.0, 3.0, 4.0], [math.nan, 1.0, 1.0, 1.0], [4.0, 5.0, 3.0, 9.0]]  # of each round
    keep = [0, 0, 2]  # rounds
    more: dict[str, Any] = {"block_size": 16, "max_salient": 4}

    def judge(error: Tensor) -> Tensor:
        number = next(rounds)
        return torch.tensor([losses[number] for losses in given], dtype=torch.float64)

    together = BlockContext(factor, hessian / 2, iterations=3, judge=judge, stack=Stack((4, 3, 5)), **more)
    found = METHODS["sab-h"].fit_stack(torch.cat(weights), together)
    for weight, codes, best in zip(weights, found, keep, strict=True):
        falling = itertools.count(0, -1)
        alone = BlockContext(
            factor,
            hessian / 2,
            iterations=best,
            judge=lambda error: torch.tensor([float(next(falling))]),  # noqa: B023
            **more,
        )
        assert torch.allclose(codes.dense(), METHODS["sab-h"].fit_block(weight, alone).dense(), rtol=1e-4)


def test_salient_columns_belong_to_a_linear() -> None:
    weights, maps, hessian = linears([24, 8, 8], 40, 3)
    fits = fit_linears(weights, hessian, "sab", SMALL, maps)
    salient = [fit.codes.salient for fit in fits if isinstance(fit.codes, BinaryCodes)]
    assert len({tuple(columns.tolist()) for columns in salient}) == 3
    assert len({int(columns.sum()) for columns in salient}) > 1  # so that some are filled up


def test_the_linear_that_cannot_be_fitted_is_named() -> None:
    weights, maps, hessian = linears([4, 4], 20, 0)
    weights[1][2, 3] = float("nan")
    with pytest.raises(SabError, match="k_proj: the weight holds NaN"):
        fit_linears(weights, hessian, "sab", SMALL, maps, ["q_proj", "k_proj"])


def test_a_fit_that_is_not_finite_names_its_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, maps, hessian = linears([4, 4], 20, 0)
    inner = METHODS["gptq4"].fit_stack

    def broken(weight: Tensor, context: object) -> object:
        one, two = inner(weight, context)
        return [one, dataclasses.replace(two, scale=two.scale * float("nan"))]

    monkeypatch.setitem(METHODS, "gptq4", dataclasses.replace(METHODS["gptq4"], fit_stack=broken))
    with pytest.raises(SabError, match="up_proj: the fit of columns 0 to 15 is not finite"):
        fit_linears(weights, hessian, "gptq4", SMALL, maps, ["gate_proj", "up_proj"])


class FromLists(TorchDispatchMode):
    """Counts tensors made from Python's numbers: on a GPU each is copied there, and waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", [1, 2])
def test_the_rounds_of_a_stack_neither_wait_for_a_value_nor_copy_one(order: int) -> None:
    with FakeTensorMode():
        weight, masks = torch.empty(9, 16), torch.empty(2, 9, 16, dtype=torch.bool)
        alternate.fit_groups(weight, masks, order, weight, Stack((4, 3, 2)))
    with FromLists() as seen:
        alternate.fit_groups(torch.randn(9, 16), torch.rand(2, 9, 16) < 0.5, order, None, Stack((4, 3, 2)))
        assert seen.count == 0
        torch.tensor([1, 2])
        assert seen.count == 1  # which it would notice


SAMPLES = dialogues(12)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The last part of the names of what is fitted together."""
    found: list[tuple[str, ...]] = []
    inner = sequential.fit_linears

    def noting(*given: object, **more: object) -> object:
        found.append(tuple(str(name).rsplit(".", 1)[1] for name in more["names"]))  # type: ignore[attr-defined]
        return inner(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sequential, "fit_linears", noting)
    return found


@pytest.mark.parametrize("method", ["xnor", "sab-h"])
def test_stacks_of_a_model_are_what_has_one_input(method: str, seen: list[tuple[str, ...]]) -> None:
    list(sequential.quantize(tiny(), Recipe(model="tiny", method=method, iterations=1, refine=0), samples=SAMPLES))
    one = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert seen == one * (len(seen) // 4)


@pytest.mark.parametrize(("kept", "first"), [(1, 3), (2, 3), (3, 1), (5, 2)])
def test_a_run_cut_off_inside_a_stack_ends_with_the_same_codes(
    kept: int, first: int, tmp_path: Path, seen: list[tuple[str, ...]]
) -> None:
    recipe = Recipe(model="tiny", method="sab", iterations=2, max_salient=4)
    list(sequential.quantize(tiny(), recipe, tmp_path / "calm", samples=SAMPLES))
    cut = sequential.quantize(tiny(), recipe, tmp_path / "cut", samples=SAMPLES)
    for _ in range(kept):
        next(cut)
    cut.close()
    seen.clear()
    list(sequential.quantize(tiny(), recipe, tmp_path / "cut", samples=SAMPLES))
    assert len(seen[0]) == first  # linears fitted first: all that have the input of the next one
    files = [path.relative_to(tmp_path / "calm") for path in (tmp_path / "calm").rglob("codes/*.safetensors")]
    assert files
    for path in files:
        assert (tmp_path / "calm" / path).read_bytes() == (tmp_path / "cut" / path).read_bytes()
