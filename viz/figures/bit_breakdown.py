"""Where the bits of a run go: signs, residual signs, bitmaps, scales …, as stacked bits per weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.basedatatypes import BaseTraceType

from viz import theme

PER_WEIGHT = ("signs", "group bitmap", "residual signs", "levels")
PARTS = (*PER_WEIGHT, "row scales", "column scales", "salient index", "scales", "zeros")


class BitBreakdownInfo(NamedTuple):
    """names: one per run. parts: what is stored, largest first. bits [runs, parts] per weight; rows sum to all-in
    bits. nominal [runs]: what papers print."""

    names: tuple[str, ...]
    parts: tuple[str, ...]
    bits: NDArray[np.float64]
    nominal: NDArray[np.float64]


def info(
    names: Sequence[str],
    breakdowns: Sequence[Mapping[str, int]],
    weights: Sequence[int],
    nominal: Sequence[float],
) -> BitBreakdownInfo:
    """`breakdowns` are stored bits by part, `weights` the number of weights they store."""
    totals: dict[str, int] = {}
    for breakdown in breakdowns:
        for part, count in breakdown.items():
            totals[part] = totals.get(part, 0) + count
    parts = tuple(sorted((part for part in totals if totals[part]), key=lambda part: -totals[part]))
    bits = np.array(
        [
            [breakdown.get(part, 0) / count for part in parts]
            for breakdown, count in zip(breakdowns, weights, strict=True)
        ]
    ).reshape(len(breakdowns), len(parts))
    return BitBreakdownInfo(tuple(names), parts, bits, np.array(nominal, dtype=np.float64))


def traces(info: BitBreakdownInfo, dark: bool = False) -> list[BaseTraceType]:
    """A stack of bars for each run, and the ticks of its nominal bits."""
    colours = theme.palette(dark)
    tones = part_tones(info.parts, dark)
    stacks: list[BaseTraceType] = [
        go.Bar(
            name=part,
            orientation="h",
            x=info.bits[:, column],
            y=list(info.names),
            marker={"color": tones[part], "line": {"width": 0.5, "color": colours.surface}},
            hovertemplate=f"{part}: %{{x:.3f}} bits per weight<extra>%{{y}}</extra>",
        )
        for column, part in enumerate(info.parts)
    ]
    if info.names:
        stacks.append(
            go.Scatter(
                name="nominal (as papers count)",
                x=info.nominal,
                y=list(info.names),
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 26, "color": colours.bad, "line": {"width": 3}},
                hovertemplate="nominal: %{x:.2f} bits<extra>%{y}</extra>",
            )
        )
    return stacks


def figure(info: BitBreakdownInfo, dark: bool = False, most: float | None = None) -> go.Figure:
    """One stacked bar per run and a tick where its nominal bits lie. `most`: where the axis ends, if it stays."""
    drawn = go.Figure(traces(info, dark))
    height = 120 + 46 * len(info.names)
    rows = -(-(len(info.parts) + 1) // 2)  # of the legend on a phone, two entries in each
    drawn.update_layout(
        template=theme.template(dark),
        barmode="stack",
        bargap=0.35,
        xaxis={
            "title": {"text": "stored bits per weight"},
            "rangemode": "tozero",
            "range": None if most is None else [0, most],
        },
        yaxis={"autorange": "reversed", "showgrid": False},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        meta={
            "height": height,
            "narrow": {
                "height": height + 22 * rows,
                "legend.entrywidth": 0.5,
                "legend.entrywidthmode": "fraction",
                "legend.x": -0.3,
            },
        },
    )
    return drawn


def part_tones(parts: Sequence[str], dark: bool = False) -> dict[str, str]:
    """A colour for each part: greens for what is stored once a weight, greys for what weights share. Colours of the
    modalities stay out of it."""
    colours = theme.palette(dark)
    strong, weak = colours.ramp[-1], colours.ramp[1]
    each = [part for part in parts if part in PER_WEIGHT]
    shared = [part for part in parts if part not in PER_WEIGHT]
    return {
        part: theme.mixed(first, last, place / max(1, len(group) - 1))
        for group, first, last in ((each, strong, weak), (shared, colours.muted, colours.line))
        for place, part in enumerate(group)
    }
