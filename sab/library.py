"""What a person does with runs and recipes: name a run, delete one, read a recipe from a file.

A run itself is never changed: its name lies beside the recipe, in `label.txt`, and no manifest counts it.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from sab.errors import SabError
from sab.files import json_in, write_bytes
from sab.recipes import Recipe
from sab.runs import ASSET_RUNS, LABEL, LONGEST_LABEL, Run

LARGEST_RECIPE = 1_000_000  # bytes of a file that is read; 7B models have some 200 names of linears


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file holds: the recipe, and the fingerprints of the weights it was made for and of the calibration
    samples, where the file is a run's own `recipe.json`."""

    recipe: Recipe
    fingerprint: str | None
    samples: str | None = None


def read_recipe(path: str | Path) -> RecipeFile:
    """Read a run's `recipe.json`, or a bare recipe as JSON. Raises SabError for anything else, in one sentence."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_RECIPE:
            raise SabError(f"{path.name} is too large for a recipe; choose a run's recipe.json.")
        values = json_in(path)
    except FileNotFoundError as error:
        raise SabError(f"There is no file {path}; name a run's recipe.json.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SabError(f"{path.name} is not JSON that can be read; choose a run's recipe.json.") from error
    header = values if isinstance(values, dict) else {}
    inner = header.get("recipe", header)
    if not isinstance(inner, dict) or "method" not in inner:
        raise SabError(f"{path.name} holds no recipe; choose a run's recipe.json.")
    noted = header.get("calibration")
    found = [header.get("fingerprint"), noted.get("fingerprint") if isinstance(noted, dict) else None]
    try:
        return RecipeFile(Recipe.from_json(inner), *(value if isinstance(value, str) else None for value in found))
    except (TypeError, AttributeError) as error:
        raise SabError(f"A value in {path.name} is of the wrong kind; choose a run's recipe.json.") from error


def rename(run: Run, label: object) -> None:
    """Give a run a name of a person's own; an empty one takes it away. Raises SabError for a text that is no name, for
    a shipped run and when the disk refuses."""
    if not isinstance(label, str):
        raise SabError("A name is a line of text.")
    name = " ".join(label.split())
    if len(name) > LONGEST_LABEL or not name.isprintable():
        raise SabError(f"A name is one line of at most {LONGEST_LABEL} letters; shorten it.")
    _refuse_shipped(run, "renamed")
    if not (run.directory / "recipe.json").exists():
        raise SabError(f"The run “{run.name}” is not there any more.")
    path = run.directory / LABEL
    try:
        if name:
            write_bytes(path, name.encode())
        else:
            path.unlink(missing_ok=True)
    except (OSError, SabError) as error:
        raise SabError(f"The name could not be stored in {run.directory}: is the disk full or read-only?") from error


def delete(run: Run) -> None:
    """Delete a run for good. Raises SabError for a shipped run and when the disk refuses. A run is gone at once, even
    if clearing its files is cut short: its directory is renamed first, to a name that is never listed."""
    _refuse_shipped(run, "deleted")
    for left in run.directory.parent.glob(".deleted-*"):  # of a deletion that was cut short
        shutil.rmtree(left, ignore_errors=True)
    gone = run.directory.with_name(f".deleted-{secrets.token_hex(4)}")
    try:
        run.directory.rename(gone)
    except FileNotFoundError as error:
        raise SabError(f"The run “{run.name}” is not there any more.") from error
    except OSError as error:
        raise SabError(f"{run.directory} could not be deleted ({error.strerror or error}).") from error
    shutil.rmtree(gone, ignore_errors=True)


def is_shipped(run: Run) -> bool:
    """Whether a run came with the program."""
    return run.directory.resolve().parent == ASSET_RUNS.resolve()


def _refuse_shipped(run: Run, what: str) -> None:
    if is_shipped(run):
        raise SabError(f"“{run.name}” came with the program and cannot be {what}; make a run of your own.")
