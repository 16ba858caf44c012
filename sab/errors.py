"""The one error a person can cause, with two kinds of it: a result that could not be written, and what comes of
processes that cannot hear each other."""

from collections.abc import Mapping
from typing import Any


class SabError(ValueError):
    """Wrong input from a person: one clear sentence that says what to do about it."""


class UnwrittenError(SabError):
    """Done, but not written: `result` is what the command would have printed, and nothing of it is lost."""

    def __init__(self, message: str, result: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class LostError(SabError):
    """What a process has to say itself, because the one that speaks for all may be gone."""
