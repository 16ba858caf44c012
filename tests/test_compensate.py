"""Whole linears: compensation against linear algebra, the identities of METHOD 10, refusals."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers import METHODS, BlockContext, IntegerCodes, KeptCodes, LinearCodes
from sab.binarizers.pb_llm import KEEP, KEPT_SHARE
from sab.compensate import FitSettings, factor_hessian, fit_linear, quadratic
from sab.errors import SabError
from sab.hessian import HessianAccumulator, dampen, input_sensitivity, inverse_factor
from sab.packing import pack
from sab.significance import SignificanceMap, integrate, significance_map
from tests import oracles

SMALL = FitSettings(block_size=8)
ALL = tuple(METHODS)
ROW_BY_ROW = tuple(name for name in ALL if name.startswith(("xnor", "rtn", "gptq", "pb-llm")))
# one row, one column, less than a block, just a block, a little more, several
ODD = st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 7, 8, 9, 20]), st.integers(0, 999))


def case(rows: int, width: int, seed: int = 0, tokens: int = 400) -> tuple[Tensor, Tensor, SignificanceMap]:
    """Weight, Hessian of strongly correlated inputs, and a Fisher-like map."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / torch.arange(1, width + 1)[:, None]
    inputs = torch.randn(tokens, width, generator=generator) @ mix
    inputs = inputs + 0.05 * torch.randn(tokens, width, generator=generator)
    accumulator = HessianAccumulator(width)
    accumulator.add(inputs)
    weight = torch.randn(rows, width, generator=generator)
    language, vision = torch.rand(2, rows, width, generator=generator) ** 3
    return weight, accumulator.hessian, significance_map(weight, language, vision)


def spied(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Tensor, LinearCodes]]:
    """Records each block as it entered `method`, with its codes."""
    seen: list[tuple[Tensor, LinearCodes]] = []
    inner = METHODS[method].fit_stack

    def fit_stack(weight: Tensor, context: BlockContext) -> Sequence[LinearCodes]:
        codes = inner(weight, context)
        seen.append((weight.clone(), codes[0]))
        return codes

    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], fit_stack=fit_stack))
    return seen


def test_exact_compensation_is_the_argmin_over_later_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, _ = case(5, 19)
    seen = spied(monkeypatch, "xnor")
    fit_linear(weight, hessian, "xnor", SMALL)
    damped = dampen(hessian).hessian.double().numpy()
    expected = weight.double().numpy()
    assert [entered.shape[1] for entered, _ in seen] == [8, 8, 3]
    for index, (entered, codes) in enumerate(seen):
        np.testing.assert_allclose(entered.numpy(), expected[:, : entered.shape[1]], atol=2e-3)
        if index == len(seen) - 1:
            break
        # solved directly from the remaining Hessian, with no factor of the inverse in sight
        error = (entered - codes.dense()).double().numpy()
        rest = damped[8 * index :, 8 * index :]
        # what earlier blocks fixed enters through the columns themselves, already compensated
        expected = expected[:, 8:] + oracles.best_later_columns(error, rest)


def test_no_change_of_later_columns_lowers_the_loss_further(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, _ = case(4, 16)
    seen = spied(monkeypatch, "billm")
    fit_linear(weight, hessian, "billm", SMALL)
    (_, first), (second, _) = seen
    damped = dampen(hessian).hessian

    def loss(later: Tensor) -> float:
        return quadratic(weight - torch.cat([first.dense(), later], 1), damped)

    best = loss(second)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-1, 1.0):
        for _ in range(20):
            assert loss(second + size * torch.randn(4, 8, generator=generator)) >= best * (1 - 1e-5)
    assert loss(weight[:, 8:]) > 1.05 * best


