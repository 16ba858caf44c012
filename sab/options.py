"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError, UnwrittenError

if TYPE_CHECKING:
    from sab.demo.suite import Question
    from sab.models import LVLM
    from sab.recipes import Recipe

MOST_QUESTIONS = 100_000
# "demo" is another name of "final"; the last four are abilities beyond single questions (`sab.demo.suite.ABILITIES`).
SUITES = ("demo", "final", "tuning", "trained", "talk", "unknown", "strokes", "unrecognised")


def add_model(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("model", nargs="?", help=about)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--dtype", help="float32, bfloat16, float16, or auto: as the checkpoint is stored")


def load_model(options: argparse.Namespace, model: str | None, streamed: bool | None = False) -> LVLM:
    """`models.load` as the options say."""
    from sab import models

    return models.load(brought(model), options.device, options.dtype, streamed=streamed)


def brought(model: str | None) -> str | None:
    """What to load: a folder as it is, and of a model of the hub the folder that it is downloaded into, which is shown.
    Where the hub does not answer, what is on this machine does."""
    from sab.hub import HUB_ID

    return model if model is None or Path(model).exists() or not HUB_ID.fullmatch(model) else str(_downloaded(model))


def _downloaded(repository: str) -> Path:
    """The folder of a model of the hub."""
    from sab import hub
    from sab.terminal import Progress

    progress = Progress()
    try:
        planned = hub.plan(repository)
        hub.check_disk(planned)
        stage = f"downloading {repository}, {hub.gigabytes(planned.missing)}"

        def tell(done: int, total: int) -> None:
            if planned.missing:
                progress(stage, done / total)

        folder = hub.fetch(planned, tell, threading.Event())
    except SabError:
        here = hub.on_this_machine(repository)
        if here is None:
            raise
        return here
    finally:
        progress.end()
    return folder


def load_dense(options: argparse.Namespace, model: str | None, streamed: bool | None = False) -> LVLM:
    """Load a model whose weights are to be looked at; SabError for a packed checkpoint, which has none."""
    from sab.packed import packed_linears

    lvlm = load_model(options, model, streamed)
    if packed_linears(lvlm.model):
        raise SabError(f"{lvlm.source} is packed already; name the full-precision model that it was made from.")
    return lvlm


def add_maps(parser: argparse.ArgumentParser) -> None:
    """What the maps and the partition depend on."""
    parser.add_argument(
        "--calibration",
        default="embedded",
        metavar="SOURCE",
        help="where calibration samples are from: embedded (the drawn world), a folder of pictures with texts, a file "
        "of chat messages as JSON lines, or hf:owner/name[:split]; sab/calibration_files.py says how they look",
    )
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the calibration samples")
    parser.add_argument("--split", default="token", help="token or corpus")
    parser.add_argument("--sensitivity", default="input", help="input or fisher")
    parser.add_argument("--salient-top-p", type=float, default=0.05)
    parser.add_argument("--diff-quantile", type=float, default=0.5)
    parser.add_argument("--sparsity-thr", type=float, default=0.005)
    parser.add_argument("--damping", type=float, default=0.01)


def recipe_of_maps(options: argparse.Namespace) -> Recipe:
    """The recipe that the options of `add_model` and `add_maps` describe, the rest of it as it is by default; it is not
    checked yet. SabError for a source of samples that is none."""
    from sab.calibration import source_of
    from sab.recipes import Recipe
    from sab.significance import Thresholds

    return Recipe(
        model=options.model,
        thresholds=Thresholds(options.salient_top_p, options.diff_quantile, options.sparsity_thr),
        sensitivity=options.sensitivity,
        split=options.split,
        samples=options.samples,
        seed=options.seed,
        damping=options.damping,
        calibration=source_of(options.calibration),
    )


def write_result(result: Mapping[str, Any], write: Callable[[], object]) -> None:
    """Write a command's result, or a part of it. UnwrittenError, which carries the result, where it cannot be."""
    try:
        write()
    except SabError as error:
        raise UnwrittenError(str(error), result) from error


def add_suite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="demo", choices=SUITES)
    parser.add_argument("--limit", type=int, default=200, help="number of questions")
    parser.add_argument("--batch-size", type=int, default=32)


def suite_questions(suite: str, limit: int) -> Sequence[Question]:
    """`limit` questions of a suite. SabError for none or too many."""
    from sab.demo.suite import questions

    if not 1 <= limit <= MOST_QUESTIONS:
        raise SabError(f"--limit is {limit}; ask 1 to {MOST_QUESTIONS:,} questions.")
    return questions(suite, limit)


def asked_questions(options: argparse.Namespace) -> Sequence[Question]:
    if options.batch_size < 1:
        raise SabError("--batch-size must be at least 1.")
    return suite_questions("final" if options.suite == "demo" else options.suite, options.limit)
