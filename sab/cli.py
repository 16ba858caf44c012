"""The command line: quantize, eval, compare, controls, causal, export, inspect, chat, bench, train-demo.

Human lines and progress go to stderr, one JSON object is the last line of stdout. Wrong input ends with exit
code 2 and one sentence on stderr; an interrupt ends with 130 and says what is kept. Modules that need
transformers are imported by the commands that use them, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.cli_answers import add_answer_commands
from sab.cli_bench import add_benches
from sab.cli_checkpoint import add_checkpoint_commands, run_summary, write_checkpoint
from sab.cli_estimate import dry_run
from sab.cli_maps import add_map_commands
from sab.errors import LostError, SabError, UnwrittenError
from sab.forms import FORMS
from sab.options import (
    add_maps,
    add_model,
    add_suite,
    asked_questions,
    load_dense,
    recipe_of_maps,
    write_result,
)
from sab.terminal import Parser, Progress, typed

if TYPE_CHECKING:
    from sab.library import RecipeFile
    from sab.models import LVLM
    from sab.recipes import Recipe
    from sab.runs import Run

BUDGET_BLOCK_SIZE = 256
REFINED = "refined"  # of an entry of `compare`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 for wrong input, 130 when interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            result = _run(given)
    except SabError as error:
        if isinstance(error, LostError) or os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(f"sab: {str(error).rstrip('.')}.", file=sys.stderr)
        if isinstance(error, UnwrittenError):
            _print(error.result)
        return 2
    except KeyboardInterrupt:
        print("\nsab: stopped; a run keeps its finished linears, add --resume to continue it.", file=sys.stderr)
        return 130
    _print(result)
    return 0


def _print(result: Mapping[str, Any]) -> None:
    from sab.files import without_nan

    print(json.dumps(without_nan(result), ensure_ascii=False, allow_nan=False))


def _run(given: list[str]) -> Mapping[str, Any]:
    if given[:1] == ["train-demo"]:  # has its own options
        from sab.demo.train_command import train

        return train(given[1:])
    options = _parser().parse_args(given)
    options.typed = typed(_parser(), given)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.run is not _quantize:
        raise SabError("Only quantize works with several processes; start this command without torchrun.")
    _quiet_transformers()
    return options.run(options)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m sab", description="Binarize vision-language models and look at what it does to them."
    )
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    quantize = commands.add_parser("quantize", help="binarize a model and write a run")
    quantize.set_defaults(run=_quantize)
    add_model(quantize, "folder or Hugging Face id; the embedded model when left out")
    _add_recipe(quantize)
    quantize.add_argument("--method", default="sab", help="sab-h@2.0 is sab-h within 2.0 stored bits a weight")
    quantize.add_argument(
        "--refine", type=int, help="epochs of refining scales and bits block by block; the method's own if left out"
    )
    quantize.add_argument(
        "--recipe", type=Path, help="a run's recipe.json, instead of the options that describe a recipe"
    )
    quantize.add_argument("--out", type=Path, help="directory of the run")
    quantize.add_argument("--resume", action="store_true", help="continue the run in --out")
    quantize.add_argument(
        "--stream",
        choices=("auto", "yes", "no"),
        default="auto",
        help="one block on the device at a time, read from the files; auto: if it has too little room",
    )
    quantize.add_argument(
        "--export",
        choices=(*FORMS, "none"),
        default="packed",
        help="checkpoint to write when done: packed (to --out/checkpoint), dense (to --out/dense) or none",
    )
    quantize.add_argument(
        "--dry-run", action="store_true", help="estimate bits, disk, memory and time from the configuration, and stop"
    )

    add_answer_commands(commands)

    compare = commands.add_parser("compare", help="several methods on one model, as a table")
    compare.set_defaults(run=_compare)
    add_model(compare, "folder or Hugging Face id; the embedded model when left out")
    _add_recipe(compare)
    add_suite(compare)
    compare.add_argument(
        "--methods",
        default="full,gptq4,sab,arb-rc-cgb,billm,xnor",
        help="comma-separated; sab-h@2.0 has a budget of bits, sab+fisher a map that differs from row to row, "
        "sab+refined the refinement of blocks that sab-h has",
    )
    compare.add_argument("--seeds", type=int, default=1, help="calibration seeds, from --seed on")
    compare.add_argument("--out", type=Path, help="keep the runs below this directory; a stopped comparison goes on")
    compare.add_argument("--table", type=Path, help="write the table to this JSON file as well")
    compare.add_argument(
        "--extend", type=Path, help="a table of the same setting, whose rows of other methods are taken over"
    )

    add_map_commands(commands)

    add_checkpoint_commands(commands)

    bench = commands.add_parser("bench", help="speed beside a plain reference, in the same run")
    add_benches(bench.add_subparsers(required=True, metavar="what", parser_class=Parser))

    commands.add_parser("train-demo", help="train the embedded model (its own options: train-demo --help)")
    return parser


def _add_recipe(parser: Parser) -> None:
    add_maps(parser)
    parser.add_argument("--iterations", type=int, default=15, help="alternating rounds")
    parser.add_argument("--beta", type=float, help="weight of the vision Hessian; the token share when left out")
    parser.add_argument("--compensation", help="exact, lineage or none; exact when left out")
    parser.add_argument("--literature", action="store_true", help="as the papers do: lineage compensation, beta 0")
    parser.add_argument("--max-salient", type=int, default=49, help="salient columns per block at most")
    parser.add_argument("--emphasis", default="constant", help="constant or ramp")
    parser.add_argument("--block-size", type=int, help="128, or 256 within a budget: row scales cost half there")
    parser.add_argument("--keep", default="magnitude", help="what pb-llm keeps weights by: magnitude or hessian")
    parser.add_argument("--parts", default="decoder", help="comma-separated: decoder, projector, vision")
    parser.add_argument("--linears", help="comma-separated names; all of the parts when left out")


def _recipe(options: argparse.Namespace, entry: str) -> Recipe:
    """The recipe of an entry (`sab`, `sab-h@2.0`, `sab+fisher`, `sab+refined`) under the command's options."""
    from sab.binarizers import METHODS
    from sab.recipes import Recipe, method_and_budget

    beta, compensation = options.beta, options.compensation
    if options.literature:
        if beta not in (None, 0.0) or compensation not in (None, "lineage"):
            raise SabError("--literature means lineage compensation and beta 0; leave --compensation and --beta out.")
        beta, compensation = 0.0, "lineage"
    entry, *extras = entry.split("+")
    method, bits = method_and_budget(entry)
    refine = getattr(options, "refine", None)
    if REFINED in extras:
        extras.remove(REFINED)
        refine = METHODS["sab-h"].refine
    if len(extras) > 1:
        raise SabError(f"{entry}+{'+'.join(extras)} names two maps; choose one.")
    block_size = Recipe.block_size if bits is None else BUDGET_BLOCK_SIZE
    maps = recipe_of_maps(options)
    recipe = replace(
        maps,
        model=_named(options.model),
        method=method,
        search=Recipe.search if bits is None else "budget",
        bits=bits,
        refine=refine,
        sensitivity=extras[0] if extras else maps.sensitivity,
        iterations=options.iterations,
        parts=_parts(options),
        linears=None if options.linears is None else tuple(options.linears.split(",")),
        beta=beta,
        compensation=Recipe.compensation if compensation is None else compensation,
        max_salient=options.max_salient,
        emphasis=options.emphasis,
        block_size=block_size if options.block_size is None else options.block_size,
        keep=options.keep,
    )
    recipe.validate()
    return recipe


