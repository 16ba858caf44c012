"""Everything that only a GPU can show, in one run: `python -m sab bench gpu`.

    agreement  the Triton products against the torch reference, at the shapes of real models and in every format
    walk       the walk over the columns of a block as one kernel against the torch loop: how many values differ
    cases      packed against bfloat16 linears (and torch's 4-bit product), milliseconds and share of the bandwidth
    decoder    tokens a second of a random decoder of a billion weights, eager, bfloat16 and packed
    fits       seconds of a whole fit, and what its first blocks ask of the host: copies back, kernels launched
    stacks     seconds of q, k and v, and of gate and up, fitted as one stack and one by one

Times of `cases` are those of a CUDA graph that holds one call for each of many copies of the weight, so that neither
launches nor weights left in the cache of the device count. On a CPU (`toy`) all of it runs in Triton's interpreter, at
sizes that say nothing about speed: that is how this file is tested.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sab.bench_kernels import BLOCK, decoder, random_codes
from sab.binarizers.codes import IntegerCodes, LinearCodes
from sab.binarizers.feedback import Levels, Rule, Sums, settle_by_columns, settle_in_one_launch
from sab.binarizers.rtn import grid
from sab.compensate import LinearFit, factor_hessian, fit_linear, fit_linears
from sab.devices import TRITON, runs_triton
from sab.errors import SabError
from sab.hessian import HessianAccumulator, dampen, inverse_factor
from sab.kernels import gpu, reference
from sab.packed import PackedLinear
from sab.packing import pack
from sab.progress import Listener, silent
from sab.significance import significance_map

LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of a product, relative to its norm
IN_TURN_BYTES = 256 << 20  # copies of a weight take turns until they fill more than any cache
MOST_COPIES = 48
PROFILED_BLOCKS = 8


@dataclass(frozen=True)
class Sizes:
    """What is measured: `shapes` and `batches` of products, `agreed` tokens of the comparison, `fits` (n, m) and
    `stacks` (n of each linear, m) by `methods`, blocks of the decoder (0: none), rows of the walk."""

    shapes: tuple[tuple[int, int], ...] = ((2048, 2048), (4096, 4096), (11008, 4096), (18944, 3584))
    batches: tuple[int, ...] = (1, 4, 16, 64, 512)
    agreed: tuple[int, ...] = (1, 2, 3, 16, 64, 200)
    fits: tuple[tuple[int, int], ...] = ((3584, 3584), (3584, 18944))
    methods: tuple[str, ...] = ("gptq3", "arb-rc", "sab", "sab-h")
    stacks: tuple[tuple[tuple[int, ...], int], ...] = (((3584, 512, 512), 3584), ((18944, 18944), 3584))
    decoder_blocks: int = 16
    walk_rows: int = 3584


TOY = Sizes(((24, 140),), (1, 3), (1, 3), ((3, 140),), ("gptq3", "sab"), (((3, 2), 140),), 0, 2)


@torch.no_grad()
def bench(toy: bool = False, seconds: float = 0.5, progress: Listener | None = None) -> dict[str, Any]:
    """Runs it all; `seconds` for each time that is taken. SabError without a CUDA device (or, for `toy`, without
    Triton's interpreter), and where a kernel disagrees with its oracle."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not runs_triton(device) or (device.type == "cpu" and not toy):
        raise SabError("There is no CUDA device with Triton here; --toy with TRITON_INTERPRET=1 runs it small.")
    sizes, tell = TOY if toy else Sizes(), progress or silent
    found: dict[str, Any] = {
        "bench": "gpu",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter",
        "torch": torch.__version__,
        "agreement": [],
        "cases": [],
        "fits": [],
        "stacks": [],
    }
    for number, shape in enumerate(sizes.shapes):
        tell(f"agreement, {shape[0]} x {shape[1]}", 0.3 * number / len(sizes.shapes))
        found["agreement"] += _agreement(shape, sizes.agreed, device)
    tell("walk", 0.3)
    found["walk"] = _walks(sizes.walk_rows, device)
    found["bandwidth_gb_s"] = _bandwidth(device, seconds, toy)
    for number, shape in enumerate(sizes.shapes):
        tell(f"times, {shape[0]} x {shape[1]}", 0.4 + 0.3 * number / len(sizes.shapes))
        found["cases"] += _cases(shape, sizes.batches, device, seconds, found["bandwidth_gb_s"])
    if sizes.decoder_blocks:
        tell("decoder", 0.7)
        found["decoder"] = decoder(sizes.decoder_blocks, lambda: _now(device), ("exact",), device)
    for number, shape in enumerate(sizes.fits):
        tell(f"fits, {shape[0]} x {shape[1]}", 0.8 + 0.15 * number / len(sizes.fits))
        found["fits"] += _fits(shape, sizes.methods, device)
    for number, (rows, width) in enumerate(sizes.stacks):
        tell(f"stacks, {' + '.join(map(str, rows))} x {width}", 0.95 + 0.05 * number / len(sizes.stacks))
        found["stacks"] += _stacks(rows, width, sizes.methods, device)
    return found


def formats(rows: int, width: int) -> dict[str, LinearCodes]:
    """Random codes in the format of a method each."""
    sab = random_codes(rows, width)
    generator = torch.Generator().manual_seed(2)
    blocks = -(-width // BLOCK)

    def whole(size: torch.Size) -> Tensor:
        return torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)

    assert sab.group is not None
    means = torch.rand(3, blocks, rows, generator=generator).half() * 0.01
    return {
        "sab": sab,
        "sab-h": replace(
            sab,
            method="sab-h",
            row_scale=whole(sab.row_scale.shape),
            second_row_scale=whole(sab.second_row_scale.shape),
            row_step=torch.full((rows,), 2e-4).half(),
            column_scale=None,
            second_column_scale=None,
        ),
        "billm": replace(
            sab,
            method="billm",
            group=sab.group & ~sab.salient,
            row_scale=sab.row_scale[:3],
            second_row_scale=sab.second_row_scale[:1],
            row_mean=means,
            column_scale=None,
            second_column_scale=None,
        ),
        "gptq3": IntegerCodes(
            method="gptq3",
            shape=(rows, width),
            block_size=BLOCK,
            bits=3,
            levels=torch.randint(0, 8, (rows, width), generator=generator, dtype=torch.uint8),
            scale=torch.rand(blocks, rows, generator=generator).half() * 0.01,
            zero=torch.randint(0, 8, (blocks, rows), generator=generator, dtype=torch.uint8),
        ),
    }


def _agreement(shape: tuple[int, int], batches: Sequence[int], device: torch.device) -> list[dict[str, Any]]:
    found = []
    for name, codes in formats(*shape).items():
        stored, metadata = pack(codes)
        tensors = {key: values.to(device) for key, values in stored.items()}
        weight = gpu.Weight(tensors, metadata)
        for tokens in batches:
            x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens)).to(device)
            for dtype, largest in LARGEST_ERROR.items():
                rounded = x.to(dtype)
                want = reference.linear(rounded.float(), tensors, metadata)
                error = float((weight.multiply(rounded).float() - want).norm() / want.norm())
                if not error <= largest:
                    raise SabError(
                        f"{name} {shape} times {tokens} tokens in {dtype} is off by {error:.3g} of its norm, more than "
                        f"{largest:g}: the kernel is wrong"
                    )
                case = {"format": name, "shape": list(shape), "tokens": tokens, "dtype": str(dtype)}
                found.append(case | {"relative_error": error})
    return found


