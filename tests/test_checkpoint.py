"""A run as a checkpoint folder: what transformers loads of it, what it weighs, what is left of the model it is of."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sab import checkpoint, cli, models
from sab.checkpoint import account, export, is_checkpoint
from sab.errors import SabError
from sab.evaluate import greedy
from sab.kernels import cpu
from sab.models import LVLM
from sab.packed import kernels_of, packed_linears
from sab.packing import pack
from sab.recipes import Recipe
from sab.runs import Run
from sab.sequential import quantize
from tests.tiny import dialogues, picture, tiny, tiny_folder


def binarized(directory: Path, **changes: Any) -> Run:
    lvlm = models.load(tiny_folder(), device="cpu")
    recipe = Recipe(model=str(tiny_folder()), **({"method": "sab", "iterations": 1} | changes))
    for _ in quantize(lvlm, recipe, directory, samples=dialogues(2)):
        pass
    return Run.open(directory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return binarized(tmp_path_factory.mktemp("checkpoint") / "run")


@pytest.fixture(scope="module")
def packed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "packed"
    export(models.load(tiny_folder(), device="cpu"), run, folder)
    return folder


def weights_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def answers(lvlm: LVLM) -> list[list[int]]:
    asked = [("What is here?", picture(1)), ("Is it red?", picture(2)), ("Say something.", None)]
    return [greedy(lvlm, lvlm.prepare(prompt, seen), 12)[0] for prompt, seen in asked]


def dequantized(run: Run) -> LVLM:
    lvlm = tiny()
    run.apply(lvlm)
    return lvlm


@pytest.mark.parametrize("order", ["import sab; import transformers", "import transformers; import sab"])
def test_importing_sab_is_all_that_transformers_needs(packed: Path, order: str) -> None:
    """In a process of its own, in either order; sab alone imports neither transformers nor torch."""
    lines = (
        order,
        "from transformers import AutoModelForImageTextToText",
        f"model = AutoModelForImageTextToText.from_pretrained({str(packed)!r}, dtype='auto')",
        "print(type(model.get_decoder().layers[0].mlp.up_proj).__name__)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PackedLinear"]
    light = "import sab, sys; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("kernel", ["reference", ""])
def test_a_packed_checkpoint_answers_as_the_dequantized_run(
    run: Run, packed: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.CHOICE, kernel)
    lvlm = models.load(packed, device="cpu")
    assert set(packed_linears(lvlm.model)) == set(run.names)
    assert not set(run.names) & set(lvlm.linears)
    assert ("reference" in kernels_of(lvlm.model)) == (kernel == "reference" or cpu.load() is None)
    assert answers(lvlm) == answers(dequantized(run))


@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, "auto"])
def test_saving_again_gives_the_same_bytes(packed: Path, tmp_path: Path, device_map: Any) -> None:
    """In shards too, whatever order the kernel keeps the bits in meanwhile."""
    model = AutoModelForImageTextToText.from_pretrained(packed, dtype="auto", device_map=device_map)
    model.save_pretrained(tmp_path / "again", max_shard_size="200KB" if device_map is None else "5GB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) == (1 if device_map is not None else 6)
    before, after = weights_in(packed), weights_in(tmp_path / "again")
    assert set(before) == set(after)
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        assert torch.equal(values, after[name])
    names = ("config.json", "generation_config.json")
    for first, second in ([packed / name, tmp_path / "again" / name] for name in names):
        assert json.loads(first.read_text()) == json.loads(second.read_text())
    AutoModelForImageTextToText.from_pretrained(tmp_path / "again")


@pytest.mark.parametrize("change", ["to", "copy", "argument"])
def test_casts_and_copies_change_only_what_is_not_packed(run: Run, packed: Path, change: str) -> None:
    kinds = {"to": torch.bfloat16, "copy": torch.float32, "argument": torch.float16}
    if change == "argument":
        model = AutoModelForImageTextToText.from_pretrained(packed, dtype=torch.float16)
    else:
        model = AutoModelForImageTextToText.from_pretrained(packed, dtype="auto")
        model = model.to(torch.bfloat16) if change == "to" else copy.deepcopy(model)
    state = model.state_dict()
    for name in run.names:
        for part, values in pack(run.codes(name))[0].items():
            assert torch.equal(state[f"{name}.{part}"], values)
    assert {values.dtype for values in state.values() if values.is_floating_point()} == {kinds[change]}
    lvlm = models.wrap(model, tiny().processor, "cast")
    same = dequantized(run)
    one, two = (side.model(**side.forward_arguments(side.prepare("Hm?", picture(1)))).logits for side in (lvlm, same))
    assert (one.float() - two).norm() / two.norm() < (1e-5 if change == "copy" else 0.1)


def test_dequantizing_gives_an_ordinary_model(run: Run, packed: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(packed, dtype="auto").dequantize()
    assert not packed_linears(model)
    for name in run.names:
        assert torch.equal(model.get_submodule(name).weight, run.codes(name).dense())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_dense_export_is_an_ordinary_checkpoint(run: Run, tmp_path: Path) -> None:
    export(tiny(), run, tmp_path / "dense", "dense")
    assert not is_checkpoint(tmp_path / "dense")
    dense, original = models.load(tmp_path / "dense", device="cpu"), tiny()
    kept = set(original.linears) - set(run.names)
    assert kept
    for name in run.names:
        assert torch.equal(dense.linears[name].weight, run.codes(name).dense())
    for name in kept:
        assert torch.equal(dense.linears[name].weight, original.linears[name].weight)
    assert answers(dense) == answers(dequantized(run))
    card = (tmp_path / "dense" / "README.md").read_text()
    assert "Simulated" in card
    assert "import sab" not in card


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_exporting_leaves_the_model_as_it_was(run: Run, tmp_path: Path, form: str) -> None:
    lvlm = tiny()
    before = {name: values.clone() for name, values in lvlm.model.state_dict().items()}
    export(lvlm, run, tmp_path / "out", form)
    after = lvlm.model.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert getattr(lvlm.model.config, "quantization_config", None) is None
    assert lvlm.linears["model.language_model.layers.0.mlp.up_proj"] is lvlm.blocks[0].mlp.up_proj


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_what_is_not_binarized_is_stored_as_in_the_source(run: Run, tmp_path: Path, form: str) -> None:
    """Loaded in float32 from a bfloat16 checkpoint, written in bfloat16 again, to the last bit."""
    halved = tiny()
    halved.model.to(torch.bfloat16).save_pretrained(tmp_path / "source")
    halved.processor.save_pretrained(tmp_path / "source")
    source = tmp_path / "source"
    lvlm = models.load(source, device="cpu", dtype="float32")
    recipe = Recipe(model=str(source), method="xnor", iterations=1)
    for _ in quantize(lvlm, recipe, tmp_path / "run", samples=dialogues(2)):
        pass
    made = Run.open(tmp_path / "run")
    export(lvlm, made, tmp_path / "out", form)
    kinds = {values.dtype for values in weights_in(tmp_path / "out").values()}
    assert {kind for kind in kinds if kind.is_floating_point} == {torch.bfloat16}
    assert not any("lm_head" in name for name in weights_in(tmp_path / "out"))  # tied: stored once
    first, second = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype="auto") for folder in (source, tmp_path / "out")
    )
    assert second.dtype == torch.bfloat16
    before, after = first.state_dict(), second.state_dict()
    same = [name for name in before if name.removesuffix(".weight") not in made.names]
    assert len(same) == len(before) - len(made.names)
    assert all(torch.equal(before[name], after[name]) for name in same)
    if form == "dense":
        assert all(torch.equal(after[f"{n}.weight"], made.codes(n).dense().bfloat16()) for n in made.names)


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_a_streamed_model_gives_the_same_checkpoint(run: Run, tmp_path: Path, form: str) -> None:
    export(tiny(), run, tmp_path / "whole", form)
    export(models.load(tiny_folder(), device="cpu", streamed=True), run, tmp_path / "streamed", form)
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    assert {path.name for path in whole.iterdir()} == {path.name for path in streamed.iterdir()}
    before, after = weights_in(whole), weights_in(streamed)
    assert set(before) == set(after)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    for name in ("config.json", "generation_config.json", "recipe.json"):
        assert json.loads((whole / name).read_text()) == json.loads((streamed / name).read_text())


@pytest.mark.parametrize("method", ["xnor", "pb-llm", "gptq3", "sab-h"])
def test_every_format_makes_the_round_trip(method: str, tmp_path: Path) -> None:
    made = binarized(tmp_path / "run", method=method, linears=("model.language_model.layers.1.mlp.up_proj",))
    export(tiny(), made, tmp_path / "out")
    lvlm = models.load(tmp_path / "out", device="cpu")
    assert answers(lvlm) == answers(dequantized(made))
    lvlm.model.save_pretrained(tmp_path / "again")
    before, after = weights_in(tmp_path / "out"), weights_in(tmp_path / "again")
    assert set(before) == set(after)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert account(tmp_path / "out")["code_bytes"] == made.bytes


def test_every_byte_is_accounted_for(run: Run, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(packed)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    on_disk = {path.name: path.stat().st_size for path in packed.iterdir()}
    assert found["files"] == on_disk
    assert found["code_bytes"] == sum(found["codes"].values()) == run.bytes
    assert found["bits_all_in"] == pytest.approx(run.bits_all_in)
    kept = sum(values.nbytes for values in weights_in(packed).values() if values.is_floating_point())
    assert found["full_precision"] == {"F32": kept}
    parts = ("code_bytes", "full_precision_bytes", "header_bytes", "other_bytes")
    assert sum(found[part] for part in parts) == found["total_bytes"] == sum(on_disk.values())
    header = int.from_bytes((packed / "model.safetensors").read_bytes()[:8], "little") + 8
    assert found["header_bytes"] == header
    assert "signs" in err


def test_the_card_says_what_the_run_says(run: Run, packed: Path) -> None:
    card = (packed / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: transformers" in front
    assert "base_model" not in front  # a folder, not on the hub
    assert "import sab" in card
    assert f"{run.bits_all_in:.2f} (every stored bit" in card
    assert f"| {run.bytes:,} (16-bit" in card
    assert str(tiny_folder()) not in card + (packed / "recipe.json").read_text()
    recipe = json.loads((packed / "recipe.json").read_text())
    assert Recipe.from_json(recipe["recipe"]).method == "sab"
    assert recipe["fingerprint"] == run.fingerprint


def test_a_hub_model_is_named_as_the_base(run: Run) -> None:
    made = Run.open(run.directory)
    made.recipe = replace(made.recipe, model="Qwen/Some-VL")
    card = checkpoint.model_card(made, "packed", "x", "bfloat16", 1)
    assert "base_model: Qwen/Some-VL\nbase_model_relation: quantized" in card.split("---")[1]


def test_the_processor_comes_along(packed: Path) -> None:
    lvlm, original = models.load(packed, device="cpu"), tiny()
    one, two = lvlm.prepare("What?", picture(3)), original.prepare("What?", picture(3))
    assert set(one) == set(two)
    assert all(torch.equal(values, two[name]) for name, values in one.items())


def test_parts_of_a_processor_that_were_not_loaded_are_copied(run: Run, tmp_path: Path) -> None:
    lvlm = tiny()
    source = Path(lvlm.source)
    beside = source / "video_preprocessor_config.json"
    beside.write_text('{"fps": 2}')
    try:
        export(lvlm, run, tmp_path / "out")
    finally:
        beside.unlink()
    assert (tmp_path / "out" / beside.name).read_text() == '{"fps": 2}'


def test_wrong_exports_are_one_sentence(run: Run, tmp_path: Path) -> None:
    lvlm = tiny()
    with pytest.raises(SabError, match="form"):
        export(lvlm, run, tmp_path / "x", "sparse")
    other = tiny()
    other.fingerprint = "another"
    with pytest.raises(SabError, match="other weights"):
        export(other, run, tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    with pytest.raises(SabError, match="not empty"):
        export(lvlm, run, tmp_path / "full")
    assert (tmp_path / "full" / "diary.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SabError, match="not empty"):
        export(lvlm, run, tmp_path / "file")
    assert not list(tmp_path.glob(".exporting-*"))


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    stop = threading.Event()
    for _ in quantize(tiny(), Recipe(method="xnor"), tmp_path / "run", stop, samples=dialogues(2)):
        stop.set()
    with pytest.raises(SabError, match="unfinished"):
        export(tiny(), Run.open(tmp_path / "run"), tmp_path / "x")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_finished_run_that_has_lost_reports_is_not_exported(tmp_path: Path, kept: int) -> None:
    two = tuple(f"model.language_model.layers.{block}.mlp.up_proj" for block in range(2))
    made = binarized(tmp_path / "run", method="xnor", linears=two)
    for name in two[kept:]:
        (made.directory / "reports" / f"{name}.json").unlink()
    with pytest.raises(SabError, match=f"has reports of only {kept} of its 2 linears"):
        export(tiny(), Run.open(made.directory), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_failing_export_leaves_nothing_and_a_second_one_replaces_the_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    export(tiny(), run, folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with monkeypatch.context() as patch:

        lvlm = tiny()
        for kind in (OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")):

            def full(*arguments: Any, kind: Exception = kind, **named: Any) -> None:
                raise kind

            patch.setattr(type(lvlm.model), "save_pretrained", full)
            with pytest.raises(SabError, match="No space left"):
                export(lvlm, run, folder)
    assert (folder / "model.safetensors").read_bytes() == b"damaged"  # the earlier one is still in its place
    export(tiny(), run, folder)
    assert account(folder)["code_bytes"] == run.bytes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_inside_a_run_is_no_part_of_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = binarized(tmp_path / "run", method="xnor")
    export(tiny(), made, checkpoint.folder_in(made, "packed"))
    made.record_accuracy({"overall": 1.0})
    assert not any(name.startswith("checkpoint") for name in made.verify())
    assert cli.main(["inspect", str(made.directory)]) == 0
    found = json.loads(capsys.readouterr().out)
    on_disk = {path: path.stat().st_size for path in made.directory.rglob("*") if path.is_file()}
    assert found["total_bytes"] == sum(on_disk.values())
    assert found["export_bytes"] == account(made.directory / "checkpoint")["total_bytes"]


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_commands_take_a_checkpoint_as_a_model(
    packed: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("--prompt", "What?", "--max-new-tokens", 5)
    said = command(capsys, "chat", packed, *ask)
    assert sum(said["kernels"].values()) == len(run.names)
    assert command(capsys, "chat", run.directory, "--packed", *ask)["answer"] == said["answer"]
    dense = command(capsys, "chat", run.directory, *ask)
    assert dense["answer"] == said["answer"]
    assert "kernels" not in dense
    measured = command(capsys, "eval", packed, "--limit", 5)
    assert measured["counts"]["overall"] == 5
    assert sum(measured["kernels"].values()) == len(run.names)
    written = command(capsys, "export", run.directory, "--out", tmp_path / "again")
    assert weights_in(tmp_path / "again").keys() == weights_in(packed).keys()
    assert written["linears"] == len(run.names)


@pytest.mark.parametrize(("form", "folder"), [("packed", "checkpoint"), ("dense", "dense"), ("none", None)])
def test_quantize_writes_the_checkpoint_that_is_asked_for(
    form: str, folder: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--method", "xnor", "--samples", 2, "--out", tmp_path / "run", "--export", form)
    result = command(capsys, "quantize", tiny_folder(), *quick)
    there = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} - {"codes", "reports"}
    assert there == ({folder} if folder else set())
    assert result.get("checkpoint") == (str(tmp_path / "run" / folder) if folder else None)
    if folder:
        assert bool(packed_linears(models.load(tmp_path / "run" / folder, device="cpu").model)) == (form == "packed")


@pytest.mark.parametrize("command_line", [["quantize", "--out", "x"], ["controls"], ["compare", "--methods", "xnor"]])
def test_a_packed_checkpoint_is_not_binarized_again(
    packed: Path, command_line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([command_line[0], str(packed), *command_line[1:], "--samples", "2"]) == 2
    assert "packed already" in capsys.readouterr().err


def test_no_float_of_a_packed_linear_exists_while_loading(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that is made real while a checkpoint is read is smaller than a packed weight, or of a module that
    is not packed."""
    from transformers import core_model_loading

    made: list[tuple[str, torch.dtype]] = []
    original = core_model_loading.set_param_for_module

    def watched(model: Any, name: str, value: Tensor, *rest: Any) -> None:
        made.append((name, value.dtype))
        original(model, name, value, *rest)

    monkeypatch.setattr(core_model_loading, "set_param_for_module", watched)
    lvlm = models.load(packed, device="cpu")
    linears = tuple(f"{name}." for name in packed_linears(lvlm.model))
    seen = [(name, dtype) for name, dtype in made if name.startswith(linears)]
    assert seen
    assert {dtype for name, dtype in seen if not name.endswith(".bias")} <= {torch.uint8, torch.int16}
    assert not any(name.endswith(".weight") for name, _ in seen)
