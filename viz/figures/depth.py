"""Where along the depth the model serves which modality: class shares and r, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme
from viz.figures.overview import CLASS_NAMES, Report, class_counts


class DepthInfo(NamedTuple):
    """shares [3, blocks]: language-only, vision-only, cross-modal, of the block's salient weights (NaN where
    it has none); ratio [blocks]: r of its linears, averaged by their number of weights."""

    blocks: list[int]
    shares: NDArray[np.float64]
    ratio: NDArray[np.float64]


def info(reports: Sequence[Report]) -> DepthInfo:
    """Add up the linears of each block."""
    blocks = sorted({report.block for report in reports})
    counts = np.zeros((4, len(blocks)))
    ratio = np.zeros(len(blocks))
    for report in reports:
        column = blocks.index(report.block)
        classes = class_counts(report)
        counts[:, column] += classes
        ratio[column] += report.unimodal_ratio * sum(classes)
    salient = counts[1:].sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return DepthInfo(blocks, np.where(salient > 0, counts[1:] / salient, np.nan), ratio / counts.sum(axis=0))


def figure(info: DepthInfo, dark: bool = False) -> go.Figure:
    """Stacked bars of the three classes, and r as a line."""
    colours = theme.palette(dark)
    blocks = [str(block) for block in info.blocks]
    drawn = go.Figure()
    for name, share, colour in zip(
        CLASS_NAMES[1:], info.shares, (colours.language, colours.vision, colours.cross), strict=True
    ):
        drawn.add_bar(
            x=blocks,
            y=100 * share,
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"block %{{x}}<br>{name}: <b>%{{y:.1f}} %</b> of its salient weights<extra></extra>",
        )
    drawn.add_scatter(
        x=blocks,
        y=100 * info.ratio,
        name="r",
        mode="lines+markers",
        line={"color": colours.text, "width": 1.5},
        marker={"size": 6, "color": colours.surface, "line": {"color": colours.text, "width": 1.5}},
        hovertemplate="block %{x}<br>r: <b>%{y:.1f} %</b> of all significance is unimodal<extra></extra>",
    )
    drawn.update_layout(
        template=theme.template(dark),
        barmode="stack",
        bargap=0.28,
        xaxis={"title": {"text": "decoder block"}, "showgrid": False, "fixedrange": True},
        yaxis={"ticksuffix": " %", "range": [0, 102], "nticks": 5, "fixedrange": True},
        xaxis_type="category",
        legend={"y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
    )
    return drawn
