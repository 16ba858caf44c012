"""SAB-H: the fit in the metric of the inputs, its budget, and the refinement of a block's codes (METHOD 8)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers import METHODS, BinaryCodes
from sab.binarizers.block import BlockContext
from sab.binarizers.sab_h import Layout, Layouts, published, restore
from sab.compensate import FitSettings, fit_linear, quadratic
from sab.errors import SabError
from sab.hessian import dampen, inverse_factor
from sab.packing import count_bits

fit_block = METHODS["sab-h"].fit_block


def correlated(width: int, seed: int = 0, tokens: int = 2048) -> Tensor:
    """A Hessian of inputs that share half of their variance with their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(width) + 0.7 * torch.diag(torch.ones(width - 1), 1) if width > 1 else torch.eye(1)
    inputs = torch.randn(tokens, width, generator=generator) @ mixing
    return 2 / tokens * inputs.T @ inputs


def gaussian(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def context(width: int, hessian: Tensor | None = None, **more: object) -> BlockContext:
    hessian = torch.eye(width) if hessian is None else hessian
    return BlockContext(inverse_factor(dampen(hessian)), hessian / 2, block_size=width, **more)  # type: ignore[arg-type]


def plain(bitmap: bool, salient: Tensor) -> Layouts:
    return Layouts((Layout(bitmap, salient, None, False, bool(salient.any())),))


@pytest.mark.parametrize("bitmap", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_every_weight_takes_the_nearest_of_its_levels_where_inputs_are_independent(
    bitmap: bool, residual: bool
) -> None:
    """With G = I nothing is carried on, so each weight stands at the nearest level its scales allow."""
    weight = gaussian(6, 16)
    salient = torch.arange(16) < 5 if residual else torch.zeros(16, dtype=torch.bool)
    codes = fit_block(weight, context(16, plan=plain(bitmap, salient)))
    row, second = (values[:, 0].float() for values in (codes.row_scale, codes.second_row_scale))
    groups = 2 if bitmap else 1
    dense = codes.dense()
    for i, j in itertools.product(range(6), range(16)):
        levels = []
        for group in range(groups):
            if salient[j]:
                a, s = row[groups + group, i], second[group, i]
                levels += [a + s, a - s, s - a, -a - s]
            else:
                levels += [row[group, i], -row[group, i]]
        nearest = min(float((weight[i, j] - level).abs()) for level in levels)
        assert float((weight[i, j] - dense[i, j]).abs()) == pytest.approx(nearest, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99), st.booleans(), st.floats(0.0, 1.0))
def test_more_rounds_never_cost(rows: int, width: int, seed: int, bitmap: bool, share: float) -> None:
    weight, hessian = gaussian(rows, width, seed), correlated(width, seed, 256)
    layout = plain(bitmap, torch.arange(width) < int(share * width))
    losses = []
    for rounds in (0, 1, 4):
        around = context(width, hessian, plan=layout, iterations=rounds)
        error = weight - fit_block(weight, around).dense()
        losses.append(float(torch.linalg.solve_triangular(around.inverse_factor, error, upper=True, left=False).norm()))
    assert losses[2] <= losses[1] * (1 + 1e-5)
    assert losses[1] <= losses[0] * (1 + 1e-5)


def test_permuting_rows_permutes_the_result_and_doubling_doubles_it() -> None:
    weight, around = gaussian(8, 32), context(32, correlated(32))
    dense = fit_block(weight, around).dense()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(fit_block(weight[order], around).dense(), dense[order], atol=2e-3)
    assert torch.allclose(fit_block(2 * weight, around).dense(), 2 * dense, atol=4e-3)


def test_the_same_format_with_far_less_loss_than_sab() -> None:
    """On correlated inputs, at no more bits than `arb-rc-cgb` stores."""
    weight, hessian = gaussian(96, 256), correlated(256)
    one, two = (fit_linear(weight, hessian, method, FitSettings()) for method in ("arb-rc-cgb", "sab-h"))
    assert two.relative_loss < 0.5 * one.relative_loss
    salient = [fit.codes.salient for fit in (one, two) if isinstance(fit.codes, BinaryCodes)]
    assert abs(int(salient[0].sum()) - int(salient[1].sum())) <= 16  # the search runs on compensated weights
    assert count_bits(two.codes).all_in <= count_bits(one.codes).all_in + 0.1


def test_more_bits_are_spent_for_less_loss() -> None:
    weight, hessian = gaussian(64, 256), correlated(256)
    fits = [
        fit_linear(weight, hessian, "sab-h", FitSettings(search="budget", bits=bits, iterations=3))
        for bits in (1.3, 1.7, 2.5, 3.0)
    ]
    losses = [fit.relative_loss for fit in fits]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4 * losses[0]


def test_salient_columns_of_a_budget_are_those_that_cost_most() -> None:
    weight = gaussian(64, 128)
    weight[:, [3, 40, 77]] *= 8
    fit = fit_linear(weight, correlated(128), "sab-h", FitSettings(search="budget", bits=1.6, iterations=1))
    assert isinstance(fit.codes, BinaryCodes)
    assert fit.codes.group is None
    assert fit.codes.salient[[3, 40, 77]].all()


def test_columns_with_more_weighting_keep_less_error() -> None:
    weight, hessian = gaussian(48, 64), correlated(64)
    heavy = torch.arange(64) % 4 == 0
    weighting = torch.where(heavy, 3.0, 1.0).expand(48, -1)
    plain_error, weighted_error = (
        weight - fit_block(weight, context(64, hessian, weighting=each)).dense() for each in (None, weighting)
    )
    assert float(weighted_error[:, heavy].norm()) < 0.9 * float(plain_error[:, heavy].norm())
    neutral = fit_block(weight, context(64, hessian, weighting=torch.ones(48, 64))).dense()
    assert torch.allclose(neutral, weight - plain_error, atol=1e-6)


def test_rounds_are_kept_by_the_loss_on_other_samples() -> None:
    weight = gaussian(16, 64)
    seen, unseen = correlated(64, 1, 48), correlated(64, 2, 4096)
    settings_ = FitSettings(block_size=64, damping=1e-4, iterations=10)
    free = fit_linear(weight, seen, "sab-h", settings_)
    judged = fit_linear(weight, seen, "sab-h", settings_, held_out=unseen)
    assert quadratic(weight - judged.weight, unseen) <= quadratic(weight - free.weight, unseen) * (1 + 1e-6)


def test_the_judge_is_the_change_of_the_whole_linear_s_loss() -> None:
    """Over two blocks: the value moves with the error exactly as tr(D H D^T) does after compensation."""
    from sab.compensate import _judge
    from sab.stack import Stack

    generator = torch.Generator().manual_seed(5)
    weight, hessian = gaussian(4, 24), correlated(24, 7)
    factor = inverse_factor(dampen(correlated(24, 3)))
    carry = torch.linalg.solve_triangular(factor[8:16, 8:16], factor[8:16, 16:], upper=True)
    so_far = torch.randn(4, 24, generator=generator) * 0.1
    judge = _judge(so_far, hessian, carry, slice(8, 16), Stack((4,)))
    errors = [torch.randn(4, 8, generator=generator) for _ in range(2)]
    losses = []
    for error in errors:
        change = so_far.clone()
        change[:, 8:16] += error
        change[:, 16:] += error @ carry
        losses.append(quadratic(change, hessian))
    assert float(judge(errors[0]) - judge(errors[1])) == pytest.approx(losses[0] - losses[1], rel=1e-4)
    assert weight.shape == so_far.shape


@pytest.mark.parametrize("width", [1, 5, 130])
@pytest.mark.parametrize("rows", [1, 3])
def test_odd_shapes_zeros_and_dead_inputs(rows: int, width: int) -> None:
    weight, hessian = gaussian(rows, width), correlated(width)
    weight[0] = 0
    hessian[0], hessian[:, 0] = 0, 0
    if width == 1:
        hessian[0, 0] = 1.0
    fit = fit_linear(weight, hessian, "sab-h")
    assert fit.weight.shape == (rows, width)
    assert torch.isfinite(fit.weight).all()
    assert not fit.weight[0].any()


def test_one_int8_step_a_row_holds_every_scale() -> None:
    fit = fit_linear(gaussian(32, 256), correlated(256), "sab-h", FitSettings(search="budget", bits=2.5, iterations=2))
    codes = fit.codes
    assert isinstance(codes, BinaryCodes)
    assert codes.row_step is not None
    row, second = codes.row_scales()
    again = restore(codes, row, second, None)
    assert again.row_step is not None
    assert again.row_scale.dtype == torch.int8
    assert torch.allclose(again.dense(), codes.dense(), atol=float(codes.row_step.float().max()))
    assert int(torch.cat([again.row_scale.flatten(), again.second_row_scale.flatten()]).max()) == 127


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(SabError, match="budget"):
        FitSettings(search="budget").validate()
    with pytest.raises(SabError, match="budget"):
        FitSettings(bits=2.0).validate()
    assert METHODS["sab-h"].judged
    assert published(4096).column_scale
    assert not published(256).column_scale
