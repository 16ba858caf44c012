"""Hessians: sums, mixing, dampening, the factor of the inverse, the input-side sensitivity."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sab.errors import SabError
from sab.hessian import HessianAccumulator, combine, dampen, input_sensitivity, inverse_factor


def random_hessian(width: int, seed: int, tokens: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    accumulator = HessianAccumulator(width)
    accumulator.add(torch.randn(tokens or 8 * width, width, generator=generator) @ mix)
    return accumulator.hessian


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 40), st.integers(0, 9))
def test_splitting_a_batch_does_not_change_the_hessian(width: int, tokens: int, cut: int, seed: int) -> None:
    inputs = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    whole, split = HessianAccumulator(width), HessianAccumulator(width)
    whole.add(inputs)
    split.add(inputs[:cut])
    split.add(inputs[cut:][None])
    assert split.tokens == whole.tokens == tokens
    torch.testing.assert_close(split.hessian, whole.hessian)
    wanted = 2 / tokens * inputs.double().T @ inputs.double()
    torch.testing.assert_close(whole.hessian.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [128, 129, 300, 1031])
def test_the_half_that_is_mirrored_is_that_of_the_whole_product(width: int) -> None:
    """Sums are computed in panels of at least 128 rows, of which the last may be narrower."""
    inputs = torch.randn(2, 100, width, generator=torch.Generator().manual_seed(width))
    accumulator = HessianAccumulator(width)
    for batch in inputs:
        accumulator.add(batch)
    found, flat = accumulator.hessian, inputs.flatten(0, 1).double()
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), 2 / 200 * flat.T @ flat, rtol=1e-5, atol=1e-5)


def test_no_tokens_is_a_zero_hessian() -> None:
    accumulator = HessianAccumulator(3)
    accumulator.add(torch.zeros(0, 3))
    assert accumulator.tokens == 0
    assert torch.equal(accumulator.hessian, torch.zeros(3, 3))


def test_half_precision_inputs_do_not_round_the_sums() -> None:
    inputs = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    accumulator = HessianAccumulator(4)
    accumulator.add(inputs)
    wanted = 2 / 4096 * inputs.double().T @ inputs.double()
    torch.testing.assert_close(accumulator.hessian.double(), wanted, rtol=1e-5, atol=1e-6)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(SabError, match="width 3"):
        HessianAccumulator(3).add(torch.zeros(2, 4))


def test_default_mix_is_the_hessian_of_all_tokens_together() -> None:
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    language, vision, both = (HessianAccumulator(4) for _ in range(3))
    language.add(inputs[:20])
    vision.add(inputs[20:])
    both.add(inputs)
    torch.testing.assert_close(combine(language.hessian, vision.hessian, 20, 10), both.hessian)
    assert torch.equal(combine(language.hessian, vision.hessian, 20, 10, beta=0.0), language.hessian)
    for beta in (float("nan"), -0.1, 1.1):
        with pytest.raises(SabError, match="beta"):
            combine(language.hessian, vision.hessian, 20, 10, beta=beta)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 24), st.integers(0, 99))
def test_factor_is_upper_and_squares_to_the_inverse(width: int, seed: int) -> None:
    damped = dampen(random_hessian(width, seed))
    factor = inverse_factor(damped)
    assert torch.equal(factor, factor.triu())
    product = factor.double().T @ factor.double() @ damped.hessian.double()
    torch.testing.assert_close(product, torch.eye(width, dtype=torch.float64), rtol=0, atol=5e-4)


@pytest.mark.parametrize("width", [256, 257, 515, 1030])
def test_wide_factors_are_put_together_from_halves(width: int) -> None:
    damped = dampen(random_hessian(width, 0))
    factor = inverse_factor(damped)
    assert torch.equal(factor, factor.triu())
    wanted = torch.linalg.inv(damped.lower.double()).flip(0, 1)
    torch.testing.assert_close(factor.double(), wanted, rtol=0, atol=float(wanted.abs().max()) * 1e-4)


def test_dampening_adds_its_share_of_the_mean_and_revives_dead_inputs() -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0, 0.0]))
    damped = dampen(hessian, 0.5)
    assert damped.dead.tolist() == [False, False, True]
    assert damped.strength_used == 0.5
    assert damped.hessian.diagonal().tolist() == [2.0, 4.0, 2.0]  # mean over the live two is 2


def test_dampening_grows_until_cholesky_works() -> None:
    indefinite = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    damped = dampen(indefinite, 0.01)
    assert damped.strength_used == pytest.approx(0.1)
    inverse_factor(damped)
    with pytest.raises(SabError, match="semi-definite"):
        dampen(-torch.eye(3) - torch.ones(3, 3))


def test_dampening_goes_up_in_steps_of_ten() -> None:
    for excess, strength, wanted in ((0.005, 0.01, 0.01), (0.05, 0.01, 0.1), (0.5, 0.01, 1.0), (0.005, 0.0, 0.01)):
        hessian = torch.tensor([[1.0, 1.0 + excess], [1.0 + excess, 1.0]])
        assert dampen(hessian, strength).strength_used == pytest.approx(wanted)


def test_large_hessians_do_not_overflow_and_factors_that_would_are_refused() -> None:
    sensitivity = input_sensitivity(torch.eye(64) * 3e38)  # their sum leaves float32, their mean does not
    assert torch.isfinite(sensitivity).all()
    assert sensitivity.min() > 1e38
    damped = dampen(torch.eye(2))
    with pytest.raises(SabError, match="raise the damping"):
        inverse_factor(replace(damped, lower=torch.tensor([[1e-20, 0.0], [1e20, 1e-20]])))


def test_an_accumulator_tells_of_what_is_not_finite() -> None:
    for rows, finite in (([1.0, 2.0], True), ([1.0, float("nan")], False), ([1e30, 1.0], False)):
        accumulator = HessianAccumulator(2)
        accumulator.add(torch.tensor([rows]))
        assert accumulator.finite == finite


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_in_either_triangle(place: tuple[int, int], value: float) -> None:
    hessian = torch.eye(3)
    hessian[place] = value
    with pytest.raises(SabError, match="NaN"):
        dampen(hessian)


@pytest.mark.parametrize("strength", [float("nan"), -1.0])
def test_bad_strength_and_shape_are_refused(strength: float) -> None:
    with pytest.raises(SabError, match="damping"):
        dampen(torch.eye(2), strength)
    with pytest.raises(SabError, match="square"):
        dampen(torch.ones(2, 3))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16), st.integers(0, 99))
def test_sensitivity_is_one_over_the_inverse_diagonal(width: int, seed: int) -> None:
    hessian = random_hessian(width, seed)
    hessian[-1] = 0.0
    hessian[:, -1] = 0.0
    sensitivity = input_sensitivity(hessian)
    assert sensitivity[-1] == 0
    live = hessian[:-1, :-1].double()
    if len(live):
        live.diagonal().add_(0.01 * live.diagonal().mean())
        wanted = 1 / live.inverse().diagonal()
        torch.testing.assert_close(sensitivity[:-1].double(), wanted, rtol=2e-3, atol=0)
