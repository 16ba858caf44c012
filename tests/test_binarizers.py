"""Single groups and single blocks of every method: closed forms, rounds, stored precision, odd shapes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers import (
    METHODS,
    BinaryCodes,
    BlockContext,
    IntegerCodes,
    KeptCodes,
    alternate,
    arb,
    arb_rc,
    arb_x,
    billm,
    pb_llm,
    plain,
)
from sab.binarizers.codes import join
from sab.binarizers.rtn import grid
from sab.binarizers.signs import as_float, nearest_signs, to_half
from sab.errors import SabError
from tests import oracles

GROUPED = ("xnor", "billm", "arb", "arb-rc", "arb-rc-cgb", "sab")
ALTERNATING = ("arb", "arb-rc", "arb-rc-cgb", "sab")
INTEGER = ("rtn2", "rtn3", "rtn4", "gptq2", "gptq3", "gptq4")
WHOLE_BLOCK = ("pb-llm", "arb-x", "sab-h")  # one bit a weight, and no fit of a single group
ALL = (*GROUPED, *INTEGER, *WHOLE_BLOCK)
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
    assert set(METHODS) == set(ALL)
    for name, method in METHODS.items():
        assert method.label
        assert method.description.endswith(".")
        assert method.uses_significance == (name == "sab")
        assert method.bits == (int(name[-1]) if name in INTEGER else 1)
        assert method.feedback == name.startswith(("gptq", "pb-llm", "sab-h"))
        assert method.compensated != name.startswith("rtn")
        if name not in GROUPED:
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
    for method in (*GROUPED, *WHOLE_BLOCK):
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
            # where all rows of a column cancel to 0, float32 divides what rounding has left of them
            clear = (mask.numpy() & (np.abs(wanted_row) > 1e-5)[:, None]).any(0) | ~mask.any(0).numpy()
            np.testing.assert_allclose(got[:, clear], product[:, clear], rtol=2e-3, atol=2e-4)


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
@given(st.sampled_from(ALL), st.integers(1, 6), st.integers(1, 20), st.integers(0, 999))
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


@pytest.mark.parametrize("method", ALL)
def test_scaling_the_weight_by_two_scales_the_result_by_two(method: str) -> None:
    weight = 0.1 * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    lam = 0.5 + torch.rand(24, 40, generator=torch.Generator().manual_seed(1))
    around = context(40, weighting=lam)
    one, two = METHODS[method].fit_block(weight, around), METHODS[method].fit_block(2 * weight, around)
    # exact but for second scales so small that float16 holds them with fewer digits
    torch.testing.assert_close(2 * one.dense(), two.dense(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("method", ALL)
def test_permuting_rows_permutes_the_result(method: str) -> None:
    weight = 0.1 * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    lam = 0.5 + torch.rand(24, 40, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    one = METHODS[method].fit_block(weight, context(40, weighting=lam)).dense()
    two = METHODS[method].fit_block(weight[order], context(40, weighting=lam[order])).dense()
    same = torch.isclose(one[order], two, rtol=3e-3, atol=1e-4).float().mean()
    # column sums round by the order of the rows: where a weight lies between two levels, a walk goes on differently
    assert same >= (0.9 if method == "sab-h" else 1.0)


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
    assert loss["arb-x"] == pytest.approx(loss["arb"], rel=1e-3)  # without correlation its metric is the plain one
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


# --- the batched fit against the plain one


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(2, 24), st.integers(0, 999))
@example(64, 128, 0)
def test_sab_is_what_one_fit_per_candidate_gives(rows: int, width: int, seed: int) -> None:
    weight, _, weighting = group_case(rows, width, seed)
    around = context(width, seed, weighting=weighting)
    fast = METHODS["sab"].fit_block(weight, around).dense()
    slow = plain.fit_block(weight, around)
    losses = [float((weighting * (weight - dense)).double().square().sum()) for dense in (fast, slow)]
    energy = float((weighting * weight).double().square().sum())
    if weight.any() and rows * width > 100:  # in the smallest blocks candidates tie, at different losses
        assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4 * energy)
    assert torch.isfinite(slow).all()


# --- xnor and rounding against loops


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_xnor_is_the_closed_form_over_the_whole_row(shape: tuple[int, int, int]) -> None:
    weight, _, _ = group_case(*shape)
    wanted = torch.from_numpy(oracles.billm_fit(weight.double().numpy(), np.ones(weight.shape, dtype=bool), 1))
    dense = METHODS["xnor"].fit_block(weight, context(shape[1])).dense()
    errors = [(weight.double() - fitted).square().sum(1) for fitted in (dense, wanted)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-2, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.sampled_from([2, 3, 4]))
def test_rtn_is_its_loop(shape: tuple[int, int, int], bits: int) -> None:
    weight, _, _ = group_case(*shape)
    dense = METHODS[f"rtn{bits}"].fit_block(weight, context(shape[1])).dense().double().numpy()
    grids = [oracles.asymmetric_grid(row, bits) for row in weight.double().numpy()]
    scale, zero = (np.array(values) for values in zip(*grids, strict=True))
    wanted = oracles.round_to_nearest(weight.double().numpy(), scale, zero, bits)
    assert (np.abs(dense - wanted) < 1e-5).mean() >= 0.9  # a value at a midpoint may fall either way


# --- pb-llm


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(pb_llm.KEEP))
@example((8, 40, 0), "magnitude")
@example((8, 40, 0), "hessian")
def test_pb_llm_is_its_loop(shape: tuple[int, int, int], keep: str) -> None:
    weight, _, _ = group_case(*shape)
    around = context(shape[1], shape[2])
    plan = pb_llm.plan(weight, around.inverse_factor, keep=keep)
    codes = pb_llm.fit_block(weight, dataclasses.replace(around, plan=plan))
    kept, wanted = oracles.pb_llm(
        weight.double().numpy(), around.inverse_factor.double().numpy(), pb_llm.KEPT_SHARE, keep == "hessian"
    )
    assert np.array_equal(codes.kept.numpy(), kept)
    same = np.abs(codes.dense().double().numpy() - wanted) < 1e-3
    assert same.mean() >= 0.8  # a value within float32 rounding of a bound may fall either way, and moves its row
    if weight.numel() > 100:
        assert same.mean() > 0.97


def test_pb_llm_keeps_a_tenth_and_the_measure_matters() -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    factor = context(50, inverse_factor=torch.diag(0.1 + torch.arange(50.0))).inverse_factor
    largest, most_costly = (pb_llm.plan(weight, factor, keep=keep).kept for keep in pb_llm.KEEP)
    assert int(largest.sum()) == int(most_costly.sum()) == 200
    assert weight.abs()[largest].min() > weight.abs()[~largest].max()
    cost = weight.square() / factor.diagonal().square()
    assert cost[most_costly].min() > cost[~most_costly].max()
    assert not torch.equal(largest, most_costly)
    assert not pb_llm.plan(torch.ones(4, 8), torch.eye(8)).kept.any()  # ties: none rather than too many


def test_pb_llm_counts_the_zeros_of_kept_places() -> None:
    weight = torch.tensor([[1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0]])
    codes = pb_llm.fit_block(weight, context(10, inverse_factor=torch.eye(10)))
    assert codes.kept[0].nonzero().flatten().tolist() == [9]
    mean = 11 / 10  # the kept 100 counts as a 0
    scale = (8 * abs(1 - mean) + abs(3 - mean) + abs(0 - mean)) / 10
    assert codes.row_mean.item() == pytest.approx(mean, abs=1e-3)
    assert codes.row_scale.item() == pytest.approx(scale, abs=1e-3)
    dense = codes.dense()[0]
    assert dense[9].item() == pytest.approx(100, abs=0.5)
    assert dense[3].item() == pytest.approx(mean + scale, abs=2e-3)
    assert dense[0].item() == pytest.approx(mean - scale, abs=2e-3)
    assert codes.signs()[0].tolist() == [-1, -1, -1, 1, -1, -1, -1, -1, -1, 1]
    nothing = dataclasses.replace(codes, levels=codes.kept * codes.kept_zero[:, None])
    assert nothing.dense()[0, 9] == 0
    assert nothing.signs()[0, 9] == 1  # the sign of 0, as everywhere


def test_pb_llm_over_blocks_is_one_walk_under_one_plan() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    plan = pb_llm.plan(weight, torch.eye(20))
    parts = [
        pb_llm.fit_block(
            weight[:, here],
            BlockContext(torch.eye(20)[here, here], torch.eye(1), block_size=8, plan=plan.columns(here)),
        )
        for here in (slice(0, 8), slice(8, 16), slice(16, 20))
    ]
    whole = join(parts)
    assert isinstance(whole, KeptCodes)
    assert whole.shape == (6, 20)
    assert torch.equal(whole.kept, plan.kept)
    assert torch.equal(whole.dense(), torch.cat([part.dense() for part in parts], 1))
    assert whole.salient_fraction == pytest.approx(0.1)


# --- arb-x


def metric(width: int, seed: int, rank: int | None = None) -> Tensor:
    """Sum x xᵀ of correlated inputs, of lower rank if asked; whole numbers, so that float32 does not round."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rank or 4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    inputs = (4 * inputs).round()
    inputs[0, 0] += inputs[0, 0] == 0
    return inputs.T @ inputs


