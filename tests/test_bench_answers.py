"""Runs answer from their bits what their dequantized weights answer."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sab import bench_answers, models
from sab.demo.suite import questions
from sab.errors import SabError
from sab.kernels import cpu
from sab.recipes import Recipe
from sab.runs import ASSET_RUNS, Run
from sab.sequential import quantize
from tests.tiny import dialogues, picture, tiny

needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.mark.filterwarnings("ignore:.*tokens calibrate")
def test_every_run_is_asked_in_every_mode(tmp_path: Path) -> None:
    full = tiny()
    for method in ("sab", "xnor"):
        for _ in quantize(tiny(), Recipe(method=method, iterations=1), tmp_path / method, samples=dialogues(2)):
            pass
    runs = [Run.open(tmp_path / method) for method in ("sab", "xnor")]
    asked = [
        SimpleNamespace(messages=[{"role": "user", "content": "What is here?"}], picture=picture(seed))
        for seed in range(2)
    ]
    before = {name: linear.weight.clone() for name, linear in full.linears.items()}
    found = bench_answers.answers(full, runs, asked)
    assert [run["method"] for run in found["runs"]] == ["sab", "xnor"]
    for run in found["runs"]:
        assert run["same_answers"]["exact"] == 1.0
        assert set(run["tokens_per_second"]) == {bench_answers.DEQUANTIZED, *cpu.MODES}
        assert all(sum(kernels.values()) == len(runs[0].reports) for kernels in run["kernels"].values())
        assert run["packed_bytes"] < run["dense_bytes"] / 4
    assert all(bool((before[name] == linear.weight).all()) for name, linear in full.linears.items())
    with pytest.raises(SabError, match="no questions"):
        bench_answers.answers(full, runs, [])


@needs_c
@pytest.mark.slow
def test_shipped_runs_answer_fifty_questions_of_the_suite_alike() -> None:
    runs = [Run.open(ASSET_RUNS / name) for name in ("sab", "sab-h", "xnor")]
    found = bench_answers.answers(models.load(runs[0].recipe.model), runs, questions("final", 50))
    for run in found["runs"]:
        assert run["same_answers"]["exact"] == 1.0
        assert run["same_answers"]["fast"] > 0.8
