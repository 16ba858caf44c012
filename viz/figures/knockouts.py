"""What is lost when weights of one label are set to zero: KL to full precision on questions with a picture and without.

Sets of one share hold equally many weights of each linear and of like magnitude, so bars of one share compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme

KINDS = ("with a picture", "without a picture")


class KnockoutsInfo(NamedTuple):
    """labels: one per set. distance [labels, 2, 3]: KL in nats on questions with a picture and without, with the ends
    of its interval. counts [labels]: weights set to zero."""

    labels: tuple[str, ...]
    distance: NDArray[np.float64]
    counts: NDArray[np.int64]


def info(sets: Sequence[Mapping[str, object]]) -> KnockoutsInfo:
    """Each set is {"label", "count", "with a picture": (kl, low, high), "without a picture": …}."""
    distance = np.array([[one[kind] for kind in KINDS] for one in sets], dtype=np.float64).reshape(-1, 2, 3)
    counts = np.array([one["count"] for one in sets], dtype=np.int64)
    return KnockoutsInfo(tuple(str(one["label"]) for one in sets), distance, counts)


def traces(info: KnockoutsInfo, dark: bool = False) -> list[go.Bar]:
    """A filled bar with a picture and a hatched one without, for each label."""
    colours = theme.palette(dark)
    tones = {
        "vision-only": colours.vision,
        "language-only": colours.language,
        "cross-modal": colours.cross,
    }
    tone = [tones.get(label, colours.muted) for label in info.labels]
    return [
        go.Bar(
            name=kind,
            orientation="h",
            y=list(info.labels),
            x=info.distance[:, place, 0],
            marker={"color": tone, "pattern": {"shape": ("", "/")[place], "fgcolor": colours.surface}},
            error_x={
                "type": "data",
                "array": info.distance[:, place, 2] - info.distance[:, place, 0],
                "arrayminus": info.distance[:, place, 0] - info.distance[:, place, 1],
                "color": colours.text,
                "thickness": 1,
                "width": 3,
            },
            customdata=np.column_stack([info.distance[:, place, 1:], info.counts]),
            hovertemplate=f"<b>%{{y}}</b>, questions {kind}<br>KL %{{x:.4f}} (%{{customdata[0]:.4f}} to "
            "%{customdata[1]:.4f}) nats<br>%{customdata[2]:,} weights set to zero<extra></extra>",
        )
        for place, kind in enumerate(KINDS)
    ]


def figure(info: KnockoutsInfo, most: float, dark: bool = False) -> go.Figure:
    """`most`: where the axis ends, so that figures of several shares compare."""
    drawn = go.Figure(traces(info, dark))
    height = 70 + 58 * max(1, len(info.labels))
    drawn.update_layout(
        template=theme.template(dark),
        barmode="group",
        bargap=0.3,
        xaxis={"title": {"text": "KL to full precision, nats"}, "range": [0, most]},
        yaxis={"autorange": "reversed", "showgrid": False},
        showlegend=False,  # bars of one kind have several colours; the words say which are hatched
        meta={"height": height, "narrow": {"height": height}},
    )
    return drawn
