"""A weight block under the microscope, at one round of the alternating fit (METHOD.md §5).

Eight panels: W, Λ, signs, Ŵ, the error W − Ŵ, row scales, column scales, and the weighted loss over the rounds. With
two
signs a weight (salient columns) the panel of the signs shows which of the four sums was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.basedatatypes import BaseTraceType

from viz import theme

TITLES = ("W", "Λ", "signs", "Ŵ", "error W − Ŵ", "row scales α_r", "column scales α_c", "weighted loss by round")
WIDE = (4, 2)  # columns and rows of panels
SLIM = (2, 4)


class WeightBlockInfo(NamedTuple):
    """weight, weighting [n, k]. codes [rounds, n, k]: the sign, or with two signs B¹ and B² their place (2B¹ + B²)/3
    from
    -1 to 1. binarized [rounds, n, k]: Ŵ after each round, the start first. row_scale [rounds, order, n], column_scale
    [rounds, order, k]. loss [rounds]: sum Λ²(W − Ŵ)². flips [rounds]: signs that differ from the round before, 0 at
    the start."""

    weight: NDArray[np.float32]
    weighting: NDArray[np.float32]
    codes: NDArray[np.float32]
    binarized: NDArray[np.float32]
    row_scale: NDArray[np.float32]
    column_scale: NDArray[np.float32]
    loss: NDArray[np.float64]
    flips: NDArray[np.int64]


def info(
    weight: ArrayLike,
    weighting: ArrayLike,
    signs: ArrayLike,
    row_scale: ArrayLike,
    column_scale: ArrayLike | None,
    row_mean: ArrayLike | None,
    loss: Sequence[float],
) -> WeightBlockInfo:
    """Arrays of the figure from the rounds of a fit: `signs` [rounds, order, n, k], `row_scale` [rounds, order, n],
    `column_scale` [rounds, order, k] or None for ones, `row_mean` [rounds, n] or None."""
    sign, row = np.asarray(signs, np.int8), np.asarray(row_scale, np.float32)
    rounds, order, _, width = sign.shape
    column = (
        np.ones((rounds, order, width), np.float32) if column_scale is None else np.asarray(column_scale, np.float32)
    )
    binarized = (sign * row[..., :, None] * column[..., None, :]).sum(1)
    if row_mean is not None:
        binarized = binarized + np.asarray(row_mean, np.float32)[:, :, None]
    flips = np.zeros(rounds, dtype=np.int64)
    flips[1:] = (sign[1:] != sign[:-1]).sum((1, 2, 3))
    exact = np.asarray(weight, np.float32)
    codes = sign[:, 0] if order == 1 else (2 * sign[:, 0] + sign[:, 1]) / 3
    return WeightBlockInfo(
        exact,
        np.broadcast_to(np.asarray(weighting, np.float32), exact.shape),
        codes.astype(np.float32),
        binarized.astype(np.float32),
        row,
        column,
        np.asarray(loss, np.float64),
        flips,
    )


def traces(info: WeightBlockInfo, number: int = 0, dark: bool = False) -> tuple[BaseTraceType, ...]:
    """The data of the figure; its layout does not depend on what a slider changes."""
    colours = theme.palette(dark)
    reach = float(np.abs(info.weight).max(initial=1e-9))
    low, zero, high = colours.diverging
    both = [[0.0, low], [0.5, zero], [1.0, high]]
    maps: list[tuple[NDArray[np.generic], float, float, Any, str]] = [
        (info.weight, -reach, reach, both, "%{z:.4f}"),
        (info.weighting, 0.0, max(2.0, float(info.weighting.max(initial=1.0))), theme.ramp_scale(dark), "%{z:.2f}"),
        (info.codes[number], -1.0, 1.0, both, "%{z:+.2~g}"),
        (info.binarized[number], -reach, reach, both, "%{z:.4f}"),
        (info.weight - info.binarized[number], -reach, reach, both, "%{z:.4f}"),
    ]
    drawn = go.Figure()
    for place, (values, least, most, scale, shown) in enumerate(maps):
        drawn.add_heatmap(
            z=values,
            zmin=least,
            zmax=most,
            colorscale=scale,
            showscale=False,
            xgap=0.5,
            ygap=0.5,
            hovertemplate=f"row %{{y}}, column %{{x}}<br>{TITLES[place]}: {shown}<extra></extra>",
            **_axes(place),
        )
    for order, colour in enumerate((colours.accent, colours.vision)[: info.row_scale.shape[1]]):
        rows, columns = info.row_scale[number, order], info.column_scale[number, order]
        drawn.add_bar(
            y=np.arange(len(rows)),
            x=rows,
            orientation="h",
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"row %{{y}}, sign {order + 1}: %{{x:.4f}}<extra></extra>",
            **_axes(5),
        )
        drawn.add_bar(
            x=np.arange(len(columns)),
            y=columns,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"column %{{x}}, sign {order + 1}: %{{y:.3f}}<extra></extra>",
            **_axes(6),
        )
    drawn.add_scatter(
        x=np.arange(len(info.loss)),
        y=info.loss,
        mode="lines+markers",
        line={"color": colours.muted, "width": 1.5},
        marker={"size": 4},
        hovertemplate="round %{x}: %{y:.5f}<extra></extra>",
        **_axes(7),
    )
    drawn.add_scatter(
        x=[number],
        y=[info.loss[number]],
        mode="markers",
        marker={"color": colours.cross, "size": 12},
        hoverinfo="skip",
        **_axes(7),
    )
    return drawn.data


def figure(info: WeightBlockInfo, number: int = 0, dark: bool = False) -> go.Figure:
    """The block at round `number`; only the data of the panels changes from round to round."""
    colours = theme.palette(dark)
    drawn = go.Figure(traces(info, number, dark))
    height, width = info.weight.shape
    square = {"showgrid": False, "zeroline": False, "showticklabels": False}
    layout: dict[str, dict[str, Any]] = {}
    for place in range(len(TITLES)):
        mark = "" if place == 0 else str(place + 1)
        if place < 5:
            layout[f"xaxis{mark}"] = {
                **square,
                "range": [-0.5, width - 0.5],
                "constrain": "domain",
                "matches": "x" if place else None,
            }
            layout[f"yaxis{mark}"] = {
                **square,
                "range": [height - 0.5, -0.5],
                "constrain": "domain",
                "scaleanchor": f"x{mark}",
                "matches": "y" if place else None,
            }
    layout["xaxis6"] = {"range": [0, 1.1 * float(info.row_scale.max(initial=1e-9))], "nticks": 3, "tickformat": ".2~g"}
    layout["yaxis6"] = {"range": [height - 0.5, -0.5], "showgrid": False, "showticklabels": False}
    layout["xaxis7"] = {"range": [-0.5, width - 0.5], "showgrid": False, "showticklabels": False}
    layout["yaxis7"] = {"range": [0, 1.1 * float(info.column_scale.max(initial=1e-9))], "nticks": 4}
    layout["xaxis8"] = {"nticks": 4}
    layout["yaxis8"] = {"nticks": 4, "tickformat": ".3~g"}
    wide, slim = _places(*WIDE), _places(*SLIM)
    narrow: dict[str, Any] = {f"{axis}.domain": values["domain"] for axis, values in slim.items()}
    drawn.update_layout(
        {axis: {**values, **layout.get(axis, {})} for axis, values in wide.items()},
        template=theme.template(dark),
        showlegend=False,
        bargap=0.1,
        margin={"t": 26},
        annotations=_titles(wide, colours.text),
        meta={"height": 620, "narrow": {"height": 860, "annotations": _titles(slim, colours.text), **narrow}},
    )
    return drawn


def _axes(place: int) -> dict[str, str]:
    mark = "" if place == 0 else str(place + 1)
    return {"xaxis": f"x{mark}", "yaxis": f"y{mark}"}


def _places(columns: int, rows: int) -> dict[str, dict[str, Any]]:
    """Where each panel's axes lie, in shares of the figure."""
    gap, head = 0.07 if columns == 4 else 0.12, 0.1 if rows == 2 else 0.06
    wide, tall = (1 - gap * (columns - 1)) / columns, (1 - head * (rows - 1)) / rows
    axes: dict[str, dict[str, Any]] = {}
    for place in range(len(TITLES)):
        mark = "" if place == 0 else str(place + 1)
        left, top = (place % columns) * (wide + gap), 1 - (place // columns) * (tall + head)
        right, bottom = min(1.0, left + wide), max(0.0, top - tall)
        axes[f"xaxis{mark}"] = {"domain": [left, right], "anchor": f"y{mark}"}
        axes[f"yaxis{mark}"] = {"domain": [bottom, top], "anchor": f"x{mark}"}
    return axes


def _titles(axes: dict[str, dict[str, Any]], colour: str) -> list[dict[str, Any]]:
    titles: list[dict[str, Any]] = []
    for place, text in enumerate(TITLES):
        mark = "" if place == 0 else str(place + 1)
        x, y = axes[f"xaxis{mark}"]["domain"], axes[f"yaxis{mark}"]["domain"]
        titles.append(
            {
                "text": text,
                "x": (x[0] + x[1]) / 2,
                "y": min(1.0, y[1]),
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 13, "color": colour},
            }
        )
    return titles
