"""Where along the depth the model serves which modality: class shares, r and ρ, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme
from viz.figures.overview import CLASS_NAMES, Column, Report, class_counts, column_axis, columns_of, forward_order


class DepthInfo(NamedTuple):
    """shares [3, columns]: language-only, vision-only, cross-modal, of the block's salient weights (NaN where
    it has none); ratio, sparsity [columns]: r and mean ρ of its linears, averaged by their number of weights (ρ is NaN
    where it is not known, r where nothing is salient)."""

    columns: list[Column]
    shares: NDArray[np.float64]
    ratio: NDArray[np.float64]
    sparsity: NDArray[np.float64]


def info(reports: Sequence[Report], sparsity: Mapping[str, float] | None = None) -> DepthInfo:
    """Add up the linears of each block; `sparsity` is the mean ρ of linears by name."""
    places = [column._replace(place=0) for column in columns_of(reports)]
    columns = forward_order(places)
    counts = np.zeros((4, len(columns)))
    ratio, rho = np.zeros(len(columns)), np.zeros(len(columns))
    for report, place in zip(reports, places, strict=True):
        column = columns.index(place)
        classes = class_counts(report)
        counts[:, column] += classes
        ratio[column] += report.unimodal_ratio * sum(classes)
        rho[column] += (sparsity or {}).get(report.name, np.nan) * sum(classes)
    salient, weights = counts[1:].sum(axis=0), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(salient > 0, ratio / weights, np.nan)
        return DepthInfo(columns, np.where(salient > 0, counts[1:] / salient, np.nan), ratio, rho / weights)


def figure(info: DepthInfo, dark: bool = False) -> go.Figure:
    """Stacked bars of the three classes, and r and ρ as lines."""
    colours = theme.palette(dark)
    places = list(range(len(info.columns)))
    titles = [column.title for column in info.columns]
    drawn = go.Figure()
    for name, share, colour in zip(
        CLASS_NAMES[1:], info.shares, (colours.language, colours.vision, colours.cross), strict=True
    ):
        drawn.add_bar(
            x=places,
            y=100 * share,
            name=name,
            text=titles,
            textposition="none",
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"%{{text}}<br>{name}: <b>%{{y:.1f}} %</b> of its salient weights<extra></extra>",
        )
    for name, values, about, dash in (
        ("r", info.ratio, "of all significance is unimodal", "solid"),
        ("mean ρ", info.sparsity, "of the way from both alike to one alone", "dot"),
    ):
        if not np.isfinite(values).any():
            continue
        drawn.add_scatter(
            x=places,
            y=100 * values,
            name=name,
            text=titles,
            mode="lines+markers",
            line={"color": colours.text, "width": 1.5, "dash": dash},
            marker={"size": 6, "color": colours.surface, "line": {"color": colours.text, "width": 1.5}},
            hovertemplate=f"%{{text}}<br>{name}: <b>%{{y:.1f}} %</b> {about}<extra></extra>",
        )
    drawn.update_layout(
        template=theme.template(dark),
        barmode="stack",
        bargap=0.28,
        xaxis={"showgrid": False, "fixedrange": True, "zeroline": False, **column_axis(info.columns)},
        yaxis={"ticksuffix": " %", "range": [0, 102], "nticks": 5, "fixedrange": True},
        legend={"y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
    )
    return drawn
