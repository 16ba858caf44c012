"""Streamed models: one block in memory at a time, and the same codes as with all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from sab import models, sequential, streaming
from sab.cli import main
from sab.errors import SabError
from sab.models import LVLM
from sab.recipes import Recipe
from sab.runs import Run
from tests import test_capture
from tests.tiny import dialogues, tiny, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate", "ignore:.*weighting is off")
SAMPLES = dialogues(12)
QUICK = Recipe(model="tiny", method="sab", iterations=2, max_salient=4)
RECIPES = {
    "sab": QUICK,
    "later block": Recipe(
        model="tiny", method="xnor", linears=tuple(name for name in tiny().linears if ".layers.1." in name)
    ),
    "fisher": Recipe(model="tiny", method="sab", sensitivity="fisher", iterations=1, max_salient=4),
    "refined": Recipe(model="tiny", method="sab-h", iterations=2, max_salient=4, refine=1),
    "all parts": Recipe(model="tiny", method="xnor", parts=("vision", "projector", "decoder")),
}


def streamed_tiny() -> LVLM:
    return models.load(tiny_folder(), device="cpu", streamed=True)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.rglob("*.safetensors"))}


def in_memory(lvlm: LVLM) -> set[str]:
    return {name for name, parameter in lvlm.model.named_parameters() if not parameter.is_meta}


@pytest.mark.parametrize("name", RECIPES)
def test_a_streamed_run_has_the_bytes_of_one_with_everything_in_memory(name: str, tmp_path: Path) -> None:
    lvlm = streamed_tiny()
    assert lvlm.fingerprint == tiny().fingerprint
    streamed = list(sequential.quantize(lvlm, RECIPES[name], tmp_path / "streamed", samples=SAMPLES))
    whole = list(sequential.quantize(tiny(), RECIPES[name], tmp_path / "whole", samples=SAMPLES))
    assert [report.relative_loss for report in streamed] == [report.relative_loss for report in whole]
    assert files(tmp_path / "streamed") == files(tmp_path / "whole")
    assert not in_memory(lvlm)


def test_while_a_block_is_fitted_nothing_else_is_in_memory(tmp_path: Path) -> None:
    lvlm = streamed_tiny()
    assert not in_memory(lvlm)
    for report in sequential.quantize(lvlm, QUICK, tmp_path / "run", samples=SAMPLES):
        own = f"model.language_model.layers.{report.block}."
        held = in_memory(lvlm)
        assert {name for name in held if not name.startswith(own)} == {"model.language_model.norm.weight"}
        assert f"{report.name}.weight" in held


def test_a_streamed_run_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    list(sequential.quantize(streamed_tiny(), QUICK, tmp_path / "whole", samples=SAMPLES))
    stop = threading.Event()
    for report in sequential.quantize(streamed_tiny(), QUICK, tmp_path / "run", stop, samples=SAMPLES):
        if report.done == 9:
            stop.set()
    assert not Run.open(tmp_path / "run").finished
    lvlm = streamed_tiny()
    assert len(list(sequential.quantize(lvlm, QUICK, tmp_path / "run", samples=SAMPLES))) == 14
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_afterwards_the_binarized_weights_are_read_from_the_run(tmp_path: Path) -> None:
    lvlm = streamed_tiny()
    list(sequential.quantize(lvlm, QUICK, tmp_path / "run", samples=SAMPLES))
    run = Run.open(tmp_path / "run")
    name = list(lvlm.decoder_linears)[-1]
    with lvlm.holding_block(1):
        assert torch.equal(lvlm.linears[name].weight, run.codes(name).dense())
    with pytest.raises(SabError, match="binarized before"):
        list(sequential.quantize(lvlm, QUICK, tmp_path / "again", samples=SAMPLES))


def test_what_is_not_binarized_comes_out_one_tensor_at_a_time_as_it_went_in() -> None:
    lvlm, whole = streamed_tiny(), tiny()
    expected = dict(whole.stored_tensors(whole.decoder_linears))
    found = {}
    for name, value in lvlm.stored_tensors(lvlm.decoder_linears):
        assert not in_memory(lvlm)
        found[name] = value
    assert found.keys() == expected.keys()
    assert not any(f"{name}.weight" in found for name in lvlm.decoder_linears)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [test_capture._qwen3_vl, test_capture._gemma3, test_capture._llava])
def test_every_family_reads_what_transformers_would_load(family: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Saved names differ from the model's, some are tied, and buffers that are not saved are computed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        family()[0].save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    config = AutoConfig.from_pretrained(tmp_path)
    model, streamed = streaming.open_streamed(config, str(tmp_path), None, dtype, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    with streamed.hold(names):
        found = model.state_dict()
        assert found.keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name
    assert all(parameter.is_meta for parameter in model.parameters())
    buffers = dict(model.named_buffers())
    assert buffers
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_the_command_line_streams_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(tiny_folder()), "--method", "xnor", "--samples", "4", "--device", "cpu"]
    for choice in ("yes", "no"):
        assert main([*command, "--stream", choice, "--out", str(tmp_path / choice)]) == 0
        assert ("streamed: the weights stay" in capsys.readouterr().err) == (choice == "yes")
    assert files(tmp_path / "yes") == files(tmp_path / "no")


def test_overlapping_holds_keep_a_block_until_the_last_ends() -> None:
    lvlm = streamed_tiny()
    linear = lvlm.linears[next(iter(lvlm.decoder_linears))]
    with ExitStack() as outer:
        outer.enter_context(lvlm.holding_block(0))
        linear.weight.zero_()
        with lvlm.holding_block(0):
            assert not linear.weight.any()
        assert not linear.weight.any()
    assert linear.weight.is_meta
    with lvlm.holding_block(0):
        assert linear.weight.any()


def test_a_model_is_streamed_where_its_weights_leave_too_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    size = streaming.weight_bytes(tiny().model)
    for room, expected in ((size / 0.59, False), (size / 0.61, True)):
        monkeypatch.setattr(models, "free_memory", lambda device, room=room: room)
        assert (models.load(tiny_folder(), device="cpu", streamed=None).streamed is not None) == expected


def test_what_a_streamed_model_cannot_do_is_refused(tmp_path: Path) -> None:
    lvlm = streamed_tiny()
    with pytest.raises(SabError, match="name a directory"):
        next(iter(sequential.quantize(lvlm, QUICK, samples=SAMPLES)))
    inputs = lvlm.prepare("What is here?")
    with pytest.raises(SabError, match="quantized but not asked"):
        lvlm.model(**lvlm.forward_arguments(inputs))
    with pytest.raises(SabError, match="load it whole"):
        lvlm.copy()


def test_checkpoints_that_do_not_hold_the_model_are_refused(tmp_path: Path) -> None:
    for source in tiny_folder().iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(SabError, match=r"1 weights are missing, among them .*up_proj"):
        models.load(tmp_path, streamed=True)
    save_file(weights | {name: weights[name][1:].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(SabError, match="do not belong together"):
        models.load(tmp_path, streamed=True)
    (tmp_path / "model.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(SabError, match="could not be read"):
        models.load(tmp_path, streamed=True)


CHILD = """
import json, sys, warnings
from pathlib import Path
from sab import models, sequential
from sab.recipes import Recipe
from tests.tiny import dialogues, tiny

