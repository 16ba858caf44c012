"""Packed checkpoints that are damaged or lie: one sentence each, before anything large is allocated."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sab import models
from sab.checkpoint import account, export
from sab.errors import SabError
from sab.hf import SabConfig, checksum
from sab.recipes import Recipe
from sab.runs import Run
from sab.sequential import quantize
from tests.tiny import dialogues, tiny, tiny_folder

UP = "model.language_model.layers.1.mlp.up_proj"  # the one linear that is packed
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf")
    recipe = Recipe(method="sab", iterations=1, linears=(UP,))
    for _ in quantize(tiny(), recipe, directory / "run", samples=dialogues(2)):
        pass
    export(tiny(), Run.open(directory / "run"), directory / "packed")
    return directory / "packed"


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(packed, tmp_path / "damaged")


def configured(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def described(folder: Path, **changes: Any) -> None:
    """Change what the configuration says of the packed linear."""
    configured(folder, lambda config: config["quantization_config"]["linears"][UP].update(changes))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / FILE)), folder / FILE, {"format": "pt"})


def key(folder: Path, part: str) -> str:
    """The name that a stored tensor of the packed linear has in the file."""
    return next(name for name in load_file(folder / FILE) if name.endswith(f"layers.1.mlp.up_proj.{part}"))


def refused(folder: Path, match: str) -> None:
    """Both ways in refuse it, in one sentence, without taking a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SabError, match=match) as one:
        AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(SabError, match=match) as two:
        models.load(folder, device="cpu")
    for refusal in (one, two):
        assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes


def test_the_sound_one_is_read(packed: Path) -> None:
    assert models.load(packed, device="cpu").blocks[1].mlp.up_proj.in_features == 128


@pytest.mark.parametrize("length", [0, 4, 100, 0.5, 0.999])
def test_a_file_that_is_cut_short(folder: Path, length: float) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: length if isinstance(length, int) else int(length * len(data))])
    refused(folder, "damaged or incomplete")


