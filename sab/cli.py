"""The command line: quantize, eval, compare, controls, causal, inspect, chat, bench, train-demo.

Human lines and progress go to stderr, one JSON object is the last line of stdout. Wrong input ends with exit
code 2 and one sentence on stderr; an interrupt ends with 130 and says what is kept. Modules that need
transformers are imported by the commands that use them, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from sab.errors import SabError

if TYPE_CHECKING:
    from sab.demo.suite import Question
    from sab.models import LVLM
    from sab.runs import Recipe, Run

# "demo" is another name of "final"; the last four are abilities beyond single questions (`sab.demo.suite.ABILITIES`).
SUITES = ("demo", "final", "tuning", "trained", "talk", "unknown", "strokes", "unrecognised")
PROGRESS_SECONDS = 2.0  # between progress lines in a log
BUDGET_BLOCK_SIZE = 256
TERMINAL_SECONDS = 0.2  # between redraws on a terminal


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise SabError(f"{message}; see python -m {self.prog} --help.")


class Progress:
    """Percent and remaining time of one piece of work, on a terminal in place, else a line now and then."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.stage = ""
        self.started = self.said = 0.0
        self.first = 0.0  # share at which the stage was met: a continued run does not start at 0
        self.width = 0

    def __call__(self, stage: str, share: float, left: float | None = None) -> None:
        """`share` in 0…1 of `stage`; `left` in seconds where the caller knows better than the clock."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started, self.first, self.said = stage, now, share, 0.0
        terminal = self.stream.isatty()
        if share < 1 and now - self.said < (TERMINAL_SECONDS if terminal else PROGRESS_SECONDS):
            return
        self.said = now
        gained = share - self.first
        if left is None and gained > 0:
            left = (now - self.started) * (1 - share) / gained
        remaining = f", {left // 60:.0f}:{left % 60:02.0f} left" if left is not None and share < 1 else ""
        line = f"{100 * share:3.0f} %  {stage}{remaining}"
        if terminal:
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line of its own."""
        self.end()
        self.stream.write(line + "\n")
        self.stream.flush()

    def end(self) -> None:
        """Leave the line that is being redrawn."""
        if self.width:
            self.stream.write("\n")
            self.width = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 for wrong input, 130 when interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            result = _run(given)
    except SabError as error:
        print(f"sab: {str(error).rstrip('.')}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsab: stopped; a run keeps its finished linears, add --resume to continue it.", file=sys.stderr)
        return 130
    from sab.runs import without_nan

    print(json.dumps(without_nan(result), ensure_ascii=False, allow_nan=False))
    return 0


def _run(given: list[str]) -> Mapping[str, Any]:
    if given[:1] == ["train-demo"]:  # has its own options
        from sab.demo.train import main as train

        return train(given[1:])
    options = _parser().parse_args(given)
    _quiet_transformers()
    return options.run(options)


