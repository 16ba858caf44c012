"""What one visitor looks at, and how a link says it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from viz.downsample import POOLINGS
from viz.figures.overview import QUANTITIES

if TYPE_CHECKING:
    from sab.significance import Thresholds

TABS = ("explore", "binarize", "chat", "benchmark", "learn")
KINDS = ("input", "fisher")
THRESHOLD_RANGES = {"salient_top_p": (0.001, 0.5), "diff_quantile": (0.0, 1.0), "sparsity_thr": (0.0, 0.9)}

FORMS = {
    "views": re.compile(r"(?:[a-z]+(?:,[a-z]+)*)?"),
    "window": re.compile(r"(?:\d{1,7}(?:\.\d{1,3})?(?:,\d{1,7}(?:\.\d{1,3})?){3})?"),
    "pinned": re.compile(r"(?:\d{1,7},\d{1,7})?"),
}


@dataclass(frozen=True)
class Selection:
    """What one visitor looks at; everything a link has to restore."""

    tab: str = "explore"
    run: str = ""
    linear: str = ""
    salient_top_p: float = 0.05
    diff_quantile: float = 0.5
    sparsity_thr: float = 0.005
    kind: str = "input"
    colour: str = "vision"
    pooling: str = "max"
    pin_a: str = ""  # runs that Binarize compares
    pin_b: str = ""
    views: str = ""  # maps that stand side by side, by name with commas; "" for the first choice
    window: str = ""  # what the maps show, "top,left,bottom,right" in weights; "" for the whole layer
    pinned: str = ""  # the weight that is kept, "row,column"

    @classmethod
    def from_query(cls, query: Mapping[str, Any]) -> Selection:
        """Read query parameters (or anything a client sent): what is missing, unknown or not a number keeps
        its default, and numbers are clamped to the range of their slider."""
        chosen: dict[str, Any] = {}
        for field in fields(cls):
            value = query.get(field.name)
            if value is None:
                continue
            if field.name in THRESHOLD_RANGES:
                number = _finite(value)
                if number is not None:
                    low, high = THRESHOLD_RANGES[field.name]
                    chosen[field.name] = min(max(number, low), high)
            elif isinstance(value, str) and len(value) <= 200:
                chosen[field.name] = value
        for name, choices in (("tab", TABS), ("kind", KINDS), ("pooling", POOLINGS), ("colour", QUANTITIES)):
            if chosen.get(name) not in choices:
                chosen.pop(name, None)
        for name, form in FORMS.items():
            if not form.fullmatch(chosen.get(name, "")):
                chosen.pop(name)
        return cls(**chosen)

    def thresholds(self) -> Thresholds:
        """The three thresholds as `sab` takes them."""
        from sab.significance import Thresholds

        return Thresholds(
            salient_top_p=self.salient_top_p, diff_quantile=self.diff_quantile, sparsity_thr=self.sparsity_thr
        )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
