"""What is kept of a calibration gives the same codes as computing it again, and is not computed twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sab import calibrated, sequential
from sab.calibrated import Calibrated
from sab.errors import SabError
from sab.recipes import Recipe
from tests.tiny import dialogues, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
SAMPLES = dialogues(40)
SINGLE = ("model.language_model.layers.1.mlp.down_proj",)
RECIPES = {
    "sab": Recipe(model="tiny", method="sab", iterations=2, max_salient=4),
    "fisher": Recipe(model="tiny", method="sab", sensitivity="fisher", iterations=1, max_salient=4, linears=SINGLE),
    "refined": Recipe(model="tiny", method="sab-h", max_salient=4, refine=1),
    "one refined": Recipe(model="tiny", method="sab-h", max_salient=4, refine=1, linears=SINGLE),
    "all parts": Recipe(model="tiny", method="xnor", parts=("vision", "projector", "decoder")),
}


def codes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "codes").iterdir())}


@pytest.mark.parametrize("limit", [1e9, 0], ids=["kept", "too large to keep"])
def test_a_shared_calibration_gives_the_same_codes_to_the_last_bit(tmp_path: Path, limit: float) -> None:
    known = Calibrated(tiny(), SAMPLES, limit=limit)
    assert known.keeps == bool(limit)
    for name, recipe in RECIPES.items():
        alone, shared = tmp_path / f"{name} alone", tmp_path / f"{name} shared"
        list(sequential.quantize(tiny(), recipe, alone, samples=SAMPLES))
        list(sequential.quantize(tiny(), recipe, shared, calibrated=known))
        assert codes(shared) == codes(alone), name
        for file in ("sensitivity-input.safetensors", f"sensitivity-{recipe.sensitivity}.safetensors"):
            assert (shared / file).read_bytes() == (alone / file).read_bytes(), name


def test_a_second_run_of_one_linear_reads_no_sample_and_runs_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Calibrated(tiny(), SAMPLES, limit=1e9)
    recipe = replace(RECIPES["sab"], linears=SINGLE)
    list(sequential.quantize(tiny(), recipe, calibrated=known))

    def again(*_: object, **__: object) -> None:
        raise AssertionError("computed twice")

    for module, name in ((calibrated, "capture"), (calibrated, "replay_block"), (sequential, "through_block")):
        monkeypatch.setattr(module, name, again)
    other = replace(recipe, method="billm")
    assert [report.name for report in sequential.quantize(tiny(), other, calibrated=known)] == list(SINGLE)


def test_a_calibration_of_another_split_is_refused() -> None:
    known = Calibrated(tiny(), SAMPLES, "corpus")
    with pytest.raises(SabError, match="another split or model"):
        next(sequential.quantize(tiny(), RECIPES["sab"], calibrated=known))


def test_blocks_that_are_not_kept_are_asked_for_in_order() -> None:
    known = Calibrated(tiny(), SAMPLES[:4])
    known.before(1)
    with pytest.raises(ValueError, match="not been kept"):
        known.before(0)
    known.rewind()
    assert known.before(0) is known.batches