def _parser() -> Parser:
    parser = Parser(prog="sab", description="Binarize vision-language models and look at what it does to them.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    quantize = commands.add_parser("quantize", help="binarize a model and write a run")
    quantize.set_defaults(run=_quantize)
    _add_model(quantize, "folder or Hugging Face id; the embedded model when left out")
    _add_recipe(quantize)
    quantize.add_argument("--method", default="sab", help="sab-h@2.0 is sab-h within 2.0 stored bits a weight")
    quantize.add_argument(
        "--refine", type=int, help="epochs of refining scales block by block; the method's own if left out"
    )
    quantize.add_argument(
        "--recipe", type=Path, help="a run's recipe.json, instead of the options that describe a recipe"
    )
    quantize.add_argument("--out", type=Path, required=True, help="directory of the run")
    quantize.add_argument("--resume", action="store_true", help="continue the run in --out")
    quantize.add_argument("--dry-run", action="store_true", help="say what would be done and stop")

    evaluate = commands.add_parser("eval", help="accuracy, blank-picture control, perplexity and speed")
    evaluate.set_defaults(run=_evaluate)
    _add_model(evaluate, "a model, or the directory of a run; the embedded model when left out")
    _add_suite(evaluate)

    compare = commands.add_parser("compare", help="several methods on one model, as a table")
    compare.set_defaults(run=_compare)
    _add_model(compare, "folder or Hugging Face id; the embedded model when left out")
    _add_recipe(compare)
    _add_suite(compare)
    compare.add_argument(
        "--methods",
        default="full,gptq4,sab,arb-rc-cgb,billm,xnor",
        help="comma-separated; sab-h@2.0 has a budget of bits, sab+fisher a map that differs from row to row",
    )
    compare.add_argument("--seeds", type=int, default=1, help="calibration seeds, from --seed on")
    compare.add_argument("--out", type=Path, help="keep the runs below this directory; a stopped comparison goes on")
    compare.add_argument("--table", type=Path, help="write the table to this JSON file as well")

    controls = commands.add_parser("controls", help="null and stability of the maps")
    controls.set_defaults(run=_controls)
    _add_model(controls, "folder or Hugging Face id; the embedded model when left out")
    _add_maps(controls)
    controls.add_argument("--seeds", type=int, default=3, help="calibration seeds to compare, from --seed on")
    controls.add_argument("--out", type=Path, help="write the figures to this JSON file as well")

    causal = commands.add_parser(
        "causal",
        help="zero weights of each label and see which answers fall",
        description="Zero equally many and equally large weights of each label and see which answers fall. "
        "Text-only questions are added to the --limit of the suite until they are half of all.",
    )
    causal.set_defaults(run=_causal)
    _add_model(causal, "folder or Hugging Face id; the embedded model when left out")
    _add_maps(causal)
    _add_suite(causal)
    causal.add_argument("--share", default="0.25,0.5,1", help="percent of the weights, comma-separated")
    causal.add_argument("--random-draws", type=int, default=3, help="sets of random weights")
    causal.add_argument("--out", type=Path, help="write the figures to this JSON file as well")

    inspect = commands.add_parser("inspect", help="account for every stored byte of a run")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("directory", type=Path)

    chat = commands.add_parser("chat", help="ask a model or a run about a picture")
    chat.set_defaults(run=_chat)
    _add_model(chat, "a model, or the directory of a run; the embedded model when left out")
    chat.add_argument("--image", help="PNG, JPEG or WebP file")
    chat.add_argument("--prompt", required=True)
    chat.add_argument("--max-new-tokens", type=int, default=64)
    chat.add_argument("--temperature", type=float, default=0.0)
    chat.add_argument("--seed", type=int, default=0)

    bench = commands.add_parser("bench", help="speed beside a plain reference, in the same run")
    benches = bench.add_subparsers(required=True, metavar="what", parser_class=Parser)
    pipeline = benches.add_parser("pipeline", help="search and fit of sab, batched and with one fit per candidate")
    pipeline.set_defaults(run=_bench_pipeline)
    pipeline.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    pipeline.add_argument("--blocks", type=int, default=2, help="blocks of 128 columns to time")

    page = benches.add_parser("ui", help="tiles, counts and frames of the page's Explore tab")
    page.set_defaults(run=_bench_ui)
    again = benches.add_parser("rerun", help="Binarize's rerun of one layer on the embedded model")
    again.set_defaults(run=_bench_rerun)
    again.add_argument("--samples", type=int, default=512, help="calibration dialogues")
    page.add_argument("--rows", type=int, default=4096, help="of the synthetic layer")
    page.add_argument("--columns", type=int, default=11008)
    page.add_argument("--repeats", type=int, default=60, help="measurements of each kind")

    talk = benches.add_parser("chat", help="both sides of a chat answering at once: first token, tokens a second")
    talk.set_defaults(run=_bench_chat)
    talk.add_argument("directory", type=Path, nargs="?", help="a run (default: the shipped one of sab)")
    talk.add_argument("--limit", type=int, default=12, help="questions to ask")

    kernels = benches.add_parser("kernels", help="packed linears against bfloat16, float32 and torch's 4-bit kernel")
    kernels.set_defaults(run=_bench_kernels)
    kernels.add_argument("--quick", action="store_true", help="two shapes, two batches, a small decoder")
    kernels.add_argument("--seconds", type=float, default=0.5, help="for each contender of a case")
    kernels.add_argument("--clock", default="wall", help="wall, or cpu for one thread on a machine that is shared")

    commands.add_parser("train-demo", help="train the embedded model (its own options: train-demo --help)")
    return parser


def _add_model(parser: Parser, about: str) -> None:
    parser.add_argument("model", nargs="?", help=about)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")


def _add_maps(parser: Parser) -> None:
    """What the maps and the partition depend on."""
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the calibration samples")
    parser.add_argument("--split", default="token", help="token or corpus")
    parser.add_argument("--sensitivity", default="input", help="input or fisher")
    parser.add_argument("--salient-top-p", type=float, default=0.05)
    parser.add_argument("--diff-quantile", type=float, default=0.5)
    parser.add_argument("--sparsity-thr", type=float, default=0.005)
    parser.add_argument("--damping", type=float, default=0.01)


def _add_recipe(parser: Parser) -> None:
    _add_maps(parser)
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


def _add_suite(parser: Parser) -> None:
    parser.add_argument("--suite", default="demo", choices=SUITES)
    parser.add_argument("--limit", type=int, default=200, help="number of questions")
    parser.add_argument("--batch-size", type=int, default=32)


def _recipe(options: argparse.Namespace, entry: str) -> Recipe:
    """The recipe of an entry `method`, `method@bits` or `method+fisher` under the command's options."""
    from sab.runs import Recipe, method_and_budget
    from sab.significance import Thresholds

    beta, compensation = options.beta, options.compensation
    if options.literature:
        if beta not in (None, 0.0) or compensation not in (None, "lineage"):
            raise SabError("--literature means lineage compensation and beta 0; leave --compensation and --beta out.")
        beta, compensation = 0.0, "lineage"
    entry, _, sensitivity = entry.partition("+")
    method, bits = method_and_budget(entry)
    recipe = Recipe(
        model=_named(options.model),
        method=method,
        search=Recipe.search if bits is None else "budget",
        bits=bits,
        refine=getattr(options, "refine", None),
        thresholds=Thresholds(options.salient_top_p, options.diff_quantile, options.sparsity_thr),
        sensitivity=sensitivity or options.sensitivity,
        split=options.split,
        samples=options.samples,
        seed=options.seed,
        iterations=options.iterations,
        parts=_parts(options),
        linears=tuple(options.linears.split(",")) if options.linears else None,
        beta=beta,
        compensation=Recipe.compensation if compensation is None else compensation,
        max_salient=options.max_salient,
        emphasis=options.emphasis,
        block_size=options.block_size or (Recipe.block_size if bits is None else BUDGET_BLOCK_SIZE),
        damping=options.damping,
        keep=options.keep,
    )
    recipe.validate()
    return recipe


def _given_recipe(options: argparse.Namespace) -> tuple[Recipe, str | None]:
    """The recipe of --recipe, for the model that is named if one is, and the fingerprint of the weights it is for."""
    from dataclasses import replace

    from sab.library import read_recipe

    plain = vars(_parser().parse_args(["quantize", "--out", "."]))
    beside = {"model", "recipe", "out", "resume", "dry_run", "device", "dtype", "run"}
    for name in plain.keys() - beside:
        if getattr(options, name) != plain[name]:
            raise SabError(f"--recipe says everything; leave --{name.replace('_', '-')} out.")
    found = read_recipe(options.recipe)
    if options.model is None:
        return found.recipe, found.fingerprint
    return replace(found.recipe, model=_named(options.model)), found.fingerprint


def _named(model: str | None) -> str | None:
    """How a recipe names a model: a folder by its whole path."""
    return str(Path(model).resolve()) if model and Path(model).exists() else model


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    from sab.parts import in_forward_order

    return in_forward_order(part.strip() for part in options.parts.split(","))


def _quantize(options: argparse.Namespace) -> dict[str, Any]:
    recipe, fingerprint = _given_recipe(options) if options.recipe else (_recipe(options, options.method), None)
    if (options.out / "recipe.json").exists() and not options.resume and not options.dry_run:
        raise SabError(f"{options.out} holds a run already; add --resume to continue it, or name another one.")
    from sab import models
    from sab.sequential import chosen_linears

    lvlm = models.load(recipe.model, options.device, options.dtype)
    if fingerprint not in (None, lvlm.fingerprint):
        raise SabError(f"{options.recipe} was made for other weights than those of {lvlm.source}; name their model.")
    names = chosen_linears(lvlm, recipe)
    if options.dry_run:
        weights = sum(lvlm.linears[name].weight.numel() for name in names)
        return {"dry_run": True, "recipe": recipe.to_json(), "linears": len(names), "weights": weights}
    progress = Progress()
    progress.say(f"{lvlm.source}: {len(names)} linears by {recipe.method}, {recipe.samples} samples")
    return _run_summary(_binarize(lvlm, recipe, options.out, progress))


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
    return run


def _run_summary(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.directory),
        "method": run.recipe.method,
        "linears": len(run.reports),
        "bits_nominal": run.bits_nominal,
        "bits_all_in": run.bits_all_in,
        "bytes": run.bytes,
        "seconds": run.seconds,
        "finished": run.finished,
    }


