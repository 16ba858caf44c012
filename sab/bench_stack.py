"""What the pipeline costs beside one plain forward pass over the same samples: `python -m sab bench pipeline`.

Shapes: the decoder of the embedded model on its calibration samples, and stacks of random blocks of a larger model's
true widths (Qwen2.5-VL) on random hidden states, which cost what real ones cost. A pass starts at the decoder's inputs
in both cases: the plain one runs the blocks, the pipeline runs maps, Hessians, fits and propagation. Blocks of a stack
cost the same, so a few of them say what all would take.

Run at full size on a GPU, one call: python -m sab bench pipeline --shapes 7b --device cuda
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from sab import calibration, models
from sab.calibrated import Calibrated
from sab.capture import Batch, capture, run_decoder
from sab.errors import SabError
from sab.memory import give_back
from sab.models import LVLM
from sab.progress import Listener, silent
from sab.recipes import Recipe
from sab.sequential import quantize

BATCH_TOKENS = 8192  # positions of one batch, as `models.length_buckets` has them
EMBEDDED_SAMPLES = 512


@dataclass(frozen=True)
class Stack:
    """A decoder's widths (`hidden`, `intermediate`, attention `heads` and `key_value_heads`), its number of `layers`,
    and `tokens`: of each modality in sequences of `length`."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    layers: int
    length: int
    tokens: int


STACKS = {
    "1b": Stack(2048, 5504, 16, 4, 18, 512, 8 * 5504),  # as many tokens as its widest inputs ask for (METHOD 1)
    "7b": Stack(3584, 18944, 28, 4, 28, 2048, 128 * 2048),
}
SHAPES = ("embedded", *STACKS)
STAGES = {  # by the end of what the loop over blocks says it is doing
    "input sensitivities": "maps",
    "Hessians": "collect",
    "binarized": "propagate",
    "codes refined together": "refine",
}


