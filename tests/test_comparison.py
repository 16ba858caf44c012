"""The comparison on the page: which rows are tagged, what its sentences say, and when it is not shown at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from viz.pages import comparison


def row(entry: str, accuracy: float, bits: float) -> dict[str, Any]:
    return {
        "entry": entry,
        "method": entry.partition("@")[0].partition("+")[0],
        "label": entry.upper(),
        "bits_all_in": bits,
        "bits_nominal": 1.1,
        "bytes": 100,
        "accuracy": {"overall": accuracy},
    }


def table(*rows: dict[str, Any], gaps: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"fingerprint": "f", "questions": 1000, "seeds": 3, "samples": 64, "rows": list(rows), "gaps": list(gaps)}


def gap(value: float, low: float, high: float) -> dict[str, Any]:
    parts = {"value": value, "interval": [low, high]}
    return {"first": "sab", "second": "arb-rc-cgb", "accuracy": parts, "kl": parts}


def test_a_row_is_tagged_when_none_is_as_good_for_as_few_bits() -> None:
    full, better = row("full", 0.9, 16.0), row("sab-h", 0.8, 2.0)
    worse, same, small = row("sab", 0.7, 3.0), row("billm", 0.8, 2.5), row("xnor", 0.2, 1.2)
    found = {each.name: each.tag for each in comparison.compared(table(worse, full, same, better, small))}
    assert [name for name, tag in found.items() if tag] == ["SAB-H", "XNOR"]
    assert next(iter(found)) == "Full precision"


def test_budgets_of_one_method_are_one_series() -> None:
    found = comparison.compared(table(row("sab-h", 0.8, 2.9), row("sab-h@2.0", 0.7, 2.0), row("sab-h@1.5", 0.6, 1.5)))
    assert [each.series for each in found] == ["", comparison.BUDGET, comparison.BUDGET]


@pytest.mark.parametrize(("low", "high", "told"), [(0.01, 0.03, "are told"), (-0.01, 0.05, "not told")])
def test_the_sentence_on_the_map_follows_its_interval(low: float, high: float, told: str) -> None:
    words = comparison.findings(table(row("sab", 0.7, 3.0), gaps=(gap(0.02, low, high),)))
    assert told in words
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in words


def test_what_sab_h_wins_back_and_how_small_it_may_be_come_from_the_rows() -> None:
    rows = row("full", 0.9, 16.0), row("sab", 0.7, 3.0), row("sab-h", 0.85, 2.9), row("sab-h@1.75", 0.71, 1.74)
    words = comparison.findings(table(*rows, row("sab-h@1.5", 0.69, 1.5)))
    assert "wins back 75 %" in words
    assert "Refining" not in words
    assert "1.74 bits a weight (71.0 %)" in words


def test_what_refining_alone_gives_comes_from_the_rows_and_is_no_published_method() -> None:
    refined = row("sab+refined", 0.82, 3.0)
    words = comparison.findings(table(row("sab", 0.7, 3.0), refined, row("gptq2", 0.75, 2.1)))
    assert "takes SAB from 70.0 to 82.0 % with 3.00 stored bits a weight" in words
    assert "1 of the 1 published" in words


def test_the_order_of_the_paper_is_only_claimed_where_it_holds() -> None:
    rows = [row(entry, 0.9 - 0.1 * place, 3.0) for place, entry in enumerate(comparison.OUTLINE)]
    assert "holds here" in comparison.findings(table(*rows))
    rows[2]["accuracy"]["overall"], rows[3]["accuracy"]["overall"] = 0.6, 0.7
    words = comparison.findings(table(*rows))
    assert "does not hold here for SAB and ARB-RC." in words


def test_a_comparison_of_other_weights_or_a_damaged_one_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    assert comparison.read_comparison("f", path) is None
    path.write_text("{")
    assert comparison.read_comparison("f", path) is None
    path.write_text(json.dumps(table(row("sab", 0.7, 3.0))))
    assert comparison.read_comparison("g", path) is None
    found = comparison.read_comparison("f", path)
    assert found is not None
    assert [each.name for each in comparison.compared(found)] == ["SAB"]
    assert "mean of 3 calibrations" in comparison.heading(found)