def _open(options: argparse.Namespace) -> tuple[LVLM, Run | None]:
    """The model a command names: a model, or a run's model with the run's weights."""
    from sab import models
    from sab.runs import Run

    if options.model is None or not (Path(options.model) / "recipe.json").exists():
        return models.load(options.model, options.device, options.dtype), None
    run = Run.open(options.model)
    lvlm = models.load(run.recipe.model, options.device, options.dtype)
    run.apply(lvlm)
    if not run.finished:
        print(f"sab: {run.directory} is unfinished; its other linears stay in full precision.", file=sys.stderr)
    return lvlm, run


def _questions(options: argparse.Namespace) -> Sequence[Question]:
    from sab.demo.suite import questions

    if options.limit < 1 or options.batch_size < 1:
        raise SabError("--limit and --batch-size must be at least 1.")
    return questions("final" if options.suite == "demo" else options.suite, options.limit)


def _balanced(options: argparse.Namespace) -> Sequence[Question]:
    """The questions of `_questions`, and text-only ones of the same suite until they are half of all."""
    from sab.demo.suite import CATEGORIES, Question, scene_questions

    asked = list(_questions(options))
    missing = sum(1 if question.picture is not None else -1 for question in asked)
    suite = "final" if options.suite == "demo" else options.suite
    # another seed, so that no question is asked twice; the categories take turns there
    others = scene_questions(suite, max(0, missing) * len(CATEGORIES), seed=1)
    return [*asked, *(Question(None, **asdict(ask)) for scene, ask in others if scene is None)]


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from sab import models
    from sab.compare import assess, identity_of

    asked = _questions(options)
    lvlm, run = _open(options)
    full = models.load(run.recipe.model, options.device, options.dtype) if run is not None else None
    progress = Progress()
    found = assess(lvlm, full, asked, options.suite, options.batch_size, progress)
    figures = found.figures
    progress.end()
    for category, accuracy in figures["accuracy"].items():
        low, high = figures["interval"][category]
        blank = figures["blank_picture"]["accuracy"][category]
        progress.say(
            f"{category:22s} {100 * accuracy:5.1f} %  ({100 * low:.0f}–{100 * high:.0f})  "
            f"n = {figures['counts'][category]:<4d} blank {100 * blank:5.1f} %"
        )
    if run is not None:
        run.record_accuracy(figures, found.stored(identity_of(asked)))
    return figures


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack
    from functools import partial
    from tempfile import TemporaryDirectory

    from sab import models
    from sab.binarizers import METHODS
    from sab.compare import compare

    entries = [entry.strip() for entry in options.methods.split(",") if entry.strip()]
    if not entries:
        raise SabError(f"--methods is empty; choose from full, {', '.join(METHODS)}.")
    if options.seeds < 1:
        raise SabError("--seeds must be at least 1.")
    recipes = {entry: _recipe(options, entry) for entry in entries if entry != "full"}
    asked = _questions(options)
    full = models.load(options.model, options.device, options.dtype)
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
    result = {
        "model": options.model or "embedded",
        "fingerprint": full.fingerprint,
        "suite": options.suite,
        "questions": len(asked),
        "seeds": options.seeds,
        "samples": options.samples,
        "literature": options.literature,
        "rows": rows,
        "gaps": found["gaps"],
    }
    if options.table is not None:
        from sab import runs

        runs.write_json(options.table, result)
    return result


