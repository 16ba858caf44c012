"""The bench of whole blocks runs the real pipeline on the shapes it names, and counts every stage once."""

from __future__ import annotations

import json

import pytest
import torch

from sab import bench_stack, cli
from sab.bench_stack import Stack, stack
from sab.errors import SabError

TINY = Stack(hidden=128, intermediate=256, heads=4, key_value_heads=2, layers=10, length=32, tokens=2048)
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")


@pytest.fixture(autouse=True)
def tiny_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_stack.STACKS, "1b", TINY)


@pytest.mark.parametrize(("method", "last"), [("sab", "propagate"), ("sab-h", "refine")])
def test_a_stack_is_measured_stage_by_stage(method: str, last: str) -> None:
    found = stack("1b", method, blocks=3)
    assert found["tokens"] == {"language": 2048, "vision": 2048}
    assert (found["blocks"], found["layers_of_the_model"]) == (3, 10)
    assert found["weights_per_block"] == 2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 256
    stages = found["stages_seconds_per_block"]
    assert {"maps", "collect", "fits", "propagate", last} == set(stages)
    assert all(seconds > 0 for seconds in stages.values())
    assert found["pipeline_seconds_per_block"] == pytest.approx(sum(stages.values()))
    assert found["ratio"] == pytest.approx(found["pipeline_seconds_per_block"] / found["forward_seconds_per_block"])
    assert found["pipeline_seconds_of_all_blocks"] == pytest.approx(10 * found["pipeline_seconds_per_block"])


def test_the_blocks_are_of_the_true_widths_and_see_both_modalities() -> None:
    lvlm, batches = bench_stack._random(TINY, 2, 96, "cpu", 0)
    shapes = {lvlm.info[name].kind: tuple(linear.weight.shape) for name, linear in lvlm.decoder_linears.items()}
    assert shapes["k_proj"] == (64, 128)
    assert shapes["down_proj"] == (128, 256)
    assert [batch.language.all() and not batch.vision.any() for batch in batches] == [True, False]
    assert all(torch.equal(batch.language, ~batch.vision) for batch in batches)


def test_the_command_prints_both_benches_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "128", "--blocks", "1", "--shapes", "1b", "--device", "cpu", "--method", "xnor"]
    assert cli.main(["bench", "pipeline", *arguments]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["ratio"] > 0
    assert [entry["shape"] for entry in result["stacks"]] == ["1b"]
    assert "2 of 10 decoder blocks by xnor on cpu (float32" in err
    assert "all 10 blocks at this pace" in err


def test_sizes_that_make_no_sense_are_refused() -> None:
    for arguments in ({"blocks": 0}, {"tokens": 3}):
        with pytest.raises(SabError, match="at least one block"):
            stack("1b", **arguments)  # type: ignore[arg-type]
    with pytest.raises(SabError, match="no shape '13b'"):
        stack("13b")