def _given_recipe(options: argparse.Namespace) -> RecipeFile:
    """What the file of --recipe holds, for the model that is named if one is."""
    from sab.library import read_recipe

    beside = {"model", "recipe", "out", "resume", "dry_run", "device", "dtype", "stream", "export"}
    for name in sorted(options.typed - beside):
        raise SabError(f"--recipe says everything; leave --{name.replace('_', '-')} out.")
    found = read_recipe(options.recipe)
    if options.model is None:
        return found
    return replace(found, recipe=replace(found.recipe, model=_named(options.model)))


def _named(model: str | None) -> str | None:
    """How a recipe names a model: a folder by its whole path."""
    return str(Path(model).resolve()) if model and Path(model).exists() else model


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    from sab.parts import in_forward_order

    return in_forward_order(part.strip() for part in options.parts.split(","))


def _quantize(options: argparse.Namespace) -> dict[str, Any]:
    from sab import distributed

    if not distributed.launched():
        return _quantize_with(options, Progress())
    with distributed.joined(options.device) as options.device:
        leads = distributed.leads()
        if not leads:
            warnings.simplefilter("ignore")  # the process that leads says it
        result = _quantize_with(options, Progress() if leads else Progress(StringIO()))
    if not leads:
        raise SystemExit(0)
    return result


