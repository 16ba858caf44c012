"""Load a vision-language model with its processor, name its linears, and turn messages into model inputs.

With configurations.py and processors.py the only file that knows model families. What it knows is little, because
transformers tells the rest: `AutoModelForImageTextToText` picks the class, `get_decoder()` and
`get_encoder(modality="image")` find the two halves, `config.image_token_id` marks visual tokens, and
`prepare_inputs_for_generation` (the method `generate` itself uses) builds positions and masks. Positions are always
passed explicitly: several families otherwise keep them from the *previous* call (`rope_deltas`), which is wrong as soon
as a text-only prompt follows a picture or two visitors share a model.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from sab.configurations import configuration, without_picture_tokens
from sab.errors import SabError
from sab.memory import HOST, free_memory
from sab.parts import PARTS
from sab.processors import load_processor, read_from
from sab.streaming import ROOM, Streamed, check_sizes, on_meta, open_streamed, weight_bytes
from sab.templates import ChatTemplate, Message

DEMO_MODEL = Path(__file__).resolve().parent.parent / "assets" / "demo-model"
LAYOUT = ("rows", "cols", "num_patches")  # what processors say of a picture's tiles: for the text, not for the model
PROJECTOR_WORDS = ("merger", "projector", "connector", "modality_projection")
FINGERPRINT_SAMPLES = 1024

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class LinearInfo:
    """Where a linear sits: its module name, part of the model, block (-1: outside blocks) and kind."""

    name: str
    part: str
    block: int
    kind: str


@dataclass(frozen=True)
class Units:
    """What the lines of a weight belong to: `name` of the unit and `size`, consecutive lines to one of it. Attention
    heads share `size` rows of q, k and v and columns of o; a neuron is one row of gate and up, one column of down."""

    axis: str  # "rows" or "columns"
    name: str
    size: int


HEAD_KINDS = {"q_proj": "rows", "k_proj": "rows", "v_proj": "rows", "o_proj": "columns"}
NEURON_KINDS = {"gate_proj": "rows", "up_proj": "rows", "fc1": "rows", "down_proj": "columns", "fc2": "columns"}


@dataclass
class LVLM:
    """A loaded model: `model` and `processor` as transformers made them, and the names the pipeline uses.

    `linears` maps module names to `nn.Linear` in forward order (vision, projector, decoder; no `lm_head`);
    `info` has the same keys. `fingerprint` identifies the full-precision weights and stays what it was at
    loading when the weights are binarized. `streamed`: where the weights of a model are read from that has them in
    memory only while they are held (`holding_block` and the others, which do nothing for other models).
    """

    model: Any
    processor: Any
    family: str
    source: str
    linears: dict[str, nn.Linear]
    info: dict[str, LinearInfo]
    device: torch.device
    image_token_id: int
    fingerprint: str
    streamed: Streamed | None = None
    decoder_linears: dict[str, nn.Linear] = field(init=False)

    def __post_init__(self) -> None:
        self.decoder_linears = {n: m for n, m in self.linears.items() if self.info[n].part == "decoder"}

    @property
    def decoder(self) -> nn.Module:
        """The language model without its output head."""
        return cast(nn.Module, self.model.get_decoder())

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder's blocks, in forward order."""
        return list(cast(nn.ModuleList, self.decoder.layers))

    @property
    def rests_on(self) -> torch.device:
        """Where activations of the calibration samples wait for their turn: the host for a streamed model."""
        return self.device if self.streamed is None else HOST

    def holding_block(self, index: int) -> AbstractContextManager[None]:
        """Have decoder block `index` on the device while the context is open, and what the decoder has beside its
        blocks."""
        return self._holding({str(index), "decoder"})

    def holding_front(self) -> AbstractContextManager[None]:
        """The same for everything in front of the decoder: tower, projector, embeddings."""
        return self._holding({"front", "embeddings"})

    def holding_head(self) -> AbstractContextManager[None]:
        """The same for what comes behind the last decoder block: final norm and output head."""
        return self._holding({"decoder", "head"} | ({"embeddings"} if "head" not in self._places.values() else set()))

    def stored_tensors(self, skip: Iterable[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and saved buffer but the weights of the linears to `skip`, by its name in the model, one at
        a time; tied ones once. Of a streamed model each is read when its turn comes, so a checkpoint can be written
        without the whole model in memory."""
        left_out = {f"{name}.weight" for name in skip}
        saved = self.model.state_dict()
        buffers = [(name, buffer) for name, buffer in self.model.named_buffers() if name in saved]
        if self.streamed is not None:
            yield from self.streamed.tensors(left_out)
        else:
            for name, parameter in self.model.named_parameters():
                if name not in left_out:
                    yield name, parameter.detach()
        yield from buffers

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where each parameter belongs: a decoder block's number, "decoder" (beside its blocks), "embeddings" (and the
        head, where it is tied to them), "head", or "front"."""
        names = {id(module): name for name, module in self.model.named_modules()}
        decoder, blocks = names[id(self.decoder)], names[id(self.decoder.layers)]
        head = self.model.get_output_embeddings()
        embeddings = {id(parameter) for parameter in self.model.get_input_embeddings().parameters()}
        last = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        places = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if id(parameter) in embeddings:
                places[name] = "embeddings"
            elif name.startswith(f"{blocks}."):
                places[name] = name.removeprefix(f"{blocks}.").partition(".")[0]
            elif id(parameter) in last:
                places[name] = "head"
            else:
                places[name] = "decoder" if name.startswith(f"{decoder}.") else "front"
        return places

    def _holding(self, places: set[str]) -> AbstractContextManager[None]:
        if self.streamed is None:
            return nullcontext()
        return self.streamed.hold([name for name, place in self._places.items() if place in places])

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def end_tokens(self) -> frozenset[int]:
        """Token ids that end an answer."""
        configured = self.model.generation_config.eos_token_id
        if configured is None:
            configured = self.tokenizer.eos_token_id
        if configured is None:
            return frozenset()
        return frozenset([configured] if isinstance(configured, int) else configured)

    @property
    def context_length(self) -> int | None:
        """Tokens the decoder was made for, where its configuration says so."""
        return getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def units(self, name: str) -> Units | None:
        """The heads or neurons of a linear; None where it has neither, or they cannot be told from its shape."""
        kind, part = self.info[name].kind, self.info[name].part
        if kind in NEURON_KINDS:
            return Units(NEURON_KINDS[kind], "neuron", 1)
        if kind not in HEAD_KINDS or part != "decoder":
            return None
        config = self.model.config.get_text_config(decoder=True)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        axis = HEAD_KINDS[kind]
        lines = self.linears[name].weight.shape[0 if axis == "rows" else 1]
        return Units(axis, "head", size) if lines % size == 0 else None

    def copy(self) -> LVLM:
        """An independent copy whose weights may be replaced; the processor is shared. SabError for a streamed model."""
        if self.streamed is not None:
            raise SabError(f"{self.source} is streamed, so there is nothing to copy; load it whole.")
        model = copy.deepcopy(self.model)
        modules = dict(model.named_modules())
        return LVLM(
            model=model,
            processor=self.processor,
            family=self.family,
            source=self.source,
            linears={name: modules[name] for name in self.linears},
            info=self.info,
            device=self.device,
            image_token_id=self.image_token_id,
            fingerprint=self.fingerprint,
        )

    @cached_property
    def template(self) -> ChatTemplate:
        """How the checkpoint writes a conversation."""
        return ChatTemplate(self.processor, self.image_token_id, self.source)

    def prepare(self, messages: Sequence[Message] | str, picture: Image.Image | None = None) -> Inputs:
        """Model inputs of one conversation (`ChatTemplate.encode`), batch size 1, on the model's device."""
        return self.place(self.template.encode(messages, picture))

    def place(self, inputs: Inputs) -> Inputs:
        """Inputs on the model's device, pictures in its dtype."""
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
            if isinstance(value, Tensor) and key not in LAYOUT
        }

    def extend(self, inputs: Inputs, tokens: Sequence[int]) -> Inputs:
        """Inputs [1, S] with the ids of a (teacher-forced) answer appended: [1, S + len(tokens)].

        SabError for an answer that holds a visual token, for which there is no picture."""
        if self.image_token_id in tokens:
            raise SabError("This answer holds a token that stands for a picture, so it cannot be read again.")
        shape = inputs["input_ids"].shape
        added = torch.tensor([list(tokens)], device=self.device, dtype=torch.long)
        fill = {"attention_mask": 1, "mm_token_type_ids": 0}
        extended = dict(inputs)
        for key in _sequence_keys(inputs):
            value = inputs[key]
            if key == "input_ids":
                tail = added
            elif key in fill:
                tail = torch.full_like(added, fill[key], dtype=value.dtype)
            else:  # token types continue as they ended
                tail = value[:, -1:].expand(shape[0], len(tokens))
            extended[key] = torch.cat([value, tail], dim=1)
        return extended

    def collate(self, rows: Sequence[Inputs]) -> Inputs:
        """One batch from several `prepare` results, padded on the left: [B, S_max]."""
        length = max(row["input_ids"].shape[1] for row in rows)
        padding = {"input_ids": self.tokenizer.pad_token_id or 0}
        batch = {}
        sequence_keys = _sequence_keys(rows[0])
        for key in rows[0]:
            values = [row[key] for row in rows]
            if key in sequence_keys:
                values = [
                    nn.functional.pad(value, (length - value.shape[1], 0), value=padding.get(key, 0))
                    for value in values
                ]
            batch[key] = torch.cat(values, dim=0)
        return batch

    def picture_grid(self, inputs: Inputs) -> tuple[int, int] | None:
        """Rows and columns in which the visual tokens of one conversation (`prepare`, [1, S]) cover its picture.

        None without a picture, and where the tokens are no plain grid (several tiles, rows with separators).
        """
        count = int((inputs["input_ids"] == self.image_token_id).sum())
        if not count:
            return None
        if "image_grid_thw" in inputs:  # the Qwen families: patches, of which merge_size² make a token
            merge = getattr(self.processor.image_processor, "merge_size", 1)
            _, height, width = (int(patches) for patches in inputs["image_grid_thw"][0])
            grid = height // merge, width // merge
        else:
            side = math.isqrt(count) if inputs["pixel_values"].shape[0] == 1 else 0
            grid = side, side
        return grid if grid[0] * grid[1] == count else None

    def positions(self, inputs: Inputs) -> Inputs:
        """Inputs with explicit `position_ids`, for families whose forward takes them."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return inputs
        return {
            **inputs,
            "position_ids": self.model._prepare_position_ids_for_generation(inputs["input_ids"], inputs),
        }

    def forward_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Keyword arguments for one whole `model(**arguments)` call over `inputs`, without a cache."""
        rest = {key: value for key, value in self.positions(inputs).items() if key != "input_ids"}
        return cast(
            dict[str, Any],
            self.model.prepare_inputs_for_generation(
                inputs["input_ids"], is_first_iteration=True, use_cache=False, **rest
            ),
        )

    def keeping(self, positions: int) -> dict[str, int]:
        """Argument that makes the model compute logits of the last positions only, where it knows how."""
        known = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        return {"logits_to_keep": positions} if known else {}

def length_buckets(rows: Sequence[Inputs], batch_size: int, max_tokens: int = 8192) -> list[list[int]]:
    """Indices of `prepare` results grouped into batches of like shape and similar length (seedless, stable).

    Rows with and without pictures, and pictures of different layout, never share a batch; a batch holds at
    most `batch_size` rows and `max_tokens` padded positions, so memory stays bounded.
    """

    def layout(row: Inputs) -> tuple[Any, ...]:
        sequence_keys = _sequence_keys(row)
        return tuple((key, *value.shape[1:]) for key, value in row.items() if key not in sequence_keys)

    def length(index: int) -> int:
        return rows[index]["input_ids"].shape[1]

    order = sorted(range(len(rows)), key=lambda index: (str(layout(rows[index])), length(index)))
    batches: list[list[int]] = []
    for index in order:
        last = batches[-1] if batches else []
        fits = len(last) < batch_size and (len(last) + 1) * length(index) <= max_tokens
        if last and fits and layout(rows[last[0]]) == layout(rows[index]):
            last.append(index)
        else:
            batches.append([index])
    return batches


def load(
    path_or_id: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    streamed: bool | None = False,
) -> LVLM:
    """Load a model for pictures and text; None loads the embedded one.

    Defaults: CUDA in bfloat16 where there is one, otherwise the CPU in float32. Code shipped inside a
    checkpoint is never run and only safetensors weights are read; dtype "auto" is what they are stored in. A `streamed`
    model keeps its weights in their files and can only be quantized, one decoder block on the device at a time; None
    streams a model whose weights would take more than six tenths of the memory that is free on the device. A packed
    checkpoint (`checkpoint.export`) is loaded with packed linears, which are not among `linears`, and never streamed.
    Raises SabError, in one sentence, for a path that does not exist, a checkpoint that is not a vision-language model
    or is incomplete, mixtures of experts, and families whose pictures do not pass through the decoder as tokens
    (cross-attention, encoder-decoder).
    """
    source = str(path_or_id or DEMO_MODEL)
    place = chosen_device(device)
    config = configuration(source, revision)
    precision = chosen_dtype(config.dtype if dtype == "auto" else dtype, place)
    processor = load_processor(source, config, revision)
    if getattr(config, "quantization_config", None):
        streamed = False  # it is small, and its linears are computed on as they are stored
    else:
        shapes = on_meta(config, precision)
        check_sizes(shapes, source, revision)
        if streamed is None:
            streamed = weight_bytes(shapes) > ROOM * free_memory(place)
        del shapes
    if streamed:
        model, weights = open_streamed(config, source, revision, precision, place)
        return wrap(model, processor, source, weights)
    model, loading = read_from(
        source,
        transformers.AutoModelForImageTextToText.from_pretrained,
        source,
        revision=revision,
        dtype=precision,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise SabError(
            f"The checkpoint {source} is incomplete: {len(missing)} weights are missing, "
            f"among them {missing[0]}; download it again."
        )
    model.eval().requires_grad_(False)
    return wrap(model.to(place), processor, source)


def outline(
    path_or_id: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> LVLM:
    """What `load` would give, without its weights: nothing but the configuration and the processor is read, and
    parameters have shapes and no memory. It has no fingerprint, and its processor is None where there is none to read.
    Raises SabError as `load` does, and for a packed checkpoint, which is not to be binarized again."""
    source = str(path_or_id or DEMO_MODEL)
    place = chosen_device(device)
    config = configuration(source, revision)
    if getattr(config, "quantization_config", None):
        raise SabError(f"{source} is packed already; name the full-precision model that it was made from.")
    precision = chosen_dtype(config.dtype if dtype == "auto" else dtype, place)
    try:
        processor = load_processor(source, config, revision)
    except SabError:
        processor = None
    found = wrap(on_meta(config, precision), processor, source)
    found.device = place
    return found


def wrap(model: Any, processor: Any, source: str, streamed: Streamed | None = None) -> LVLM:
    """An LVLM around a model and a processor that are already in memory, or whose weights are `streamed`, or that has
    none (on the meta device, for estimates). SabError where it is unsupported."""
    config = model.config
    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    crossing = any("cross_attn" in name for name, _ in decoder.named_modules())
    image_token_id = getattr(config, "image_token_id", None)
    if not isinstance(blocks, nn.ModuleList) or crossing or image_token_id is None:
        raise without_picture_tokens(config, source)
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    info = _linear_info(modules, names[id(blocks)], names.get(id(model.get_encoder(modality="image")), ""))
    linears = {entry.name: modules[entry.name] for entry in info}
    without_weights = streamed is None and next(model.parameters()).is_meta
    return LVLM(
        model=model,
        processor=processor,
        family=config.model_type,
        source=source,
        linears=linears,
        info={entry.name: entry for entry in info},
        device=streamed.device if streamed is not None else next(model.parameters()).device,
        image_token_id=image_token_id,
        fingerprint="" if without_weights else fingerprint(config, linears.items(), streamed),
        streamed=streamed,
    )


def fingerprint(config: Any, linears: Iterable[tuple[str, nn.Linear]], streamed: Streamed | None = None) -> str:
    """SHA-256 over the model type and evenly spaced weights of every linear: cheap; any training moves it."""
    digest = hashlib.sha256(config.model_type.encode())
    for name, linear in linears:
        with nullcontext() if streamed is None else streamed.hold([f"{name}.weight"]):
            weight = linear.weight.detach().flatten()
            sampled = weight[:: max(1, weight.numel() // FINGERPRINT_SAMPLES)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(linear.weight.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()


def _sequence_keys(inputs: Inputs) -> set[str]:
    """Inputs with one entry per token ([B, S] like `input_ids`); the others belong to the pictures."""
    return {key for key, value in inputs.items() if value.shape == inputs["input_ids"].shape}


def _linear_info(modules: dict[str, nn.Module], blocks: str, vision: str) -> list[LinearInfo]:
    found: dict[str, list[LinearInfo]] = {part: [] for part in PARTS}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            continue
        kind = name.rsplit(".", 1)[-1]
        number = re.search(r"\.(\d+)\.", name)
        if name.startswith(f"{blocks}."):
            part = "decoder"
        elif any(word in name for word in PROJECTOR_WORDS):
            part = "projector"
        elif vision and name.startswith(f"{vision}.") and number:
            part = "vision"
        else:
            continue  # the output head, a tower's pooling head, and other linears outside the three parts
        block = int(number.group(1)) if number and part != "projector" else -1
        found[part].append(LinearInfo(name, part, block, kind))
    return [entry for part in PARTS for entry in found[part]]


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that a name means; without one CUDA if there is any. SabError for one that cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).item()  # what is on `meta` has no values
    except (RuntimeError, AssertionError) as error:
        raise SabError(
            f"The device {device} cannot be used here; choose cpu, or cuda on a machine with a GPU."
        ) from error
    return chosen


def chosen_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype that a name means; without one bfloat16 on CUDA, else float32. SabError for any that is no float."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise SabError(f"The dtype {dtype} is not supported; choose float32, bfloat16, float16 or auto.")
    return cast(torch.dtype, chosen)
