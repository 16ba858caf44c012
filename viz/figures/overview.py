"""The whole model at a glance: one cell per linear, blocks from left to right, coloured by one quantity.

Blocks stand in forward order, part by part (vision tower, projector, decoder). Shares are of the salient weights: most
weights are neither, and would hide what the rest do.
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
    def part(self) -> str: ...
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
PART_TITLES = {"vision": "vision tower", "projector": "projector", "decoder": "decoder"}


class Column(NamedTuple):
    """A block of one part of the model; block -1 is outside numbered blocks. `place` tells apart linears of one kind
    that stand side by side there, as in several projectors."""

    part: str
    block: int
    place: int = 0

    @property
    def label(self) -> str:
        """What stands under the column."""
        return str(self.block) if self.block >= 0 else "·" if not self.place else f"·{self.place + 1}"

    @property
    def title(self) -> str:
        """What a hover calls it."""
        part = PART_TITLES.get(self.part, self.part)
        return f"{part}, block {self.block}" if self.block >= 0 else part


class OverviewInfo(NamedTuple):
    """values [kinds, columns], NaN where a block has no such linear or it is not done; names likewise."""

    quantity: str
    kinds: list[str]
    columns: list[Column]
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


def kind_label(report: Report) -> str:
    """What a row is called: the kind, with the module it is in where that is a mere number."""
    return ".".join(report.name.split(".")[-2:]) if report.kind.isdigit() else report.kind


def columns_of(reports: Sequence[Report]) -> list[Column]:
    """The column of each report, in the order given."""
    taken: dict[tuple[str, int, str], int] = {}
    columns = []
    for report in reports:
        key = report.part, report.block, report.kind
        columns.append(Column(report.part, report.block, taken.get(key, 0)))
        taken[key] = taken.get(key, 0) + 1
    return columns


def forward_order(columns: Sequence[Column]) -> list[Column]:
    """Each column once: parts as they first come, within a part by block."""
    parts = list(dict.fromkeys(column.part for column in columns))
    return sorted(set(columns), key=lambda column: (parts.index(column.part), column.block, column.place))


def info(reports: Sequence[Report], quantity: str) -> OverviewInfo:
    """Arrange reports in a grid; kinds keep the order in which a block runs them."""
    if quantity not in QUANTITIES:
        raise ValueError(f"Colour by one of {', '.join(QUANTITIES)}, not “{quantity}”.")
    kinds = list(dict.fromkeys(kind_label(report) for report in reports))
    places = columns_of(reports)
    columns = forward_order(places)
    values = np.full((len(kinds), len(columns)), np.nan)
    names = [["" for _ in columns] for _ in kinds]
    for report, place in zip(reports, places, strict=True):
        row, column = kinds.index(kind_label(report)), columns.index(place)
        values[row, column] = _value(report, quantity)
        names[row][column] = report.name
    return OverviewInfo(quantity, kinds, columns, values, names)


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
    """The grid; customdata of each cell is the linear's name, its text the column's title. A linear without a value
    is drawn pale, so that it can be found and opened all the same."""
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
            x=list(range(len(info.columns))),
            y=info.kinds,
            customdata=info.names,
            text=[[column.title for column in info.columns] for _ in info.kinds],
            colorscale=scale,
            zmin=low,
            zmax=high if high > low else low + 1,
            xgap=3,
            ygap=3,
            hovertemplate=f"%{{text}} · %{{y}}<br>{quantity.label}: <b>%{{z:.3~g}}{unit}</b><extra></extra>",
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
    without = np.array(info.names, dtype=bool).reshape(info.values.shape) & ~np.isfinite(info.values)
    if without.any():
        drawn.add_heatmap(
            z=np.where(without, 0.0, np.nan),
            x=list(range(len(info.columns))),
            y=info.kinds,
            customdata=info.names,
            text=drawn.data[0].text,
            colorscale=[[0.0, colours.raised], [1.0, colours.raised]],
            showscale=False,
            xgap=3,
            ygap=3,
            hovertemplate="%{text} · %{y}<br>no salient weights to divide into classes<extra></extra>",
        )
    drawn.update_layout(
        template=theme.template(dark),
        xaxis={"showgrid": False, "ticks": "", "fixedrange": True, "zeroline": False, **column_axis(info.columns)},
        yaxis={"autorange": "reversed", "showgrid": False, "ticks": "", "fixedrange": True},
        yaxis_type="category",
    )
    return drawn


def column_axis(columns: Sequence[Column]) -> dict[str, object]:
    """Ticks of an axis whose places 0, 1, … are columns: at most about 24 of them, and the parts named below."""
    parts = list(dict.fromkeys(column.part for column in columns))
    step = max(1, -(-len(columns) // 24))
    labels = {
        place: column.label for place, column in enumerate(columns) if column.block < 0 or column.block % step == 0
    }
    if len(parts) > 1:  # the name of a part stands under its middle
        for part in parts:
            places = [place for place, column in enumerate(columns) if column.part == part]
            middle = min(labels.keys() & set(places), key=lambda place: abs(place - np.mean(places)))
            labels[middle] += f"<br>{PART_TITLES.get(part, part)}"
    title = {"text": f"{PART_TITLES.get(parts[0], parts[0])} block" if len(parts) == 1 else ""}
    return {"tickmode": "array", "tickvals": list(labels), "ticktext": list(labels.values()), "title": title}
