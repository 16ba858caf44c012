"""What runs and evaluations hold, in the form that tables and figures take.

An evaluation lies beside its run as accuracy.json. That of full precision lies in a directory of its own, named after
the fingerprint of the weights, because it belongs to no run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viz.pages.store import Store

if TYPE_CHECKING:
    from sab.runs import Run

FULL = "Full precision"
OVERALL, TEXT_ONLY = "overall", "text-only"
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Result:
    """One evaluated model: what its evaluation `stored`, with the sizes of its linears where they are known. `run` is
    None for full precision and for a method over several calibration seeds."""

    name: str
    method: str
    run: Run | None
    stored: dict[str, Any]
    series: str = ""  # what it is one of, such as a method at one of several budgets
    tag: str = ""  # a word about it, behind its name

    @property
    def id(self) -> str:
        return self.run.id if self.run is not None else ""

    @property
    def is_full(self) -> bool:
        return self.method == "full"

    @property
    def categories(self) -> list[str]:
        return [name for name in self.stored["accuracy"] if name != OVERALL]

    def accuracy(self, category: str = OVERALL) -> Interval | None:
        """Accuracy of a category with its 95 % interval; None when nothing of it was asked."""
        if category not in self.stored["accuracy"]:
            return None
        low, high = self.stored["interval"][category]
        return self.stored["accuracy"][category], low, high

    @property
    def questions(self) -> int:
        return self.stored["counts"][OVERALL]

    @property
    def blank_visual(self) -> float | None:
        """Accuracy over the visual categories with the pictures blanked; None when that was not asked."""
        blank = self.stored.get("blank_picture")
        if not isinstance(blank, dict) or "accuracy" not in blank:
            return None
        counts = {name: count for name, count in blank["counts"].items() if name not in (OVERALL, TEXT_ONLY)}
        total = sum(counts.values())
        return sum(blank["accuracy"][name] * count for name, count in counts.items()) / total if total else None


def results(store: Store) -> list[Result]:
    """Full precision first, where it was evaluated, then every evaluated run of the same weights."""
    runs = [run for run in store.runs(fresh=True) if run.reports]
    fingerprint = current_fingerprint(store, runs)
    found = []
    stored = read_evaluation(full_directory(store, fingerprint)) if fingerprint else None
    if stored is not None:
        found.append(Result(FULL, "full", None, stored))
    names: dict[str, int] = {}
    for run in runs:
        evaluation = run.accuracy
        if run.fingerprint != fingerprint or not evaluation or OVERALL not in evaluation.get("accuracy", {}):
            continue
        names[run.name] = names.get(run.name, 0) + 1
        name = run.name if names[run.name] == 1 else f"{run.name} #{names[run.name]}"
        found.append(Result(name, run.recipe.method, run, evaluation | sizes(run)))
    return found


def sizes(run: Run) -> dict[str, Any]:
    """Bits, bytes and seconds of a run, named as in a comparison."""
    names = ("bits_nominal", "bits_all_in", "bytes", "seconds")
    return {name: getattr(run, name) for name in names}


def current_fingerprint(store: Store, runs: list[Run]) -> str:
    """Which weights are spoken of: those that were in memory, else those of the first run; "" when neither is there."""
    if store.fingerprint:
        return store.fingerprint
    return runs[0].fingerprint if runs else ""


def full_directory(store: Store, fingerprint: str) -> Path:
    """Where the evaluation of the full-precision weights lies: shipped, or made by a visitor."""
    from sab import runs

    shipped = runs.ASSET_RUNS / f"full-{fingerprint[:12]}"
    return shipped if (shipped / "accuracy.json").exists() else store.new_runs / shipped.name


def read_evaluation(directory: Path) -> dict[str, Any] | None:
    """A stored evaluation; None when there is none that can be read."""
    try:
        stored = json.loads((directory / "accuracy.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and OVERALL in stored.get("accuracy", {}) else None


def accuracy_cell(stored: dict[str, Any] | None) -> tuple[str, float | None]:
    """Overall accuracy with its interval and count, and the number to sort by; empty when it was not measured."""
    if not stored or OVERALL not in stored.get("accuracy", {}):
        return "", None
    value = stored["accuracy"][OVERALL]
    low, high = stored["interval"][OVERALL]
    return f"{100 * value:.1f} %\n{100 * low:.0f}–{100 * high:.0f} %, n = {stored['counts'][OVERALL]}", value


def breakdown(run: Run) -> tuple[dict[str, int], int]:
    """Stored bits by what they hold, over all linears of a run, and the number of weights they store."""
    from sab.packing import count_bits

    totals: dict[str, int] = {}
    for name in run.reports:
        for part, bits in count_bits(run.codes(name)).breakdown.items():
            totals[part] = totals.get(part, 0) + bits
    return totals, sum(report.weights for report in run.reports.values())


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
