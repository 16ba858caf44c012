"""Several processes make the run that one makes, and end together when one of them cannot go on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sab import distributed
from sab.runs import Run
from tests.children import answering
from tests.several import RECIPES
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[1]
Start = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs lie."""
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def start(place: Path) -> Iterator[Start]:
    """Quantize by several processes, without waiting for libraries each time."""
    with answering("tests.several", str(place)) as send:

        def ask(run: str, recipe: str, size: int = 2, trouble: str = "none", **more: Any) -> list[dict[str, Any]]:
            asked = {"resume": False, "patience": None, **more}
            return send({"run": run, "recipe": recipe, "size": size, "trouble": trouble, **asked})

        yield ask


def finished(start: Start, place: Path, run: str, recipe: str, **how: Any) -> Run:
    """A run that is made once."""
    if not (place / run).exists():
        for number, found in enumerate(start(run, recipe, **how)):
            assert found["code"] == 0, found["err"]
            if number:
                assert (found["out"], found["err"]) == ("", "")
            else:
                assert json.loads(found["out"].splitlines()[-1])["finished"]
    found = Run.open(place / run)
    found.verify()
    return found


def stored(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.directory.rglob("*.safetensors"))}


@pytest.mark.parametrize("recipe", ["plain", "together", "every part"])
def test_given_the_same_hessians_codes_are_those_of_one_process(start: Start, place: Path, recipe: str) -> None:
    one = finished(start, place, f"one {recipe}", recipe, size=1)
    two = finished(start, place, f"two {recipe}, same sums", recipe, trouble="same sums")
    assert stored(two) == stored(one)
    assert [report.relative_loss for report in two.reports.values()] == [
        report.relative_loss for report in one.reports.values()
    ]


def test_codes_are_refined_over_the_batches_of_all_as_by_one(start: Start, place: Path) -> None:
    one = finished(start, place, "one together", "together", size=1)
    two = finished(start, place, "two together, shared refinement", "together", trouble="shared refinement")
    assert stored(two) == stored(one)


@pytest.mark.parametrize("recipe", ["plain", "together", "every part"])
def test_a_run_by_two_differs_from_one_in_rounding_alone(start: Start, place: Path, recipe: str) -> None:
    one = finished(start, place, f"one {recipe}", recipe, size=1)
    two = finished(start, place, f"two {recipe}", recipe)
    assert two.header["calibration"] == one.header["calibration"]
    assert (two.header["machine"]["processes"], "processes" in one.header["machine"]) == (2, False)
    kinds = ("input", RECIPES[recipe].sensitivity)
    for kind in kinds:
        for name, pair in one.sensitivities(kind).items():
            for mine, other in zip(pair, two.sensitivities(kind)[name], strict=True):
                torch.testing.assert_close(mine, other, rtol=2e-3, atol=1e-3 * float(mine.mean()))
    assert list(two.reports) == list(one.reports)
    for name, report in one.reports.items():
        other = two.reports[name]
        assert (other.tokens_language, other.tokens_vision) == (report.tokens_language, report.tokens_vision)
        assert other.relative_loss == pytest.approx(report.relative_loss, rel=0.05)
        same = (one.codes(name).dense().sign() == two.codes(name).dense().sign()).float().mean()
        assert same > (0.9 if recipe == "together" else 0.97)  # greedy signs go apart after a rounding


def test_a_run_by_two_repeats_bit_for_bit(start: Start, place: Path) -> None:
    again = finished(start, place, "two again", "plain")
    assert stored(again) == stored(finished(start, place, "two plain", "plain"))


def sentences(found: list[dict[str, Any]]) -> list[str]:
    """What all processes say besides progress and warnings."""
    said = [line for each in found for line in each["err"].splitlines() if line.startswith("sab: ")]
    return [line for line in said if "tokens calibrate" not in line]