def stack(
    shape: str,
    method: str = "sab",
    blocks: int | None = None,
    tokens: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Seconds per block and peak memory of the pipeline and of a plain forward pass, for one of SHAPES.

    `blocks`: of a random stack (2 when left out); `tokens`: of each modality. Memory is what is used at most beyond
    what was there before: the weights and the inputs. SabError for shapes that are not known and sizes that make no
    sense.
    """
    if shape not in SHAPES:
        raise SabError(f"There is no shape {shape!r} to measure; choose from {', '.join(SHAPES)}.")
    tell = progress or silent
    recipe = Recipe(method=method, samples=EMBEDDED_SAMPLES, seed=seed)
    recipe.validate()
    started = time.perf_counter()
    if shape == "embedded":
        lvlm = models.load(device=device)
        samples = calibration.embedded(recipe.samples, seed)
        batches = capture(lvlm, samples, recipe.split, progress=tell)
        layers = len(lvlm.blocks)
    else:
        blocks, tokens = 2 if blocks is None else blocks, STACKS[shape].tokens if tokens is None else tokens
        lvlm, batches = _random(STACKS[shape], blocks, tokens, device, seed)
        layers = STACKS[shape].layers
    _wait(lvlm.device)
    prepared = time.perf_counter() - started
    known = Calibrated(lvlm, [], recipe.split, batches=batches)
    measured = len(lvlm.blocks)
    forward = _measure(lvlm.device, lambda: _forward(lvlm, batches, tell))
    stages: dict[str, float] = {}
    pipeline = _measure(lvlm.device, lambda: _pipeline(lvlm, recipe, known, stages, tell))
    # the last block hands its outputs to none, so one fewer is propagated
    shares = {name: value / max(1, measured - (name == "propagate")) for name, value in stages.items()}
    per_block = sum(shares.values())
    counted = {name: sum(int(getattr(batch, name).sum()) for batch in batches) for name in ("language", "vision")}
    return {
        "shape": shape,
        "device": _named(lvlm.device),
        "dtype": str(lvlm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "method": method,
        "blocks": measured,
        "layers_of_the_model": layers,
        "weights_per_block": sum(linear.weight.numel() for linear in lvlm.decoder_linears.values()) // measured,
        "tokens": counted,
        "prepare_seconds": prepared,
        "forward_seconds_per_block": forward.seconds / measured,
        "pipeline_seconds_per_block": per_block,
        "pipeline_seconds_of_all_blocks": per_block * layers,
        "stages_seconds_per_block": shares,
        "ratio": per_block * measured / forward.seconds,
        "forward_peak_bytes": forward.peak,
        "pipeline_peak_bytes": pipeline.peak,
        "block_bytes": sum(value.numel() * value.element_size() for value in lvlm.blocks[0].parameters()),
    }


def _forward(lvlm: LVLM, batches: Sequence[Batch], tell: Listener) -> None:
    for position, batch in enumerate(batches):
        tell("forward pass", position / len(batches))
        run_decoder(lvlm, batch)


def _pipeline(lvlm: LVLM, recipe: Recipe, known: Calibrated, stages: dict[str, float], tell: Listener) -> None:
    """Run it, and add up the seconds of its stages by what its progress says they are."""
    current, entered = "", time.perf_counter()

    def enter(stage: str) -> None:
        nonlocal current, entered
        _wait(lvlm.device)
        now = time.perf_counter()
        if current:
            stages[current] = stages.get(current, 0.0) + now - entered
        current, entered = stage, now

    def hear(stage: str, share: float) -> None:
        enter("fits" if stage in lvlm.linears else STAGES.get(stage.rpartition(", ")[2], current))
        tell(stage, share)

    for _ in quantize(lvlm, recipe, calibrated=known, progress=hear):
        pass
    enter("")


@dataclass(frozen=True)
class _Measured:
    seconds: float
    peak: int | None  # bytes beyond those in use before; None where the system does not tell


def _measure(device: torch.device, work: Callable[[], None]) -> _Measured:
    give_back()
    before = _memory(device, "VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif before is not None:
        Path("/proc/self/clear_refs").write_text("5")
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _memory(device, "VmHWM")
    return _Measured(seconds, None if peak is None or before is None else peak - before)


def _memory(device: torch.device, entry: str) -> int | None:
    """Bytes in use on the device; of this process, what Linux calls `entry`."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(entry)), None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _random(shape: Stack, blocks: int, tokens: int, device: str | None, seed: int) -> tuple[LVLM, list[Batch]]:
    """A random decoder of so many blocks behind a tower that is not used, and hidden states at its inputs: half of
    the sequences language, half vision."""
    if blocks < 1 or tokens < shape.length:
        raise SabError(f"A stack takes at least one block and {shape.length} tokens of each modality.")
    head = shape.hidden // shape.heads
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": blocks,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "rope_parameters": rope,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": shape.hidden},
        image_token_id=63,
    )
    place = models.chosen_device(device)
    with torch.random.fork_rng(), torch.device(place):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=models.chosen_dtype(None, place), attn_implementation="sdpa"
        )
    lvlm = models.wrap(model.eval().requires_grad_(False), SimpleNamespace(), "random stack")
    rows = max(1, BATCH_TOKENS // shape.length)
    sequences = tokens // shape.length
    generator = torch.Generator(place).manual_seed(seed)
    spread = torch.arange(1, shape.hidden + 1, device=place) ** -0.25  # unequal inputs, as real ones are
    batches = []
    for is_vision in (False, True):
        for start in range(0, sequences, rows):
            size = min(rows, sequences - start), shape.length
            states = torch.randn(*size, shape.hidden, generator=generator, device=place) * spread
            batches.append(_batch(states.to(lvlm.dtype), is_vision))
    return lvlm, batches


def _batch(states: Tensor, is_vision: bool) -> Batch:
    every = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    vision = every if is_vision else ~every
    arguments = {
        "inputs_embeds": states,
        "attention_mask": every.long(),
        "position_ids": None,
        "use_cache": False,
        "past_key_values": None,
    }
    return Batch(arguments, None, ~vision, vision, torch.full_like(every, -100, dtype=torch.long))
