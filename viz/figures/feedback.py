"""What carrying a block's error into the columns after it is worth: the output loss of one linear, three ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme

WORDS = {"none": "errors dropped", "lineage": "carried, published formula", "exact": "carried, exact"}


class FeedbackInfo(NamedTuple):
    """names: the ways errors are carried. loss [names]: tr(ΔHΔᵀ) / tr(WHWᵀ), in percent."""

    names: tuple[str, ...]
    loss: NDArray[np.float64]


def info(losses: Mapping[str, float]) -> FeedbackInfo:
    """`losses` by way, as shares."""
    return FeedbackInfo(tuple(losses), 100 * np.array(list(losses.values()), dtype=np.float64))


def figure(info: FeedbackInfo, dark: bool = False) -> go.Figure:
    """One bar each, the value at its end."""
    colours = theme.palette(dark)
    tones = [colours.bad, colours.muted, colours.good]
    drawn = go.Figure(
        go.Bar(
            orientation="h",
            x=info.loss,
            y=[WORDS.get(name, name) for name in info.names],
            marker={"color": tones[: len(info.names)]},
            text=[f"{value:.1f} %" for value in info.loss],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.2f} % of the output's energy is lost<extra></extra>",
        )
    )
    height = 80 + 50 * max(1, len(info.names))
    most = 1.15 * float(info.loss.max()) if info.loss.size else 1.0
    drawn.update_layout(
        template=theme.template(dark),
        bargap=0.4,
        xaxis={"title": {"text": "lost output energy, %"}, "range": [0, most]},
        yaxis={"autorange": "reversed", "showgrid": False},
        showlegend=False,
        meta={"height": height, "narrow": {"height": height}},
    )
    return drawn
