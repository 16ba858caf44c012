"""Runs that answer from their bits, beside their own dequantized weights: `python -m sab bench answers`.

Every question is answered greedily, one at a time as in a chat, by the dequantized weights and by the packed linears in
each mode. Reported are the share of questions with the very same tokens and the tokens a second of each, prompt and
picture included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from sab.errors import SabError
from sab.evaluate import Question, greedy
from sab.kernels import cpu
from sab.models import LVLM
from sab.packed import swap
from sab.progress import Listener, silent
from sab.runs import Run

DEQUANTIZED = "dequantized"


def answers(
    full: LVLM,
    runs: Sequence[Run],
    questions: Sequence[Question],
    progress: Listener | None = None,
) -> dict[str, Any]:
    """A row per run of the model `full`, which stays as it is. SabError without questions, or for a run of another
    model."""
    if not questions:
        raise SabError("There are no questions to answer; raise the limit.")
    tell = progress or silent
    found = []
    for number, run in enumerate(runs):
        dense, packed = full.copy(), full.copy()
        run.apply(dense)
        swapped = swap(packed, run)
        replies: dict[str, list[list[int]]] = {}
        speeds: dict[str, float] = {}
        kernels: dict[str, dict[str, int]] = {}
        for place, side in enumerate((DEQUANTIZED, *cpu.MODES)):
            tell(f"{run.name}, {side}", (number + place / 3) / len(runs))
            if side != DEQUANTIZED:
                swapped.set_mode(side)
                kernels[side] = swapped.kernels
            replies[side], speeds[side] = _ask(dense if side == DEQUANTIZED else packed, questions)
        pairs = {mode: list(zip(replies[DEQUANTIZED], replies[mode], strict=True)) for mode in cpu.MODES}
        found.append(
            {
                "run": run.id,
                "method": run.recipe.method,
                "kernels": kernels,
                "same_answers": {mode: sum(a == b for a, b in both) / len(both) for mode, both in pairs.items()},
                "tokens_per_second": speeds,
                "packed_bytes": swapped.resident_bytes,
                "dense_bytes": swapped.dense_bytes,
            }
        )
    return {"bench": "answers", "questions": len(questions), "threads": torch.get_num_threads(), "runs": found}


def _ask(lvlm: LVLM, questions: Sequence[Question]) -> tuple[list[list[int]], float]:
    """The tokens of each answer, and how many came in a second."""
    asked = [lvlm.prepare(question.messages, question.picture) for question in questions]
    greedy(lvlm, asked[0], 1)  # the first call chooses and compiles
    started = time.perf_counter()
    replies = [greedy(lvlm, inputs)[0] for inputs in asked]
    return replies, sum(map(len, replies)) / (time.perf_counter() - started)