def test_a_header_that_is_no_header(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    for broken in (b"\xff" * 8 + data[8:], data[:8] + b"{" * 40 + data[48:]):
        (folder / FILE).write_bytes(broken)
        refused(folder, "damaged or incomplete")


@pytest.mark.parametrize("part", ["codes", "row_scale", "salient", "second_column_scale"])
def test_a_flipped_bit(folder: Path, part: str) -> None:
    name = key(folder, part)

    def flip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[1] ^= 4
        return tensors

    rewritten(folder, flip)
    refused(folder, f"{UP} .*checksum")


@pytest.mark.parametrize("part", ["codes", "row_scale"])
def test_a_missing_tensor(folder: Path, part: str) -> None:
    name = key(folder, part)
    rewritten(folder, lambda tensors: {k: v for k, v in tensors.items() if k != name})
    refused(folder, "values and its configuration asks for")


def test_a_missing_tensor_whose_place_another_takes(folder: Path) -> None:
    """As many values as are asked for, but under another name: what is missing is noise, and noticed."""
    name = key(folder, "codes")
    rewritten(folder, lambda tensors: {("other.codes" if k == name else k): v for k, v in tensors.items()})
    refused(folder, f"{UP}")


@pytest.mark.parametrize("kind", [torch.int32, torch.uint16])
def test_a_tensor_of_another_type(folder: Path, kind: torch.dtype) -> None:
    name = key(folder, "row_scale")
    rewritten(folder, lambda tensors: tensors | {name: tensors[name].to(kind)})
    refused(folder, UP)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    name = key(folder, "second")
    rewritten(folder, lambda tensors: tensors | {name: tensors[name].repeat(1, 2)})
    refused(folder, f"{UP}: .*second is")


@pytest.mark.parametrize("shape", [[256, 256], [128, 256], [10**9, 10**9], [256], [256, "128"], [256, -128], None])
def test_a_shape_that_is_not_the_model_s(folder: Path, shape: Any) -> None:
    described(folder, shape=shape)
    refused(folder, UP)


@pytest.mark.parametrize(
    "changes",
    [
        {"salient": 10**15},
        {"salient": -1},
        {"salient": 1.5},
        {"slots": 77},
        {"slots": [3]},
        {"optional": ["row_step", "nonsense"]},
        {"optional": 5},
        {"planes": 9},
        {"block_size": 10**12},
        {"block_size": 0},
        {"layout": "ternary"},
        {"method": 5},
        {"kept_bits": 8, "kept": 10**15},
    ],
)
def test_metadata_of_no_linear(folder: Path, changes: dict[str, Any]) -> None:
    described(folder, **changes)
    refused(folder, UP)


@pytest.mark.parametrize("number", [0, 2, "1", None, 1.5])
def test_another_format(folder: Path, number: Any) -> None:
    configured(folder, lambda config: config["quantization_config"].update(format_version=number))
    refused(folder, "packed format")
    described(folder, format_version=7)
    configured(folder, lambda config: config["quantization_config"].update(format_version=1))
    refused(folder, "packed format 7")


@pytest.mark.parametrize("linears", [None, {}, [], "all", {UP: None}, {UP: 3}])
def test_missing_metadata(folder: Path, linears: Any) -> None:
    configured(folder, lambda config: config["quantization_config"].update(linears=linears))
    refused(folder, "describes no packed linears")


@pytest.mark.parametrize("entry", ["shape", "salient", "crc32"])
def test_missing_entries(folder: Path, entry: str) -> None:
    configured(folder, lambda config: config["quantization_config"]["linears"][UP].pop(entry))
    refused(folder, UP)


def test_a_linear_that_is_not_there(folder: Path) -> None:
    linears = {"model.language_model.layers.7.mlp.up_proj": {"shape": [256, 128], "salient": 0, "crc32": 0}}
    configured(folder, lambda config: config["quantization_config"].update(linears=linears))
    refused(folder, "is no linear of this model")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**10},
        {"intermediate_size": 10**7},
        {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
        {"hidden_size": 2**20},
    ],
)
def test_sizes_of_a_model_that_is_not_in_the_files(folder: Path, changes: dict[str, Any]) -> None:
    """Nothing is allocated for it: the configuration asks for up to terabytes."""
    configured(folder, lambda config: config["text_config"].update(changes))
    refused(folder, "asks for|the model wants")


def test_more_layers_than_any_model_has(folder: Path) -> None:
    configured(folder, lambda config: config["text_config"].update(num_hidden_layers=10**12))
    with pytest.raises(SabError, match="num_hidden_layers"):
        models.load(folder, device="cpu")


def test_nothing_is_unpickled_or_run(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "sprung",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    (folder / "modeling.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')")
    configured(folder, lambda config: config.update(auto_map={"AutoModelForImageTextToText": "modeling.Model"}))
    models.load(folder, device="cpu")
    (folder / FILE).unlink()
    with pytest.raises(SabError):
        models.load(folder, device="cpu")
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("part", ["bytes", "configuration"])
def test_inspect_notices_too(folder: Path, part: str) -> None:
    if part == "bytes":
        name = key(folder, "codes")
        rewritten(folder, lambda tensors: tensors | {name: tensors[name][:-1]})
    else:
        described(folder, salient=90)
    with pytest.raises(SabError, match="bytes of packed linears"):
        account(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SabError, match="no packed checkpoint"):
        account(folder)


def test_full_precision_is_not_binarized_on_the_way_in(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    given = SabConfig(**{name: value for name, value in config.items() if name != "quant_method"})
    with pytest.raises(ValueError, match="requir"):
        AutoModelForImageTextToText.from_pretrained(tiny_folder(), quantization_config=given)


def test_a_checksum_is_of_every_byte() -> None:
    tensors = {"codes": torch.arange(6, dtype=torch.uint8), "scale": torch.arange(4, dtype=torch.int16)}
    value = checksum(tensors)
    assert value == checksum(dict(reversed(tensors.items())))
    for name in tensors:
        for place in range(len(tensors[name])):
            other = {part: values.clone() for part, values in tensors.items()}
            other[name][place] += 1
            assert checksum(other) != value
