"""The structure search against float64 loops that really fit every candidate."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sab import structure
from sab.stack import Columns, Stack
from sab.structure import PERCENTILES, best_break_point, best_salient_count, saliency_of, search_published
from tests import oracles


def saliency(rows: int, width: int, seed: int, dead: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * torch.rand(width, generator=generator)
    weight[:, :dead] = 0.0
    return saliency_of(weight, torch.eye(width))


def all_of(rows: int, width: int) -> Columns:
    """Every column of one linear."""
    return Columns.of(Stack((rows,)), torch.ones(1, width, dtype=torch.bool), [width])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(2, 14), st.integers(0, 9999), st.integers(0, 2), st.integers(1, 20))
def test_salient_count_has_the_lowest_error_of_all_candidates(
    rows: int, width: int, seed: int, dead: int, limit: int
) -> None:
    values = saliency(rows, width, seed, dead)
    ranked, errors = oracles.salient_errors(values.double().numpy(), min(limit, width - 1))
    leading = torch.tensor(ranked)[None, : min(limit, width - 1)]
    count = int(best_salient_count(values, leading, Stack((rows,))))
    assert 1 <= count <= len(errors)
    assert errors[count - 1] <= min(errors) * (1 + 1e-5) + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 9999), st.integers(0, 20), st.sampled_from([1, 2]))
def test_break_point_has_the_lowest_error_of_all_percentiles(
    rows: int, width: int, seed: int, zeros: int, order: int
) -> None:
    values = saliency(rows, width, seed)
    flat = np.concatenate([np.zeros(zeros), values.double().numpy().ravel()])
    points = np.quantile(flat, np.linspace(*PERCENTILES))
    everything = np.ones(values.shape, dtype=bool)
    errors = oracles.break_errors(values.double().numpy(), everything, points, order)
    chosen = best_break_point(values, order, all_of(rows, width), [zeros])
    assert np.abs(points - chosen.item()).min() <= 1e-6
    [error] = oracles.break_errors(values.double().numpy(), everything, np.array([chosen.item()]), order)
    assert error <= min(errors) * (1 + 1e-4) + 1e-9


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(2, 20), st.integers(0, 9999), st.booleans())
@example(6, 20, 0, True)
@example(6, 20, 1, True)
@example(6, 20, 2, True)
def test_published_search_step_by_step(rows: int, width: int, seed: int, split: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    factor = torch.rand(width, width, generator=generator).triu() + torch.eye(width)
    found = search_published(weight, factor, 49, split)
    values = (weight / factor.diagonal()).double().numpy() ** 2  # s = w² / U_jj²
    values /= values.max()
    ranked, errors = oracles.salient_errors(values, width - 1)
    salient = found.salient.chosen(0, width)
    count = int(salient.sum())
    assert set(salient.nonzero()[:, 0].tolist()) == set(ranked[:count])
    assert errors[count - 1] <= min(errors) * (1 + 1e-5) + 1e-9
    ordinary = np.broadcast_to(~salient.numpy(), values.shape)
    points = np.quantile(values * ordinary, np.linspace(*PERCENTILES))
    wanted = min(oracles.break_errors(values, ordinary, points, 1))
    group = found.group.numpy()
    got = oracles.squared_error(values * ordinary, [(ordinary & ~group, 1), (ordinary & group, 1)])
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-9)  # lower would be a point not asked for
    if split:
        points = np.quantile(values[~ordinary], np.linspace(*PERCENTILES))
        wanted = min(oracles.break_errors(values, ~ordinary, points, 2))
        got = oracles.squared_error(values * ~ordinary, [(~ordinary & ~group, 2), (~ordinary & group, 2)])
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    else:
        assert not group[~ordinary].any()


def test_salient_columns_are_split_by_order_two_and_others_by_order_one() -> None:
    weight = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    found = search_published(weight, torch.eye(30), 49, True)
    values = saliency_of(weight, torch.eye(30))
    salient = found.salient.chosen(0, 30)
    for columns, order, zeros in ((salient, 2, 0), (~salient, 1, 12 * int(salient.sum()))):
        part = values[:, columns]
        points = [float(best_break_point(part, each, all_of(*part.shape), [zeros])) for each in (1, 2)]
        assert points[0] != points[1]
        assert torch.equal(found.group[:, columns], part > points[order - 1])


def test_chunks_of_rows_do_not_change_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    values = saliency(40, 30, 1)
    leading = values.sum(0).argsort(descending=True, stable=True)[None, :20]
    whole = best_salient_count(values, leading, Stack((40,)))
    monkeypatch.setattr(structure, "TABLE_CELLS", 3 * 20 * 30)
    assert best_salient_count(values, leading, Stack((40,))) == whole


def test_narrow_and_empty_cases() -> None:
    one = search_published(torch.randn(4, 1), torch.eye(1), 49, True)
    assert one.salient.widths == (0,)  # one column always stays ordinary
    none = search_published(torch.randn(4, 8), torch.eye(8), 0, True)
    assert none.salient.widths == (0,)
    zero = search_published(torch.zeros(3, 8), torch.eye(8), 49, True)
    assert not zero.group.any()
    wide = search_published(torch.randn(4, 128), torch.eye(128), 5, False)
    assert 1 <= wide.salient.width <= 5
