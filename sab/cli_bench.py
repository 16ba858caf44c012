"""The commands `python -m sab bench …`: how fast, each beside a peer or a goal in the same run."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from sab.errors import SabError
from sab.options import brought, suite_questions
from sab.terminal import Parser, Progress

ANSWERED = ("sab", "sab-h", "xnor", "pb-llm")  # shipped runs that `answers` asks, one a format


def add_benches(benches: argparse._SubParsersAction[Parser]) -> None:
    """Every bench with its options."""
    pipeline = benches.add_parser(
        "pipeline", help="search and fit beside a plain loop; whole blocks beside a plain forward pass"
    )
    pipeline.set_defaults(run=_pipeline)
    pipeline.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    pipeline.add_argument("--blocks", type=int, default=2, help="blocks of 128 columns to time")
    pipeline.add_argument(
        "--shapes", default="embedded,1b", help="decoders to run whole, comma-separated: embedded, 1b, 7b; or none"
    )
    pipeline.add_argument("--method", default="sab", help="by which decoder blocks are binarized")
    pipeline.add_argument("--stack-blocks", type=int, default=2, help="decoder blocks of the random stacks")
    pipeline.add_argument("--tokens", type=int, help="of each modality in a random stack; what is advised if left out")
    pipeline.add_argument("--device", help="of the decoders: cpu, cuda, cuda:1 …")

    page = benches.add_parser("ui", help="tiles, counts and frames of the page's Explore tab")
    page.set_defaults(run=_ui)
    again = benches.add_parser("rerun", help="Binarize's rerun of one layer on the embedded model")
    again.set_defaults(run=_rerun)
    again.add_argument("--samples", type=int, default=512, help="calibration dialogues")
    page.add_argument("--rows", type=int, default=4096, help="of the synthetic layer")
    page.add_argument("--columns", type=int, default=11008)
    page.add_argument("--repeats", type=int, default=60, help="measurements of each kind")

    talk = benches.add_parser("chat", help="both sides of a chat answering at once: first token, tokens a second")
    talk.set_defaults(run=_chat)
    talk.add_argument("directory", type=Path, nargs="?", help="a run (default: the shipped one of sab)")
    talk.add_argument("--limit", type=int, default=12, help="questions to ask")

    kernels = benches.add_parser("kernels", help="packed linears against bfloat16, float32 and torch's 4-bit kernel")
    kernels.set_defaults(run=_kernels)
    kernels.add_argument("--quick", action="store_true", help="two shapes, two batches, a small decoder")
    kernels.add_argument("--seconds", type=float, default=0.5, help="for each contender of a case")
    kernels.add_argument("--clock", default="wall", help="wall, or cpu for one thread on a machine that is shared")

    bits = benches.add_parser("answers", help="runs that answer from their bits, beside their dequantized weights")
    bits.set_defaults(run=_answers)
    bits.add_argument("directories", type=Path, nargs="*", help=f"runs (default: the shipped {', '.join(ANSWERED)})")
    bits.add_argument("--limit", type=int, default=50, help="questions to ask")

    device = benches.add_parser("gpu", help="what only a GPU can show: kernels against their oracles, times, profiles")
    device.set_defaults(run=_gpu)
    device.add_argument("--toy", action="store_true", help="tiny sizes, without a GPU in Triton's interpreter")
    device.add_argument("--seconds", type=float, default=0.5, help="for each time that is taken")


def _pipeline(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench
    from sab.bench_stack import SHAPES, stack

    progress = Progress()
    shapes = [] if options.shapes == "none" else [shape.strip() for shape in options.shapes.split(",")]
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown:
        raise SabError(f"--shapes names {unknown[0]!r}; choose from {', '.join(SHAPES)}, or none.")
    found = bench.pipeline(options.size, options.blocks, progress=progress)
    for name, seconds in found["seconds_per_block"].items():
        progress.say(f"{name:8s} {seconds:8.3f} s per block of {options.size} rows, loss {found['losses'][name]:.6f}")
    progress.say(f"{found['ratio']:.1f} times as fast, on {found['threads']} threads")
    stacks = []
    for shape in shapes:
        measured = stack(shape, options.method, options.stack_blocks, options.tokens, options.device, progress=progress)
        progress.end()
        _say_stack(progress, measured)
        stacks.append(measured)
    return found | {"stacks": stacks}


def _say_stack(progress: Progress, measured: dict[str, Any]) -> None:
    tokens = ", ".join(f"{number:,} {name}" for name, number in measured["tokens"].items())
    progress.say(
        f"{measured['shape']}: {measured['blocks']} of {measured['layers_of_the_model']} decoder blocks by "
        f"{measured['method']} on {measured['device']} ({measured['dtype']}, {measured['threads']} threads), "
        f"{tokens} tokens"
    )
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in measured["stages_seconds_per_block"].items())
    peaks = [measured[key] for key in ("pipeline_peak_bytes", "forward_peak_bytes")]
    memory = "" if None in peaks else f"; peak {peaks[0] / 1e6:,.0f} MB beside {peaks[1] / 1e6:,.0f}"
    progress.say(
        f"  {measured['pipeline_seconds_per_block']:.2f} s per block ({stages}), a forward pass "
        f"{measured['forward_seconds_per_block']:.2f}: {measured['ratio']:.1f} times{memory}"
    )
    progress.say(
        f"  all {measured['layers_of_the_model']} blocks at this pace: "
        f"{measured['pipeline_seconds_of_all_blocks'] / 60:.1f} min"
    )


def _chat(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_chat, models
    from sab.runs import ASSET_RUNS, Run

    run = Run.open(options.directory or ASSET_RUNS / "sab")
    full = models.load(brought(run.recipe.model))
    simulated = full.copy()
    run.apply(simulated)
    progress = Progress()
    found = bench_chat.chat(full, simulated, suite_questions("final", options.limit), progress)
    for side, name in (("left", "Full precision"), ("right", f"{run.name}, simulated")):
        progress.say(
            f"{name}: first token after {found['first_token_seconds'][side]:.2f} s, "
            f"{found['tokens_per_second'][side]:.0f} tokens/s"
        )
    progress.say(f"both at once on {found['cores']} cores; load {found['load'][0]:.1f} to {found['load'][1]:.1f}")
    return found | {"run": run.id}


def _answers(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_answers, models
    from sab.runs import ASSET_RUNS, Run

    runs = [Run.open(path) for path in options.directories or [ASSET_RUNS / name for name in ANSWERED]]
    if len({run.recipe.model for run in runs}) != 1:
        raise SabError("The runs are of different models; name those of one.")
    progress = Progress()
    full = models.load(brought(runs[0].recipe.model))
    found = bench_answers.answers(full, runs, suite_questions("final", options.limit), progress)
    progress.end()
    for run in found["runs"]:
        speeds = ", ".join(f"{side} {value:.0f}" for side, value in run["tokens_per_second"].items())
        same = ", ".join(f"{mode} {100 * share:.0f} %" for mode, share in run["same_answers"].items())
        progress.say(
            f"{run['run']}: same answers {same}; tokens/s {speeds}; "
            f"{run['dense_bytes'] / run['packed_bytes']:.1f} times smaller ({next(iter(run['kernels']['exact']))})"
        )
    return found


def _page_bench() -> Any:
    """The benches of the page, by name: the pipeline knows nothing of the page."""
    try:
        return importlib.import_module("viz.bench")
    except ModuleNotFoundError as error:
        raise SabError(
            f"The page is not installed here ({error.name} is missing); run this from the project's folder, with "
            "requirements.txt installed."
        ) from error


def _rerun(options: argparse.Namespace) -> dict[str, Any]:
    bench, progress = _page_bench(), Progress()
    found: dict[str, Any] = bench.rerun(samples=options.samples, progress=progress)
    progress.end()
    progress.say(f"prepared in {found['prepare_seconds']:.1f} s while nobody waits; load {found['load']:.1f}")
    for method, seconds in found["seconds"].items():
        progress.say(f"{method:12s} {seconds:.2f} s for the slowest of three layers")
    return found


def _ui(options: argparse.Namespace) -> dict[str, Any]:
    bench, progress = _page_bench(), Progress()
    found: dict[str, Any] = bench.ui(options.rows, options.columns, options.repeats, progress=progress)
    for name, goal in found["goals_p95"].items():
        if found[name] is None:
            progress.say(f"{name:12s} not measured: {found['browser']}")
        else:
            progress.say(f"{name:12s} p50 {found[name]['p50']:9.4g}  p95 {found[name]['p95']:9.4g}  (goal {goal:g})")
    progress.say(f"exact_ms     p50 {found['exact_ms']['p50']:9.4g}  p95 {found['exact_ms']['p95']:9.4g}")
    return found


def _kernels(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_kernels

    progress = Progress()
    found = bench_kernels.kernels(options.quick, options.seconds, options.clock, progress=progress)
    for case in found["cases"]:
        times = ", ".join(f"{name} {value:.2f}" for name, value in case["milliseconds"].items())
        progress.say(
            f"{case['method']:6s} {case['shape'][0]:5d} x {case['shape'][1]:<5d} batch {case['batch']:<3d} "
            f"{case['kernel']:29s} {case['ratio_vs_bf16']:5.2f} times bf16, "
            f"error {100 * case['relative_error']:.2f} %; ms: {times}"
        )
    made = found["decoder"]
    progress.say(
        f"decoder of {made['blocks']} blocks: {made['ratio_exact']:.2f} (exact) and {made['ratio_fast']:.2f} (fast) "
        f"times the tokens a second of bf16, {made['bf16_bytes'] / made['packed_bytes']:.1f} times smaller"
    )
    spoken = found["embedded"]
    speeds = ", ".join(f"{side} {speed:.0f}" for side, speed in spoken["tokens_per_second"].items())
    progress.say(f"embedded model, tokens/s: {speeds}")
    return found


def _gpu(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_gpu

    progress = Progress()
    found = bench_gpu.bench(options.toy, options.seconds, progress=progress)
    progress.end()
    worst = max(found["agreement"], key=lambda case: case["relative_error"])
    progress.say(
        f"{len(found['agreement'])} products agree with the reference on {found['device']}; the worst is off by "
        f"{worst['relative_error']:.2g} ({worst['format']}, {worst['dtype']})"
    )
    for walk in found["walk"]:
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in walk["milliseconds"].items())
        progress.say(f"walk {walk['rule']}: {walk['differ']} values differ; {times}")
    for case in found["cases"]:
        progress.say(
            f"{case['shape'][0]:5d} x {case['shape'][1]:<5d} batch {case['batch']:<3d} "
            f"{case['ratio_vs_bf16']:5.2f} times bf16, {case['gb_s']:.0f} GB/s"
        )
    for fit in found["fits"]:
        asked = sum(fit["asked"].values())
        progress.say(
            f"{fit['method']:8s} {fit['shape'][0]} x {fit['shape'][1]}: {fit['seconds']:.2f} s; "
            f"{fit['profiled_blocks']} blocks ask the host {asked} times, {fit['device_to_host_copies']} copies, "
            f"{fit['launches']} launches"
        )
    for stack in found["stacks"]:
        rows, seconds = " + ".join(map(str, stack["rows"])), stack["seconds"]
        progress.say(
            f"{stack['method']:8s} {rows} x {stack['width']}: {seconds['together']:.2f} s as one stack, "
            f"{seconds['apart']:.2f} s one by one"
        )
    return found
