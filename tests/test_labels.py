"""The causal check on the page: bars and sentences say what the check found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from viz.figures import knockouts
from viz.pages import labels


def knocked(label: str, share: float, with_picture: float, without: float, draw: int = 0) -> dict[str, Any]:
    def divergence(kl: float) -> dict[str, Any]:
        return {"kl": kl, "interval": [0.5 * kl, 1.5 * kl]}

    return {
        "label": label,
        "draw": draw,
        "share": share,
        "count": int(1e6 * share),
        "accuracy": {"overall": 0.5, "logic": 0.4, "with a picture": 0.5, "without a picture": 0.5},
        "divergence": dict(zip(knockouts.KINDS, map(divergence, (with_picture, without)), strict=True)),
    }


def check(**changes: Any) -> dict[str, Any]:
    sets = [
        knocked(label, share, with_picture * share, share)
        for share in (0.0025, 0.01)
        for label, with_picture in (("vision-only", 4.0), ("language-only", 1.0))
    ]
    draws = [knocked("random", share, draw * share, share, draw) for share in (0.0025, 0.01) for draw in (1, 3)]
    contrast = {"share": 0.01, "first": "vision-only", "second": "language-only", "value": 2.0, "interval": [1.0, 3.0]}
    return {
        "fingerprint": "f",
        "questions": 100,
        "full": {"accuracy": {"overall": 0.9, "logic": 0.9, "with a picture": 0.9, "without a picture": 0.9}},
        "knockouts": sets + draws,
        "selectivity": [contrast],
        "tolerance": [{"share": 0.01, "tolerance": 0.02}],
    } | changes


def test_random_draws_are_averaged_and_labels_keep_their_order() -> None:
    found = labels.distances(check(), 0.01)
    assert [one["label"] for one in found] == ["vision-only", "language-only", "random"]
    assert found[2]["with a picture"] == pytest.approx([0.02, 0.01, 0.03])
    assert found[0]["count"] == 10_000


def test_bars_end_where_the_largest_interval_does() -> None:
    value = labels.knockouts_chart({"input": check(), "fisher": check()})
    assert value["light"]["layout"]["xaxis"]["range"][1] == pytest.approx(1.05 * 0.06)
    assert [control["steps"] for control in value["controls"]] == [
        ["input-side map", "Fisher map"],
        ["0.25 % of the weights", "1 % of the weights"],
    ]
    assert "+2.0 (+1.0 to +3.0) doublings" in value["words"]
    assert len(value["frames"]) == 4


def test_points_lost_by_category_are_signed() -> None:
    value = labels.falls_table({"input": check()})
    assert [column["label"] for column in value["columns"]] == ["Weights set to zero", "Logic"]
    assert value["rows"][0]["cells"] == ["vision-only\n1 %, input-side map", "-50.0"]


def test_a_check_of_other_weights_or_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "causal-input.json").write_text(json.dumps(check()))
    (tmp_path / "causal-fisher.json").write_text("{")
    assert list(labels.read_checks("f", tmp_path)) == ["input"]
    assert labels.read_checks("g", tmp_path) == {}
