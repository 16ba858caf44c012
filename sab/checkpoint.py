"""Write a finished run as a checkpoint folder, and account for the bytes of one.

packed   what `from_pretrained` reads after `import sab` (hf.py): stored tensors beside everything not binarized
dense    an ordinary checkpoint with dequantized weights, for tools that know nothing of us

Weights are written by `save_pretrained`, so names, shards and tied weights are as transformers has them. Tensors that
were not binarized are written in the type they have in the source checkpoint, also where the model was loaded in
float32: that loses nothing. A folder is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils.hub import cached_file

from sab.errors import SabError
from sab.files import json_in, write_bytes, write_json
from sab.forms import FORMS
from sab.hf import METHOD, SabConfig, stored_sizes
from sab.layout import complete
from sab.model_card import model_card
from sab.models import LVLM
from sab.packed import Stored
from sab.packing import count_stored, pack
from sab.runs import Run

SHARD = "5GB"
PACKED_TYPES = ("U8", "I8", "I16")  # of stored tensors; no model has parameters of them
LARGEST_CONFIG = 64_000_000  # bytes of a configuration that is read; one of a 72B model has less than a million
BESIDE = ("video_preprocessor_config.json", "preprocessor_config.json")  # parts a processor without torchvision lacks


def export(
    lvlm: LVLM,
    run: Run,
    folder: str | Path,
    form: str = "packed",
    max_shard_size: str = SHARD,
) -> dict[str, Any]:
    """Write a checkpoint of a finished run and the model it was made from; the model is left as it was.

    `lvlm` may hold full-precision or already dequantized weights: those of the run's linears are not read. Returns
    form, folder, number of linears, and bytes of the weight files. SabError for an unfinished run, another model,
    a folder that holds something else, and a full disk.
    """
    folder = Path(folder)
    if form not in FORMS:
        raise SabError(f"The form {form!r} is not known; choose {' or '.join(FORMS)}.")
    run.require_finished()
    run.check_model(lvlm)
    _check_target(folder, run)
    missing = [name for name in run.reports if name not in lvlm.linears]
    if missing:
        raise SabError(f"{missing[0]} of {lvlm.source} is not dense any more; load the model again.")
    dtype = _stored_dtype(lvlm)
    with _in_place_of(folder) as making:
        if form == "packed":
            packed = _packed(run)
            state = {
                f"{name}.{part}": values for name, (tensors, _) in packed.items() for part, values in tensors.items()
            }
            with _described(lvlm.model, packed, run.recipe.method):
                _save(lvlm, state, making, dtype, max_shard_size)
        else:
            state = {f"{name}.weight": run.codes(name).dense().to(dtype) for name in run.reports}
            _save(lvlm, state, making, dtype, max_shard_size)
        lvlm.processor.save_pretrained(making)
        _copy_beside(lvlm.source, making)
        size = sum(path.stat().st_size for path in making.glob("*.safetensors"))
        card = model_card(run, form, folder.name, str(dtype).removeprefix("torch."), size)
        write_bytes(making / "README.md", card.encode())
        write_json(making / "recipe.json", _without_paths(run.header))
    return {"form": form, "checkpoint": str(folder), "linears": len(run.reports), "weight_bytes": size}


def folder_in(run: Run, form: str) -> Path:
    """Where a run keeps its own export of a form."""
    return run.directory / FORMS[form]


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a packed checkpoint, sound or not."""
    values = _config(Path(folder))
    quantization = values.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


