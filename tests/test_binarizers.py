"""Single groups and single blocks of every method: closed forms, rounds, stored precision, odd shapes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers import METHODS, BinaryCodes, BlockContext, IntegerCodes, alternate, arb, arb_rc, billm
from sab.binarizers.codes import join
from sab.binarizers.rtn import grid
from sab.binarizers.signs import as_float, nearest_signs, to_half
from sab.errors import SabError
from tests import oracles

GROUPED = ("xnor", "billm", "arb", "arb-rc", "arb-rc-cgb", "sab")
ALTERNATING = ("arb", "arb-rc", "arb-rc-cgb", "sab")
INTEGER = ("rtn2", "rtn3", "rtn4", "gptq2", "gptq3", "gptq4")
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(0, 9999))


def group_case(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mask (some rows and columns without members, now and then no member at all) and Λ."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mask = torch.rand(rows, width, generator=generator) < torch.rand(1, generator=generator)
    weight[torch.rand(rows, generator=generator) < 0.2] = 0.0
    weight[:, torch.rand(width, generator=generator) < 0.2] = 0.0
    return weight, mask, 0.01 + 2 * torch.rand(rows, width, generator=generator)


def context(width: int, seed: int = 0, **changes: object) -> BlockContext:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.rand(width, width, generator=generator).triu() * 0.3 + torch.eye(width)
    plain = BlockContext(inverse_factor=factor, gram=torch.eye(width))
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_the_table_of_methods_is_complete() -> None:
    assert set(METHODS) == {*GROUPED, *INTEGER}
    for name, method in METHODS.items():
        assert method.label
        assert method.description.endswith(".")
        assert method.uses_significance == (name == "sab")
        assert method.bits == (int(name[-1]) if name in INTEGER else 1)
        assert method.feedback == name.startswith("gptq")
        assert method.compensated != name.startswith("rtn")
        if name in INTEGER:
            with pytest.raises(SabError):
                method.fit(torch.ones(1, 1), torch.ones(1, 1).bool(), 1)
        if name not in ALTERNATING:
            with pytest.raises(SabError):
                method.trace(torch.ones(1, 1))


# --- signs and stored precision


def test_sign_of_zero_is_plus_one() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -1.0]])
    for method in ("arb-rc", "sab"):
        codes = METHODS[method].fit(weight, torch.ones(1, 4).bool(), 1)
        assert codes.signs[0].tolist() == [[True, True, True, False]]
        assert torch.isfinite(codes.dense()).all()


@settings(deadline=None, max_examples=50)
@given(SHAPES)
def test_nearest_signs_are_the_best_of_all(shape: tuple[int, int, int]) -> None:
    weight, _, weighting = group_case(*shape)
    for magnitudes in ([weighting], [weighting, weighting.roll(1, 0)], [weighting[:, :1], weighting]):
        chosen = nearest_signs(weight, magnitudes)
        error = weight - sum(as_float(bits) * size for bits, size in zip(chosen, magnitudes, strict=True))
        for signs in itertools.product((-1.0, 1.0), repeat=len(magnitudes)):
            other = weight - sum(sign * size for sign, size in zip(signs, magnitudes, strict=True))
            assert (error.abs() <= other.abs() + 1e-6).all()


def test_stored_scales_never_overflow() -> None:
    assert to_half(torch.tensor([1e9, -1e9, 1.0])).tolist() == [65504.0, -65504.0, 1.0]
    for method in GROUPED:
        block = METHODS[method].fit_block(torch.full((3, 16), 6.5e4), context(16))
        assert torch.isfinite(block.dense()).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(GROUPED), st.sampled_from([1, 2]))
def test_dense_is_made_of_what_is_stored(shape: tuple[int, int, int], method: str, order: int) -> None:
    weight, mask, weighting = group_case(*shape)
    codes = METHODS[method].fit(weight, mask, order, significance=weighting)
    assert codes.row_scale.dtype == torch.float16
    total = torch.zeros_like(weight)
    for o in range(order):
        scale = codes.row_scale[o].float()[:, None]
        if codes.column_scale is not None:
            assert codes.column_scale.dtype == torch.float16
            scale = scale * codes.column_scale[o].float()
        total += (codes.signs[o].float() * 2 - 1) * scale
    if codes.row_mean is not None:
        total += codes.row_mean.float()[:, None]
    torch.testing.assert_close(codes.dense(), total * mask)
    assert torch.isfinite(codes.dense()).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(["arb", "arb-rc", "sab"]), st.sampled_from([1, 2]))
@example((128, 512, 0), "sab", 2)  # large enough for some weight to lie between stored and unrounded bounds
@example((128, 512, 0), "arb", 2)
def test_last_signs_are_nearest_at_the_stored_scales(shape: tuple[int, int, int], method: str, order: int) -> None:
    weight, mask, weighting = group_case(*shape)
    codes = METHODS[method].fit(weight, mask, order, significance=weighting)
    error = ((weight - codes.dense()) * mask).abs()
    for flips in itertools.product((False, True), repeat=order):
        flipped = codes.signs ^ torch.tensor(flips)[:, None, None]
        other = ((weight - dataclasses.replace(codes, signs=flipped).dense()) * mask).abs()
        assert (error <= other + 1e-6).all()


# --- closed forms and rounds against loops


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([1, 2]))
def test_billm_is_its_closed_form(shape: tuple[int, int, int], order: int) -> None:
    weight, mask, _ = group_case(*shape)
    wanted = oracles.billm_fit(weight.double().numpy(), mask.numpy(), order)
    signs, scales, mean = billm.closed_form(weight, mask, order)
    got = mean[:, None] + sum(as_float(b) * s[:, None] for b, s in zip(signs, scales, strict=True))
    # errors, not values: a residual that lies on its mean may take either sign at the same error
    error = ((weight - got) * mask).double().square().sum(1)
    loop = ((weight.double() - torch.from_numpy(wanted)) * mask).square().sum(1)
    torch.testing.assert_close(error, loop, rtol=1e-4, atol=1e-6)
    stored = ((weight - billm.fit(weight, mask, order).dense()) * mask).double().square().sum(1)
    torch.testing.assert_close(stored, loop, rtol=1e-2, atol=1e-3)


def test_billm_values_where_there_are_no_ties() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(weight).bool()
    for order in (1, 2):
        wanted = torch.from_numpy(oracles.billm_fit(weight.double().numpy(), mask.numpy(), order))
        got = billm.fit(weight, mask, order).dense().double()
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-3)


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_arb_without_rounds_is_billm(shape: tuple[int, int, int]) -> None:
    weight, mask, _ = group_case(*shape)
    for order in (1, 2):
        one, two = arb.fit(weight, mask, order, iterations=0), billm.fit(weight, mask, order)
        assert torch.equal(one.dense(), two.dense())
        assert torch.equal(one.signs, two.signs)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([1, 2]))
def test_a_round_of_scales_is_the_published_update(shape: tuple[int, int, int], order: int) -> None:
    weight, mask, weighting = group_case(*shape)
    states = list(alternate.rounds(weight, mask, order, weighting, 2))
    for (signs, rows, columns), (_, new_rows, new_columns) in itertools.pairwise(states):
        wanted_rows, wanted_columns = oracles.alternating_round(
            weight.double().numpy(),
            mask.numpy(),
            weighting.double().numpy(),
            [as_float(bits).double().numpy() for bits in signs],
            [row.double().numpy() for row in rows],
            [column.double().numpy() for column in columns],
        )
        for row, column, wanted_row, wanted_column in zip(
            new_rows, new_columns, wanted_rows, wanted_columns, strict=True
        ):
            product = np.abs(np.outer(wanted_row, wanted_column))  # the gauge moves a factor between them
            got = np.outer(row.double().numpy(), column.double().numpy())
            np.testing.assert_allclose(got, product, rtol=2e-3, atol=2e-4)


def test_a_round_of_arb_is_the_published_update() -> None:
    weight, mask, _ = group_case(5, 12, 3)
    states = list(arb.rounds(weight, mask, 2, 3))
    for (signs, scales, mean), (_, new_scales, new_mean) in itertools.pairwise(states):
        for i in range(5):
            members = [j for j in range(12) if mask[i, j]]
            if not members:
                continue
            bits = [[oracles.sign(float(plane[i, j]) - 0.5) for j in range(12)] for plane in signs]
            alpha = [float(scale[i]) for scale in scales]
            total = sum(
                float(weight[i, j]) - float(mean[i]) - sum(alpha[o] * bits[o][j] for o in (0, 1)) for j in members
            )
            centre = float(mean[i]) + total / len(members)
            assert float(new_mean[i]) == pytest.approx(centre, abs=1e-5)
            for o in (0, 1):
                alpha[o] = sum(
                    bits[o][j] * (float(weight[i, j]) - centre - alpha[1 - o] * bits[1 - o][j]) for j in members
                ) / len(members)
            for o in (0, 1):
                assert float(new_scales[o][i]) == pytest.approx(abs(alpha[o]), abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from([1, 2]), st.booleans())
def test_no_round_raises_the_weighted_loss(shape: tuple[int, int, int], order: int, mean: bool) -> None:
    weight, mask, weighting = group_case(*shape)
    losses = []
    if mean:
        for signs, scales, centre in arb.rounds(weight, mask, order, 15):
            fitted = centre[:, None] + sum(as_float(b) * s[:, None] for b, s in zip(signs, scales, strict=True))
            losses.append(float((mask * (weight - fitted).double().square()).sum()))
    else:
        for signs, rows, columns in alternate.rounds(weight, mask, order, weighting, 15):
            fitted = sum(as_float(b) * torch.outer(r, c) for b, r, c in zip(signs, rows, columns, strict=True))
            losses.append(float((mask * weighting.square() * (weight - fitted).double().square()).sum()))
    assert len(losses) == 16
    for before, after in itertools.pairwise(losses):
        assert after <= before * (1 + 1e-5) + 1e-6 * float((mask * weight.square()).sum())


@pytest.mark.parametrize("method", ALTERNATING)
@pytest.mark.parametrize("order", [1, 2])
def test_trace_shows_the_rounds_of_the_fit(method: str, order: int) -> None:
    weight, _, weighting = group_case(32, 32, 1)
    states = METHODS[method].trace(weight, significance=weighting, order=order, iterations=15)
    assert len(states) == 16
    assert states[-1].weighted_loss < states[0].weighted_loss
    codes = METHODS[method].fit(weight, torch.ones_like(weight).bool(), order, significance=weighting)
    assert states[-1].signs.shape == (order, 32, 32)
    torch.testing.assert_close(states[-1].row_scale.half(), codes.row_scale)
    lam = weighting if method == "sab" else torch.ones_like(weighting)
    loss = float((lam * (weight - codes.dense())).square().sum())
    assert states[-1].weighted_loss == pytest.approx(loss, rel=2e-3)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([1, 2]))
def test_column_scales_average_one_where_there_are_members(shape: tuple[int, int, int], order: int) -> None:
    weight, mask, weighting = group_case(*shape)
    *_, (_, rows, columns) = alternate.rounds(weight, mask, order, weighting, 15)
    members = mask.any(0)
    for row, column in zip(rows, columns, strict=True):
        assert (row >= 0).all()
        assert (column >= 0).all()
        assert not column[~members].any()
        if members.any():
            assert column[members].mean().item() == pytest.approx(1.0, abs=1e-5)


# --- the weighting


def test_column_updates_ignore_a_weighting_that_is_constant_down_columns() -> None:
    weight, _, weighting = group_case(20, 16, 2)
    mask = torch.ones_like(weight).bool()
    by_column = weighting[:1].expand_as(weight)
    for lam, ignored in ((by_column, True), (weighting, False)):
        *_, (_, [row], [column]) = alternate.rounds(weight, mask, 1, lam, 3)
        free = (row[:, None] * weight.abs()).sum(0) / row.square().sum()  # the update without Λ
        assert torch.allclose(column, free, rtol=1e-4, atol=1e-6) == ignored
    plain, weighted = (arb_rc.fit(weight, mask, 1), METHODS["sab"].fit(weight, mask, 1, significance=by_column))
    assert not torch.equal(plain.row_scale, weighted.row_scale)  # it acts through the row scales


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([1, 2]), st.sampled_from([0.25, 4.0, 64.0]))
def test_a_constant_factor_on_the_weighting_changes_nothing(
    shape: tuple[int, int, int], order: int, factor: float
) -> None:
    weight, mask, weighting = group_case(*shape)
    fit = METHODS["sab"].fit
    one = fit(weight, mask, order, significance=weighting)
    two = fit(weight, mask, order, significance=factor * weighting)
    assert torch.equal(one.dense(), two.dense())
    constant = fit(weight, mask, order, significance=torch.full_like(weight, factor))
    assert torch.equal(constant.dense(), arb_rc.fit(weight, mask, order).dense())


def test_ramp_ends_at_the_full_weighting() -> None:
    weight, _, weighting = group_case(20, 16, 4)
    mask = torch.ones_like(weight).bool()
    start = [torch.ones(16)]
    *_, (_, [row], _) = alternate.rounds(weight, mask, 1, weighting, 1, "ramp")
    square = weighting.square()  # with a single round t = T: Λ itself
    wanted = (square * weight.abs() * start[0]).sum(1) / square.sum(1)
    ratio = (row / wanted)[wanted > 0]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    ramp = alternate.fit_scales(weight, mask, 1, weighting, 15, "ramp")
    assert not torch.equal(ramp.dense(), alternate.fit_scales(weight, mask, 1, weighting).dense())
    assert torch.equal(
        alternate.fit_scales(weight, mask, 1, None, 15, "ramp").dense(), arb_rc.fit(weight, mask, 1).dense()
    )


# --- blocks


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([*GROUPED, *INTEGER]), st.integers(1, 6), st.integers(1, 20), st.integers(0, 999))
def test_odd_blocks_come_out_finite_and_zero_rows_stay_zero(method: str, rows: int, width: int, seed: int) -> None:
    weight, _, weighting = group_case(rows, width, seed)
    entered = weight.clone()
    codes = METHODS[method].fit_block(weight, context(width, seed, weighting=weighting))
    assert torch.equal(weight, entered)  # the driver still needs the block as it entered
    dense = codes.dense()
    assert dense.shape == codes.signs().shape == weight.shape
    assert codes.signs().dtype == torch.int8
    assert torch.isfinite(dense).all()
    assert dense.abs().max() <= 4 * weight.abs().max()
    assert not dense[(weight == 0).all(1)].any()


@pytest.mark.parametrize("method", [*GROUPED, *INTEGER])
def test_scaling_the_weight_by_two_scales_the_result_by_two(method: str) -> None:
    weight = 0.1 * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    lam = 0.5 + torch.rand(24, 40, generator=torch.Generator().manual_seed(1))
    around = context(40, weighting=lam)
    one, two = METHODS[method].fit_block(weight, around), METHODS[method].fit_block(2 * weight, around)
    # exact but for second scales so small that float16 holds them with fewer digits
    torch.testing.assert_close(2 * one.dense(), two.dense(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("method", [*GROUPED, *INTEGER])
def test_permuting_rows_permutes_the_result(method: str) -> None:
    weight = 0.1 * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    lam = 0.5 + torch.rand(24, 40, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    one = METHODS[method].fit_block(weight, context(40, weighting=lam)).dense()
    two = METHODS[method].fit_block(weight[order], context(40, weighting=lam[order])).dense()
    torch.testing.assert_close(one[order], two, rtol=3e-3, atol=1e-4)


def test_group_codes_and_block_codes_say_the_same() -> None:
    weight = torch.randn(12, 24, generator=torch.Generator().manual_seed(0))
    lam = 0.5 + torch.rand(12, 24, generator=torch.Generator().manual_seed(1))
    for method in ("billm", "arb", "arb-rc", "arb-rc-cgb", "sab"):
        codes = METHODS[method].fit_block(weight, context(24, weighting=lam))
        assert isinstance(codes, BinaryCodes)
        assert codes.group is not None
        total = torch.zeros_like(weight)
        salient = codes.salient.expand_as(codes.group)
        if not method.endswith(("cgb", "sab")):
            assert not codes.group[:, codes.salient].any()
        for group, chosen in itertools.product((False, True), repeat=2):
            mask = (codes.group == group) & (salient == chosen)
            part = slice(None) if not chosen else codes.salient
            inner = METHODS[method].fit(weight[:, part], mask[:, part], 1 + chosen, significance=lam[:, part]).dense()
            total[:, part] += inner
        torch.testing.assert_close(codes.dense(), total, rtol=1e-3, atol=1e-5)


def test_better_formats_fit_better() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator) * (0.3 + torch.rand(128, generator=generator))
    loss = {}
    for method in METHODS:
        lam = torch.ones_like(weight)
        dense = METHODS[method].fit_block(weight, context(128, weighting=lam)).dense()
        loss[method] = float((weight - dense).square().sum())
    assert loss["xnor"] > loss["billm"] > loss["arb"] > loss["arb-rc"] > loss["arb-rc-cgb"] == loss["sab"]
    assert loss["rtn2"] > loss["rtn3"] > loss["rtn4"]


# --- integers


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([2, 3, 4]))
def test_rounding_is_within_half_a_step(shape: tuple[int, int, int], bits: int) -> None:
    weight, _, _ = group_case(*shape)
    codes = METHODS[f"rtn{bits}"].fit_block(weight, context(shape[1]))
    assert isinstance(codes, IntegerCodes)
    assert int(codes.levels.max()) < 2**bits
    assert int(codes.zero.max()) < 2**bits
    error = (weight - codes.dense()).abs()
    # the zero is an integer, so the ends of the range may lie another half step out
    assert (error <= 1.01 * codes.scale[0].float()[:, None] + 1e-6).all()
    inside = (codes.levels > 0) & (codes.levels < 2**bits - 1)
    assert (error <= 0.501 * codes.scale[0].float()[:, None] + 1e-6)[inside].all()


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([2, 3, 4]))
def test_gptq_is_its_loop(shape: tuple[int, int, int], bits: int) -> None:
    weight, _, _ = group_case(*shape)
    around = context(shape[1], shape[2])
    codes = METHODS[f"gptq{bits}"].fit_block(weight, around)
    assert isinstance(codes, IntegerCodes)
    scale, zero = grid(weight, bits)
    wanted = oracles.gptq_levels(
        weight.double().numpy(), around.inverse_factor.double().numpy(), scale.double().numpy(), zero.numpy(), bits
    )
    same = (codes.levels.numpy() == wanted).mean()
    assert same >= 0.9  # a value within float32 rounding of a midpoint may fall either way


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_without_correlation_is_rounding(bits: int) -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    flat = context(32, inverse_factor=torch.eye(32))
    one, two = (METHODS[f"{name}{bits}"].fit_block(weight, flat) for name in ("gptq", "rtn"))
    assert torch.equal(one.dense(), two.dense())
    assert (one.method, two.method) == (f"gptq{bits}", f"rtn{bits}")


@pytest.mark.parametrize("method", ["sab", "xnor", "billm", "gptq3"])
def test_joined_blocks_keep_their_values(method: str) -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    lam = torch.ones(6, 8)
    parts = [
        METHODS[method].fit_block(part, context(part.shape[1], block_size=8, weighting=lam[:, : part.shape[1]]))
        for part in weight.split(8, 1)
    ]
    whole = join(parts)
    assert whole.shape == (6, 20)
    assert torch.equal(whole.dense(), torch.cat([part.dense() for part in parts], 1))
    assert torch.equal(whole.signs(), torch.cat([part.signs() for part in parts], 1))
