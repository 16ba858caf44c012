"""What two runs store for one layer, subtracted: A − B, weight by weight or pooled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme

MOST_CELLS = 192  # a side: drawn at once, and sharp on a screen


class DifferenceMapInfo(NamedTuple):
    """values [rows, columns]: the difference of the largest magnitude in each square of factor × factor weights;
    shape: of the whole layer."""

    values: NDArray[np.float32]
    factor: int
    shape: tuple[int, int]


def info(first: NDArray[np.float32], second: NDArray[np.float32]) -> DifferenceMapInfo:
    """`first` and `second` [n, m]: dense weights of A and B. Raises ValueError for different shapes."""
    if first.shape != second.shape:
        raise ValueError(f"two runs of one layer differ in shape: {first.shape} and {second.shape}")
    difference = (first - second).astype(np.float32)
    factor = 1
    while max(difference.shape) > MOST_CELLS * factor:
        factor *= 2
    return DifferenceMapInfo(extreme_pool(difference, factor), factor, (first.shape[0], first.shape[1]))


def extreme_pool(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """The entry of the largest magnitude of each square, with its sign; squares at the far edges hold less."""
    if factor == 1:
        return values
    high, low = values, values
    for axis in (0, 1):
        starts = np.arange(0, values.shape[axis], factor)
        high, low = np.maximum.reduceat(high, starts, axis=axis), np.minimum.reduceat(low, starts, axis=axis)
    return np.where(high >= -low, high, low)


def figure(info: DifferenceMapInfo, dark: bool = False) -> go.Figure:
    """A heatmap, zero in the middle of the scale."""
    colours = theme.palette(dark)
    largest = float(np.abs(info.values).max(initial=0.0)) or 1.0
    negative, zero, positive = colours.diverging
    rows, columns = info.values.shape
    drawn = go.Figure(
        go.Heatmap(
            z=info.values,
            x0=info.factor / 2 - 0.5,
            dx=info.factor,
            y0=info.factor / 2 - 0.5,
            dy=info.factor,
            zmin=-largest,
            zmax=largest,
            colorscale=[[0.0, negative], [0.5, zero], [1.0, positive]],
            hovertemplate="row %{y:.0f}, column %{x:.0f}<br>A − B: <b>%{z:.4f}</b><extra></extra>",
            colorbar={
                "thickness": 8,
                "outlinewidth": 0,
                "nticks": 5,
                "tickfont": {"color": colours.muted, "size": 11},
                "title": {"text": "A − B", "font": {"color": colours.muted, "size": 11}},
            },
        )
    )
    height = int(min(460, max(220, 90 + 560 * rows / max(columns, rows))))
    drawn.update_layout(
        template=theme.template(dark),
        xaxis={"title": {"text": "input column"}, "showgrid": False, "zeroline": False, "constrain": "domain"},
        yaxis={
            "title": {"text": "output row"},
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
        meta={"height": height, "narrow": {"height": min(height, 340)}},
    )
    return drawn