def _walks(rows: int, device: torch.device) -> list[dict[str, Any]]:
    """Both walks over one block of `rows` rows: the values that differ, and the time of each."""
    weight, factor = _block(rows, device)
    scale, zero = grid(weight, 3)
    magnitude = weight.abs().mean(1).expand(BLOCK, 1, rows)
    rules: dict[str, Rule] = {
        "gptq3": Levels(scale.float(), zero, 3),
        "sab-h": Sums(torch.cat([0.5 * magnitude, 1.5 * magnitude], 1), torch.cat([0.1 * magnitude] * 2, 1)),
    }
    found = []
    for name, rule in rules.items():
        one, two = (settle(weight, factor, rule) for settle in (settle_by_columns, settle_in_one_launch))
        taken = {}
        for key, settle in (("torch", settle_by_columns), ("triton", settle_in_one_launch)):
            started = _now(device)
            settle(weight, factor, rule)
            taken[key] = 1e3 * (_now(device) - started)
        found.append({"rule": name, "shape": [rows, BLOCK], "differ": int((one != two).sum()), "milliseconds": taken})
    return found


def _cases(
    shape: tuple[int, int], batches: Sequence[int], device: torch.device, seconds: float, bandwidth: float
) -> list[dict[str, Any]]:
    codes = random_codes(*shape)
    packed = PackedLinear(codes, device=device)
    if packed.kernel != TRITON:
        raise SabError("SAB_KERNEL keeps the Triton kernel from running; leave it out (on a CPU: SAB_KERNEL=triton).")
    dense = codes.dense().to(device, torch.bfloat16)
    stored = [packed, *_copies(packed, packed.resident_bytes, partial(copy.deepcopy, packed))]
    weights = [dense, *_copies(dense, dense.nbytes, dense.clone)]
    int4, missing = _int4(shape, device)
    found = []
    for batch in batches:
        x = torch.randn(batch, shape[1], device=device, dtype=torch.bfloat16)
        taken = {
            "packed": _seconds([partial(linear, x) for linear in stored], device, seconds),
            "bf16": _seconds([partial(nn.functional.linear, x, weight) for weight in weights], device, seconds),
        }
        if int4 is not None:
            taken["int4"] = _seconds([partial(int4, x)], device, seconds)
        speed = packed.resident_bytes / taken["packed"] / 1e9
        found.append(
            {
                "shape": list(shape),
                "batch": batch,
                "mode": "exact",
                "kernel": packed.kernel,
                "milliseconds": {name: 1e3 * value for name, value in taken.items()},
                "ratio_vs_bf16": taken["bf16"] / taken["packed"],
                "ratio_vs_int4": taken["int4"] / taken["packed"] if "int4" in taken else None,
                "int4_missing": missing,
                "gb_s": speed,
                "bandwidth_share": speed / bandwidth,
            }
        )
    return found


