"""The shipped comparison: every method on the embedded model, over several calibration seeds (`python -m sab compare`).

It is shown where the weights it was made with are the ones that are loaded, and says what its own figures say.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from viz.pages.results import FULL, Result
from viz.pages.shared import ASSETS
from viz.pages.table import Column, Row, table_value

COMPARISON = ASSETS / "comparison.json"
CONTROL = "arb-rc-cgb"
BUDGET = "SAB-H budgets"
BEST = "best for its bits"
PUBLISHED = ("pb-llm", "billm", "arb", "arb-x", "arb-rc", "arb-rc-cgb", "sab")
# Table 1 of SAB-LVLM (arXiv 2607.01876): Qwen2.5-VL-7B on MMStar, DocVQA and TextVQA, in percent.
PAPER = (
    ("Full precision", 62.25, 95.17, 83.88),
    ("GPTQ 3-bit", 56.10, 93.36, 82.25),
    ("SAB-LVLM", 45.79, 85.34, 74.00),
    ("ARB-LLM", 38.10, 80.48, 70.70),
    ("BiLLM", 29.97, 33.08, 53.38),
    ("PB-LLM", 4.60, 9.40, 28.67),
)
PAPER_NOTE = (
    "These are the paper's own figures for Qwen2.5-VL-7B; nothing of it was run here. Only the **order** of the "
    "methods may be set beside the table above. Models, questions and calibration differ, so no two numbers compare; "
    "and the paper prints nominal bits, 1 plus the share of salient columns, which leave out bitmaps, scales and "
    "indices."
)
OUTLINE = ("full", "gptq3", "sab", "arb-rc", "billm", "pb-llm")  # from the best down, as the paper's table has them


def read_comparison(fingerprint: str, path: Path = COMPARISON) -> dict[str, Any] | None:
    """The comparison of these weights; None when there is none that can be read."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) and table.get("fingerprint") == fingerprint and table.get("rows") else None


def compared(table: dict[str, Any]) -> list[Result]:
    """Its rows, from the best to the worst after full precision; those that no other row beats at as few bits are
    tagged."""
    rows = sorted(table["rows"], key=lambda row: (row["method"] != "full", -row["accuracy"]["overall"]))
    return [
        Result(
            FULL if row["method"] == "full" else row["label"],
            row["method"],
            None,
            row,
            BUDGET if "@" in row["entry"] else "",
            BEST if row["method"] != "full" and unbeaten(row, rows) else "",
        )
        for row in rows
    ]


