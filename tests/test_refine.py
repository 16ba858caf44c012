"""Scales of a block refined together, and runs of methods that are (METHOD 8)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sab import sequential
from sab.binarizers import BinaryCodes
from sab.calibrated import through_block
from sab.capture import Batch, capture
from sab.compensate import fit_linear
from sab.errors import SabError
from sab.models import LVLM
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


def test_refined_scales_bring_the_block_nearer_to_full_precision_and_signs_stay() -> None:
    lvlm = tiny()
    weights = {name: linear.weight.detach().clone() for name, linear in lvlm.linears.items()}
    batches = capture(lvlm, SAMPLES)
    targets = through_block(lvlm, 0, batches, [])[1]
    codes = block_codes(lvlm, batches)
    refined = refine_block(lvlm, 0, batches, targets, codes, epochs=40)
    assert refined.after < 0.9 * refined.before
    for name, before in codes.items():
        after = refined.codes[name]
        assert torch.equal(after.first, before.first)
        assert after.row_scale.dtype == before.row_scale.dtype
        assert after.row_scale.shape == before.row_scale.shape
        assert (after.row_scale.sign() == before.row_scale.sign()).all()
    assert any(not torch.equal(refined.codes[name].row_scale, codes[name].row_scale) for name in codes)
    for name, linear in lvlm.linears.items():  # the model itself is left as it was
        assert torch.equal(linear.weight, weights[name])
        assert "forward" not in linear.__dict__


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