def _copies(original: Any, size: int, make: Callable[[], Any]) -> list[Any]:
    """As many more as fill more than the caches of a device; none on a CPU."""
    device = original.device if isinstance(original, Tensor) else next(original.buffers()).device
    wanted = min(MOST_COPIES, IN_TURN_BYTES // size) if device.type == "cuda" else 0
    return [make() for _ in range(wanted)]


def _int4(shape: tuple[int, int], device: torch.device) -> tuple[Callable[[Tensor], Tensor] | None, str | None]:
    """torch's own 4-bit product on CUDA, of one weight, or why this build or device does not do it."""
    try:
        levels = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, device=device)
        packed = torch.ops.aten._convert_weight_to_int4pack(levels, 8)
        scales = torch.ones(shape[1] // BLOCK, shape[0], 2, dtype=torch.bfloat16, device=device)
        call = torch.ops.aten._weight_int4pack_mm
        call(torch.ones(1, shape[1], dtype=torch.bfloat16, device=device), packed, BLOCK, scales)
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        return None, f"{type(error).__name__}: {error}".split(". ")[0]
    return (lambda x: call(x, packed, BLOCK, scales)), None


def _bandwidth(device: torch.device, seconds: float, toy: bool) -> float:
    """GB/s that a sum over a large array reads."""
    values = torch.ones(1 << (12 if toy else 28), device=device)
    return values.nbytes / _seconds([values.sum], device, seconds) / 1e9


def _seconds(calls: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> float:
    """Seconds of one of `calls`, which take turns: the best round. On CUDA a round is the replay of a graph."""
    for call in calls:
        call()  # compiled, and its configuration chosen
    turn: Callable[[], object] = lambda: [call() for call in calls]  # noqa: E731
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            turn()
        turn = graph.replay
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        started = _now(device)
        turn()
        best = min(best, _now(device) - started)
    return best / len(calls)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _hessian(width: int, generator: torch.Generator) -> Tensor:
    """Of correlated random inputs, [m, m], on the device of the generator."""
    accumulator = HessianAccumulator(width, generator.device)
    for _ in range(8):
        tokens = torch.randn(max(512, width // 4), width, generator=generator, device=generator.device)
        accumulator.add(tokens + tokens.roll(1, 1))
    return accumulator.hessian


def _stacks(rows: Sequence[int], width: int, methods: Sequence[str], device: torch.device) -> list[dict[str, Any]]:
    """Seconds of a stack beside those of its linears; both end with the same loss."""
    generator = torch.Generator(device).manual_seed(0)
    hessian, unseen = factor_hessian(_hessian(width, generator)), _hessian(width, generator)
    weights = [torch.randn(n, width, generator=generator, device=device) for n in rows]
    maps = [significance_map(each, torch.rand_like(each[0]), torch.rand_like(each[0])) for each in weights]
    found = []
    for method in methods:

        def together() -> list[LinearFit]:
            return fit_linears(weights, hessian, method, significances=maps, held_out=unseen)  # noqa: B023

        def apart() -> list[LinearFit]:
            each = zip(weights, maps, strict=True)
            fit = partial(fit_linear, hessian=hessian, method=method, held_out=unseen)  # noqa: B023
            return [fit(weight, significance=known) for weight, known in each]

        seconds, losses = {}, {}
        for name, fit in (("together", together), ("apart", apart)):
            fit()
            started = _now(device)
            losses[name] = [each.relative_loss for each in fit()]
            seconds[name] = _now(device) - started
        found.append({"method": method, "rows": list(rows), "width": width, "seconds": seconds, "losses": losses})
    return found


def _fits(shape: tuple[int, int], methods: Sequence[str], device: torch.device) -> list[dict[str, Any]]:
    """Seconds of whole fits, and of their first blocks how often the host was asked and kernels were launched."""
    rows, width = shape
    generator = torch.Generator(device).manual_seed(0)
    hessian, unseen = _hessian(width, generator), _hessian(width, generator)
    weight = torch.randn(rows, width, generator=generator, device=device)
    map_ = significance_map(weight, torch.rand_like(weight[0]), torch.rand_like(weight[0]))
    part = min(width, PROFILED_BLOCKS * BLOCK)
    first = weight[:, :part].contiguous()
    part_map = significance_map(first, torch.rand_like(first[0]), torch.rand_like(first[0]))
    found = []
    for method in methods:
        fit_first = partial(
            fit_linear,
            first,
            hessian[:part, :part],
            method,
            significance=part_map,
            held_out=unseen[:part, :part],
        )
        fit_first()  # what is compiled is compiled
        started = _now(device)
        loss = fit_linear(weight, hessian, method, significance=map_, held_out=unseen).relative_loss
        taken = _now(device) - started
        with _Asked() as asked:
            fit_first()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        with torch.profiler.profile(activities=kinds) as profile:
            fit_first()
            _now(device)
        events = Counter(event.name for event in profile.events())
        found.append(
            {
                "method": method,
                "shape": list(shape),
                "seconds": taken,
                "relative_loss": loss,
                "profiled_blocks": part // BLOCK,
                "asked": dict(asked.counts),
                "device_to_host_copies": sum(n for name, n in events.items() if name.startswith("Memcpy DtoH")),
                "launches": sum(n for name, n in events.items() if "LaunchKernel" in name),
                "most_time": [
                    {"operation": row.key, "calls": row.count, "milliseconds": row.self_device_time_total / 1e3}
                    for row in sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)[:8]
                ],
            }
        )
    return found


class _Asked(TorchDispatchMode):
    """Counts the operations for whose result the host waits."""

    WAITED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITED:
            self.counts[name] += 1
        elif name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.counts["index by a mask"] += 1
        return func(*args, **(kwargs or {}))


def _block(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A block's weight [rows, 128] and the factor of a Hessian of correlated inputs."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = torch.randn(8 * BLOCK, BLOCK, generator=generator, device=device)
    tokens = tokens + tokens.roll(1, 1)
    weight = torch.randn(rows, BLOCK, generator=generator, device=device)
    return weight, inverse_factor(dampen(tokens.T @ tokens))
