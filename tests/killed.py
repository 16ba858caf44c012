"""Quantize in processes that are killed, `python -m tests.killed DIRECTORY`: asks on stdin, answers on stdout.

Libraries are loaded once; every attempt is a fork of this process (which computes with one thread, so that a fork may).
A line of JSON on stdin is an attempt: {"run": name, "recipe": name, and one of "at": [n, moment], "after": seconds}.
`at` kills the process at its n-th fsync or rename: "before" it, "after" it, or "torn", with half of what was written to
a temporary file. The answer is a line of JSON: {"killed", "calls", "seconds", "refusal"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from sab import sequential
from sab.errors import SabError
from sab.recipes import Recipe
from tests.tiny import dialogues, tiny

LINEARS = tuple(f"model.language_model.layers.{block}.self_attn.{kind}_proj" for block in (0, 1) for kind in "qk")
RECIPES = {
    "plain": Recipe(model="tiny", method="sab", iterations=2, max_salient=4, linears=LINEARS),
    "together": Recipe(model="tiny", method="sab-h", max_salient=4, iterations=1, refine=1, linears=LINEARS),
    "every part": Recipe(
        model="tiny", method="xnor", iterations=1, sensitivity="fisher", parts=("vision", "projector", "decoder")
    ),
}
SAMPLES = dialogues(20)


def attempt(directory: Path, recipe: str, at: tuple[int, str] | None, after: float | None) -> dict[str, Any]:
    """Fork, quantize there, and kill it as asked; what became of it."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        _quantize(directory, recipe, at, writing)
    os.close(writing)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as said:
        heard = said.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    calls, _, refusal = heard.partition("\n")
    return {"killed": killed, "calls": int(calls or 0), "refusal": refusal, "seconds": time.monotonic() - started}


def _quantize(directory: Path, recipe: str, at: tuple[int, str] | None, writing: int) -> None:
    calls = 0

    def deadly(call: Any, torn: bool) -> Any:
        def wrapped(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            moment = at[1] if at is not None and at[0] == calls else ""
            if moment == "torn" and torn and not os.path.isdir(f"/proc/self/fd/{arguments[0]}"):
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            if moment in ("before", "torn"):
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*arguments)
            if moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapped

    os.fsync = deadly(os.fsync, torn=True)
    os.replace = deadly(os.replace, torn=False)
    refusal = ""
    try:
        for _ in sequential.quantize(tiny(), RECIPES[recipe], directory, samples=SAMPLES):
            pass
    except SabError as error:
        refusal = str(error)
    except BaseException as error:
        refusal = f"not a SabError: {error!r}"
    os.write(writing, f"{calls}\n{refusal}".encode())
    os._exit(0)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tiny()
    directory = Path(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        found = attempt(directory / asked["run"], asked["recipe"], asked.get("at"), asked.get("after"))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