def _map_recipe(options: argparse.Namespace) -> Recipe:
    """A recipe of which only the maps matter, checked."""
    from sab.runs import Recipe
    from sab.significance import Thresholds

    if options.out is not None and options.out.is_dir():
        raise SabError(f"{options.out} is a directory; name a file for --out.")
    recipe = Recipe(
        model=options.model,
        thresholds=Thresholds(options.salient_top_p, options.diff_quantile, options.sparsity_thr),
        sensitivity=options.sensitivity,
        split=options.split,
        samples=options.samples,
        seed=options.seed,
        damping=options.damping,
    )
    recipe.validate()
    return recipe


def _controls(options: argparse.Namespace) -> dict[str, Any]:
    from sab import calibration, models
    from sab.control_files import StoredControls
    from sab.controls import controls

    recipe = _map_recipe(options)
    if options.seeds < 1:
        raise SabError("--seeds must be at least 1.")
    lvlm = models.load(options.model, options.device, options.dtype)
    progress = Progress()
    calibrations = [calibration.embedded(recipe.samples, recipe.seed + step) for step in range(options.seeds)]
    found = controls(lvlm, calibrations, recipe.sensitivity, recipe.split, recipe.thresholds, recipe.damping, progress)
    stored = StoredControls.of(found, recipe.map_conditions(lvlm.fingerprint))
    result = dict(stored.figures)
    progress.say(
        f"Unimodal share of the salient weights ({recipe.sensitivity} sensitivity); null and matched at "
        f"{min(found.tokens_half)} tokens a side; rho > {recipe.thresholds.sparsity_thr:g} is a ratio of "
        f"{result['threshold_ratio']:.3g}"
    )
    progress.say(
        f"{'':12s}  {'map':>6s} {'matched':>8s} {'null l':>7s} {'null v':>7s}"
        f"   {'ratio 5-95 %':>14s} {'null v 5-95 %':>14s} {'signal':>6s}"
        f"   {'same class':>10s} {'kappa':>6s} {'corr.':>6s}"
    )
    kinds: dict[str, list[str]] = {}
    for name in found.linears:
        kinds.setdefault(lvlm.info[name].kind, []).append(name)
    for kind, names in [*kinds.items(), ("overall", None)]:
        row = found.overall(names)
        shares = (row.full, row.matched, row.null_language, row.null_vision)
        ranges = " ".join(f"{part.ratio(0.05):7.2f}-{part.ratio(0.95):6.2f}" for part in (row.matched, row.null_vision))
        stable = row.agreement
        kept = f"{100 * stable.same_class:8.1f} % {stable.kappa:6.2f} {stable.correlation:6.2f}" if stable else ""
        progress.say(
            f"{kind:12s}  "
            + " ".join(f"{100 * part.unimodal_share:5.1f} %" for part in shares)
            + f"   {ranges} {row.signal:6.2f}   {kept}"
        )
    if options.out is not None:
        stored.write(options.out)
    return result


