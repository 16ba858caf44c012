"""The commands about what is stored: `python -m sab export` and `inspect`, and the checkpoint that quantize writes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from sab.forms import FORMS
from sab.options import brought
from sab.terminal import Parser, Progress

if TYPE_CHECKING:
    from sab.models import LVLM
    from sab.runs import Run


def add_checkpoint_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands `export` and `inspect` with their options."""
    export = commands.add_parser("export", help="write a run as a checkpoint folder")
    export.set_defaults(run=_export)
    export.add_argument("directory", type=Path, help="a finished run")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--form", choices=FORMS, default="packed", help="packed bits, or dense for tools that know nothing of them"
    )
    export.add_argument("--model", help="where the run's model is now, if it has moved")

    inspect = commands.add_parser("inspect", help="account for every stored byte of a run or a packed checkpoint")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("directory", type=Path)


def write_checkpoint(lvlm: LVLM, run: Run, folder: Path | None, form: str, progress: Progress) -> dict[str, Any]:
    """Export a run and say so; `folder` None is the place inside the run."""
    from sab.checkpoint import export, folder_in

    written = export(lvlm, run, folder_in(run, form) if folder is None else folder, form)
    progress.say(f"{form} checkpoint: {written['checkpoint']}, {written['weight_bytes'] / 1e6:.2f} MB of weights")
    return written


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from sab import models
    from sab.runs import Run

    run = Run.open(options.directory)
    run.require_finished()
    used = run.header.get("machine", {}).get("dtype")  # float32 holds whatever the source does: keep the source's
    dtype = "auto" if used in (None, "float32") else used
    lvlm = models.load(brought(options.model or run.recipe.model), "cpu", dtype)
    return write_checkpoint(lvlm, run, options.out, options.form, Progress())


def run_summary(run: Run) -> dict[str, Any]:
    """What commands answer about a run, for JSON."""
    return {
        "run": str(run.directory),
        "method": run.recipe.method,
        "linears": len(run.reports),
        "bits_nominal": run.bits_nominal,
        "bits_all_in": run.bits_all_in,
        "bytes": run.bytes,
        "seconds": run.seconds,
        "finished": run.finished,
        "calibration": run.header.get("calibration"),
    }


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    from sab.checkpoint import account, is_checkpoint
    from sab.packing import count_bits
    from sab.runs import Run

    if is_checkpoint(options.directory):
        found = account(options.directory)
        _say_parts(found["codes"])
        _say_parts({f"not binarized, {kind}": size for kind, size in found["full_precision"].items()})
        _say_parts({"headers of weight files": found["header_bytes"], "other files": found["other_bytes"]})
        return found
    run = Run.open(options.directory)
    if not run.finished and (Path(options.directory) / "config.json").exists():
        raise SabError(
            f"{options.directory} is a checkpoint without packed linears, such as a dense export: inspect the run, "
            "or a packed checkpoint."
        )
    run.require_finished()
    files = run.verify()
    breakdown: dict[str, int] = {}
    payload = 0
    for name in run.reports:
        counted = count_bits(run.codes(name))
        payload += counted.bytes
        for part, bits in counted.breakdown.items():
            breakdown[part] = breakdown.get(part, 0) + bits
    unlisted = {
        path.relative_to(run.directory).as_posix(): path.stat().st_size
        for path in sorted(run.directory.rglob("*"))
        if path.is_file() and path.relative_to(run.directory).as_posix() not in files
    }
    exported = sum(size for name, size in unlisted.items() if name.split("/")[0] in FORMS.values())
    code_files = sum(size for name, size in files.items() if name.startswith("codes/"))
    _say_parts({part: bits / 8 for part, bits in breakdown.items()})
    _say_parts({"headers of code files": code_files - payload, "exported checkpoints": exported})
    return {
        **run_summary(run),
        "codes": {part: bits / 8 for part, bits in breakdown.items()},
        "code_bytes": payload,
        "header_bytes": code_files - payload,
        "export_bytes": exported,
        "other_bytes": sum(files.values()) - code_files + sum(unlisted.values()) - exported,
        "total_bytes": sum(files.values()) + sum(unlisted.values()),
        "files": files | unlisted,
    }


def _say_parts(sizes: dict[str, float]) -> None:
    for part, size in sorted(sizes.items(), key=lambda entry: -entry[1]):
        print(f"{part:24s} {size:14,.0f} bytes", file=sys.stderr)
