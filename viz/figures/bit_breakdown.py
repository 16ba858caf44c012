"""Where the bits of a run go: signs, residual signs, bitmaps, scales …, as stacked bits per weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme


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


def figure(info: BitBreakdownInfo, dark: bool = False) -> go.Figure:
    """One stacked bar per run and a tick where its nominal bits lie."""
    colours = theme.palette(dark)
    steps = theme.palette(dark).ramp[::-1]
    tones = [*steps[: len(steps) - 1], colours.vision, colours.cross, colours.muted, colours.line]
    drawn = go.Figure()
    for column, part in enumerate(info.parts):
        drawn.add_bar(
            name=part,
            orientation="h",
            x=info.bits[:, column],
            y=list(info.names),
            marker={"color": tones[column % len(tones)], "line": {"width": 0.5, "color": colours.surface}},
            hovertemplate=f"{part}: %{{x:.3f}} bits per weight<extra>%{{y}}</extra>",
        )
    if info.names:
        drawn.add_scatter(
            name="nominal (as papers count)",
            x=info.nominal,
            y=list(info.names),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 26, "color": colours.bad, "line": {"width": 3}},
            hovertemplate="nominal: %{x:.2f} bits<extra>%{y}</extra>",
        )
    height = 120 + 46 * len(info.names)
    drawn.update_layout(
        template=theme.template(dark),
        barmode="stack",
        bargap=0.35,
        xaxis={"title": {"text": "stored bits per weight"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "showgrid": False},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        meta={"height": height, "narrow": {"height": height + 30 * (len(info.parts) + 1)}},
    )
    return drawn
