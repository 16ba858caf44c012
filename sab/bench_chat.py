"""How fast both sides of a chat answer when both run: `python -m sab bench chat`.

Full precision and the simulated (dequantized) run stream at the same time, one thread each, as the page has them do,
one held-out question after the other. Reported are medians over the questions: seconds to the first token, prompt and
picture included, and tokens a second after it, for each side; and the machine's load meanwhile, since two busy cores
shared with others say little.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from sab.chat import TokenEvent, stream
from sab.errors import SabError
from sab.evaluate import Question
from sab.models import LVLM
from sab.progress import Listener, silent

SIDES = ("left", "right")
FEWEST = 6  # tokens of an answer that says something of a speed


def chat(
    left: LVLM,
    right: LVLM,
    questions: Sequence[Question],
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Median seconds to the first token and tokens a second of both sides, streaming at once. SabError where no answer
    of some side has at least FEWEST tokens."""
    tell = progress or silent
    first: dict[str, list[float]] = {side: [] for side in SIDES}
    speed: dict[str, list[float]] = {side: [] for side in SIDES}
    before = os.getloadavg()[0]
    for number, question in enumerate([questions[0], *questions]):  # the first one warms up and is asked again
        answers = both(left, right, question)
        tell("both sides answer", number / (len(questions) + 1))
        for side in SIDES if number else ():
            events = answers[side]
            first[side].append(events[0].seconds)
            if len(events) >= FEWEST:
                speed[side].append((len(events) - 1) / (events[-1].seconds - events[0].seconds))
    if not all(speed.values()):
        raise SabError(f"No answer has {FEWEST} tokens; ask more questions (--limit).")
    return {
        "bench": "chat",
        "questions": len(questions),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [before, os.getloadavg()[0]],
        "first_token_seconds": {side: statistics.median(values) for side, values in first.items()},
        "tokens_per_second": {side: statistics.median(values) for side, values in speed.items()},
    }


def both(left: LVLM, right: LVLM, question: Question) -> dict[str, list[TokenEvent]]:
    """Both answers to one question, streamed at the same time."""
    together = threading.Barrier(len(SIDES))

    def answer(lvlm: LVLM) -> list[TokenEvent]:
        together.wait()
        return list(stream(lvlm, question.prompt, question.picture))

    with ThreadPoolExecutor(len(SIDES)) as threads:
        return dict(zip(SIDES, threads.map(answer, (left, right)), strict=True))