warnings.simplefilter("ignore")
name = "model.language_model.layers.%d.self_attn.q_proj"
recipe = Recipe(model="tiny", method="xnor", linears=(name % 0, name % 1))
list(sequential.quantize(tiny(), recipe, Path(sys.argv[2]) / "first", samples=dialogues(2)))  # libraries are loaded
def memory(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(entry))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
recipe = Recipe(model="tiny", method="xnor", linears=tuple(name % block for block in range(16)))
lvlm = models.load(sys.argv[1], device="cpu", streamed=sys.argv[3] == "streamed")
reports = list(sequential.quantize(lvlm, recipe, Path(sys.argv[2]) / sys.argv[3], samples=dialogues(2)))
print(json.dumps([memory("VmHWM") - before, len(reports)]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory the way Linux tells it")
def test_memory_stays_near_one_block_where_the_model_has_many(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_folder())
    config.text_config.intermediate_size, config.text_config.num_hidden_layers = 16384, 16
    config.text_config.layer_types = ["full_attention"] * 16
    for source in tiny_folder().iterdir():
        if source.name != "model.safetensors":
            (tmp_path / source.name).write_bytes(source.read_bytes())
    model = Qwen2_5_VLForConditionalGeneration(config)
    size, block = streaming.weight_bytes(model), streaming.weight_bytes(model.model.language_model.layers[0])
    model.save_pretrained(tmp_path)
    used = {}
    for kind in ("streamed", "whole"):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / "runs"), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        used[kind], linears = json.loads(done.stdout.splitlines()[-1])
        assert linears == 16
    assert files(tmp_path / "runs" / "streamed") == files(tmp_path / "runs" / "whole")
    assert used["whole"] > size > 12 * block
    assert used["streamed"] < 4 * block, (used, block, size)
