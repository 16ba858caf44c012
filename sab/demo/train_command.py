"""The command `python -m sab train-demo`: one stage of the embedded model's training, or all three, in time slices."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sab.demo.train import STAGES, Trainer
from sab.errors import SabError
from sab.files import make_directory
from sab.terminal import Parser

SEEDS = 2**26  # how many there are: training draws from 7,919 times its seed on, and has to stay below 2**40


def train(arguments: Sequence[str]) -> dict[str, Any]:
    """Run one stage, or all three, and write the checkpoint; the last entry of the log. SabError for wrong options."""
    options = _options(arguments)
    last: dict[str, Any] = {}
    for stage in STAGES if options.stage == "all" else (options.stage,):
        start = options.start or (options.state if stage == "joint" else None)
        trainer = Trainer(stage, options.state, options.seed, options.device, start)
        with (options.state / "log.jsonl").open("a") as log:
            for entry in trainer.run(options.minutes, options.steps, options.cool_down):
                last = entry
                log.write(json.dumps(entry) + "\n")
                log.flush()
                shown = " ".join(f"{k} {v}" for k, v in entry.items() if k not in ("stage", "share", "seconds"))
                print(f"{stage} {100 * entry['share']:.0f} % {shown}", file=sys.stderr, flush=True)
        if options.out is not None:
            trainer.export(options.out)
    return last


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sab train-demo", description="Train the embedded model from one seed, resumable."
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for each stage in this call")
    parser.add_argument("--steps", type=int, default=None, help="steps for each stage in this call, instead of minutes")
    parser.add_argument("--cool-down", type=float, default=0.0, help="last share of the slice with falling rate")
    parser.add_argument(
        "--state", type=Path, default=Path("train"), help="directory of the resumable state and the log"
    )
    parser.add_argument("--start", type=Path, default=None, help="begin the stage from this checkpoint directory")
    parser.add_argument("--out", type=Path, default=None, help="write the checkpoint here when the call ends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf or (options.steps is not None and options.steps <= 0):
        raise SabError("Give --minutes or --steps as a number above zero.")
    if not 0 <= options.cool_down <= 1:
        raise SabError("--cool-down is a share of the slice; give a number from 0 to 1.")
    if not 0 <= options.seed < SEEDS:
        raise SabError(f"--seed must be from 0 to {SEEDS - 1}.")
    if options.out is not None:
        make_directory(options.out)  # now, not after hours of training
    return options
