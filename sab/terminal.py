"""What commands share at the terminal: mistakes in one sentence, and progress with the remaining time."""

from __future__ import annotations

import argparse
import sys
import time
from typing import NoReturn, TextIO

from sab.errors import SabError

PROGRESS_SECONDS = 2.0  # between progress lines in a log
TERMINAL_SECONDS = 0.2  # between redraws on a terminal


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise SabError(f"{message}; see {self.prog} --help.")


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


def typed(parser: argparse.ArgumentParser, given: list[str]) -> set[str]:
    """The options that a command line names, also those that are given their default. Changes the parser's defaults."""
    _forget_defaults(parser)
    return set(vars(parser.parse_args(given)))


def _forget_defaults(parser: argparse.ArgumentParser) -> None:
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _forget_defaults(command)
