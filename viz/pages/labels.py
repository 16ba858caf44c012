"""What the labels of the map cause: weights of one label set to zero, and which questions suffer.

The shipped checks (`python -m sab causal --out`) are shown where the weights they were made with are the ones that are
loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viz.figures import knockouts
from viz.pages.chart import Control, stepped
from viz.pages.shared import ASSETS
from viz.pages.table import Column, Row, table_value

LABELS = ("vision-only", "language-only", "cross-modal", "random")
KINDS = knockouts.KINDS
SENSITIVITIES = {"input": "input-side map", "fisher": "Fisher map"}
ABOUT = (
    "A label is read off sensitivities; this asks whether the weights do what it says. Sets of weights are set to "
    "zero, one label at a time: **equally many of each linear and of like magnitude**, with random ones beside them, "
    "and the full-precision model answers again. If the labels predict, losing *vision-only* weights costs questions "
    "with a picture more, against questions without, than losing *language-only* ones does. It cannot show that a "
    "weight serves nothing else: what remains covers for what is lost."
)


def read_checks(fingerprint: str, directory: Path = ASSETS) -> dict[str, dict[str, Any]]:
    """The shipped checks of these weights by kind of sensitivity; those that are missing or damaged are left out."""
    found = {}
    for kind in SENSITIVITIES:
        try:
            check = json.loads((directory / f"causal-{kind}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(check, dict) and check.get("fingerprint") == fingerprint and check.get("knockouts"):
            found[kind] = check
    return found


def shares(check: dict[str, Any]) -> list[float]:
    """The shares of all decoder weights that were set to zero, ascending."""
    return sorted({one["share"] for one in check["knockouts"]})


def distances(check: dict[str, Any], share: float) -> list[dict[str, Any]]:
    """KL of each label's set at one share, random draws averaged (their intervals too)."""
    found = []
    for label in LABELS:
        drawn = [one for one in check["knockouts"] if one["share"] == share and one["label"] == label]
        if not drawn:
            continue
        entry: dict[str, Any] = {"label": label, "count": drawn[0]["count"]}
        for kind in KINDS:
            rows = [(one["divergence"][kind]["kl"], *one["divergence"][kind]["interval"]) for one in drawn]
            entry[kind] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        found.append(entry)
    return found


def knockouts_chart(checks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Bars of every set, with a slider over the share and over the kind of map."""
    kinds = list(checks)
    steps = {kind: shares(check) for kind, check in checks.items()}
    common = [share for share in steps[kinds[0]] if all(share in other for other in steps.values())]
    infos = {
        (place, step): knockouts.info(distances(checks[kind], share))
        for place, kind in enumerate(kinds)
        for step, share in enumerate(common)
    }
    most = 1.05 * max(float(info.distance.max()) for info in infos.values())
    controls = [
        Control("Map", tuple(SENSITIVITIES[kind] for kind in kinds)),
        Control("Set to zero", tuple(f"{100 * share:g} % of the weights" for share in common), len(common) - 1),
    ]

    def words(places: tuple[int, ...]) -> str:
        said = " ".join(contrasts(checks[kinds[places[0]]], common[places[1]]))
        return f"Filled: questions with a picture; hatched: questions without. {said}"

    return stepped(
        "labels-set-to-zero",
        controls,
        lambda places, dark: knockouts.figure(infos[places[0], places[1]], most, dark),
        lambda places: knockouts.traces(infos[places[0], places[1]]),
        words,
    )


def contrasts(check: dict[str, Any], share: float) -> Iterator[str]:
    """How much more visual one label is than another, in words."""
    for one in check["selectivity"]:
        if one["share"] == share and one["first"] == "vision-only":
            low, high = one["interval"]
            yield (
                f"{one['first'].capitalize()} against {one['second']}: {one['value']:+.1f} ({low:+.1f} to {high:+.1f}) "
                "doublings of the cost towards questions with a picture."
            )


def falls_table(checks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Accuracy by category with each set gone, at the largest share: points lost against full precision."""
    columns = [Column("Weights set to zero")]
    rows: list[Row] = []
    for kind, check in checks.items():
        share = shares(check)[-1]
        full = check["full"]["accuracy"]
        categories = [name for name in full if name not in ("overall", *KINDS)]
        if len(columns) == 1:
            columns += [Column(name.capitalize(), True, "points lost against full precision") for name in categories]
        for label in LABELS:
            drawn = [one for one in check["knockouts"] if one["share"] == share and one["label"] == label]
            if drawn:
                lost = [full[name] - sum(one["accuracy"][name] for one in drawn) / len(drawn) for name in categories]
                cells = [(f"{-100 * value:+.1f}" if value else "0", value) for value in lost]
                rows.append(Row([(f"{label}\n{100 * share:g} %, {SENSITIVITIES[kind]}", f"{kind} {label}"), *cells]))
    return table_value(columns, rows, "")


def said(checks: dict[str, dict[str, Any]]) -> str:
    """What was asked, and how well the sets match."""
    lines = [f"### What the labels cause\n{ABOUT}"]
    for kind, check in checks.items():
        worst = max(one["tolerance"] for one in check["tolerance"])
        lines.append(
            f"*{SENSITIVITIES[kind].capitalize()}*: {check['questions']:,} held-out questions, half of them without a "
            f"picture; the sets' sums of squares differ by {100 * worst:.1f} % at most."
        )
    return "\n\n".join(lines)
