"""Accuracy against bits: each run as a filled point at its all-in bits, joined to the nominal bits that papers print.

All-in bits are every stored bit of a linear over its number of weights, nominal bits are `1 + c/m` (METHOD.md §9).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme


class Measured(NamedTuple):
    """One run: shares between 0 and 1, bits per weight, bytes of the packed weights."""

    name: str
    method: str
    bits_nominal: float
    bits_all_in: float
    bytes: int
    accuracy: float
    low: float
    high: float


class BitsAccuracyInfo(NamedTuple):
    """names, methods: one per run. bits [runs, 2] nominal and all-in. bytes [runs].
    accuracy [runs, 3] value and interval ends as shares. full: the same three of full precision, or None.
    """

    names: tuple[str, ...]
    methods: tuple[str, ...]
    bits: NDArray[np.float64]
    bytes: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    full: tuple[float, float, float] | None


def info(runs: Iterable[Measured], full: tuple[float, float, float] | None = None) -> BitsAccuracyInfo:
    """Arrays of the figure, in order of all-in bits; no runs give empty arrays."""
    rows = sorted(runs, key=lambda run: run.bits_all_in)
    return BitsAccuracyInfo(
        tuple(run.name for run in rows),
        tuple(run.method for run in rows),
        np.array([(run.bits_nominal, run.bits_all_in) for run in rows], dtype=np.float64).reshape(-1, 2),
        np.array([run.bytes for run in rows], dtype=np.int64),
        np.array([(run.accuracy, run.low, run.high) for run in rows], dtype=np.float64).reshape(-1, 3),
        full,
    )


def figure(info: BitsAccuracyInfo, dark: bool = False) -> go.Figure:
    """Points with intervals; full precision as a line with its interval as a band."""
    colours = theme.palette(dark)
    drawn = go.Figure()
    middle = 0.6 * float(info.bits.max(initial=1.0))  # names grow inwards, or the last one would be cut
    for place, (name, method) in enumerate(zip(info.names, info.methods, strict=True)):
        colour = theme.method_colour(method)
        nominal, all_in = info.bits[place]
        value, low, high = 100 * info.accuracy[place]
        drawn.add_scatter(
            x=[nominal, all_in],
            y=[value, value],
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"symbol": "circle-open", "size": [8, 0], "color": colour},
            hovertemplate="nominal %{x:.2f} bits, as papers count<extra></extra>",
            showlegend=False,
        )
        drawn.add_scatter(
            x=[all_in],
            y=[value],
            error_y={
                "type": "data",
                "array": [high - value],
                "arrayminus": [value - low],
                "color": colour,
                "thickness": 1.5,
            },
            mode="markers+text",
            marker={"size": 12, "color": colour},
            text=[name],
            textposition="top left" if all_in > middle else "top right",
            textfont={"color": colours.text, "size": 12},
            customdata=[[info.bytes[place] / 1e6, low, high]],
            hovertemplate="<b>%{text}</b><br>%{y:.1f} % (%{customdata[1]:.1f} to %{customdata[2]:.1f})<br>"
            "%{x:.2f} bits all-in, %{customdata[0]:.2f} MB<extra></extra>",
            showlegend=False,
        )
    if info.full is not None:
        value, low, high = (100 * share for share in info.full)
        drawn.add_hrect(y0=low, y1=high, fillcolor=colours.muted, opacity=0.14, line_width=0, layer="below")
        drawn.add_hline(
            y=value,
            line={"color": colours.muted, "width": 1.5},
            annotation={"text": f"full precision {value:.1f} %", "font": {"color": colours.muted}},
            annotation_position="bottom left",
        )
    widest = float(info.bits.max()) if len(info.bits) else 4.0
    drawn.update_layout(
        template=theme.template(dark),
        xaxis={"title": {"text": "bits per weight (open: nominal, filled: all-in)"}, "range": [0.7, widest * 1.18]},
        yaxis={"title": {"text": "accuracy, %"}, "rangemode": "normal"},
        meta={"height": 400, "narrow": {"height": 340}},
    )
    return drawn