def _quantize_with(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from sab import distributed
    from sab.library import RecipeFile

    given = _given_recipe(options) if options.recipe else RecipeFile(_recipe(options, options.method), None)
    recipe = given.recipe
    if options.dry_run:
        return dry_run(options, recipe, progress)
    if options.out is None:
        raise SabError("--out is missing; name a directory for the run.")
    if distributed.leads() and (options.out / "recipe.json").exists() and not options.resume:
        raise SabError(f"{options.out} holds a run already; add --resume to continue it, or name another one.")
    from sab import calibration
    from sab.sequential import chosen_linears, quantize

    streamed = {"auto": None, "yes": True, "no": False}[options.stream]
    lvlm = load_dense(options, recipe.model, streamed)
    if given.fingerprint not in (None, lvlm.fingerprint):
        raise SabError(f"{options.recipe} was made for other weights than those of {lvlm.source}; name their model.")
    names = chosen_linears(lvlm, recipe)
    progress.say(f"{recipe.model or lvlm.source}: {len(names)} linears by {recipe.method}, {recipe.samples} samples")
    if lvlm.streamed is not None:
        progress.say("streamed: the weights stay in their files, one decoder block at a time is in memory")
    shared: dict[str, Any] = {}
    if given.samples is not None:
        samples = calibration.choose(recipe.calibration, recipe.samples, recipe.seed, recipe.split)
        if samples.fingerprint != given.samples:
            progress.say("sab: the calibration samples are not those of the recipe's own run; the codes will differ.")
        shared["samples"] = samples
    if not distributed.leads():
        for _ in quantize(lvlm, recipe, options.out, **shared):
            pass
        return {}
    run = _binarize(lvlm, recipe, options.out, progress, **shared)
    written = {} if options.export == "none" else write_checkpoint(lvlm, run, None, options.export, progress)
    return run_summary(run) | written


def _binarize(lvlm: LVLM, recipe: Recipe, directory: Path, progress: Progress, **shared: Any) -> Run:
    from sab.runs import Run
    from sab.sequential import quantize

    def before(stage: str, share: float) -> None:
        if stage not in lvlm.linears and not stage.startswith("block"):  # those are heard of as reports
            progress(stage, share)

    started = time.monotonic()
    for report in quantize(lvlm, recipe, directory, progress=before, **shared):
        progress(recipe.method, report.done / report.total, report.eta_seconds)
    run = Run.open(directory)
    progress.say(
        f"{recipe.method}: {run.bits_all_in:.2f} bits all-in ({run.bits_nominal:.2f} nominal), "
        f"{run.bytes / 1e6:.2f} MB, {time.monotonic() - started:.0f} s"
    )
    if noted := run.header.get("calibration"):
        tokens = [f"{noted[key]:,} {key[7:]} tokens" for key in ("tokens_language", "tokens_vision") if key in noted]
        progress.say(
            f"calibrated on {noted['source']}: {noted['samples']} samples, {noted['with_picture']} with a picture"
            + (f", {noted['skipped']} skipped" if noted["skipped"] else "")
            + "".join(f", {part}" for part in tokens)
        )
    return run


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack
    from functools import partial
    from tempfile import TemporaryDirectory

    from sab.binarizers import METHODS
    from sab.compare import CONTROL, check_same, compare, extended, identity_of, read_table
    from sab.files import check_writable, make_directory, write_json

    entries = [entry.strip() for entry in options.methods.split(",") if entry.strip()]
    if not entries:
        raise SabError(f"--methods is empty; choose from full, {', '.join(METHODS)}.")
    if options.seeds < 1:
        raise SabError("--seeds must be at least 1.")
    recipes = {entry: _recipe(options, entry) for entry in entries if entry != "full"}
    asked = asked_questions(options)
    earlier = read_table(options.extend) if options.extend is not None else None
    if options.table is not None:
        check_writable(options.table, "--table")
    if options.out is not None:
        make_directory(options.out)
    full = load_dense(options, options.model)
    shared = _recipe(options, CONTROL)
    head = {
        "model": options.model or "embedded",
        "fingerprint": full.fingerprint,
        "suite": options.suite,
        "questions": len(asked),
        "identity": identity_of(asked),
        "seeds": options.seeds,
        "samples": shared.samples,
        "calibration": shared.calibration,
        "recipe": {name: value for name, value in shared.to_json().items() if name not in ("model", "method")},
        "literature": options.literature,
    }
    if earlier is not None:
        check_same(head, earlier)
    progress = Progress()
    with ExitStack() as stack:
        where = options.out or Path(stack.enter_context(TemporaryDirectory(prefix="sab-compare-")))
        found = compare(
            full,
            recipes,
            asked,
            options.suite,
            range(options.seed, options.seed + options.seeds),
            where,
            partial(_binarize, progress=progress),
            options.batch_size,
            progress,
        )
    progress.end()
    rows = [row for row in found["rows"] if row["entry"] in entries]
    for row in rows:
        low, high = row["interval"]["overall"]
        kl = f"KL {row['divergence']['kl']:.3f}" if "divergence" in row else ""
        progress.say(
            f"{row['label']:16s} {100 * row['accuracy']['overall']:5.1f} % ({100 * low:.0f}–{100 * high:.0f})  "
            f"{row['bits_nominal']:.2f} bits nominal, {row['bits_all_in']:.2f} all-in  {kl}"
        )
    for entry in found["gaps"]:
        low, high = entry["accuracy"]["interval"]
        progress.say(
            f"{entry['first']} against {entry['second']}: {100 * entry['accuracy']['value']:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f}), KL {entry['kl']['value']:+.4f}"
        )
    result = {**head, "rows": rows, "gaps": found["gaps"]}
    if earlier is not None:
        result = extended(result, earlier)
    if options.table is not None:
        write_result(result, lambda: write_json(options.table, result))
    return result


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning) and not issubclass(category, FutureWarning | DeprecationWarning):
        print(f"sab: {message}", file=sys.stderr)


def _quiet_transformers() -> None:
    """Our own lines say what matters; progress bars of weight loading would sit between them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
