"""Two runs layer by layer: the output error of both, and the share of weights whose sign they store differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme
from viz.figures.layer_error import bands


class RunDifferenceInfo(NamedTuple):
    """names, blocks, kinds: one per linear that both runs have, in forward order. losses [2, linears]: relative error
    as a share. flips [linears]: share of weights of different sign."""

    names: tuple[str, ...]
    blocks: NDArray[np.int64]
    kinds: tuple[str, ...]
    losses: NDArray[np.float64]
    flips: NDArray[np.float64]


def info(
    names: Sequence[str],
    blocks: Sequence[int],
    kinds: Sequence[str],
    losses: tuple[Sequence[float], Sequence[float]],
    flips: Sequence[float],
) -> RunDifferenceInfo:
    """Arrays of the figure. Raises ValueError when the sequences differ in length."""
    if not len(names) == len(blocks) == len(kinds) == len(losses[0]) == len(losses[1]) == len(flips):
        raise ValueError("names, blocks, kinds, losses and flips need one entry per linear")
    return RunDifferenceInfo(
        tuple(names),
        np.array(blocks, dtype=np.int64),
        tuple(kinds),
        np.array(losses, dtype=np.float64).reshape(2, len(names)),
        np.array(flips, dtype=np.float64),
    )


def figure(info: RunDifferenceInfo, dark: bool = False) -> go.Figure:
    """Errors of A and B side by side above, sign flips below, on one axis of layers."""
    colours = theme.palette(dark)
    places = np.arange(len(info.names))
    hover = [f"block {block}, {kind}" for block, kind in zip(info.blocks, info.kinds, strict=True)]
    drawn = go.Figure()
    for letter, colour, losses in zip("AB", pair_colours(dark), info.losses, strict=True):
        drawn.add_bar(
            name=f"{letter}: output error",
            x=places,
            y=100 * losses,
            customdata=hover,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"%{{customdata}}<br>{letter}: error %{{y:.2f}} %<extra></extra>",
        )
    drawn.add_bar(
        name="signs that differ",
        x=places,
        y=100 * info.flips,
        yaxis="y2",
        customdata=hover,
        marker={"color": colours.muted, "line": {"width": 0}},
        hovertemplate="%{customdata}<br>%{y:.1f} % of the signs differ<extra></extra>",
    )
    shapes, ticks = bands(info.blocks, colours)
    drawn.update_layout(
        template=theme.template(dark),
        barmode="group",
        bargap=0.2,
        shapes=shapes,
        xaxis={**ticks, "range": [-0.6, max(len(info.names), 1) - 0.4], "showgrid": False, "anchor": "y2"},
        yaxis={"title": {"text": "output error, %"}, "domain": [0.46, 1], "rangemode": "tozero", "nticks": 5},
        yaxis2={"title": {"text": "signs that differ, %"}, "domain": [0, 0.36], "rangemode": "tozero", "nticks": 4},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        meta={
            "height": 420,
            "narrow": {
                "height": 400,
                "xaxis.ticktext": [label.removeprefix("block ") for label in ticks["ticktext"]],
            },
        },
    )
    return drawn


def pair_colours(dark: bool = False) -> tuple[str, str]:
    """Of A and B: two runs may be of one method, so that its colour would not tell them apart. They differ in
    lightness most, which everybody sees."""
    colours = theme.palette(dark)
    return colours.accent, colours.ramp[2]