@settings(deadline=None, max_examples=20)
@example(3, 14, 395, 3, 1.0)
@given(
    *(st.integers(1, 3), st.integers(1, 16), st.integers(0, 999)),
    *(st.sampled_from([None, 1, 3]), st.sampled_from([1.0, 2.0**-20, 2.0**20])),
)
def test_rounds_of_arb_x_are_least_squares_and_never_raise_the_loss(
    rows: int, width: int, seed: int, rank: int | None, size: float
) -> None:
    weight, _, _ = group_case(rows, width, seed)
    gram = size * metric(width, seed, rank)
    start = METHODS["arb"].fit_block(weight, context(width, seed))
    assert start.row_mean is not None
    parameters = torch.cat([start.row_mean, start.row_scale, start.second_row_scale])[:, 0].T.double()
    normal, target = arb_x.normal_equations(weight, start, gram)
    states = list(arb_x.rounds(normal, target, parameters, 3, 15))
    assert len(states) == 16
    slots, second = start.slots().numpy(), torch.zeros(rows, width)
    second[:, start.salient] = as_float(start.second)
    scaled = (gram.double() / gram.diagonal().max().double()).numpy() + arb_x.JITTER * np.eye(width)
    for i in range(rows):
        row = weight[i].double().numpy()
        members = [(slots[i] == slot).astype(float) for slot in range(3)]
        signs = [*(part * as_float(start.first[i]).double().numpy() for part in members), second[i].double().numpy()]
        mu, alpha = parameters[i, :3].numpy(), parameters[i, 3:].numpy()
        before = np.inf
        energy = row @ scaled @ row
        for state in states[1:]:
            mu, alpha, loss = oracles.arb_x_round(row, scaled, members, signs, mu, alpha)
            rest = row - np.stack(members, 1) @ state[i, :3].numpy() - np.stack(signs, 1) @ state[i, 3:].numpy()
            got = rest @ scaled @ rest
            assert got == pytest.approx(loss, rel=1e-4, abs=1e-6 * energy + 1e-12)
            assert got <= before + 1e-12 * (1 + energy)
            before = got


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 999))
def test_stored_arb_x_is_never_worse_than_arb_in_the_metric_of_the_inputs(rows: int, width: int, seed: int) -> None:
    weight, _, _ = group_case(rows, width, seed)
    around = context(width, seed, gram=metric(width, seed))
    one, two = METHODS["arb"].fit_block(weight, around), METHODS["arb-x"].fit_block(weight, around)
    assert isinstance(one, BinaryCodes)
    assert isinstance(two, BinaryCodes)
    for name in ("first", "second", "group", "salient"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name  # B and the structure are fixed
    rests = [(weight - codes.dense()).double() for codes in (one, two)]
    losses = [(rest @ around.gram.double() * rest).sum(1) for rest in rests]
    assert (losses[1] <= losses[0] * (1 + 1e-5) + 1e-9).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 999))
