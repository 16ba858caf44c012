"""What a run would take, from a model's configuration alone: bits, bytes, disk, memory and time.

Nothing of the model is read or allocated: its linears are known from an outline on the meta device. Every figure is an
estimate, and `assumed` says what it rests on.

    bits     sizes of the packed tensors (layout.py) for the true shapes. What they depend on beside the shape, which
             is the structure that a method finds, comes from fits of small random weights; a budget's is computed.
             In real weights the share of salient columns differs, and moves `all_in` by about as much.
    time     products, Cholesky factors and fits counted for the true shapes, at the pace of a short measurement on
             this device (`measure_pace`). Reading files and drawing samples are left out.
    memory   the largest of the stages: weights in residence, hidden states of all samples, Hessians of one block, one
             batch's activations, copies of the largest linear, or stack of linears, while it is fitted, and what a
             block takes while its codes are refined.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sab.binarizers import METHODS
from sab.binarizers.pb_llm import KEPT_SHARE
from sab.binarizers.sab_h import COLUMN_SCALE_ROWS, affordable
from sab.compensate import LinearFit, fit_linear
from sab.hessian import HessianAccumulator, dampen, inverse_factor
from sab.layout import complete, sizes
from sab.memory import free_memory
from sab.models import LVLM
from sab.packing import pack
from sab.progress import Listener, silent
from sab.recipes import Recipe
from sab.sequential import chosen_linears
from sab.significance import significance_map
from sab.streaming import ROOM, weight_bytes

Shape = tuple[int, int]
SHARED_INPUTS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
BATCH_TOKENS = 8192  # positions of one batch at most (`models.length_buckets`)
HESSIAN_COPIES = 7  # of the largest Hessian while it is mixed, damped, factored and inverted
BIT_BYTES = 15  # of a bit while its block is refined: the number behind it, two moments, bits before and now
GRAPH_BYTES = 46  # of a weight while the gradients of its linear are spread over scales and bits
WEIGHT_COPIES = 14  # float32 matrices like the largest weight while it is fitted: maps, significances, errors
PROGRAM_BYTES = 800_000_000  # of the host for Python, torch and transformers
REPORT_BYTES = 1_000  # of JSON, for each linear
HEADER_BYTES = 700  # of a code file
SMALL_ROWS = 256  # of random weights that stand for any below COLUMN_SCALE_ROWS
SPREAD = 0.3  # of the inputs' and the columns' logarithms in the random weights
HESSIAN_SHARE = 9 / 16  # of the whole product: `hessian.PANELS` panels of its lower half


@dataclass(frozen=True)
class Pace:
    """What this device does: floating-point operations a second of products and of `factor` (Cholesky and inverse of
    one matrix), and `fit`: seconds of a fit a weight, by method."""

    product: float
    factor: float
    fit: Mapping[str, float]


@dataclass(frozen=True)
class Structure:
    """What a method found in small random weights: complete metadata (`layout.complete`), the share of salient columns,
    and how long its fit took."""

    metadata: dict[str, Any]
    salient: float
    seconds_per_weight: float


@dataclass(frozen=True)
class Bits:
    """Of all chosen linears: bits a weight as printed and as stored, and `bytes` of the packed tensors."""

    nominal: float
    all_in: float
    bytes: int


def estimate(
    lvlm: LVLM,
    recipe: Recipe,
    tokens: Mapping[str, int],
    length: int,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """What quantizing `lvlm` (of `models.outline`) by `recipe` would take on its device, for JSON.

    `tokens`: calibration tokens of "language" and "vision"; `length`: of a sequence. SabError for a part or a linear
    that the model does not have.
    """
    tell = progress or silent
    names = chosen_linears(lvlm, recipe)
    shapes = [_shape(lvlm.linears[name]) for name in names]
    bits: dict[str, Bits] = {}
    entries = {**dict.fromkeys(METHODS), _entry(recipe): recipe}
    for position, (entry, given) in enumerate(entries.items()):
        tell("small fits of every method", position / len(entries))
        bits[entry] = stored_bits(shapes, given or Recipe(method=entry))
    tell("pace of this device", 0.95)
    pace = measure_pace(lvlm.device, lvlm.dtype, recipe)
    own = bits[_entry(recipe)]
    counted = {name: lvlm.linears[name].weight.numel() for name in names}
    source = weight_bytes(lvlm.model)
    streamed = source > ROOM * free_memory(lvlm.device)
    seconds = _seconds(lvlm, recipe, names, tokens, length, pace)
    element = lvlm.model.get_input_embeddings().weight.element_size()
    maps = 8 * sum(math.prod(shape) if recipe.sensitivity == "fisher" else shape[1] for shape in shapes)
    return {
        "model": {
            "parameters": sum(parameter.numel() for parameter in lvlm.model.parameters()),
            "bytes": source,
            "blocks": len(lvlm.blocks),
        },
        "linears": len(names),
        "weights": sum(counted.values()),
        "methods": {entry: vars(found) for entry, found in bits.items()},
        "bits_nominal": own.nominal,
        "bits_all_in": own.all_in,
        "bytes": own.bytes,
        "disk_bytes": {
            "run": own.bytes + maps + len(names) * (REPORT_BYTES + HEADER_BYTES),
            "checkpoint": own.bytes + source - element * sum(counted.values()),
        },
        "memory_bytes": {
            "whole": _memory(lvlm, recipe, names, tokens, streamed=False),
            "streamed": _memory(lvlm, recipe, names, tokens, streamed=True),
        },
        "streamed": streamed,
        "free_bytes": free_memory(lvlm.device),
        "seconds": sum(seconds.values()),
        "stages_seconds": seconds,
        "tokens": dict(tokens),
        "device": str(lvlm.device),
        "assumed": {
            "salient_share": own.nominal - 1 if METHODS[recipe.method].bits == 1 else None,
            "sequence_length": length,
            "products_per_second": pace.product,
            "fit_seconds_per_million_weights": 1e6 * pace.fit[recipe.method],
            "left_out": "reading files, drawing samples, the vision tower",
        },
    }


def stored_bits(shapes: list[Shape], recipe: Recipe) -> Bits:
    """Bits of linears of these shapes under a recipe, by the format's own sizes."""
    stored = nominal = 0.0
    found: dict[Shape, Structure] = {}  # of small weights, which many shapes share
    for shape, number in Counter(shapes).items():
        tall = shape[0] >= COLUMN_SCALE_ROWS
        small = COLUMN_SCALE_ROWS if tall else min(shape[0], SMALL_ROWS), min(shape[1], 2 * recipe.block_size)
        if small not in found:
            found[small] = structure(*small, recipe)
        metadata, own = _metadata(shape, found[small], recipe)
        stored += number * sum(dtype.itemsize * math.prod(size) for dtype, size in sizes(metadata).values())
        nominal += number * own * math.prod(shape)
    weights = sum(math.prod(shape) for shape in shapes)
    return Bits(nominal / weights, 8 * stored / weights, int(stored))