def test_lineage_compensation_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, _ = case(4, 16)
    seen = spied(monkeypatch, "billm")
    fit_linear(weight, hessian, "billm", dataclasses.replace(SMALL, compensation="lineage"))
    (entered, codes), (second, _) = seen
    factor = inverse_factor(dampen(hessian)).double().numpy()
    error = (entered - codes.dense()).double().numpy()
    expected = weight[:, 8:].double().numpy()
    for i in range(4):
        for later in range(8):
            for j in range(8):
                expected[i, later] -= error[i, j] / factor[j, j] * factor[j, 8 + later]
    np.testing.assert_allclose(second.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_without_correlation_compensation_changes_nothing(method: str) -> None:
    weight, hessian, found = case(6, 20)
    diagonal = torch.diag(hessian.diagonal())
    fits = [
        fit_linear(weight, diagonal, method, dataclasses.replace(SMALL, compensation=form), found)
        for form in ("none", "lineage", "exact")
    ]
    assert torch.equal(fits[0].weight, fits[1].weight)
    assert torch.equal(fits[0].weight, fits[2].weight)


@pytest.mark.parametrize("method", [name for name in ALL if not name.startswith("rtn")])
def test_on_correlated_inputs_compensation_pays(method: str) -> None:
    weight, hessian, found = case(64, 96, tokens=2000)
    none, lineage, exact = (
        fit_linear(weight, hessian, method, FitSettings(block_size=32, compensation=form), found).relative_loss
        for form in ("none", "lineage", "exact")
    )
    if METHODS[method].feedback:
        assert exact == lineage < none
    else:
        assert exact < 0.9 * none
        # arb-x leaves errors that cancel inside the block, which the lineage form does not see
        assert lineage < none or method == "arb-x"


def test_rounding_to_nearest_ignores_the_hessian() -> None:
    weight, hessian, _ = case(6, 20)
    for bits in (2, 3, 4):
        one = fit_linear(weight, hessian, f"rtn{bits}", SMALL)
        two = fit_linear(weight, torch.eye(20), f"rtn{bits}", SMALL)
        assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_over_blocks_is_gptq_over_columns(bits: int) -> None:
    """Feedback inside blocks and exact compensation between them: one walk over all columns."""
    weight, hessian, _ = case(4, 24)
    found = fit_linear(weight, hessian, f"gptq{bits}", FitSettings(block_size=24))
    factor = inverse_factor(dampen(hessian)).double().numpy()
    assert isinstance(found.codes, IntegerCodes)
    scale, zero = found.codes.scale[0].double().numpy(), found.codes.zero[0].numpy().astype(np.int64)
    wanted = oracles.gptq_levels(weight.double().numpy(), factor, scale, zero, bits)
    assert (found.codes.levels.numpy() == wanted).mean() > 0.97


@pytest.mark.parametrize("method", ALL)
def test_a_hessian_factored_before_gives_the_same_fit(method: str) -> None:
    weight, hessian, found = case(5, 20)
    hessian = hessian * 2.0**60  # which is moderated
    strong = dataclasses.replace(SMALL, damping=0.5)
    one = fit_linear(weight, hessian, method, strong, found)
    two = fit_linear(weight, factor_hessian(hessian, 0.5), method, strong, found)
    assert torch.equal(one.weight, two.weight)
    assert (one.relative_loss, one.damping_used) == (two.relative_loss, two.damping_used)
    with pytest.raises(SabError, match="Hessian is"):
        fit_linear(weight[:, 1:], factor_hessian(hessian), "xnor", SMALL)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(ALL), st.integers(1, 5), st.integers(1, 20), st.integers(0, 999))
