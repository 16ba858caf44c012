"""Files that visitors take home: one folder of this process, the oldest ones forgotten."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from functools import cache
from pathlib import Path

MOST = 32  # files kept; a download begins at once, and gradio keeps a copy of its own while it lasts
_guard = threading.Lock()
_numbers = itertools.count()


def place_for(name: str) -> Path:
    """Where to write a file that is to be called `name` when it is saved."""
    with _guard:
        folder = Path(_root().name)
        made = sorted((each for each in folder.iterdir()), key=lambda each: int(each.name))
        for old in made[: max(0, len(made) - MOST + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        fresh = folder / str(next(_numbers))
        fresh.mkdir()
        return fresh / name


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sab-lens-")  # gone with the process
