"""Packed linears beside dense ones, in the same run: `python -m sab bench kernels`.

Weights are random codes of SAB's format (two planes, row and column scales, 7 % salient columns) and, at one shape,
of the formats of other methods. Contenders take turns, so that a neighbour on the machine slows all of them; the
figure of each is the best of its turns. Bandwidth is what one pass over a large array reaches on the same threads.
`clock="cpu"` counts the seconds the thread itself ran, for one thread on a machine that is shared.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sab.binarizers.codes import BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.errors import SabError
from sab.kernels import cpu
from sab.packed import PackedLinear
from sab.progress import Listener, silent

SHAPES = ((2048, 2048), (4096, 4096), (11008, 4096), (18944, 3584))
BATCHES = (1, 4, 16, 64, 512)
QUICK = (((2048, 2048), (4096, 4096)), (1, 64))
FORMATS_AT = ((4096, 4096), (1, 64))  # shape and batches of the formats of other methods
BLOCK = 128
SALIENT = 9  # columns of a block
KEPT = 0.1  # of the weights, in PB-LLM's format
INT4_GROUP = 128
INT4_TOKENS = 64  # beyond that torch's 4-bit kernel takes seconds
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
DECODER = SimpleNamespace(hidden=2048, inner=8192, heads=32, blocks=16)  # about a billion weights
NEW_TOKENS = 8
EMBEDDED_QUESTIONS = 20


@torch.no_grad()
def kernels(
    quick: bool = False,
    seconds: float = 0.5,
    clock: str = "wall",
    decoder_blocks: int | None = None,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Milliseconds per case, ratios to bfloat16 and float32 `F.linear`, share of the bandwidth, tokens a second.

    `seconds`: for each contender of a case. SabError where the C kernel is missing, or for the CPU clock with
    several threads.
    """
    if clock not in CLOCKS:
        raise SabError(f"--clock is {clock!r}; choose wall or cpu")
    if clock == "cpu" and torch.get_num_threads() > 1:
        raise SabError("--clock cpu counts one thread; set OMP_NUM_THREADS=1")
    if not 0 < seconds < float("inf"):
        raise SabError(f"--seconds is {seconds:g}; give the seconds that each contender may take")
    tell = progress or silent
    shapes, batches = QUICK if quick else (SHAPES, BATCHES)
    now = CLOCKS[clock]
    bandwidth = _bandwidth(seconds, now)
    cases: list[dict[str, Any]] = []
    for number, shape in enumerate(shapes):
        tell(f"{shape[0]} x {shape[1]}", number / len(shapes))
        cases += _cases(random_codes(*shape), batches, seconds, now, bandwidth)
    for codes in random_formats(*FORMATS_AT[0]):
        tell(codes.method, 1 - 1 / len(shapes))
        cases += _cases(codes, FORMATS_AT[1], seconds, now, bandwidth)
    tell("decoder and embedded model", 1 - 1 / len(shapes))
    blocks = decoder_blocks or (2 if quick else DECODER.blocks)
    return {
        "bench": "kernels",
        "threads": torch.get_num_threads(),
        "clock": clock,
        "bandwidth_gb_s": bandwidth,
        "cases": cases,
        "decoder": decoder(blocks, now),
        "embedded": embedded(EMBEDDED_QUESTIONS),
    }


def embedded(limit: int) -> dict[str, Any]:
    """Tokens a second of the embedded model answering `limit` questions by the shipped run of SAB: its dequantized
    weights in float32 against its bits, on the wall clock (bench_answers.py)."""
    from sab import bench_answers, models
    from sab.demo.suite import questions
    from sab.runs import ASSET_RUNS, Run

    found = bench_answers.answers(models.load(), [Run.open(ASSET_RUNS / "sab")], questions("final", limit))
    speeds = found["runs"][0]["tokens_per_second"]
    ratios = {f"ratio_{mode}": speeds[mode] / speeds[bench_answers.DEQUANTIZED] for mode in cpu.MODES}
    return {"run": "sab", "questions": limit, "tokens_per_second": speeds, **ratios}