def account(folder: str | Path) -> dict[str, Any]:
    """Every stored byte of a packed checkpoint: stored tensors by what they hold, other tensors by type, headers, and
    the remaining files, adding up to `total_bytes`. Only headers are read. SabError for what does not fit together."""
    folder = Path(folder)
    values = _config(folder).get("quantization_config")
    if not isinstance(values, dict) or values.get("quant_method") != METHOD:
        raise SabError(f"{folder} is no packed checkpoint; name a run or a folder that export has written.")
    config = SabConfig(**{key: value for key, value in values.items() if key != "quant_method"})
    counts = [count_stored(config.metadata(name)) for name in config.linears]
    breakdown: dict[str, float] = {}
    for counted in counts:
        for part, bits in counted.breakdown.items():
            breakdown[part] = breakdown.get(part, 0) + bits / 8
    others: dict[str, int] = {}
    packed = 0
    weight_files = sorted(folder.glob("*.safetensors"))
    for _, kind, _, size in stored_sizes([str(path) for path in weight_files]):
        if kind in PACKED_TYPES:
            packed += size
        else:
            others[kind] = others.get(kind, 0) + size
    expected = sum(counted.bytes for counted in counts)
    if packed != expected:
        raise SabError(
            f"The weight files of {folder} hold {packed:,} bytes of packed linears and its configuration describes "
            f"{expected:,}; get or export it again."
        )
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    in_weight_files = sum(files[path.name] for path in weight_files)
    weights = sum(report["shape"][0] * report["shape"][1] for report in map(config.metadata, config.linears))
    return {
        "checkpoint": str(folder),
        "method": config.method,
        "linears": len(config.linears),
        "bits_all_in": 8 * packed / weights,
        "codes": breakdown,
        "code_bytes": packed,
        "full_precision": others,
        "full_precision_bytes": sum(others.values()),
        "header_bytes": in_weight_files - packed - sum(others.values()),
        "other_bytes": sum(files.values()) - in_weight_files,
        "total_bytes": sum(files.values()),
        "files": files,
    }


def _save(lvlm: LVLM, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """`save_pretrained` of the model's own tensors, but for the weights of the linears in `state`, and of `state`."""
    written = dict(state)
    packed = {name.rpartition(".")[0] for name in state}
    for name, values in lvlm.stored_tensors(packed):
        written[name] = values.to("cpu", dtype if values.is_floating_point() else values.dtype)
    lvlm.model.save_pretrained(folder, state_dict=written, max_shard_size=max_shard_size)
    _set_dtype(folder / "config.json", dtype)


def _packed(run: Run) -> dict[str, Stored]:
    """What is stored of a run's linears, with complete metadata."""
    found = {}
    for name in run.reports:
        tensors, metadata = pack(run.codes(name))
        found[name] = tensors, complete(tensors, metadata)
    return found


@contextmanager
def _described(model: Any, packed: Mapping[str, Stored], method: str) -> Iterator[None]:
    """A model whose configuration says what is packed, while the context is open."""
    model.config.quantization_config = SabConfig.describe(packed, method=method)
    try:
        yield
    finally:
        del model.config.quantization_config


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A new directory that takes the place of `folder` when the block ends without an error, and is gone otherwise."""
    making = folder.with_name(f".exporting-{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".exporting-*"):  # of an export that was killed
            shutil.rmtree(left, ignore_errors=True)
        making.mkdir()
        yield making
        if folder.exists():
            shutil.rmtree(folder)
        making.replace(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SabError(f"{folder} could not be written ({reason}); make room and try again.") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _check_target(folder: Path, run: Run) -> None:
    """SabError where a folder holds anything but an earlier export of this very run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        found = json_in(folder / "recipe.json")
    except (OSError, ValueError):
        found = None
    if found != _without_paths(run.header) or not (folder / "config.json").exists():
        raise SabError(f"{folder} is not empty and holds no export of this run; name another folder.")


def _without_paths(value: Any) -> Any:
    """A run's header to publish: what is a whole path is known by its last name, not by where it lay."""
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _stored_dtype(lvlm: LVLM) -> torch.dtype:
    """What the source checkpoint is stored in, where the model was loaded in float32; else what it was loaded in."""
    if lvlm.dtype != torch.float32:
        return lvlm.dtype
    try:
        config = transformers.AutoConfig.from_pretrained(lvlm.source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return lvlm.dtype  # a model made in memory
    return config.dtype if config.dtype in (torch.bfloat16, torch.float16) else lvlm.dtype


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    """Say in a configuration what its tensors are stored in, in place of what the model was loaded in."""

    def renamed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = str(dtype).removeprefix("torch.")
        return {key: name if key == "dtype" and entry else renamed(entry) for key, entry in value.items()}

    write_json(path, renamed(json_in(path)))


def _copy_beside(source: str, folder: Path) -> None:
    """Copy files of a processor that were not loaded here, as its video part without torchvision."""
    for name in BESIDE:
        try:
            found = cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):
            continue
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def _config(folder: Path) -> dict[str, Any]:
    """A folder's configuration; empty where there is none that can be read."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            return {}
        values = json_in(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
