"""The single answers that evaluations have stored, and the questions of the held-out suite that they answer.

An evaluation asks the first questions of the suite, so answers to fewer questions compare with answers to more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sab.demo.asks import Ask
    from sab.demo.scenes import Scene

SUITE = "final"
STEP = 1000  # questions are drawn in so many at once and kept


@dataclass(frozen=True)
class StoredAnswers:
    """`questions`: the hash of what was asked; the answers, and which of them are right."""

    questions: str
    answers: list[str]
    correct: list[bool]

    @property
    def of_the_suite(self) -> bool:
        """Whether these are answers to the suite's first questions."""
        return bool(self.answers) and self.questions == first_identity(len(self.answers))


def read_answers(directory: Path) -> StoredAnswers | None:
    """The answers beside a run; None when there are none that can be read."""
    try:
        stored = json.loads((directory / "answers.json").read_text(encoding="utf-8"))
        found = StoredAnswers(stored["questions"], stored["answers"], stored["correct"])
        return found if len(found.answers) == len(found.correct) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def first_questions(count: int) -> list[tuple[Scene | None, Ask]]:
    """The first questions of the suite with their scenes."""
    return _drawn(-(-count // STEP) * STEP)[:count]


def first_identity(count: int) -> str:
    """What answers to the first `count` questions are known by."""
    from sab.compare import identity_of

    return identity_of(ask for _, ask in first_questions(count))


@lru_cache(maxsize=2)
def _drawn(count: int) -> list[tuple[Scene | None, Ask]]:
    from sab.demo.suite import scene_questions

    return scene_questions(SUITE, count)