def _metadata(shape: Shape, found: Structure, recipe: Recipe) -> tuple[dict[str, Any], float]:
    """Complete metadata of a linear [n, m] of that structure, and its nominal bits."""
    metadata = found.metadata | {"shape": list(shape)}
    if metadata["layout"] == "integer":
        return metadata, float(metadata["bits"])
    if "kept_bits" in metadata:
        kept = int(KEPT_SHARE * math.prod(shape))
        return metadata | {"kept": kept}, 1 + (metadata["kept_bits"] - 1) * kept / math.prod(shape)
    salient = round(found.salient * shape[1])
    if recipe.bits is not None:
        bitmap, salient, column_scale = affordable(shape, recipe.block_size, recipe.bits)
        groups = 1 + bitmap
        metadata["planes"], metadata["slots"] = groups, groups * (2 if salient else 1)
        metadata["optional"] = ["column_scale"] * column_scale + ["row_step"]
    return metadata | {"salient": salient}, 1 + salient / shape[1]


def structure(rows: int, width: int, recipe: Recipe, device: torch.device | str = "cpu") -> Structure:
    """What the recipe's method finds in random weights [rows, width] whose columns and inputs differ in size."""
    generator = torch.Generator().manual_seed(0)

    def spread(*size: int) -> Tensor:
        return torch.exp(SPREAD * torch.randn(*size, generator=generator))

    accumulator = HessianAccumulator(width)
    accumulator.add(torch.randn(8 * width, width, generator=generator) * spread(width))
    hessian = accumulator.hessian.to(device)
    weight = (torch.randn(rows, width, generator=generator) * spread(width)).to(device)
    language, vision = (spread(width).to(device) for _ in range(2))

    def fit() -> LinearFit:
        held_out = hessian if METHODS[recipe.method].judged else None
        significance = significance_map(weight, language, vision)
        return fit_linear(weight, hessian, recipe.method, recipe.fit_settings, significance, held_out=held_out)

    found = fit()
    tensors, metadata = pack(found.codes)
    return Structure(complete(tensors, metadata), found.salient_fraction, found.seconds / weight.numel())


