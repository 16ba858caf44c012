"""`python -m sab quantize … --dry-run`: what a run would take, before any weight is read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sab.terminal import Progress

if TYPE_CHECKING:
    from sab.models import LVLM
    from sab.recipes import Recipe

COUNTED_SAMPLES = 16  # of the calibration samples, from which the tokens of all are estimated
ASSUMED = {"language": 64, "vision": 256}  # tokens of a sample where no processor can count; a picture of 448² often


def dry_run(options: argparse.Namespace, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Estimate the run of a recipe and say it in lines; returns the figures."""
    from sab import models
    from sab.estimate import estimate

    lvlm = models.outline(recipe.model, options.device, options.dtype)
    tokens, length = _tokens(lvlm, recipe)
    found = estimate(lvlm, recipe, tokens, length, progress)
    progress.end()
    _say(progress, lvlm, recipe, found)
    return {"dry_run": True, "recipe": recipe.to_json(), **found}


def _tokens(lvlm: LVLM, recipe: Recipe) -> tuple[dict[str, int], int]:
    """Tokens of each modality in all samples, and the mean length of one, from a few of them; assumed where the model's
    processor is not there."""
    from sab import calibration

    if lvlm.processor is None:
        return {name: number * recipe.samples for name, number in ASSUMED.items()}, sum(ASSUMED.values())
    few = calibration.choose(recipe.calibration, min(COUNTED_SAMPLES, recipe.samples), recipe.seed, recipe.split)
    counted = {"language": 0, "vision": 0}
    for sample in few:
        ids = lvlm.prepare(sample.messages, sample.picture)["input_ids"]
        vision = int((ids == lvlm.image_token_id).sum())
        if recipe.split == "corpus":
            vision = ids.numel() if sample.picture is not None else 0
        counted["vision"] += vision
        counted["language"] += ids.numel() - vision
    every = {name: round(number * recipe.samples / len(few)) for name, number in counted.items()}
    return every, max(1, sum(counted.values()) // len(few))


def _say(progress: Progress, lvlm: LVLM, recipe: Recipe, found: dict[str, Any]) -> None:
    model, memory = found["model"], found["memory_bytes"]
    progress.say(
        f"{lvlm.source}: {model['parameters'] / 1e9:.2f} billion parameters, {_size(model['bytes'])}; "
        f"{found['linears']} linears of {found['weights'] / 1e9:.3f} billion weights to binarize"
    )
    progress.say("method        bits nominal  all-in  packed linears")
    for entry, bits in found["methods"].items():
        progress.say(f"{entry:14s}{bits['nominal']:12.2f}  {bits['all_in']:6.2f}  {_size(bits['bytes']):>14s}")
    tokens = " and ".join(f"{number:,} {name}" for name, number in found["tokens"].items())
    assumed = " (assumed: no processor lies beside the configuration)" if lvlm.processor is None else ""
    progress.say(f"{recipe.samples} samples: about {tokens} tokens{assumed}")
    for kind in ("whole", "streamed"):
        peaks = ", ".join(f"{_size(size)} of the {where}" for where, size in memory[kind].items())
        chosen = " (as it would be done here)" if found["streamed"] == (kind == "streamed") else ""
        progress.say(f"memory at most, {kind}: {peaks}{chosen}")
    progress.say(
        f"disk: {_size(found['disk_bytes']['run'])} for the run, "
        f"{_size(found['disk_bytes']['checkpoint'])} for its packed checkpoint"
    )
    stages = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found["stages_seconds"].items())
    progress.say(f"time on this {found['device']}: about {_duration(found['seconds'])} ({stages})")
    progress.say(
        "All of it is estimated: bits from small random weights, time from a measurement of about a second; "
        f"left out: {found['assumed']['left_out']}"
    )


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
