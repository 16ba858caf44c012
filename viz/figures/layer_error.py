"""Relative error of each linear, in forward order: bars that fill in while a run works.

The error is `tr(Δ H Δᵀ) / tr(W H Wᵀ)`: the share of a layer's output energy on calibration tokens that its binarized
weights get wrong (METHOD.md §6, the compensation loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme


class LayerErrorInfo(NamedTuple):
    """names, blocks, kinds: one per linear of the run, in forward order, finished or not; block -1 is not known.
    losses: relative error per linear as a share, NaN where it is not known yet.
    method: name of the method, which gives the colour.
    """

    names: tuple[str, ...]
    blocks: NDArray[np.int64]
    kinds: tuple[str, ...]
    losses: NDArray[np.float64]
    method: str


def info(
    names: Sequence[str],
    blocks: Sequence[int | None],
    kinds: Sequence[str],
    losses: Sequence[float | None],
    method: str,
) -> LayerErrorInfo:
    """Arrays of the figure. Raises ValueError when the sequences differ in length."""
    if not len(names) == len(blocks) == len(kinds) == len(losses):
        raise ValueError("names, blocks, kinds and losses need one entry per linear")
    values = np.array([np.nan if loss is None else loss for loss in losses], dtype=np.float64)
    places = np.array([-1 if block is None else block for block in blocks], dtype=np.int64)
    return LayerErrorInfo(tuple(names), places, tuple(kinds), values, method)


def figure(info: LayerErrorInfo, dark: bool = False) -> go.Figure:
    """One bar per linear, blocks told apart by bands, error in percent."""
    colours = theme.palette(dark)
    places = np.arange(len(info.names))
    drawn = go.Figure(
        go.Bar(
            x=places,
            y=100 * info.losses,
            marker={"color": theme.method_colour(info.method, dark), "line": {"width": 0}},
            customdata=[f"block {block}, {kind}" for block, kind in zip(info.blocks, info.kinds, strict=True)],
            hovertemplate="%{customdata}<br>error %{y:.2f} %<extra></extra>",
        )
    )
    shapes, ticks = bands(info.blocks, colours)
    drawn.update_layout(
        template=theme.template(dark),
        bargap=0.2,
        shapes=shapes,
        showlegend=False,
        xaxis={**ticks, "range": [-0.6, max(len(info.names), 1) - 0.4], "showgrid": False},
        yaxis={"title": {"text": "output error, %"}, "rangemode": "tozero", "nticks": 6},
        meta={
            "height": 280,
            "narrow": {"height": 240, "xaxis.ticktext": [label.removeprefix("block ") for label in ticks["ticktext"]]},
        },
    )
    return drawn


def bands(blocks: NDArray[np.int64], colours: theme.Palette) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Shades behind every other block of an axis of linears, and the axis' ticks; -1 is a place that is not known."""
    places = np.arange(len(blocks))
    shades: list[dict[str, Any]] = []
    ticks: dict[str, Any] = {"tickvals": [], "ticktext": []}
    for order, block in enumerate(dict.fromkeys(blocks.tolist())):
        if block < 0:
            continue
        inside = places[blocks == block]
        ticks["tickvals"].append(float(inside.mean()))
        ticks["ticktext"].append(f"block {block}")
        if order % 2:
            shades.append(
                {
                    "type": "rect",
                    "xref": "x",
                    "yref": "paper",
                    "x0": inside.min() - 0.5,
                    "x1": inside.max() + 0.5,
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": colours.raised,
                    "line": {"width": 0},
                    "layer": "below",
                }
            )
    return shades, ticks
