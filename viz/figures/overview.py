"""The whole model at a glance: one cell per linear, blocks from left to right, coloured by one quantity.

Shares are of the salient weights: most weights are neither, and would hide what the rest do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme


class Report(Protocol):
    """What the figure reads of a linear's report; `counts` by class code or by name of the four classes."""

    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def relative_loss(self) -> float: ...
    @property
    def bits_all_in(self) -> float: ...
    @property
    def unimodal_ratio(self) -> float: ...
    @property
    def counts(self) -> Mapping[str, int] | Sequence[int]: ...


class Quantity(NamedTuple):
    """How a choice of colour is called and read."""

    label: str
    reading: str
    percent: bool
    colour: str  # a field of Palette that the ramp ends in, or "" for the neutral ramp


QUANTITIES = {
    "cross": Quantity("cross-modal share", "share of the salient weights that serve both modalities", True, "cross"),
    "vision": Quantity("vision-only share", "share of the salient weights that serve vision alone", True, "vision"),
    "language": Quantity(
        "language-only share", "share of the salient weights that serve language alone", True, "language"
    ),
    "ratio": Quantity("r, unimodal share", "share of all significance that unimodal weights carry", True, ""),
    "error": Quantity("output error", "squared error of the output, relative to its square", True, ""),
    "bits": Quantity("bits all-in", "stored bits per weight, everything counted", False, ""),
}
CLASS_NAMES = ("neither", "language-only", "vision-only", "cross-modal")


class OverviewInfo(NamedTuple):
    """values [kinds, blocks], NaN where a block has no such linear or it is not done; names likewise."""

    quantity: str
    kinds: list[str]
    blocks: list[int]
    values: NDArray[np.float64]
    names: list[list[str]]


def class_counts(report: Report) -> tuple[int, int, int, int]:
    """Weights per class of a report, by class code."""
    counts = report.counts
    if isinstance(counts, Mapping):
        neither, language, vision, cross = (int(counts.get(name, 0)) for name in CLASS_NAMES)
    else:
        neither, language, vision, cross = (int(count) for count in counts)
    return neither, language, vision, cross


def info(reports: Sequence[Report], quantity: str) -> OverviewInfo:
    """Arrange reports in a grid; kinds keep the order in which a block runs them."""
    if quantity not in QUANTITIES:
        raise ValueError(f"Colour by one of {', '.join(QUANTITIES)}, not “{quantity}”.")
    kinds = list(dict.fromkeys(report.kind for report in reports))
    blocks = sorted({report.block for report in reports})
    values = np.full((len(kinds), len(blocks)), np.nan)
    names = [["" for _ in blocks] for _ in kinds]
    for report in reports:
        row, column = kinds.index(report.kind), blocks.index(report.block)
        values[row, column] = _value(report, quantity)
        names[row][column] = report.name
    return OverviewInfo(quantity, kinds, blocks, values, names)


def _value(report: Report, quantity: str) -> float:
    _, language, vision, cross = class_counts(report)
    salient = language + vision + cross
    chosen = {"language": language, "vision": vision, "cross": cross}
    if quantity in chosen:
        return chosen[quantity] / salient if salient else float("nan")
    if quantity == "ratio":
        return report.unimodal_ratio if salient else float("nan")
    return report.relative_loss if quantity == "error" else report.bits_all_in


def figure(info: OverviewInfo, dark: bool = False) -> go.Figure:
    """The grid; customdata of each cell is the linear's name."""
    quantity = QUANTITIES[info.quantity]
    colours = theme.palette(dark)
    if quantity.colour:
        scale: list[list[object]] = [[0.0, colours.neither], [1.0, getattr(colours, quantity.colour)]]
    else:
        scale = theme.ramp_scale(dark)
    shown = info.values * (100 if quantity.percent else 1)
    unit = " %" if quantity.percent else ""
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    drawn = go.Figure(
        go.Heatmap(
            z=shown,
            x=[str(block) for block in info.blocks],
            y=info.kinds,
            customdata=info.names,
            colorscale=scale,
            zmin=low,
            zmax=high if high > low else low + 1,
            xgap=3,
            ygap=3,
            hovertemplate=f"block %{{x}} · %{{y}}<br>{quantity.label}: <b>%{{z:.3~g}}{unit}</b><extra></extra>",
            colorbar={
                "thickness": 8,
                "len": 1,
                "outlinewidth": 0,
                "ticksuffix": unit,
                "nticks": 4,
                "tickfont": {"color": colours.muted, "size": 11},
                "xpad": 8,
            },
        )
    )
    drawn.update_layout(
        template=theme.template(dark),
        xaxis={"title": {"text": "decoder block"}, "showgrid": False, "ticks": "", "fixedrange": True},
        yaxis={"autorange": "reversed", "showgrid": False, "ticks": "", "fixedrange": True},
        xaxis_type="category",
        yaxis_type="category",
    )
    return drawn
