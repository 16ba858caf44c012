"""Accuracy by category of question: one bar per run and category with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme


class Scores(NamedTuple):
    """One run: `shares` maps a category to (accuracy, interval low, interval high), each between 0 and 1."""

    name: str
    method: str
    shares: Mapping[str, tuple[float, float, float]]


class CategoryBarsInfo(NamedTuple):
    """categories in the order drawn; names and methods one per run; shares [runs, categories, 3], NaN where a
    run was not asked any question of the category."""

    categories: tuple[str, ...]
    names: tuple[str, ...]
    methods: tuple[str, ...]
    shares: NDArray[np.float64]


def info(runs: Sequence[Scores], categories: Sequence[str]) -> CategoryBarsInfo:
    """Arrays of the figure; no runs give an empty first axis."""
    shares = np.full((len(runs), len(categories), 3), np.nan)
    for row, run in enumerate(runs):
        for column, category in enumerate(categories):
            if category in run.shares:
                shares[row, column] = run.shares[category]
    return CategoryBarsInfo(
        tuple(categories), tuple(run.name for run in runs), tuple(run.method for run in runs), shares
    )


def figure(info: CategoryBarsInfo, dark: bool = False) -> go.Figure:
    """Horizontal groups, first category on top, so that long names stay readable on a phone."""
    colours = theme.palette(dark)
    drawn = go.Figure()
    seen: dict[str, int] = {}
    for name, method, shares in zip(info.names, info.methods, 100 * info.shares, strict=True):
        twin = seen[method] = seen.get(method, -1) + 1
        drawn.add_bar(
            name=name,
            orientation="h",
            x=shares[:, 0],
            y=list(info.categories),
            # Two runs of one method share its colour; the pattern tells them apart.
            marker={"color": theme.method_colour(method, dark), "pattern": {"shape": ("", "/", "x", ".")[twin % 4]}},
            error_x={
                "type": "data",
                "array": shares[:, 2] - shares[:, 0],
                "arrayminus": shares[:, 0] - shares[:, 1],
                "color": colours.text,
                "thickness": 1,
                "width": 2,
            },
            customdata=shares[:, 1:],
            hovertemplate=f"<b>{name.replace('<', '&lt;')}</b><br>%{{y}}: %{{x:.1f}} % "
            "(%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra></extra>",
        )
    rows = max(1, len(info.names))
    height = 90 + len(info.categories) * (18 + 13 * rows)
    drawn.update_layout(
        template=theme.template(dark),
        barmode="group",
        bargap=0.28,
        xaxis={"title": {"text": "correct, %"}, "range": [0, 104]},
        yaxis={"autorange": "reversed", "showgrid": False},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        meta={
            "height": height,
            "narrow": {
                "height": height + 22 * -(-len(info.names) // 2),
                "legend.entrywidth": 0.5,
                "legend.entrywidthmode": "fraction",
                "legend.x": -0.5,
            },
        },
    )
    return drawn
