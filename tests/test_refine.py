"""Codes of a block refined together, and runs of methods that are (METHOD 8)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sab import refine, sequential
from sab.binarizers import BinaryCodes
from sab.calibrated import through_block
from sab.capture import Batch, capture
from sab.compensate import fit_linear
from sab.errors import SabError
from sab.models import LVLM
from sab.packed import PackedLinear
from sab.packing import count_bits, pack, unpack
from sab.recipes import Recipe
from sab.refine import is_held_out, refine_block
from sab.runs import LinearReport, Run
from tests.tiny import dialogues, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
SAMPLES = dialogues(40)
QUICK = Recipe(model="tiny", method="sab-h", iterations=1, max_salient=4, refine=2)


def block_codes(lvlm: LVLM, batches: list[Batch]) -> dict[str, BinaryCodes]:
    names = [name for name in lvlm.decoder_linears if lvlm.info[name].block == 0]
    moments = through_block(lvlm, 0, batches, names)[0]
    found = {}
    for name in names:
        weight = lvlm.linears[name].weight.detach()
        codes = fit_linear(weight, sum(group.hessian for group in moments[name]), "xnor").codes  # type: ignore[arg-type]
        assert isinstance(codes, BinaryCodes)
        found[name] = codes
    return found


def test_refined_codes_bring_the_block_nearer_to_full_precision_at_no_extra_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lvlm = tiny()
    weights = {name: linear.weight.detach().clone() for name, linear in lvlm.linears.items()}
    batches = capture(lvlm, SAMPLES)
    targets = through_block(lvlm, 0, batches, [])[1]
    codes = block_codes(lvlm, batches)
    refined = refine_block(lvlm, 0, batches, targets, codes, epochs=40)
    assert refined.after < 0.9 * refined.before
    flipped = 0
    for name, before in codes.items():
        after = refined.codes[name]
        assert count_bits(after) == count_bits(before)
        assert after.row_scale.dtype == before.row_scale.dtype
        assert (after.row_scale.sign() == before.row_scale.sign()).all()
        flipped += int((after.first != before.first).sum())
    assert any(not torch.equal(refined.codes[name].row_scale, codes[name].row_scale) for name in codes)
    assert flipped
    for name, linear in lvlm.linears.items():  # the model itself is left as it was
        assert torch.equal(linear.weight, weights[name])
        assert "forward" not in linear.__dict__
    monkeypatch.setattr(refine, "BIT_RATE", 0.0)
    scales_alone = refine_block(lvlm, 0, batches, targets, codes, epochs=40)
    assert all(torch.equal(scales_alone.codes[name].first, codes[name].first) for name in codes)
    assert refined.after < scales_alone.after < refined.before


LAYOUTS = {  # of 24 x 40 weights in blocks of 16: with means, column scales, either or both bit planes, int8 scales
    "xnor": ("xnor", {}),
    "arb": ("arb", {}),
    "arb-rc": ("arb-rc", {}),
    "arb-rc-cgb": ("arb-rc-cgb", {}),
    "sab-h": ("sab-h", {}),
    "two planes": ("sab-h", {"search": "budget", "bits": 7.0}),
    "one plane": ("sab-h", {"search": "budget", "bits": 4.0}),
}


PLANES = {
    "xnor": {"first"},
    "arb": {"first", "group", "second"},
    "arb-rc": {"first", "group", "second"},
    "arb-rc-cgb": {"first", "group", "second"},
    "sab-h": {"first", "group", "second"},
    "two planes": {"first", "group", "second"},
    "one plane": {"first", "second"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_bit_gets_the_gradient_of_its_own_two_values(layout: str) -> None:
    method, more = LAYOUTS[layout]
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 40, generator=draw)
    inputs = torch.randn(40, 200, generator=draw)
    settings = Recipe(method=method, block_size=16, max_salient=8, iterations=2, **more).fit_settings
    codes = fit_linear(weight, inputs @ inputs.T, method, settings).codes
    assert isinstance(codes, BinaryCodes)
    moved = refine._Moved(codes, weight)
    assert set(moved.latents) == PLANES[layout]
    for plane, latent in moved.latents.items():
        assert torch.equal(latent > 0, getattr(codes, plane))
        assert float(latent.detach().abs().min()) >= refine.NEAREST
    gradient = torch.randn(24, 40, generator=draw)
    dense = moved.traced()
    torch.testing.assert_close(dense, codes.dense(), rtol=1e-5, atol=1e-6)
    dense.backward(gradient)
    split = len(codes.row_scale) != 3  # else group bits of salient columns stay off
    for plane, latent in moved.latents.items():
        on = torch.ones_like(getattr(codes, plane))
        half = (replace(codes, **{plane: on}).dense() - replace(codes, **{plane: ~on}).dense()) / 2
        wanted = gradient * half * (split | ~codes.salient if plane == "group" else 1)
        torch.testing.assert_close(
            latent.grad, wanted[:, codes.salient] if plane == "second" else wanted, rtol=1e-4, atol=1e-5
        )
    for logarithm in filter(Tensor.numel, moved.logarithms):  # along one direction, against a finite difference
        along = torch.randn(logarithm.shape, generator=draw)
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                logarithm += step * along
                values.append((moved.dense().double() * gradient).sum())
                logarithm -= step * along
        assert logarithm.grad is not None
        slope = float((values[0] - values[1]) / 2e-3)
        assert float((logarithm.grad * along).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2)
    for _ in range(40):
        moved.step(gradient, 1.0)
    after = moved.rounded()
    for plane in moved.latents:
        assert not torch.equal(getattr(after, plane), getattr(codes, plane))
    again = unpack(*pack(after))
    assert isinstance(again, BinaryCodes)
    assert torch.equal(again.dense(), after.dense())
    assert count_bits(after) == count_bits(codes)
    if not split:
        assert codes.group is not None
        assert not bool((after.group & codes.salient).any())
    inputs = torch.randn(3, 40, generator=draw)
    torch.testing.assert_close(PackedLinear(after)(inputs), inputs @ after.dense().T, rtol=1e-4, atol=1e-4)


def test_a_loss_of_any_size_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = tiny()
    batches = capture(lvlm, SAMPLES)
    targets = through_block(lvlm, 0, batches, [])[1]
    codes = block_codes(lvlm, batches)
    plain = refine_block(lvlm, 0, batches, targets, codes, epochs=2)
    step = refine._Moved.step
    monkeypatch.setattr(
        refine._Moved,
        "step",
        lambda moved, gradient, share: step(moved, None if gradient is None else gradient * 2.0**-20, share),
    )
    small = refine_block(lvlm, 0, batches, targets, codes, epochs=2)
    assert small.after == plain.after < plain.before


def test_what_does_not_help_on_held_out_batches_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = tiny()
    batches = capture(lvlm, SAMPLES)
    codes = block_codes(lvlm, batches)
    # held-out targets are what the codes give already, so any move away is worse there
    for name, linear in codes.items():
        lvlm.linears[name].weight.data.copy_(linear.dense())
    reached = through_block(lvlm, 0, batches, [])[1]
    targets = [
        batch if is_held_out(place) else replace(batch, hidden=torch.randn_like(batch.hidden))
        for place, batch in enumerate(reached)
    ]
    refined = refine_block(lvlm, 0, batches, targets, codes, epochs=2)
    assert refined.codes == codes
    assert refined.after == refined.before


def test_one_batch_changes_nothing() -> None:
    lvlm = tiny()
    batches = capture(lvlm, SAMPLES[:1])
    assert len(batches) == 1
    codes = block_codes(lvlm, batches)
    assert refine_block(lvlm, 0, batches, through_block(lvlm, 0, batches, [])[1], codes, epochs=3).codes == codes


def _quantize(directory: Path) -> Iterator[LinearReport]:
    return sequential.quantize(tiny(), QUICK, directory, samples=SAMPLES)


def _codes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "codes").iterdir())}


def test_a_refined_run_killed_inside_a_block_ends_with_the_same_codes(tmp_path: Path) -> None:
    reports = list(_quantize(tmp_path / "whole"))
    assert [report.done for report in reports] == list(range(1, 15))
    killed = _quantize(tmp_path / "killed")
    for _ in range(9):  # seven of the first block, two of the second
        next(killed)
    del killed
    again = list(_quantize(tmp_path / "killed"))
    assert len(again) == 14
    assert _codes(tmp_path / "killed") == _codes(tmp_path / "whole")
    run = Run.open(tmp_path / "whole")
    assert run.finished
    plain = list(sequential.quantize(tiny(), replace(QUICK, refine=0), None, samples=SAMPLES))
    assert [report.relative_loss for report in plain] != [report.relative_loss for report in reports]
    assert all(0 < report.relative_loss < 1 for report in reports)


def test_a_budget_is_kept_to_by_every_linear() -> None:
    recipe = replace(QUICK, search="budget", bits=2.2, refine=1)
    for report in sequential.quantize(tiny(), recipe, samples=SAMPLES):
        assert 1.8 < report.bits_all_in <= 2.2


@pytest.mark.parametrize(
    "changes",
    [
        {"search": "budget"},
        {"bits": 2.0},
        {"search": "budget", "bits": 2.0, "method": "sab"},
        {"search": "budget", "bits": float("nan")},
        {"search": "budget", "bits": 0.5},
        {"refine": -1},
        {"refine": 1.5},
        {"method": "gptq3", "refine": 2},
        {"method": "pb-llm", "refine": 2},
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(SabError):
        replace(QUICK, **changes).validate()


def test_methods_refine_by_themselves_unless_told() -> None:
    assert Recipe(method="sab-h").refine_epochs > 0
    assert Recipe(method="sab").refine_epochs == 0
    assert Recipe(method="sab", refine=3).refine_epochs == 3
    Recipe(method="sab", refine=3).validate()