def random_codes(rows: int, width: int, seed: int = 0) -> BinaryCodes:
    """Codes in SAB's format, `SALIENT` salient columns in every block of 128."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-width // BLOCK)
    salient = (torch.arange(width) % BLOCK) % (BLOCK // SALIENT) == 1
    salient &= (torch.arange(width) % BLOCK) < SALIENT * (BLOCK // SALIENT)
    count = int(salient.sum())

    def bits(*size: int) -> Tensor:
        return torch.randint(0, 2, size, generator=generator, dtype=torch.uint8).bool()

    def scales(*size: int) -> Tensor:
        return (0.5 + torch.rand(*size, generator=generator)).half()

    return BinaryCodes(
        method="sab",
        shape=(rows, width),
        block_size=BLOCK,
        first=bits(rows, width),
        group=bits(rows, width),
        salient=salient,
        second=bits(rows, count),
        row_scale=scales(4, blocks, rows) * 0.02,
        second_row_scale=scales(2, blocks, rows) * 0.01,
        column_scale=scales(2, width),
        second_column_scale=scales(2, count),
    )


def random_formats(rows: int, width: int, seed: int = 0) -> list[LinearCodes]:
    """Codes in the formats of BiLLM (row means, three row scales), PB-LLM (a tenth of the weights kept) and GPTQ-3."""
    generator = torch.Generator().manual_seed(seed)
    sab = random_codes(rows, width, seed)
    kept = torch.rand(rows, width, generator=generator) < KEPT
    levels = torch.randint(0, 256, (rows, width), generator=generator).to(torch.uint8)
    of_row = sab.row_scale[0, 0]
    return [
        replace(
            sab,
            method="billm",
            row_scale=sab.row_scale[:3],
            row_mean=sab.row_scale[:3] / 8,
            second_row_scale=sab.second_row_scale[:1],
            group=None if sab.group is None else sab.group & ~sab.salient,
            column_scale=None,
            second_column_scale=None,
        ),
        KeptCodes(
            method="pb-llm",
            shape=sab.shape,
            block_size=BLOCK,
            first=sab.first & ~kept,
            levels=levels * kept,
            kept=kept,
            row_mean=of_row / 8,
            row_scale=of_row,
            kept_scale=of_row / 64,
            kept_zero=torch.full((rows,), 128, dtype=torch.uint8),
        ),
        IntegerCodes(
            method="gptq3",
            shape=sab.shape,
            block_size=BLOCK,
            bits=3,
            levels=levels % 8,
            scale=sab.row_scale[0],
            zero=torch.full_like(sab.row_scale[0], 4, dtype=torch.uint8),
        ),
    ]


def _cases(
    codes: LinearCodes, batches: tuple[int, ...], seconds: float, now: Callable[[], float], bandwidth: float
) -> list[dict[str, Any]]:
    shape = codes.shape
    dense = codes.dense()
    short = dense.bfloat16()
    packed = PackedLinear(codes)
    if packed.kernel == "reference":
        raise SabError("there is no C kernel to measure; install a C compiler or unset SAB_KERNEL")
    int4, missing = _int4(dense)
    found = []
    for batch in batches:
        x = torch.randn(batch, shape[1], generator=torch.Generator().manual_seed(1))
        half = x.bfloat16()
        contenders: dict[str, Callable[[], Tensor]] = {
            "bf16": lambda: nn.functional.linear(half, short),  # noqa: B023
            "fp32": lambda: nn.functional.linear(x, dense),  # noqa: B023
            "exact": lambda: _in(packed, "exact", half),  # noqa: B023
            "fast": lambda: _in(packed, "fast", half),  # noqa: B023
        }
        if int4 is not None and batch <= INT4_TOKENS:
            contenders["int4"] = lambda: int4(half)  # noqa: B023
        best = _best(contenders, seconds, now)
        exact = contenders["fp32"]()
        for mode in ("exact", "fast"):
            packed.set_mode(mode)
            error = (contenders[mode]().float() - exact).norm() / exact.norm()
            speed = packed.resident_bytes / best[mode] / 1e9
            found.append(
                {
                    "method": codes.method,
                    "shape": list(shape),
                    "batch": batch,
                    "mode": mode,
                    "kernel": packed.kernel_for(batch, half.dtype),
                    "bits_per_weight": 8 * packed.resident_bytes / (shape[0] * shape[1]),
                    "milliseconds": {name: 1e3 * value for name, value in best.items() if name not in ("exact", "fast")}
                    | {"packed": 1e3 * best[mode]},
                    "ratio_vs_bf16": best["bf16"] / best[mode],
                    "ratio_vs_fp32": best["fp32"] / best[mode],
                    "ratio_vs_int4": best["int4"] / best[mode] if "int4" in best else None,
                    "int4_missing": missing,
                    "gb_s": speed,
                    "bandwidth_share": speed / bandwidth,
                    "relative_error": float(error),
                }
            )
    return found


def _in(packed: PackedLinear, mode: str, x: Tensor) -> Tensor:
    packed.set_mode(mode)
    return packed(x)


def _best(contenders: dict[str, Callable[[], Tensor]], seconds: float, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of each contender: the best of turns taken round about, at least three."""
    for call in contenders.values():
        call()
    best = dict.fromkeys(contenders, float("inf"))
    end, turns = time.perf_counter() + seconds * len(contenders), 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        for name, call in contenders.items():
            call()  # its own weights are in whatever cache holds them
            started = now()
            call()
            best[name] = min(best[name], now() - started)
    return best


