"""Quantize by several processes, `python -m tests.several DIRECTORY`: asks on stdin, answers on stdout.

Libraries are loaded once; every process is a fork of this one. A line of JSON on stdin is
{"run": name, "recipe": name, "size": processes, "trouble": name or null, "resume": bool, "patience": seconds}; the
answer is a line of JSON with a list: the exit code (−9: killed), stdout and stderr of every process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sab import calibrated, calibration, cli, distributed, files, runs, sequential
from sab.calibration import Sample, SampleSet
from sab.errors import SabError
from sab.recipes import Recipe
from tests.tiny import dialogues, tiny_folder

LINEARS = tuple(
    f"model.language_model.layers.{block}.{kind}"
    for block in (0, 1)
    for kind in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
)
PLAIN = Recipe(model=str(tiny_folder()), method="sab", iterations=2, max_salient=4, linears=LINEARS, samples=40)
RECIPES = {
    "plain": PLAIN,
    "together": replace(PLAIN, method="sab-h", iterations=1, refine=1),
    "every part": replace(
        PLAIN, method="xnor", sensitivity="fisher", parts=("vision", "projector", "decoder"), linears=None
    ),
    "few samples": replace(PLAIN, samples=1),
}


def spread(count: int) -> list[Sample]:
    """Samples of many lengths, which do not fit into one batch."""
    made = dialogues(count)
    return [replace(sample, messages=sample.messages * (1 + place % 3)) for place, sample in enumerate(made)]


# --- what can go wrong in process 1


def _nothing() -> None:
    pass


def _same_sums() -> None:
    """Every process has all batches, and no sum is added up: all have the Hessians of one process."""
    distributed.share = lambda count, what: range(count)
    distributed.total = lambda values: values
    if os.environ["WORLD_SIZE"] != "1":
        from sab import refine

        refine._pooled = lambda gradient, of: gradient


def _shared_refinement() -> None:
    """Every process has the Hessians of one process, but its own batches to refine codes with."""
    distributed.share = lambda count, what: range(count)
    calibrated._pool = lambda moments: None
    refine = sequential.refine_block

    def of_own(lvlm: Any, index: int, batches: Sequence[Any], targets: Sequence[Any], *rest: Any, **more: Any) -> Any:
        own = slice(distributed.rank(), None, distributed.size())
        return refine(lvlm, index, batches[own], targets[own], *rest, **more)

    sequential.refine_block = of_own


def _in_fit(act: Callable[[], None], number: int = 1) -> None:
    """Let a process do something at its first fit."""
    fit = sequential.fit_linears

    def acting(*arguments: Any, **more: Any) -> Any:
        if distributed.rank() == number and distributed.size() > 1:
            act()
        return fit(*arguments, **more)

    sequential.fit_linears = acting


def _raise(error: Exception) -> None:
    raise error


def _full_disk() -> None:
    write = files.write_bytes

    def refusing(path: Path, data: bytes) -> None:
        if path.parent.name == "codes":
            raise SabError(f"{path.name} could not be written (No space left on device)")
        write(path, data)

    runs.write_bytes = refusing


def _other_samples() -> None:
    if os.environ["RANK"] == "1":
        calibration.choose = lambda *_: SampleSet(tuple(spread(61)[1:]), "tests")


def _stand_still() -> None:
    time.sleep(3600)


TROUBLES: dict[str, Callable[[], None]] = {
    "none": _nothing,
    "same sums": _same_sums,
    "shared refinement": _shared_refinement,
    "refusal": partial(_in_fit, partial(_raise, SabError("This linear cannot be fitted."))),
    "defect": partial(_in_fit, partial(_raise, ZeroDivisionError("a defect"))),
    "killed": partial(_in_fit, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "leader killed": partial(_in_fit, lambda: os.kill(os.getpid(), signal.SIGKILL), 0),
    "stands still": partial(_in_fit, _stand_still),
    "full disk": _full_disk,
    "other samples": _other_samples,
}


def start(asked: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Fork the processes, wait for them, and say what became of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / f"{asked['recipe']}.json").write_text(json.dumps(RECIPES[asked["recipe"]].to_json()))
    children = []
    for number in range(asked["size"]):
        child = os.fork()
        if not child:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(number)}
            os.environ |= {"RANK": str(number), "WORLD_SIZE": str(asked["size"])}
            _work(asked, directory, number)
        children.append(child)
    found = []
    for number, child in enumerate(children):
        _, status = os.waitpid(child, 0)
        said = [(directory / f"{number}.{stream}").read_text() for stream in ("out", "err")]
        found.append({"code": os.waitstatus_to_exitcode(status), "out": said[0], "err": said[1]})
        if asked["trouble"] == "stands still" and number == 0:
            os.kill(children[1], signal.SIGKILL)  # which is what torchrun does with what is left
    return found


def _work(asked: dict[str, Any], directory: Path, number: int) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(directory / f"{number}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    calibration.choose = lambda source, count, *_: SampleSet(tuple(spread(count)), "tests")
    TROUBLES[asked["trouble"]]()
    if asked["patience"] is not None:
        distributed.joined = partial(distributed.joined, patience=asked["patience"])
    recipe = directory / f"{asked['recipe']}.json"
    arguments: Sequence[str] = ["quantize", "--recipe", str(recipe), "--out", str(directory / asked["run"])]
    try:
        code = cli.main([*arguments, "--device", "cpu", "--export", "none", *["--resume"] * asked["resume"]])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        print(f"Traceback: {error!r}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(start(json.loads(line), Path(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