def test_losses_add_up_and_the_weight_is_its_codes(method: str, rows: int, width: int, seed: int) -> None:
    weight, hessian, found = case(rows, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        seen = spied(patch, method)
        fitted = fit_linear(weight, hessian, method, SMALL, found)
    assert torch.equal(fitted.weight, fitted.codes.dense())
    assert fitted.weight.dtype == torch.float32
    assert fitted.codes.method == method
    assert fitted.codes.shape == (rows, width)
    energy = quadratic(weight, hessian)
    assert fitted.relative_loss == pytest.approx(quadratic(weight - fitted.weight, hessian) / energy)
    assert len(seen) == -(-width // 8)
    if METHODS[method].compensated:
        damped = dampen(hessian)
        factor, lost = inverse_factor(damped), 0.0
        for block, (entered, codes) in enumerate(seen):
            here = slice(8 * block, 8 * block + 8)
            exact = torch.linalg.solve_triangular(factor[here, here], entered - codes.dense(), upper=True, left=False)
            lost += float(exact.double().square().sum())
        total = quadratic(weight - fitted.weight, damped.hessian) / energy
        assert lost / energy == pytest.approx(total, rel=1e-2, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(ALL), st.integers(1, 4), st.integers(2, 20), st.integers(0, 999))
def test_dead_inputs_and_zero_rows(method: str, rows: int, width: int, seed: int) -> None:
    weight, hessian, _ = case(rows, width, seed)
    weight[0] = 0.0
    weight[1:2] = 0.0 if seed % 2 else 1.0
    dead = torch.rand(width, generator=torch.Generator().manual_seed(seed)) < 0.4
    dead[0] = False
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    found = significance_map(weight, input_sensitivity(hessian), torch.ones(width))
    fitted = fit_linear(weight, hessian, method, SMALL, found)
    assert torch.isfinite(fitted.weight).all()
    assert not fitted.weight[0].any()
    loud = weight.clone()
    loud[:, dead] = 1e4  # weights of dead inputs are 0 before fitting, whatever they were
    again = fit_linear(loud, hessian, method, SMALL, found)
    assert torch.equal(again.weight, fitted.weight)
    if not bool(weight.any()):
        assert fitted.relative_loss == 0.0


def test_r_of_one_half_makes_sab_equal_to_its_control() -> None:
    weight, hessian, found = case(16, 40)
    neutral = dataclasses.replace(found, weighting=torch.ones_like(weight), unimodal_ratio=0.5)
    control = fit_linear(weight, hessian, "arb-rc-cgb", SMALL)
    assert torch.equal(fit_linear(weight, hessian, "sab", SMALL, neutral).weight, control.weight)
    assert not torch.equal(fit_linear(weight, hessian, "sab", SMALL, found).weight, control.weight)
    scaled = dataclasses.replace(found, weighting=8 * found.weighting)
    one, two = (fit_linear(weight, hessian, "sab", SMALL, each).weight for each in (found, scaled))
    assert torch.equal(one, two)


def test_each_block_sees_its_own_part_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, found = case(3, 19)
    contexts: list[BlockContext] = []
    inner = METHODS["sab"].fit_stack

    def fit_stack(part: Tensor, context: BlockContext) -> Sequence[LinearCodes]:
        contexts.append(context)
        return inner(part, context)

    monkeypatch.setitem(METHODS, "sab", dataclasses.replace(METHODS["sab"], fit_stack=fit_stack))
    fit_linear(weight, hessian, "sab", SMALL, found)
    factor = inverse_factor(dampen(hessian))
    for index, context in enumerate(contexts):
        here = slice(8 * index, min(8 * index + 8, 19))
        assert context.weighting is not None
        assert torch.equal(context.weighting, found.weighting[:, here])
        assert torch.equal(context.gram, hessian[here, here] / 2)  # H = 2 mean x x^T
        assert torch.equal(context.inverse_factor, factor[here, here])


def test_weighting_lowers_the_weighted_error_of_what_it_protects() -> None:
    weight, _, _ = case(64, 128)
    lam = torch.full_like(weight, 0.2)
    lam[:, ::2] = 3.0
    plain = significance_map(weight, torch.ones(128), torch.ones(128))
    skewed = dataclasses.replace(plain, weighting=lam)
    flat = fit_linear(weight, torch.eye(128), "sab", significance=plain).weight
    kept = fit_linear(weight, torch.eye(128), "sab", significance=skewed).weight
    assert (lam * (weight - kept)).square().sum() < (lam * (weight - flat)).square().sum()


@pytest.mark.parametrize("method", ALL)
def test_permuting_rows_and_scaling(method: str) -> None:
    weight, hessian, found = case(16, 24)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(found, weighting=found.weighting[order])
    one = fit_linear(weight, hessian, method, SMALL, found).weight
    two = fit_linear(weight[order], hessian, method, SMALL, moved).weight
    torch.testing.assert_close(one[order], two, rtol=3e-3, atol=3e-3)
    double = fit_linear(2 * weight, hessian, method, SMALL, found).weight
    torch.testing.assert_close(double, 2 * one, rtol=0, atol=1e-5)
    assert torch.equal(one, fit_linear(weight, hessian, method, SMALL, found).weight)  # bit for bit


def test_methods_rank_as_expected_and_four_bits_are_nearly_lossless() -> None:
    weight, hessian, found = case(64, 256, tokens=4000)
    loss = {name: fit_linear(weight, hessian, name, significance=found).relative_loss for name in ALL}
    assert loss["xnor"] > loss["billm"] > loss["arb"] > loss["arb-rc-cgb"]
    assert loss["arb-rc"] > loss["arb-rc-cgb"]
    assert loss["gptq2"] > loss["gptq3"] > loss["gptq4"]
    for bits in (2, 3, 4):
        assert loss[f"gptq{bits}"] < loss[f"rtn{bits}"]
    assert loss["gptq4"] < 0.02


def test_settings_are_used() -> None:
    weight, hessian, found = case(16, 40)

    def fitted(**changes: Any) -> Tensor:
        return fit_linear(weight, hessian, "sab", dataclasses.replace(SMALL, **changes), found).weight

    plain = fitted()
    for changes in (
        {"iterations": 1},
        {"block_size": 16},
        {"damping": 0.5},
        {"max_salient": 1},
        {"emphasis": "ramp"},
        {"compensation": "none"},
    ):
        assert not torch.equal(fitted(**changes), plain), changes
    none = fit_linear(weight, hessian, "sab", dataclasses.replace(SMALL, max_salient=0), found)
    assert none.salient_fraction == 0.0


def test_a_stubborn_hessian_reports_the_damping_it_took() -> None:
    weight, _, _ = case(4, 3)
    hessian = torch.tensor([[1.0, 1.05, 0.0], [1.05, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert fit_linear(weight, hessian, "xnor").damping_used == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": -1}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"iterations": 1.5}, "iterations"),
        ({"block_size": 12}, "multiple of 8"),
        ({"max_salient": -1}, "max_salient"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": "a"}, "damping"),
        ({"search": "guess"}, "search"),
        ({"emphasis": "loud"}, "emphasis"),
        ({"compensation": "full"}, "compensation"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    weight, hessian, _ = case(2, 8)
    with pytest.raises(SabError, match=message):
        fit_linear(weight, hessian, "xnor", dataclasses.replace(SMALL, **changes))


def test_bad_input_is_refused_by_name() -> None:
    weight, hessian, found = case(4, 8)
    nan = weight.clone()
    nan[1, 2] = float("nan")
    upper = hessian.clone()
    upper[0, 5] = float("nan")
    for bad_weight, bad_hessian, method, message in (
        (nan, hessian, "xnor", "layer.q: the weight holds NaN"),
        (weight * 1e6, hessian, "xnor", "layer.q: .*float16"),
        (weight, upper, "xnor", "layer.q: .*NaN"),
        (weight, hessian[:4, :4], "xnor", "layer.q: the Hessian is"),
        (weight, torch.zeros(8, 8), "xnor", "layer.q: no calibration token"),
        (weight[0], hessian, "xnor", "layer.q: a weight must be a matrix"),
        (weight, hessian, "sab", "layer.q: sab needs a significance map"),
        (weight, hessian, "best", "unknown method 'best'.*sab"),
    ):
        with pytest.raises(SabError, match=message):
            fit_linear(bad_weight, bad_hessian, method, name="layer.q")
    with pytest.raises(SabError, match=r"layer\.q: the significance map"):
        fit_linear(weight[:2], hessian, "sab", significance=found, name="layer.q")


# --- METHOD 10 on odd shapes


@settings(deadline=None, max_examples=30)
@given(ODD)
def test_neutral_and_scaled_maps(shape: tuple[int, int, int]) -> None:
    weight, hessian, found = case(*shape)
    neutral = dataclasses.replace(found, weighting=integrate(found.sparsity, 0.5))
    control = fit_linear(weight, hessian, "arb-rc-cgb", SMALL).weight
    assert torch.equal(fit_linear(weight, hessian, "sab", SMALL, neutral).weight, control)
    scaled = dataclasses.replace(found, weighting=found.weighting / 16)
    one, two = (fit_linear(weight, hessian, "sab", SMALL, each).weight for each in (found, scaled))
    assert torch.equal(one, two)


@settings(deadline=None, max_examples=20)
@given(ODD)
def test_arb_without_rounds_is_billm_over_a_whole_linear(shape: tuple[int, int, int]) -> None:
    weight, hessian, _ = case(*shape)
    none = dataclasses.replace(SMALL, iterations=0)
    assert torch.equal(
        fit_linear(weight, hessian, "arb", none).weight, fit_linear(weight, hessian, "billm", none).weight
    )


@settings(deadline=None, max_examples=60)
@given(ODD, st.sampled_from(ALL))
def test_a_weight_twice_as_large_gives_a_result_twice_as_large(shape: tuple[int, int, int], method: str) -> None:
    weight, hessian, found = case(*shape)
    one, again, two = (fit_linear(size * weight, hessian, method, SMALL, found).weight for size in (1, 1, 2))
    assert torch.equal(one, again)  # bit for bit
    torch.testing.assert_close(two, 2 * one, rtol=0, atol=1e-5)  # but for scales too small for float16


@settings(deadline=None, max_examples=40)
@given(ODD, st.sampled_from(ROW_BY_ROW))
def test_rows_may_come_in_any_order(shape: tuple[int, int, int], method: str) -> None:
    weight, hessian, _ = case(*shape)
    one = fit_linear(weight, hessian, method, SMALL).weight
    two = fit_linear(weight.flip(0), hessian, method, SMALL).weight
    assert (one.flip(0) - two).abs().lt(1e-3).float().mean() > 0.95  # a value at a bound may fall either way


@settings(deadline=None, max_examples=40)
@given(ODD, st.sampled_from(ALL))
def test_a_diagonal_hessian_leaves_nothing_to_compensate(shape: tuple[int, int, int], method: str) -> None:
    weight, hessian, found = case(*shape)
    diagonal = torch.diag(hessian.diagonal())
    none, lineage, exact = (
        fit_linear(weight, diagonal, method, dataclasses.replace(SMALL, compensation=form), found).weight
        for form in ("none", "lineage", "exact")
    )
    assert torch.equal(none, lineage)
    assert torch.equal(none, exact)


@settings(deadline=None, max_examples=30)
@given(ODD)
def test_exact_compensation_is_the_argmin_on_odd_shapes(shape: tuple[int, int, int]) -> None:
    weight, hessian, _ = case(*shape)
    damped = dampen(hessian).hessian.double()
    with pytest.MonkeyPatch.context() as patched:
        seen = spied(patched, "xnor")
        fit_linear(weight, hessian, "xnor", SMALL)
    changed = weight.double()
    for index, (entered, codes) in enumerate(seen[:-1]):
        error = (entered - codes.dense()).double().numpy()
        rest = damped[8 * index :, 8 * index :].numpy()
        changed = changed[:, 8:] + torch.from_numpy(oracles.best_later_columns(error, rest))
        following = seen[index + 1][0].double()
        torch.testing.assert_close(following, changed[:, : following.shape[1]], rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("method", ALL)
def test_groups_may_be_empty(method: str) -> None:
    """Weights of one magnitude all lie on one side of any break-point."""
    weight = torch.where(torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.5, -0.5, 0.5)
    neutral = significance_map(weight, torch.ones(20), torch.ones(20))
    fitted = fit_linear(weight, torch.eye(20), method, SMALL, neutral)
    assert torch.isfinite(fitted.weight).all()
    if METHODS[method].uses_significance or method.startswith("arb-rc"):
        assert torch.equal(fitted.weight.sign(), weight.sign())
        assert fitted.relative_loss < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_feedback_beats_rounding_on_correlated_inputs(seed: int) -> None:
    weight, hessian, _ = case(24, 40, seed, tokens=2000)
    loss = {name: fit_linear(weight, hessian, name, SMALL).relative_loss for name in ("rtn4", "gptq4")}
    assert loss["gptq4"] <= loss["rtn4"]


@pytest.mark.parametrize("keep", KEEP)
def test_pb_llm_over_blocks_is_pb_llm_over_columns(keep: str) -> None:
    weight, hessian, _ = case(6, 28)
    found = fit_linear(weight, hessian, "pb-llm", dataclasses.replace(SMALL, keep=keep))
    factor = inverse_factor(dampen(hessian)).double().numpy()
    kept, wanted = oracles.pb_llm(weight.double().numpy(), factor, KEPT_SHARE, keep == "hessian")
    assert isinstance(found.codes, KeptCodes)
    assert np.array_equal(found.codes.kept.numpy(), kept)
    assert (np.abs(found.weight.double().numpy() - wanted) < 2e-3).mean() > 0.97
    with pytest.raises(SabError, match="keep"):
        fit_linear(weight, hessian, "pb-llm", dataclasses.replace(SMALL, keep="both"))


# --- Hessians and weights as they should not be


def spoilt(hessian: Tensor, kind: str) -> Tensor:
    width = len(hessian)
    ramp = torch.arange(1.0, width + 1)
    changes = {
        "one token": torch.outer(ramp, ramp),
        "few tokens": torch.outer(ramp, ramp) + torch.outer(ramp.flip(0), ramp.flip(0)),
        "huge": hessian * 1e34,
        "tiny": hessian * 1e-36,
        "far apart": torch.outer(10.0 ** ramp.clamp_max(15), 10.0 ** ramp.clamp_max(15)) * torch.eye(width),
        "slightly negative": hessian - 0.1 * hessian.diagonal().mean() * torch.eye(width),
        "negative": -hessian,
        "zero": torch.zeros_like(hessian),
        "one live input": torch.diag((ramp == 1).float()),
        "zero diagonal": hessian - torch.diag(hessian.diagonal()),
        "NaN": hessian.index_fill(0, torch.tensor([0]), float("nan")),
        "infinite": hessian.index_fill(1, torch.tensor([width - 1]), float("inf")),
    }
    return changes[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("one token", "few tokens", "huge", "tiny", "far apart", "slightly negative"),
        *("negative", "zero", "one live input", "zero diagonal", "NaN", "infinite"),
    ],
)
@settings(deadline=None, max_examples=25)
@given(ODD, st.sampled_from(ALL))
def test_any_hessian_gives_finite_codes_or_a_refusal_by_name(
    kind: str, shape: tuple[int, int, int], method: str
) -> None:
    weight, hessian, found = case(*shape)
    refusal = ""
    try:
        fitted = fit_linear(weight, spoilt(hessian, kind), method, SMALL, found, "layer.q")
    except SabError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith("layer.q: ")
        assert kind in ("negative", "zero", "zero diagonal", "NaN", "infinite")
        return
    assert kind not in ("zero", "NaN", "infinite")
    assert torch.isfinite(fitted.weight).all()
    assert math.isfinite(fitted.relative_loss)
    pack(fitted.codes)


@settings(deadline=None, max_examples=30)
@given(ODD, st.sampled_from(ALL), st.sampled_from([4.0**58, 4.0**-58]))
def test_the_scale_of_the_hessian_plays_no_part(shape: tuple[int, int, int], method: str, size: float) -> None:
    weight, hessian, found = case(*shape)
    plain = fit_linear(weight, hessian, method, SMALL, found)
    scaled = fit_linear(weight, hessian * size, method, SMALL, found)
    assert torch.equal(plain.weight, scaled.weight)
    assert scaled.relative_loss == pytest.approx(plain.relative_loss, rel=1e-5)


def test_a_fit_that_is_not_finite_is_found_at_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, _ = case(4, 20)
    inner = METHODS["gptq3"].fit_stack
    blocks: list[int] = []

    def fit_stack(part: Tensor, context: BlockContext) -> list[LinearCodes]:
        blocks.append(1)
        [codes] = inner(part, context)
        assert isinstance(codes, IntegerCodes)
        return [dataclasses.replace(codes, scale=codes.scale * float("nan")) if len(blocks) == 2 else codes]

    monkeypatch.setitem(METHODS, "gptq3", dataclasses.replace(METHODS["gptq3"], fit_stack=fit_stack))
    with pytest.raises(SabError, match=r"layer\.q: the fit of columns 8 to 15 is not finite"):
        fit_linear(weight, hessian, "gptq3", SMALL, name="layer.q")
    assert len(blocks) == 2


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(ALL), st.sampled_from([1e-30, 1e-6, 6e4]))
def test_weights_at_the_ends_of_the_range_stay_finite(method: str, size: float) -> None:
    weight, hessian, found = case(3, 17)
    fitted = fit_linear(weight / weight.abs().max() * size, hessian, method, SMALL, found)
    assert torch.isfinite(fitted.weight).all()
    assert math.isfinite(fitted.relative_loss)
