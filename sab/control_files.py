"""Controls on disk: `<name>.json` with the figures, and `<name>-halves.safetensors` with what the nulls come from.

`python -m sab controls --out <name>.json` writes both; the page reads them, or computes the same in memory. The
second file is written for "input" sensitivity alone, whose four vectors a linear take little room ("fisher" would
need four more copies of the model): "<linear>.<half>" [m] with half in HALVES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from sab import runs
from sab.controls import Controls
from sab.errors import SabError
from sab.files import contents, json_in, remove, without_nan, write_bytes, write_json

HALVES = ("language_a", "language_b", "vision_a", "vision_b")
SHIPPED = runs.ASSET_RUNS.parent
CONDITIONS = ("fingerprint", "sensitivity", "split", "samples", "seed", "calibration", "damping")


@dataclass(frozen=True)
class StoredControls:
    """`figures`: what the command prints, conditions and `Controls.summary()` together; `halves`: sensitivities of the
    halves of HALVES by linear, empty where they were not kept."""

    figures: Mapping[str, Any]
    halves: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def of(cls, found: Controls, conditions: Mapping[str, Any]) -> StoredControls:
        """What was just computed, under the conditions of `Recipe.map_conditions`."""
        return cls(without_nan({**conditions, **found.summary()}), found.halves)

    def matches(self, conditions: Mapping[str, Any]) -> bool:
        """Whether these are the controls of maps made under the conditions."""
        return all(self.figures.get(name) == conditions[name] for name in CONDITIONS)

    def write(self, path: Path) -> None:
        """Write the figures to `path` and, for input sensitivities, the halves beside it; the figures last, since they
        say what the halves are of. SabError for a name that says it holds tensors."""
        check_name(path)
        beside = _halves_of(path)
        remove(beside)
        if self.figures["sensitivity"] == "input":
            tensors = {
                f"{name}.{half}": values.float().cpu().clone()
                for name, four in self.halves.items()
                for half, values in zip(HALVES, four, strict=True)
            }
            write_bytes(beside, tensor_bytes(tensors))
        write_json(path, self.figures)


def check_name(path: Path) -> None:
    """SabError for the figures under a name that says it holds tensors."""
    if path.suffix == ".safetensors":
        raise SabError(f"{path} would hold figures; name a file that ends in .json for --out.")


def _halves_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-halves.safetensors")


def read(path: Path) -> StoredControls:
    """What `write` wrote. SabError where the files are missing or damaged."""
    try:
        figures = json_in(path)
        beside = _halves_of(path)
        tensors = read_tensors(contents(beside)) if beside.exists() else {}
        names = figures["linears"] if tensors else ()
        return StoredControls(figures, {name: tuple(tensors[f"{name}.{half}"] for half in HALVES) for name in names})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SabError(f"{path} holds no controls; make it anew with python -m sab controls --out {path}.") from error
