"""Hoyer sparsity ρ of two significances: 0 when language and vision need a weight equally, 1 when one alone does.

ρ depends on the ratio of the two only (METHOD.md §2), so the whole function is one curve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.basedatatypes import BaseTraceType

from viz import theme

COLUMNS = {"language": "S̄ language", "vision": "S̄ vision"}


class SparsityCurveInfo(NamedTuple):
    """language, vision: the two significances of one weight. sparsity: its ρ. ratio, curve: log2(vision/language)
    and ρ along the curve. threshold: ρ above which a salient weight may be unimodal."""

    language: float
    vision: float
    sparsity: float
    ratio: NDArray[np.float64]
    curve: NDArray[np.float64]
    threshold: float


def info(
    language: float, vision: float, sparsity: float, ratio: ArrayLike, curve: ArrayLike, threshold: float
) -> SparsityCurveInfo:
    """Values of the figure; both significances must be above 0, for their ratio is drawn."""
    if not (language > 0 and vision > 0):
        raise ValueError("both significances must be above 0")
    return SparsityCurveInfo(
        language, vision, sparsity, np.asarray(ratio, np.float64), np.asarray(curve, np.float64), threshold
    )


def traces(info: SparsityCurveInfo, dark: bool = False) -> tuple[BaseTraceType, ...]:
    """The data of the figure; its layout does not depend on what a slider changes."""
    colours = theme.palette(dark)
    drawn = go.Figure()
    drawn.add_bar(
        x=list(COLUMNS.values()),
        y=[info.language, info.vision],
        marker={"color": [colours.language, colours.vision]},
        width=0.55,
        hovertemplate="%{x}: %{y:.3g} × the mean<extra></extra>",
    )
    drawn.add_scatter(
        x=info.ratio,
        y=info.curve,
        mode="lines",
        line={"color": colours.muted, "width": 2},
        xaxis="x2",
        yaxis="y2",
        hovertemplate="log2 ratio %{x:.1f}: ρ %{y:.3f}<extra></extra>",
    )
    drawn.add_scatter(
        x=[np.log2(info.vision / info.language)],
        y=[info.sparsity],
        mode="markers",
        marker={"color": colours.cross, "size": 15, "line": {"color": colours.surface, "width": 2}},
        xaxis="x2",
        yaxis="y2",
        hovertemplate="this weight: ρ %{y:.3f}<extra></extra>",
    )
    drawn.add_scatter(
        x=[info.ratio.min(), info.ratio.max()],
        y=[info.threshold, info.threshold],
        mode="lines",
        line={"color": colours.bad, "width": 1, "dash": "dash"},
        xaxis="x2",
        yaxis="y2",
        hovertemplate="threshold %{y}<extra></extra>",
    )
    return drawn.data


def figure(info: SparsityCurveInfo, dark: bool = False) -> go.Figure:
    """Left the two significances as bars, right the curve with the weight on it."""
    drawn = go.Figure(traces(info, dark))
    theme.two_panels(drawn, dark, 330, split=(0.34, 0.44), stacked=(0.44, 0.6))
    drawn.update_layout(
        yaxis={"title": {"text": "times the layer's mean"}, "type": "log", "range": [-2.1, 2.1]},
        xaxis2={"title": {"text": "log2 (vision / language)"}},
        yaxis2={"title": {"text": "ρ"}, "range": [-0.04, 1.04]},
    )
    return drawn
