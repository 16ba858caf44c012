"""The commands that ask a model or a run: `python -m sab eval` and `chat`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from sab.options import add_model, add_suite, asked_questions, load_model, write_result
from sab.terminal import Parser, Progress

if TYPE_CHECKING:
    from sab.models import LVLM
    from sab.runs import Run


def add_answer_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands `eval` and `chat` with their options."""
    evaluate = commands.add_parser("eval", help="accuracy, blank-picture control, perplexity and speed")
    evaluate.set_defaults(run=_evaluate)
    add_model(evaluate, "a model, a packed checkpoint, or the directory of a run; the embedded model when left out")
    add_suite(evaluate)

    chat = commands.add_parser("chat", help="ask a model or a run about a picture")
    chat.set_defaults(run=_chat)
    add_model(chat, "a model, a packed checkpoint, or the directory of a run; the embedded model when left out")
    chat.add_argument("--packed", action="store_true", help="compute on the bits of a run, not on dequantized weights")
    chat.add_argument("--image", help="PNG, JPEG or WebP file")
    chat.add_argument("--prompt", required=True)
    chat.add_argument("--max-new-tokens", type=int, default=64)
    chat.add_argument("--temperature", type=float, default=0.0)
    chat.add_argument("--seed", type=int, default=0)


def _open(options: argparse.Namespace, packed: bool = False) -> tuple[LVLM, Run | None]:
    """The model a command names: a model, or a run's model with the run's weights, dequantized or `packed`."""
    from sab.checkpoint import is_checkpoint
    from sab.packed import swap
    from sab.runs import Run

    named = Path(options.model or "")
    if options.model is None or not (named / "recipe.json").exists() or is_checkpoint(named):
        return load_model(options, options.model), None
    run = Run.open(named)
    lvlm = load_model(options, run.recipe.model)
    if packed:
        swap(lvlm, run)
    else:
        run.apply(lvlm)
    if not run.finished:
        print(f"sab: {run.directory} is unfinished; its other linears stay in full precision.", file=sys.stderr)
    return lvlm, run


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from sab.compare import assess, identity_of
    from sab.evaluate import Reference

    asked = asked_questions(options)
    lvlm, run = _open(options)
    full = Reference(load_model(options, run.recipe.model)) if run is not None else None
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
    result = figures | _kernels(lvlm, progress)
    if run is not None:
        write_result(result, lambda: run.record_accuracy(figures, found.stored(identity_of(asked))))
    return result


def _kernels(lvlm: LVLM, progress: Progress) -> dict[str, Any]:
    """What the packed linears of a model run on, said and for the result; nothing where there are none."""
    from sab.packed import kernels_of

    kernels = kernels_of(lvlm.model)
    for kernel, count in kernels.items():
        progress.say(f"packed kernel: {kernel} ({count} linears)")
    return {"kernels": kernels} if kernels else {}


def _chat(options: argparse.Namespace) -> dict[str, Any]:
    from sab import chat
    from sab.packed import packed_linears

    picture = None if options.image is None else chat.open_picture(options.image)
    lvlm, run = _open(options, options.packed)
    if options.packed and run is None and not packed_linears(lvlm.model):
        raise SabError(f"{lvlm.source} has no packed linears; name a run, or leave --packed out.")
    kernels = _kernels(lvlm, Progress())
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
        **kernels,
    }