def _int4(dense: Tensor) -> tuple[Callable[[Tensor], Tensor] | None, str | None]:
    """torch's own 4-bit product on the CPU, or why this build or processor does not do it."""
    try:
        rows, width = dense.shape
        levels = torch.randint(0, 16, (rows, width), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        scales = torch.ones(width // INT4_GROUP, rows, 2, dtype=torch.bfloat16)
        call = torch.ops.aten._weight_int4pack_mm_for_cpu
        call(dense[:1].bfloat16(), packed, INT4_GROUP, scales)
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return (lambda x: call(x, packed, INT4_GROUP, scales)), None


def _bandwidth(seconds: float, now: Callable[[], float]) -> float:
    """GB/s that the sum of 256 MB reads."""
    values = torch.ones(1 << 26)
    best = _best({"sum": values.sum}, seconds, now)["sum"]
    return values.numel() * values.element_size() / best / 1e9


class _Block(nn.Module):
    """The linears of a decoder block with the attention of one new token over a short cache."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        width, inner = DECODER.hidden, DECODER.inner
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.attention = nn.ModuleList(make(width, width) for _ in range(4))
        self.gate, self.up, self.down = make(inner, width), make(inner, width), make(width, inner)

    def forward(self, x: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        query, key, value, output = self.attention
        seen = self.norms[0](x)
        cache.append((key(seen), value(seen)))

        def heads(values: Tensor) -> Tensor:
            return values.reshape(-1, DECODER.heads, DECODER.hidden // DECODER.heads).transpose(0, 1)

        keys, values = (heads(torch.cat([entry[part] for entry in cache])) for part in (0, 1))
        mixed = nn.functional.scaled_dot_product_attention(heads(query(seen)), keys, values)
        x = x + output(mixed.transpose(0, 1).reshape(1, -1))
        seen = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(seen)) * self.up(seen))


def decoder(
    blocks: int, now: Callable[[], float], modes: tuple[str, ...] = cpu.MODES, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Tokens a second of a random decoder with a key-value cache, bfloat16 against packed, and the bytes of both.

    Packed linears of one shape share their random codes' values, not their memory.
    """

    def dense(rows: int, width: int) -> nn.Module:
        return nn.Linear(width, rows, bias=False)

    def packed(rows: int, width: int) -> nn.Module:
        return PackedLinear(random_codes(rows, width), device=device, dtype=torch.bfloat16)

    found: dict[str, Any] = {"blocks": blocks, "new_tokens": NEW_TOKENS}
    for name, make in (("bf16", dense), ("packed", packed)):
        stack = nn.ModuleList(_Block(make) for _ in range(blocks)).to(device, torch.bfloat16)
        linears = [part for part in stack.modules() if isinstance(part, nn.Linear | PackedLinear)]
        found[f"{name}_bytes"] = sum(
            values.nbytes for part in linears for values in (*part.parameters(), *part.buffers())
        )
        for mode in modes if name == "packed" else ("",):
            for part in linears:
                if isinstance(part, PackedLinear):
                    part.set_mode(mode)
            speeds = []
            for _ in range(2):
                caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in stack]
                x = torch.randn(1, DECODER.hidden, generator=torch.Generator().manual_seed(0))
                x = x.to(device, torch.bfloat16)
                started = now()
                for _ in range(NEW_TOKENS):
                    for block, cache in zip(stack, caches, strict=True):
                        x = block(x, cache)
                speeds.append(NEW_TOKENS / (now() - started))
            found[f"{name}_{mode}_tokens_s" if mode else f"{name}_tokens_s"] = max(speeds)
        del stack, linears
    for mode in modes:
        found[f"ratio_{mode}"] = found[f"packed_{mode}_tokens_s"] / found["bf16_tokens_s"]
    return found
