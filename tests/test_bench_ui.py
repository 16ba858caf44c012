"""`bench ui` measures the page's own functions, and says in one sentence when it cannot."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sab import cli
from viz import bench
from viz.pages.explore import ExploreData


def test_the_bench_measures_and_says_what_it_could_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cli.main(["bench", "ui", "--rows", "300", "--columns", "512", "--repeats", "10"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["shape"] == [300, 512]
    assert 0 < found["tile_ms"]["p50"] <= found["tile_ms"]["p95"] <= found["tile_ms"]["max"]
    assert found["exact_ms"]["p95"] > 0
    assert found["frame_ms"] is None
    assert "not measured" in err


def test_the_synthetic_layer_is_one_that_the_tab_opens(tmp_path: Path) -> None:
    store = bench.synthetic_store({bench.LARGE: (256, 300), bench.SMALL: (256, 256)}, tmp_path)
    explore = ExploreData(store)
    for name, shape in ((bench.LARGE, (256, 300)), (bench.SMALL, (256, 256))):
        layer = explore.layer({"run": "synthetic", "linear": name})
        assert layer["shape"] == shape
        assert layer["units"] == {"axis": "columns", "name": "neuron", "size": 1}
        assert min(layer["exact"]["counts"]) > 0


def test_percentiles_are_those_of_the_values() -> None:
    assert bench.percentiles([float(value) for value in range(101)]) == {"p50": 50, "p95": 95, "max": 100}


@pytest.mark.parametrize("arguments", [["--rows", "8"], ["--columns", "1000000"], ["--repeats", "0"]])
def test_sizes_that_make_no_sense_are_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(["bench", "ui", *arguments]) == 2
    assert capsys.readouterr().err.startswith("sab: ")


def test_without_the_page_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "viz.bench":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["bench", "ui"]) == 2
    assert "gradio is missing" in capsys.readouterr().err


def test_a_rerun_of_one_layer_is_timed_for_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "rerun", "--samples", "8"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert set(found["seconds"]) == set(bench.RERUN)
    assert all(seconds > 0 for seconds in [*found["seconds"].values(), found["prepare_seconds"]])
    assert "while nobody waits" in err