def unbeaten(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no other row is at least as accurate with at most as many bits all-in (and better in one of them)."""

    def beats(other: dict[str, Any]) -> bool:
        accuracy, bits = other["accuracy"]["overall"], other["bits_all_in"]
        own, mine = row["accuracy"]["overall"], row["bits_all_in"]
        return accuracy >= own and bits <= mine and (accuracy > own or bits < mine)

    return not any(beats(other) for other in rows)


def paper_table() -> dict[str, Any]:
    """The paper's table as a table of the page."""
    columns = [Column("Method"), *(Column(name, True) for name in ("MMStar", "DocVQA", "TextVQA"))]
    rows = [Row([(name, name), *((f"{value:.2f} %", value) for value in values)]) for name, *values in PAPER]
    return table_value(columns, rows, "")


def heading(table: dict[str, Any]) -> str:
    """What was asked and how often, in one sentence."""
    seeds = table["seeds"]
    each = f"the mean of {seeds} calibrations" if seeds > 1 else "one calibration"
    return (
        f"### Every method on this model\n{table['questions']:,} questions held out from training, {each} with "
        f"{table['samples']} samples; intervals are 95 % over questions."
    )


def findings(table: dict[str, Any]) -> str:
    """What the figures say, as a list in Markdown: every figure and verdict is read off the table."""
    return "\n".join(f"- {sentence}" for sentence in _sentences(table))


def _sentences(table: dict[str, Any]) -> Iterator[str]:
    rows = {row["entry"]: row for row in table["rows"]}
    gaps = {gap["first"]: gap for gap in table["gaps"] if gap["second"] == CONTROL}
    if "sab" in gaps:
        yield (
            f"**SAB against ARB-RC + CGB**, the same method without the map, paired by question: {_gap(gaps['sab'])} A "
            "map from input statistics is constant down each column and acts through the row scales alone."
        )
    if "sab+fisher" in gaps:
        yield f"With the **Fisher map**, which differs from row to row, SAB stands to it so: {_gap(gaps['sab+fisher'])}"
    if {"full", "sab", "sab-h"} <= rows.keys():
        yield from _won_back(rows["full"], rows["sab"], rows["sab-h"])
    if {"sab", "sab+refined"} <= rows.keys():
        refined, sab = rows["sab+refined"], rows["sab"]
        yield (
            f"**Refining whole blocks** as SAB-H does, after its own fit, takes SAB from {100 * _overall(sab):.1f} to "
            f"{100 * _overall(refined):.1f} % with {refined['bits_all_in']:.2f} stored bits a weight."
        )
    if "sab" in rows:
        yield from _smallest(rows["sab"], [row for row in table["rows"] if row["method"] == "sab-h"])
    published = [row for row in table["rows"] if row["entry"] in PUBLISHED]
    if "gptq2" in rows and published:
        yield _fair_opponent(rows["gptq2"], published)
    if rows.keys() >= set(OUTLINE):
        yield _order([rows[entry] for entry in OUTLINE])


def _won_back(full: dict[str, Any], sab: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    lost, won = _overall(full) - _overall(sab), _overall(ours) - _overall(sab)
    if lost > 0:
        yield (
            f"**SAB-H** wins back {100 * won / lost:.0f} % of what SAB loses to full precision, with "
            f"{ours['bits_all_in']:.2f} stored bits a weight against {sab['bits_all_in']:.2f}."
        )


def _smallest(sab: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    match = [row for row in rows if _overall(row) >= _overall(sab)]
    if match:
        least = min(match, key=lambda row: row["bits_all_in"])
        yield (
            f"The smallest SAB-H that answers at least as well as SAB ({100 * _overall(sab):.1f} %) stores "
            f"{least['bits_all_in']:.2f} bits a weight ({100 * _overall(least):.1f} %)."
        )


def _fair_opponent(integer: dict[str, Any], published: Sequence[dict[str, Any]]) -> str:
    bits = integer["bits_all_in"]
    beaten = [row for row in published if _overall(row) < _overall(integer) and row["bits_all_in"] > bits]
    return (
        f"**GPTQ with 2 bits** is a fair opponent: it stores {bits:.2f} bits a weight and answers better than "
        f"{len(beaten)} of the {len(published)} published “1-bit” methods here, although they store more."
    )


def _order(rows: Sequence[dict[str, Any]]) -> str:
    names = " > ".join(row["label"] for row in rows)
    wrong = [f"{a['label']} and {b['label']}" for a, b in itertools.pairwise(rows) if _overall(a) < _overall(b)]
    holds = f"does not hold here for {', '.join(wrong)}" if wrong else "holds here"
    return f"The order of the paper's table ({names}) {holds}."


def _gap(gap: dict[str, Any]) -> str:
    """A gap in points and in KL with intervals, and what they allow to say."""
    value, (low, high) = 100 * gap["accuracy"]["value"], (100 * end for end in gap["accuracy"]["interval"])
    told = "are told apart" if low > 0 or high < 0 else "are not told apart"
    kl, (kl_low, kl_high) = gap["kl"]["value"], gap["kl"]["interval"]
    return (
        f"{value:+.1f} points ({low:+.1f} to {high:+.1f}), so the two {told} by accuracy; "
        f"KL {kl:+.4f} ({kl_low:+.4f} to {kl_high:+.4f})."
    )


def _overall(row: dict[str, Any]) -> float:
    return row["accuracy"]["overall"]