@pytest.mark.parametrize(
    ("trouble", "recipe", "sentence"),
    [
        ("refusal", "plain", "This linear cannot be fitted"),
        ("full disk", "plain", "No space left on device"),
        ("other samples", "plain", "Process 1 has other calibration samples"),
        ("none", "few samples", "There are 1 calibration batches for 2 processes"),
        ("killed", "plain", "Another process has vanished"),
        ("leader killed", "plain", "Another process has vanished"),
    ],
)
def test_when_one_cannot_go_on_all_end_with_one_sentence(
    start: Start, place: Path, trouble: str, recipe: str, sentence: str
) -> None:
    started = time.monotonic()
    found = start(trouble, recipe, trouble=trouble)
    assert time.monotonic() - started < 60
    said = sentences(found)
    assert len(said) == 1
    assert sentence in said[0]
    assert all(each["out"] == "" for each in found)
    assert sorted(each["code"] for each in found) == ([-9, 2] if "killed" in trouble else [2, 2])
    assert not any("Traceback" in each["err"] for each in found)
    shutil.rmtree(place / trouble, ignore_errors=True)


def test_a_defect_is_shown_where_it_is_and_ends_the_others(start: Start) -> None:
    leader, other = start("defect", "plain", trouble="defect")
    assert "Process 1 failed: ZeroDivisionError: a defect" in sentences([leader])[0]
    assert "ZeroDivisionError" in other["err"]
    assert (leader["code"], other["code"]) == (2, 1)


def test_a_process_that_stands_still_is_not_waited_for_forever(start: Start) -> None:
    started = time.monotonic()
    leader, _ = start("still", "plain", trouble="stands still", patience=3.0)
    assert time.monotonic() - started < 40
    assert leader["code"] == 2
    assert "Another process has vanished" in sentences([leader])[0]


def test_what_a_killed_run_had_finished_is_not_made_again(start: Start, place: Path) -> None:
    """Finished linears are handed to the process that has no run; the end is that of an undisturbed run."""
    undisturbed = stored(finished(start, place, "two plain", "plain"))
    start("resumed", "plain", trouble="killed")
    first = next(iter(RECIPES["plain"].linears or ()))
    shutil.copytree(place / "two plain", place / "half", dirs_exist_ok=True)
    (place / "half" / "manifest.json").unlink()
    for path in (place / "half" / "reports").iterdir():
        if path.stem != first:
            path.unlink()
    before = (place / "half" / "reports" / f"{first}.json").read_bytes()
    for run in ("resumed", "half"):
        for found in start(run, "plain", resume=True):
            assert found["code"] == 0, found["err"]
        assert stored(Run.open(place / run)) == undisturbed
    assert (place / "half" / "reports" / f"{first}.json").read_bytes() == before
    assert [found["code"] for found in start("half", "plain", resume=True)] == [0, 0]  # it is only read


def test_linears_are_dealt_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    costs = [1.0, 9.0, 4.0, 4.0, 2.0, 2.0, 5.0]
    owners = distributed.deal(costs)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == number) for number in range(3)]
    assert sorted(loads) == [9, 9, 9]
    assert distributed.deal([]) == []


def test_alone_nothing_is_exchanged() -> None:
    values = torch.arange(3)
    assert distributed.total(values) is values
    assert distributed.hand_round({"a": values}, {"b": 1}) == ({"a": values}, {"b": 1})
    assert list(distributed.share(4, "things")) == [0, 1, 2, 3]
    assert (distributed.rank(), distributed.size(), distributed.leads()) == (0, 1, True)
    distributed.check_alike("weights", "x")


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sab"]
    options = ["--method", "xnor", "--samples", "60", "--out", tmp_path / "run", "--device", "cpu", "--export", "none"]
    found = subprocess.run(
        [*command, "quantize", tiny_folder(), *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 1
    assert json.loads(found.stdout)["finished"]
    assert Run.open(tmp_path / "run").header["machine"]["processes"] == 2
    refused = subprocess.run([*command, "eval", tiny_folder()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.stderr.count("Only quantize works with several processes") == 1