def _causal(options: argparse.Namespace) -> dict[str, Any]:
    from sab import calibration, models, runs, sequential
    from sab.causal import PICTURE, TEXT, causal

    recipe = _map_recipe(options)
    try:
        shares = [float(share) / 100 for share in options.share.split(",")]
    except ValueError as error:
        raise SabError("--share takes percents, comma-separated, such as 0.25,0.5,1.") from error
    if options.random_draws < 1:
        raise SabError("--random-draws must be at least 1.")
    asked = _balanced(options)
    lvlm = models.load(options.model, options.device, options.dtype)
    progress = Progress()
    samples = calibration.embedded(recipe.samples, recipe.seed)
    sensitivities = sequential.maps(lvlm, samples, recipe.sensitivity, recipe.split, progress, recipe.damping)
    found = causal(
        lvlm,
        sensitivities,
        asked,
        shares,
        recipe.thresholds,
        options.random_draws,
        recipe.seed,
        options.batch_size,
        progress=progress,
    )
    for share in found.left_out:
        progress.say(f"{100 * share:g} % cannot be matched between the labels; {100 * found.largest_share:.2g} % can.")
    categories = [name for name in found.full.accuracy if name not in ("overall", PICTURE, TEXT)]
    progress.say("Accuracy in percent, with a picture and without, then by category: " + ", ".join(categories))
    for row in [found.full, *found.knockouts]:
        kl = " ".join(
            f"{row.divergence[part].kl:8.4f}" if part in row.divergence else " " * 8 for part in (PICTURE, TEXT)
        )
        columns = [name for name in (PICTURE, TEXT) if name in row.accuracy]
        progress.say(
            f"{100 * row.share:5.2f} %  {row.label:14s} KL {kl}   "
            + " ".join(f"{100 * row.accuracy[name]:5.1f}" for name in columns)
            + "  |"
            + " ".join(f"{100 * row.accuracy[name]:4.0f}" for name in categories)
        )
    for contrast in found.selectivity:
        low, high = contrast.interval
        progress.say(
            f"{100 * contrast.share:5.2f} %  {contrast.first} against {contrast.second}: "
            f"{contrast.value:+.2f} ({low:+.2f} to {high:+.2f}) doublings of KL towards questions with pictures"
        )
    for share, difference in found.tolerance.items():
        progress.say(f"{100 * share:5.2f} %  the sets differ in the sum of squares by {100 * difference:.2f} % at most")
    conditions = {
        **recipe.map_conditions(lvlm.fingerprint),
        "suite": options.suite,
        "questions": len(asked),
    }
    result = {**conditions, **found.summary()}
    if options.out is not None:
        runs.write_json(options.out, result)
    return result


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    from sab.packing import count_bits
    from sab.runs import Run

    run = Run.open(options.directory)
    if not run.finished:
        raise SabError(f"The run in {options.directory} is unfinished; finish it with quantize --resume.")
    files = run.verify()
    breakdown: dict[str, int] = {}
    payload = 0
    for name in run.reports:
        counted = count_bits(run.codes(name))
        payload += counted.bytes
        for part, bits in counted.breakdown.items():
            breakdown[part] = breakdown.get(part, 0) + bits
    unlisted = {
        path.relative_to(run.directory).as_posix(): path.stat().st_size
        for path in sorted(run.directory.rglob("*"))
        if path.is_file() and path.relative_to(run.directory).as_posix() not in files
    }
    code_files = sum(size for name, size in files.items() if name.startswith("codes/"))
    for part, bits in sorted(breakdown.items(), key=lambda entry: -entry[1]):
        print(f"{part:24s} {bits / 8:14,.0f} bytes", file=sys.stderr)
    print(f"{'headers of code files':24s} {code_files - payload:14,d} bytes", file=sys.stderr)
    return {
        **_run_summary(run),
        "codes": {part: bits / 8 for part, bits in breakdown.items()},
        "code_bytes": payload,
        "header_bytes": code_files - payload,
        "other_bytes": sum(files.values()) - code_files + sum(unlisted.values()),
        "total_bytes": sum(files.values()) + sum(unlisted.values()),
        "files": files | unlisted,
    }


