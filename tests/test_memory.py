"""Where the device runs out of memory the host does that part, says so, and the codes are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sab import calibrated, memory, sensitivities, sequential
from sab.errors import SabError
from sab.recipes import Recipe
from tests.tiny import dialogues, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
SAMPLES = dialogues(12)
DEVICE = torch.device("meta")


def out_of_memory(*_: object, **__: object) -> Any:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def failing_once(work: Callable[..., Any], when: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, but out of memory at the first call for each different value of `when(*arguments)`, not None."""
    seen: set[Any] = set()

    def tried(*positional: Any, **named: Any) -> Any:
        key = when(*positional, **named)
        if key is not None and key not in seen:
            seen.add(key)
            out_of_memory()
        return work(*positional, **named)

    return tried


def test_the_host_takes_over_after_the_device_and_not_otherwise() -> None:
    heard: list[str] = []
    tried: list[torch.device] = []

    def work(device: torch.device) -> str:
        tried.append(device)
        return out_of_memory() if device == DEVICE else "done"

    assert memory.with_host("block 3", work, DEVICE, heard.append) == "done"
    assert tried == [DEVICE, memory.HOST]
    assert heard == ["block 3"]
    assert memory.with_host("block 4", lambda device: device, DEVICE, heard.append) == DEVICE
    assert heard == ["block 3"]
    with pytest.raises(SabError, match=r"block 5: .* choose --device cpu"), pytest.warns(UserWarning, match="block 5"):
        memory.with_host("block 5", out_of_memory, DEVICE)
    with pytest.raises(ValueError, match="a defect"):  # no other error is taken for a lack of memory
        memory.with_host("block 6", lambda device: int("a defect"), DEVICE)


@pytest.mark.parametrize("refine", [0, 1])
def test_a_run_that_ran_out_of_memory_everywhere_has_the_same_codes(
    refine: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(model="tiny", method="sab-h", iterations=1, max_salient=4, refine=refine)
    list(sequential.quantize(tiny(), recipe, tmp_path / "calm", samples=SAMPLES))
    shortages: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "sums": (calibrated, "_add", lambda moments, *_: None if moments else "first linear of a block"),
        "sensitivities": (sensitivities, "input_sensitivity", lambda *_: "once"),
        "fit": (sequential, "fit_linears", lambda *_, **more: tuple(more["names"])),  # each linear
    }
    if refine:
        shortages["loss"] = sequential, "quadratic", lambda *_: "once"
    for module, name, when in shortages.values():
        monkeypatch.setattr(module, name, failing_once(getattr(module, name), when))
    with pytest.warns(UserWarning, match="out of memory, so the host does this part"):
        list(sequential.quantize(tiny(), recipe, tmp_path / "short", samples=SAMPLES))
    for path in (tmp_path / "calm").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "short" / path.relative_to(tmp_path / "calm")).read_bytes()
    log = [json.loads(line) for line in (tmp_path / "short" / "events.jsonl").read_text().splitlines()]
    where = [entry["on_host"] for entry in log if entry["event"] == "out_of_memory"]
    fitted = [name for entry in where if entry.endswith(" fit") for name in entry.split(", ")[:-1]]
    assert set(tiny().decoder_linears) <= set(fitted)
    for kind in shortages:
        assert any(kind in entry for entry in where), kind


def test_linears_that_do_not_fit_together_are_fitted_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(model="tiny", method="sab", iterations=1, max_salient=4)
    calm = {report.name: report for report in sequential.quantize(tiny(), recipe, samples=SAMPLES)}
    seen: list[int] = []
    fit = sequential.fit_linears

    def short(weights: Any, **more: Any) -> Any:
        seen.append(len(weights))
        return out_of_memory() if len(weights) > 1 else fit(weights, **more)

    monkeypatch.setattr(sequential, "fit_linears", short)
    for report in sequential.quantize(tiny(), recipe, tmp_path / "short", samples=SAMPLES):
        assert report.relative_loss == pytest.approx(calm[report.name].relative_loss, rel=1e-3)
    assert max(seen) == 3
    assert seen.count(1) == len(calm)
    log = (tmp_path / "short" / "events.jsonl").read_text()
    assert "out_of_memory" not in log  # the device did all of it


def test_a_block_that_cannot_be_refined_stays_as_it_was_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(model="tiny", method="sab-h", iterations=1, max_salient=4, refine=1)
    list(sequential.quantize(tiny(), replace(recipe, refine=0), tmp_path / "fitted", samples=SAMPLES))
    short = failing_once(sequential.refine_block, lambda _, block, *rest, **more: block)
    monkeypatch.setattr(sequential, "refine_block", short)
    with pytest.warns(UserWarning, match="is left as it was fitted"):
        list(sequential.quantize(tiny(), recipe, tmp_path / "short", samples=SAMPLES))
    for path in (tmp_path / "fitted" / "codes").iterdir():
        assert path.read_bytes() == (tmp_path / "short" / "codes" / path.name).read_bytes()
    log = [json.loads(line) for line in (tmp_path / "short" / "events.jsonl").read_text().splitlines()]
    assert [entry["not_refined"] for entry in log if entry["event"] == "out_of_memory"] == [0, 1]


def test_several_processes_that_cannot_refine_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential.distributed, "size", lambda: 2)  # they take their steps together, so none can skip
    work: Any = None
    with pytest.raises(SabError, match="--refine 0"):
        sequential._Work._refined(work, {}, out_of_memory)
