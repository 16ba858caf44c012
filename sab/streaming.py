"""Weights that stay in their safetensors files until a block is needed, and leave the device after it.

A streamed model is built on the meta device: parameters have shapes and no memory, buffers (rotary tables and the
like) are real. `Streamed.hold(names)` reads parameters onto the device for as long as its context is open, so a model
needs no more memory than what is held: one decoder block, or the vision tower and the embeddings. Names of saved
tensors differ from those of the model's parameters by family; transformers' own renaming rules say how.

Cost: every block is read from its file once for the maps and once for the fits. A file is opened for each reading and
closed after it, so that its pages do not stay in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from sab.errors import SabError
from sab.memory import give_back
from sab.processors import read_from

MOST_TIMES, SMALL = 8, 1 << 30  # by how much memory may exceed files: float32 of 8 bits, what is tied, and buffers
ROOM = 0.6  # share of the free memory that weights may take; Hessians and activations need the rest


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `file` and its `key` there."""

    file: Path
    key: str


class Streamed:
    """The parameters of a `model` on the meta device, and where each is `stored`; they are held on `device`.

    `replaced` maps names of parameters to functions that give other values (float [n, m]) than the file's.
    """

    def __init__(self, model: nn.Module, stored: Mapping[str, Stored], device: torch.device) -> None:
        self.device = device
        self.replaced: dict[str, Callable[[], Tensor]] = {}
        self._held: Counter[str] = Counter()
        self._owners: dict[str, list[tuple[nn.Module, str]]] = {}  # by canonical name; tied parameters have several
        self._canonical: dict[str, str] = {}
        self._stored: dict[str, Stored] = {}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            canonical = first.setdefault(id(parameter), name)
            owner, _, leaf = name.rpartition(".")
            self._canonical[name] = canonical
            self._owners.setdefault(canonical, []).append((model.get_submodule(owner), leaf))
            if name in stored:
                self._stored.setdefault(canonical, stored[name])
        missing = sorted(set(self._owners) - set(self._stored))
        if missing:
            raise SabError(
                f"The checkpoint is incomplete: {len(missing)} weights are missing, among them {missing[0]}; "
                "download it again."
            )

    @contextmanager
    def hold(self, names: Sequence[str]) -> Iterator[None]:
        """Have the named parameters on the device while the context is open; contexts may overlap. What was written
        to a parameter is forgotten with the last of them. SabError for files that cannot be read."""
        wanted = list(dict.fromkeys(self._canonical[name] for name in names))
        for name, value in self._read([name for name in wanted if not self._held[name]]):
            self._put(name, value)
        self._held.update(wanted)
        try:
            yield
        finally:
            self._held.subtract(wanted)
            for name in wanted:
                if not self._held[name]:
                    self._put(name, torch.empty_like(self._parameter(name), device="meta"))
            give_back()

    def tensors(self, skip: Iterable[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Every parameter but those to `skip`, by name, one at a time and read as it is stored; tied ones once."""
        left_out = {self._canonical[name] for name in skip}
        for name in self._owners:
            if name not in left_out:
                yield from self._read([name])

    def _parameter(self, name: str) -> Tensor:
        module, leaf = self._owners[name][0]
        found: Tensor = getattr(module, leaf)
        return found

    def _put(self, name: str, value: Tensor) -> None:
        parameter = nn.Parameter(value, requires_grad=False)
        for module, leaf in self._owners[name]:
            setattr(module, leaf, parameter)

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters on the device and in the model's dtype, file by file."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name in self.replaced:
                yield name, self.replaced[name]().to(self.device, self._parameter(name).dtype)
            else:
                by_file.setdefault(self._stored[name].file, []).append(name)
        for file, inside in by_file.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in inside:
                        expected = self._parameter(name)
                        value = opened.get_tensor(self._stored[name].key)
                        if value.shape != expected.shape:
                            raise SabError(
                                f"{file} holds {name} as {tuple(value.shape)} instead of {tuple(expected.shape)}; "
                                "its weights and its configuration do not belong together."
                            )
                        yield name, value.to(self.device, expected.dtype, copy=True)
            except (OSError, SafetensorError) as error:
                raise SabError(f"{file} could not be read ({error}); download the model again.") from error


def open_streamed(
    config: Any, source: str, revision: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Streamed]:
    """The model of `config` without its weights, and where they are. SabError for a checkpoint that is incomplete or
    whose tensors have to be computed from others (fused experts)."""
    model = on_meta(config, dtype)
    stored = _where(model, _files(source, revision))
    streamed = Streamed(model, stored, device)
    _make_buffers(model, stored, device)
    with suppress(OSError):  # without one, what was made from the configuration stays
        model.generation_config = transformers.GenerationConfig.from_pretrained(source, revision=revision or "main")
    model.get_input_embeddings().register_forward_pre_hook(_refuse_to_run)
    return model.eval().requires_grad_(False), streamed


def on_meta(config: Any, dtype: torch.dtype) -> Any:
    """The model of a configuration on the meta device: shapes, and no memory. SabError, in one sentence, for one that
    transformers cannot build."""

    def build() -> Any:
        with torch.device("meta"):
            made = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
            )
        made.tie_weights()
        return made

    return read_from(str(config.name_or_path or config.model_type), build)


def check_sizes(model: nn.Module, source: str, revision: str | None) -> None:
    """SabError for a model (`on_meta`) that would take far more memory than its weights have in their files: then its
    configuration is another's, or made to fill the memory."""
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    wanted, held = weight_bytes(model) + buffers, sum(file.stat().st_size for file in _files(source, revision))
    if wanted > MOST_TIMES * held + SMALL:
        raise SabError(
            f"The configuration of {source} asks for {wanted / 1e9:,.0f} GB where its files hold {held / 1e9:,.2f}; "
            "get the checkpoint again."
        )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters of a model, which may be on the meta device; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _refuse_to_run(embeddings: nn.Module, positional: tuple[Any, ...]) -> None:
    if any(parameter.is_meta for parameter in embeddings.parameters()):
        raise SabError(
            "This model is streamed: its weights are not in memory, so it can be quantized but not asked; "
            "load it without streaming, or load the packed checkpoint of its run."
        )


def _files(source: str, revision: str | None) -> list[Path]:
    """The safetensors files of a folder or hub id, downloaded where needed."""
    options: dict[str, Any] = {"revision": revision or "main", "_raise_exceptions_for_missing_entries": False}
    try:
        single = cached_file(source, SAFE_WEIGHTS_NAME, **options)
        if single is not None:
            return [Path(single)]
        index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **options)
        if index is not None:
            return [Path(file) for file in get_checkpoint_shard_files(source, index, revision=revision)[0]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SabError(f"The model {source} could not be read ({reason}); check the name or the folder.") from error
    raise SabError(f"{source} holds no safetensors weights; name a checkpoint that has them.")


def _where(model: Any, files: Sequence[Path]) -> dict[str, Stored]:
    """Where each entry of the model's state dictionary is stored, under transformers' rules of renaming."""
    rules = get_model_conversion_mapping(model)
    renamings: list[Any] = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = model.state_dict()
    stored: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                keys = list(opened.keys())
        except (OSError, SafetensorError) as error:
            raise SabError(f"{file} could not be read ({error}); download the model again.") from error
        for key in keys:
            name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
            if name not in wanted and key in wanted:
                name, converted = key, None
            if name in wanted and converted is not None:
                raise SabError(
                    f"The weights of a {model.config.model_type} model are put together while they are read, so it "
                    "cannot be streamed; load it whole."
                )
            if name in wanted:
                stored[name] = Stored(file, key)
    return stored


def _make_buffers(model: Any, stored: Mapping[str, Stored], device: torch.device) -> None:
    """Buffers are computed as at any loading, by transformers' own functions; those that are saved are read."""
    buffers = list(model.named_buffers())
    for name, buffer in buffers:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device=device)
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()  # costs nothing for parameters, which are on the meta device
    for name, _ in buffers:
        if name in stored:
            with safe_open(stored[name].file, framework="pt") as opened:
                model.get_buffer(name).copy_(opened.get_tensor(stored[name].key))
