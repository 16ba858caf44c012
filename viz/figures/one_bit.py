"""What a weight becomes: the stored value of each weight of one row against its exact value, as a staircase.

With b bits only 2^b different values can be stored; everything off the diagonal is error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.basedatatypes import BaseTraceType

from viz import theme


class OneBitInfo(NamedTuple):
    """weight [k]: exact values of one row of a block. stored [k]: what a format makes of them. lost: share of the
    row's energy in the error, 0 to 1. levels: number of different stored values."""

    weight: NDArray[np.float32]
    stored: NDArray[np.float32]
    lost: float
    levels: int


def info(weight: ArrayLike, stored: ArrayLike) -> OneBitInfo:
    """Arrays of the figure, sorted by exact value. Raises ValueError when the shapes differ."""
    exact, kept = np.asarray(weight, dtype=np.float32), np.asarray(stored, dtype=np.float32)
    if exact.shape != kept.shape or exact.ndim != 1:
        raise ValueError("weight and stored need the same length")
    order = np.argsort(exact)
    energy = float((exact.astype(np.float64) ** 2).sum())
    lost = float(((exact - kept).astype(np.float64) ** 2).sum()) / energy if energy else 0.0
    return OneBitInfo(exact[order], kept[order], lost, len(np.unique(kept)))


def traces(info: OneBitInfo, dark: bool = False) -> tuple[BaseTraceType, ...]:
    """The data of the figure; its layout does not depend on what a slider changes."""
    colours = theme.palette(dark)
    reach = _reach(info)
    gaps = np.full((len(info.weight), 3, 2), np.nan, dtype=np.float32)
    gaps[:, :2, 0] = info.weight[:, None]
    gaps[:, 0, 1], gaps[:, 1, 1] = info.weight, info.stored
    drawn = go.Figure()
    drawn.add_scatter(
        x=[-reach, reach],
        y=[-reach, reach],
        mode="lines",
        line={"color": colours.muted, "dash": "dot", "width": 1},
        hoverinfo="skip",
    )
    drawn.add_scatter(
        x=gaps[..., 0].ravel(),
        y=gaps[..., 1].ravel(),
        mode="lines",
        line={"color": colours.bad, "width": 1},
        opacity=0.45,
        hoverinfo="skip",
    )
    drawn.add_scatter(
        x=info.weight,
        y=info.stored,
        mode="markers",
        marker={"color": colours.accent, "size": 6},
        hovertemplate="weight %{x:.4f}<br>stored as %{y:.4f}<extra></extra>",
    )
    return drawn.data


def figure(info: OneBitInfo, dark: bool = False) -> go.Figure:
    """Points on the staircase, the diagonal of exact storage behind them, the error as thin upright lines."""
    reach = _reach(info)
    drawn = go.Figure(traces(info, dark))
    drawn.update_layout(
        template=theme.template(dark),
        showlegend=False,
        xaxis={"title": {"text": "weight"}, "range": [-reach, reach], "zeroline": True},
        yaxis={"title": {"text": "stored value"}, "range": [-reach, reach], "zeroline": True},
        meta={"height": 380, "narrow": {"height": 330}},
    )
    return drawn


def _reach(info: OneBitInfo) -> float:
    """Half the width of both axes."""
    return 1.08 * float(np.abs(info.weight).max(initial=1e-6))