@example(64, 40, 0)
def test_arb_x_keeps_what_rounding_would_make_worse(rows: int, width: int, seed: int) -> None:
    """Where ARB is at its best already, the stored precision decides: never for the worse."""
    weight, _, _ = group_case(rows, width, seed)
    around = context(width, seed)
    losses = []
    for method in ("arb", "arb-x"):
        codes = METHODS[method].fit_block(weight, around)
        assert isinstance(codes, BinaryCodes)
        assert codes.row_mean is not None
        parameters = torch.cat([codes.row_mean, codes.row_scale, codes.second_row_scale])[:, 0].T.double()
        losses.append(arb_x.loss(*arb_x.normal_equations(weight, codes, around.gram), parameters))
    assert (losses[1] <= losses[0]).all()


def test_arb_x_survives_a_metric_that_is_not_positive() -> None:
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    start = METHODS["arb"].fit_block(weight, context(24))
    assert start.row_mean is not None
    parameters = torch.cat([start.row_mean, start.row_scale, start.second_row_scale])[:, 0].T.double()
    normal, target = arb_x.normal_equations(weight, start, torch.eye(24) - 0.1)
    assert torch.linalg.eigvalsh(normal[:, :3, :3]).min() < -0.1
    losses = [arb_x.loss(normal, target, state) for state in arb_x.rounds(normal, target, parameters, 3, 15)]
    for before, after in itertools.pairwise(losses):
        assert (after <= before + 1e-9).all()


def test_arb_x_gains_where_inputs_are_correlated() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    around = context(64, gram=metric(64, 0))
    rests = {name: (weight - METHODS[name].fit_block(weight, around).dense()) for name in ("arb", "arb-x")}
    loss = {name: float((rest @ around.gram * rest).sum()) for name, rest in rests.items()}
    assert loss["arb-x"] < 0.9 * loss["arb"]
    blind = METHODS["arb-x"].fit_block(weight, dataclasses.replace(around, gram=torch.zeros(64, 64)))
    assert torch.equal(blind.dense(), METHODS["arb"].fit_block(weight, around).dense())  # nothing to go by
