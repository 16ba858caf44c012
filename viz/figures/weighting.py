"""Λ against ρ for a given r, and how the Λ of a real layer spreads (METHOD.md §4).

`Λ = r·ρ + (1−r)·(1−ρ)`, scaled to mean 1: with r above one half the weights of one modality count more in the fit,
below one half those that both share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.basedatatypes import BaseTraceType

from viz import theme

BINS = 40
LARGEST = 4.0  # Λ at the right end of the histogram; larger values are counted in the last bin


class WeightingInfo(NamedTuple):
    """ratio: r. sparsity [p], weighting [p]: ρ and Λ along the line. edges [BINS + 1], shares [BINS]: histogram of the
    layer's Λ, shares adding up to 1."""

    ratio: float
    sparsity: NDArray[np.float64]
    weighting: NDArray[np.float64]
    edges: NDArray[np.float64]
    shares: NDArray[np.float64]


def info(ratio: float, sparsity: ArrayLike, weighting: ArrayLike, layer: ArrayLike) -> WeightingInfo:
    """`layer` holds the Λ of every weight of a layer, any shape; an empty one gives shares of 0."""
    edges = np.linspace(0.0, LARGEST, BINS + 1)
    counts, _ = np.histogram(np.minimum(np.asarray(layer, np.float64).ravel(), LARGEST - 1e-9), edges)
    return WeightingInfo(
        ratio,
        np.asarray(sparsity, np.float64),
        np.asarray(weighting, np.float64),
        edges,
        counts / max(1, counts.sum()),
    )


def traces(info: WeightingInfo, dark: bool = False) -> tuple[BaseTraceType, ...]:
    """The data of the figure; its layout does not depend on what a slider changes."""
    colours = theme.palette(dark)
    drawn = go.Figure()
    drawn.add_scatter(
        x=info.sparsity,
        y=info.weighting,
        mode="lines",
        line={"color": colours.cross, "width": 3},
        hovertemplate="ρ %{x:.2f}: Λ %{y:.2f}<extra></extra>",
    )
    drawn.add_bar(
        x=(info.edges[:-1] + info.edges[1:]) / 2,
        y=100 * info.shares,
        width=LARGEST / BINS,
        marker={"color": colours.cross, "line": {"width": 0}},
        xaxis="x2",
        yaxis="y2",
        hovertemplate="Λ about %{x:.2f}: %{y:.1f} % of the weights<extra></extra>",
    )
    return drawn.data


def figure(info: WeightingInfo, dark: bool = False) -> go.Figure:
    """Left the line, right the histogram."""
    drawn = go.Figure(traces(info, dark))
    theme.two_panels(drawn, dark, 320, split=(0.42, 0.54), stacked=(0.42, 0.6))
    drawn.update_layout(
        bargap=0,
        xaxis={"title": {"text": "ρ: 0 shared, 1 one modality"}, "range": [0, 1]},
        yaxis={"title": {"text": "Λ before scaling"}, "range": [0, 1.05]},
        xaxis2={"title": {"text": "Λ, mean 1"}, "range": [0, LARGEST]},
        yaxis2={"title": {"text": "weights, %"}, "rangemode": "tozero"},
    )
    return drawn