def measure_pace(device: torch.device, dtype: torch.dtype, recipe: Recipe) -> Pace:
    """Times a product, a factor and a fit of the recipe's method on the device; about a second on a CPU."""
    size = 1024 if device.type == "cpu" else 4096
    left = torch.randn(size, size, device=device, dtype=dtype)
    accumulator = HessianAccumulator(size, device)
    accumulator.add(torch.randn(2 * size, size, device=device))
    hessian = accumulator.hessian

    def factor() -> None:
        inverse_factor(dampen(hessian))

    product, factored = _fastest(device, partial(torch.mm, left, left)), _fastest(device, factor)
    fits = [structure(COLUMN_SCALE_ROWS, 2 * recipe.block_size, recipe, device) for _ in range(2)]
    fit = min(found.seconds_per_weight for found in fits)  # a first call loads libraries
    return Pace(2 * size**3 / product, size**3 / factored, {recipe.method: fit})


def _fastest(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of four calls."""
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _seconds(
    lvlm: LVLM, recipe: Recipe, names: list[str], tokens: Mapping[str, int], length: int, pace: Pace
) -> dict[str, float]:
    """Seconds of each stage. A pass over a block multiplies every token with its weights and attends over `length`."""
    total = sum(tokens.values())
    decoder = [name for name in names if lvlm.info[name].part == "decoder"]
    hidden = lvlm.model.config.get_text_config(decoder=True).hidden_size
    weights = sum(linear.weight.numel() for linear in lvlm.decoder_linears.values())
    attention = 2 * length * hidden * len(lvlm.blocks)
    forward = 2 * total * (weights + attention) / pace.product if decoder else 0.0
    inputs = list(_inputs(lvlm, names).values())
    hessians = sum(2 * HESSIAN_SHARE * total * width**2 for width in inputs) / pace.product
    factors = sum(2 * width**3 for width in inputs) / pace.factor  # both modalities, before anything is binarized
    fits = 0.0
    for name in names:
        rows, width = _shape(lvlm.linears[name])
        fits += rows * width * pace.fit[recipe.method] + width**3 / pace.factor
        fits += 5 * rows * width**2 / pace.product  # errors carried on, and the loss twice
    found = {"maps": forward + hessians + factors, "Hessians": forward + hessians, "fits": fits, "propagation": forward}
    if recipe.sensitivity == "fisher":
        squares = sum(2 * total * math.prod(_shape(lvlm.linears[name])) for name in decoder) / pace.product
        found["Fisher information"] = 4 * forward + squares
    if recipe.refine_epochs and decoder:
        found["refinement"] = (1 + 5 * recipe.refine_epochs) * forward
    return found


def _memory(lvlm: LVLM, recipe: Recipe, names: list[str], tokens: Mapping[str, int], streamed: bool) -> dict[str, int]:
    """Peak bytes of the `device` and of the `host`; where the host is the device, of both together as `host`."""
    total = sum(tokens.values())
    config = lvlm.model.config.get_text_config(decoder=True)
    element = lvlm.model.get_input_embeddings().weight.element_size()
    everything, blocks = weight_bytes(lvlm.model), [weight_bytes(block) for block in lvlm.blocks]
    embeddings = weight_bytes(lvlm.model.get_input_embeddings())
    batch = min(BATCH_TOKENS, total)
    widest = max((max(_shape(linear)) for linear in lvlm.decoder_linears.values()), default=config.hidden_size)
    running = batch * element * (3 * widest + 8 * config.hidden_size)
    streams = 3 + (2 if recipe.refine_epochs else 0)  # at the decoder, before and behind a block; full precision's
    states = total * config.hidden_size * element * streams
    if recipe.sensitivity == "fisher":
        states += total * config.hidden_size * element * len(blocks)
        states += 8 * sum(math.prod(_shape(lvlm.linears[name])) for name in names)
    groups = 4 if METHODS[recipe.method].judged else 2
    by_block: dict[tuple[str, int], int] = {}
    for (part, block, _), width in _inputs(lvlm, names).items():
        by_block[part, block] = by_block.get((part, block), 0) + 4 * groups * width**2
    sums = max(by_block.values())
    shapes = _fitted_shapes(lvlm, names)
    fitting = max(4 * (HESSIAN_COPIES * width**2 + WEIGHT_COPIES * rows * width) for rows, width in shapes)
    working = max(fitting, _refining(lvlm, recipe, names, running, element))
    front = everything - sum(blocks) - (0 if lvlm.model.config.tie_word_embeddings else embeddings)
    if not streamed:
        device = everything + states + sums + max(running, working)
        host = everything if lvlm.device.type == "cuda" else 0  # weights pass through it while they are loaded
    else:
        device = max(front + running, max(blocks) + max(running + sums, working))
        host = states + sums
    if lvlm.device.type != "cuda":
        return {"host": device + host + PROGRAM_BYTES}
    return {"device": device, "host": host + PROGRAM_BYTES}


def _refining(lvlm: LVLM, recipe: Recipe, names: list[str], running: int, element: int) -> int:
    """Bytes for refining the codes of the largest decoder block: weights and their gradients, what stays per bit of two
    planes, and the graph of the largest linear or that of the block."""
    if not recipe.refine_epochs:
        return 0
    by_block: dict[int, list[int]] = {}
    for name in names:
        if lvlm.info[name].part == "decoder":
            by_block.setdefault(lvlm.info[name].block, []).append(math.prod(_shape(lvlm.linears[name])))
    stays = 2 * (element + BIT_BYTES)
    return max(
        (stays * sum(sizes) + max(3 * running, GRAPH_BYTES * max(sizes)) for sizes in by_block.values()), default=0
    )


def _fitted_shapes(lvlm: LVLM, names: list[str]) -> set[Shape]:
    """Rows and columns of what is fitted at once: linears of one input together."""
    together: dict[tuple[str, int, str], Shape] = {}
    for name in names:
        rows, width = _shape(lvlm.linears[name])
        [key] = _inputs(lvlm, [name])
        together[key] = together.get(key, (0, 0))[0] + rows, width
    return set(together.values())


def _inputs(lvlm: LVLM, names: list[str]) -> dict[tuple[str, int, str], int]:
    """Widths of the distinct inputs of linears, by part, block and the kind that stands for those that share them."""
    found = {}
    for name in names:
        info = lvlm.info[name]
        kind = SHARED_INPUTS.get(info.kind, info.kind) if info.part == "decoder" else name
        found[info.part, info.block, kind] = lvlm.linears[name].in_features
    return found


def _shape(linear: nn.Linear) -> Shape:
    return linear.out_features, linear.in_features


def _entry(recipe: Recipe) -> str:
    """As `--method` names it."""
    return recipe.method if recipe.bits is None else f"{recipe.method}@{recipe.bits:g}"