def _bench_pipeline(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench

    progress = Progress()
    found = bench.pipeline(options.size, options.blocks, progress=progress)
    for name, seconds in found["seconds_per_block"].items():
        progress.say(f"{name:8s} {seconds:8.3f} s per block of {options.size} rows, loss {found['losses'][name]:.6f}")
    progress.say(f"{found['ratio']:.1f} times as fast, on {found['threads']} threads")
    return found


def _bench_chat(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_chat, models
    from sab.demo.suite import questions
    from sab.runs import ASSET_RUNS, Run

    run = Run.open(options.directory or ASSET_RUNS / "sab")
    full = models.load(run.recipe.model)
    simulated = full.copy()
    run.apply(simulated)
    progress = Progress()
    found = bench_chat.chat(full, simulated, questions("final", max(1, options.limit)), progress)
    for side, name in (("left", "Full precision"), ("right", f"{run.name}, simulated")):
        progress.say(
            f"{name}: first token after {found['first_token_seconds'][side]:.2f} s, "
            f"{found['tokens_per_second'][side]:.0f} tokens/s"
        )
    progress.say(f"both at once on {found['cores']} cores; load {found['load'][0]:.1f} to {found['load'][1]:.1f}")
    return found | {"run": run.id}


def _page_bench() -> Any:
    """The benches of the page, by name: the pipeline knows nothing of the page."""
    try:
        return importlib.import_module("viz.bench")
    except ModuleNotFoundError as error:
        raise SabError(
            f"The page is not installed here ({error.name} is missing); run this from the project's folder, with "
            "requirements.txt installed."
        ) from error


def _bench_rerun(options: argparse.Namespace) -> dict[str, Any]:
    bench, progress = _page_bench(), Progress()
    found: dict[str, Any] = bench.rerun(samples=options.samples, progress=progress)
    progress.end()
    progress.say(f"prepared in {found['prepare_seconds']:.1f} s while nobody waits; load {found['load']:.1f}")
    for method, seconds in found["seconds"].items():
        progress.say(f"{method:12s} {seconds:.2f} s for the slowest of three layers")
    return found


def _bench_ui(options: argparse.Namespace) -> dict[str, Any]:
    bench, progress = _page_bench(), Progress()
    found: dict[str, Any] = bench.ui(options.rows, options.columns, options.repeats, progress=progress)
    for name, goal in found["goals_p95"].items():
        if found[name] is None:
            progress.say(f"{name:12s} not measured: {found['browser']}")
        else:
            progress.say(f"{name:12s} p50 {found[name]['p50']:9.4g}  p95 {found[name]['p95']:9.4g}  (goal {goal:g})")
    progress.say(f"exact_ms     p50 {found['exact_ms']['p50']:9.4g}  p95 {found['exact_ms']['p95']:9.4g}")
    return found


def _bench_kernels(options: argparse.Namespace) -> dict[str, Any]:
    from sab import bench_kernels

    progress = Progress()
    found = bench_kernels.kernels(options.quick, options.seconds, options.clock, progress=progress)
    for case in found["cases"]:
        times = ", ".join(f"{name} {value:.2f}" for name, value in case["milliseconds"].items())
        progress.say(
            f"{case['shape'][0]:5d} x {case['shape'][1]:<5d} batch {case['batch']:<3d} {case['kernel']:22s} "
            f"{case['ratio_vs_bf16']:5.2f} times bf16, error {100 * case['relative_error']:.2f} %; ms: {times}"
        )
    made = found["decoder"]
    progress.say(
        f"decoder of {made['blocks']} blocks: {made['ratio_exact']:.2f} (exact) and {made['ratio_fast']:.2f} (fast) "
        f"times the tokens a second of bf16, {made['bf16_bytes'] / made['packed_bytes']:.1f} times smaller"
    )
    return found


def _chat(options: argparse.Namespace) -> dict[str, Any]:
    from sab import chat

    picture = chat.open_picture(options.image) if options.image else None
    lvlm, _ = _open(options)
    events = []
    for event in chat.stream(
        lvlm,
        options.prompt,
        picture,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    ):
        print(event.text, end="", file=sys.stderr, flush=True)
        events.append(event)
    print(file=sys.stderr)
    last = events[-1].seconds
    return {
        "answer": "".join(event.text for event in events),
        "tokens": len(events),
        "logprob": sum(event.logprob for event in events),
        "first_token_seconds": events[0].seconds,
        "tokens_per_second": len(events) / last if last else None,
    }


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning) and not issubclass(category, FutureWarning | DeprecationWarning):
        print(f"sab: {message}", file=sys.stderr)


def _quiet_transformers() -> None:
    """Our own lines say what matters; progress bars of weight loading would sit between them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
