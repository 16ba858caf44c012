"""Accuracy, or distance to full precision, against bits: each run as a filled point at its all-in bits, joined to the
nominal bits that papers print; one method at several budgets is a line with one name.

All-in bits are every stored bit of a linear over its number of weights, nominal bits are `1 + c/m` (METHOD.md §9).

Methods lie close, so names are placed here and not by plotly: `place_labels` looks for room in pixels. The height of
the figure is fixed and its width is not; a place counts as free only if it is so at every width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme

MARGIN = {"l": 54, "r": 14, "t": 12, "b": 52}  # fixed, so that the height of the plot in pixels is known
HEIGHT, NARROW_HEIGHT = 400, 360
WIDTH, NARROW_WIDTH = 526, 262  # narrowest figures of the two layouts of assets/js/chart.js
GROWTH, NARROW_GROWTH = 1.8, 2.4  # how much wider the plot may become than it is then
LETTER, LINE, AWAY = 7.4, 17.0, 14.0  # pixels: a wide letter, a line of text, from a point to its name
LONGEST, NARROW_LONGEST = 30, 16  # letters of a name
STEP = 3.0  # pixels between two heights that are tried
LEFT, ACROSS, PAST = 40.0, 60.0, 20.0  # pixels that a name goes further to avoid these; see `place_labels`
ROOM, NARROW_ROOM = 1.18, 1.42  # where the bits end, as a multiple of the most bits: names stand there


class Quantity(NamedTuple):
    """What is drawn upwards. `log`: heights are log10 of the value, which must be positive."""

    title: str
    log: bool

    def height(self, value: float) -> float:
        """Where a value stands on the axis: percent of a share, or log10."""
        return math.log10(max(value, SMALLEST)) if self.log else 100 * value

    def text(self, value: float) -> str:
        """A value for people."""
        return f"{value:.3g}" if self.log else f"{100 * value:.1f} %"


SMALLEST = 1e-5  # below it a distance is not told from none
ACCURACY = Quantity("accuracy, %", False)
DISTANCE = Quantity("KL to full precision, nats", True)


class Measured(NamedTuple):
    """One run: the drawn value with its interval (a share between 0 and 1, or nats), bits per weight, bytes of the
    packed weights. Runs of one `series` are joined by a line that carries the name of the series."""

    name: str
    method: str
    bits_nominal: float
    bits_all_in: float
    bytes: int
    value: float
    low: float
    high: float
    series: str = ""


class BitsAccuracyInfo(NamedTuple):
    """names, methods, series: one per run, in order of all-in bits. bits [runs, 2] nominal and all-in. bytes [runs].
    values [runs, 3] value and interval ends. full: the same three of full precision, or None.
    """

    names: tuple[str, ...]
    methods: tuple[str, ...]
    series: tuple[str, ...]
    bits: NDArray[np.float64]
    bytes: NDArray[np.int64]
    values: NDArray[np.float64]
    full: tuple[float, float, float] | None
    quantity: Quantity

    @property
    def heights(self) -> NDArray[np.float64]:
        """The values [runs, 3] as heights of the axis."""
        return np.array([[self.quantity.height(value) for value in row] for row in self.values]).reshape(-1, 3)

    def named(self) -> dict[int, str]:
        """The runs that carry a name, and it: each by itself, and of a series the one with most bits."""
        last = {series: place for place, series in enumerate(self.series) if series}
        return {
            place: self.series[place] or self.names[place]
            for place in range(len(self.names))
            if last.get(self.series[place], place) == place
        }


class Box(NamedTuple):
    """Pixels that something takes, y downwards. `anchor` is the x of the point it belongs to, which moves with the
    width of the figure while the box keeps its distance to it."""

    anchor: float
    left: float
    right: float
    top: float
    bottom: float

    def clear_of(self, other: Box, growth: float) -> bool:
        """Whether the two are apart, in this figure and in every one up to `growth` times as wide."""
        if self.bottom <= other.top or other.bottom <= self.top:
            return True
        drift = (growth - 1) * (other.anchor - self.anchor)  # how far the other moves away to the right
        before, behind = other.left - self.right, self.left - other.right
        return min(before, before + drift) >= 0 or min(behind, behind - drift) >= 0


class Label(NamedTuple):
    """Where a name stands: to the right (1) or left (-1) of its point, moved down by `shift` pixels."""

    side: int
    shift: float

    def box(self, x: float, y: float, width: float) -> Box:
        """What it takes at a point."""
        near, middle = x + self.side * AWAY, y + self.shift
        left, right = (near, near + width) if self.side > 0 else (near - width, near)
        return Box(x, left, right, middle - LINE / 2, middle + LINE / 2)


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    frame: tuple[float, float],
    taken: Iterable[Box] = (),
    lines: Sequence[Box] = (),
    growth: float = 1.0,
) -> list[Label | None]:
    """A place for the name of each point inside a frame (width, height), all in pixels, y downwards.

    No name touches another or a box of `taken`, in this frame and when it is up to `growth` times as wide; None where
    there is no room.
    The upper points choose first. The nearest place wins, but a name rather goes further than over one of `lines`, to
    the left, or past the name of a point above it.
    """
    filled = list(taken)
    named: list[Box] = []
    places: list[Label | None] = [None] * len(points)
    shifts = [0.0, *(sign * float(step) for step in np.arange(STEP, frame[1], STEP) for sign in (1, -1))]
    for index in sorted(range(len(points)), key=lambda index: (points[index][1], points[index][0])):
        best: tuple[float, Label, Box] | None = None
        for side in (1, -1):
            for shift in shifts:
                label = Label(side, shift)
                box = label.box(*points[index], widths[index])
                cost = abs(shift) + (LEFT if side < 0 else 0.0)
                if best is not None and cost >= best[0]:
                    continue
                inside = box.left >= 0 and box.right <= frame[0] and box.top >= 0 and box.bottom <= frame[1]
                if not inside or not all(box.clear_of(other, growth) for other in filled):
                    continue
                cost += ACROSS * sum(not box.clear_of(line, growth) for line in lines)
                beside = (other for other in named if box.left < other.right and other.left < box.right)
                cost += PAST * any(box.top < other.top for other in beside)
                if best is None or cost < best[0]:
                    best = cost, label, box
        if best is not None:
            _, places[index], box = best
            filled.append(box)
            named.append(box)
    return places


def info(
    runs: Iterable[Measured], full: tuple[float, float, float] | None = None, quantity: Quantity = ACCURACY
) -> BitsAccuracyInfo:
    """Arrays of the figure, in order of all-in bits; no runs give empty arrays."""
    rows = sorted(runs, key=lambda run: run.bits_all_in)
    return BitsAccuracyInfo(
        tuple(run.name for run in rows),
        tuple(run.method for run in rows),
        tuple(run.series for run in rows),
        np.array([(run.bits_nominal, run.bits_all_in) for run in rows], dtype=np.float64).reshape(-1, 2),
        np.array([run.bytes for run in rows], dtype=np.int64),
        np.array([(run.value, run.low, run.high) for run in rows], dtype=np.float64).reshape(-1, 3),
        full,
        quantity,
    )


def figure(info: BitsAccuracyInfo, dark: bool = False) -> go.Figure:
    """Points with intervals; full precision as a line with its interval as a band."""
    colours = theme.palette(dark)
    drawn = go.Figure()
    heights, text = info.heights, info.quantity.text
    for series in dict.fromkeys(filter(None, info.series)):
        inside = [place for place, each in enumerate(info.series) if each == series]
        drawn.add_scatter(
            x=info.bits[inside, 1],
            y=heights[inside, 0],
            mode="lines",
            line={"color": theme.method_colour(info.methods[inside[0]], dark), "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    for place, (name, method) in enumerate(zip(info.names, info.methods, strict=True)):
        colour = theme.method_colour(method, dark)
        nominal, all_in = info.bits[place]
        at, low, high = heights[place]
        drawn.add_scatter(
            x=[nominal, all_in],
            y=[at, at],
            mode="lines+markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"symbol": "circle-open", "size": [8, 0], "color": colour},
            hovertemplate="nominal %{x:.2f} bits, as papers count<extra></extra>",
            showlegend=False,
        )
        value, least, most = map(text, info.values[place])
        drawn.add_scatter(
            name=name,
            x=[all_in],
            y=[at],
            error_y={
                "type": "data",
                "array": [high - at],
                "arrayminus": [at - low],
                "color": colour,
                "thickness": 1.5,
            },
            mode="markers",
            marker={"size": 12, "color": colour, "line": {"width": 1.5, "color": colours.surface}},
            hovertemplate=f"<b>{_plain(name)}</b><br>{value} ({least} to {most})"
            f"<br>%{{x:.2f}} bits all-in, {info.bytes[place] / 1e6:.2f} MB<extra></extra>",
            showlegend=False,
        )
    if info.full is not None:
        at, low, high = map(info.quantity.height, info.full)
        drawn.add_hrect(y0=low, y1=high, fillcolor=colours.muted, opacity=0.14, line_width=0, layer="below")
        drawn.add_hline(y=at, line={"color": colours.muted, "width": 1.5}, layer="below")
    across, up = _ranges(info, ROOM)
    drawn.update_layout(
        template=theme.template(dark),
        margin=MARGIN,
        xaxis={
            "title": {"text": "bits per weight (open: nominal, filled: all-in)"},
            "range": across,
            "automargin": False,
        },
        yaxis={"title": {"text": info.quantity.title}, "range": up, "automargin": False, **_ticks(info.quantity, up)},
        annotations=names_of(info, (WIDTH, HEIGHT), ROOM, LONGEST, GROWTH, dark),
        meta={
            "height": HEIGHT,
            "narrow": {
                "height": NARROW_HEIGHT,
                "xaxis.title": {"text": "bits (open: nominal, filled: all-in)"},
                "xaxis.range": _ranges(info, NARROW_ROOM)[0],
                "annotations": names_of(
                    info, (NARROW_WIDTH, NARROW_HEIGHT), NARROW_ROOM, NARROW_LONGEST, NARROW_GROWTH, dark
                ),
            },
        },
    )
    return drawn


def names_of(
    info: BitsAccuracyInfo, size: tuple[float, float], room: float, longest: int, growth: float, dark: bool = False
) -> list[dict[str, Any]]:
    """The names of the points, of at most `longest` letters, and of the line of full precision, in a figure of `size`
    pixels, or up to `growth` times as wide, whose axis ends at `room` times the most bits."""
    colours = theme.palette(dark)
    frame = size[0] - MARGIN["l"] - MARGIN["r"], size[1] - MARGIN["t"] - MARGIN["b"]
    (left, right), (low, high) = _ranges(info, room)

    def x_of(bits: float) -> float:
        return float((bits - left) / (right - left) * frame[0])

    def y_of(height: float) -> float:
        return float((high - height) / (high - low) * frame[1])

    heights = info.heights
    points = [(x_of(bits), y_of(row[0])) for bits, row in zip(info.bits[:, 1], heights, strict=True)]
    taken = [Box(x, x - 7, x + 7, y - 7, y + 7) for x, y in points]
    bars = [Box(x, x - 4, x + 4, y_of(row[2]), y_of(row[1])) for (x, _), row in zip(points, heights, strict=True)]
    rings = [
        Box(x, x - 5, x + 5, y - 5, y + 5)
        for x, y in zip(map(x_of, info.bits[:, 0]), (y for _, y in points), strict=True)
    ]
    drawn: list[dict[str, Any]] = []
    if info.full is not None:
        text, level = f"full precision {info.quantity.text(info.full[0])}", y_of(info.quantity.height(info.full[0]))
        wide = LETTER * len(text)
        tried = [
            (side, above, Box(edge, edge - wide * (side == "right"), edge + wide * (side == "left"), top, top + LINE))
            for above, top in ((True, level - LINE), (False, level))
            for side, edge in (("left", 0.0), ("right", frame[0]))
        ]
        free = [each for each in tried if each[2].top >= 0 and all(each[2].clear_of(bar, growth) for bar in bars)]
        side, above, box = (free or tried)[0]
        taken.append(box)
        drawn.append(
            {
                "text": text,
                "x": 0 if side == "left" else 1,
                "xref": "paper",
                "y": info.quantity.height(info.full[0]),
                "xanchor": side,
                "yanchor": "bottom" if above else "top",
                "showarrow": False,
                "font": {"color": colours.muted, "size": 12},
                "borderpad": 0,
            }
        )
    named = info.named()
    shown = [name if len(name) <= longest else name[: longest - 1].rstrip() + "…" for name in named.values()]
    widths = [LETTER * len(name) for name in shown]
    places = place_labels([points[place] for place in named], widths, frame, taken, [*bars, *rings], growth)
    for name, place, label in zip(shown, named, places, strict=True):
        if label is None:
            continue  # too crowded: the name shows when one points at the run
        drawn.append(
            {
                "text": _plain(name),
                "x": float(info.bits[place, 1]),
                "y": float(heights[place, 0]),
                "ax": label.side * AWAY,
                "ay": label.shift,
                "xanchor": "left" if label.side > 0 else "right",
                "yanchor": "middle",
                "showarrow": True,
                "arrowhead": 0,
                "arrowwidth": 1,
                "arrowcolor": theme.method_colour(info.methods[place], dark),
                "standoff": 6,
                "borderpad": 0,
                "font": {"color": colours.text, "size": 12},
            }
        )
    return drawn


def _ranges(info: BitsAccuracyInfo, room: float) -> tuple[list[float], list[float]]:
    """Where both axes begin and end: bits up to `room` times the most of them, and heights around every interval."""
    quantity = info.quantity
    ends = np.concatenate([info.heights.ravel(), [quantity.height(value) for value in info.full or ()]])
    low, high = (float(ends.min()), float(ends.max())) if ends.size else map(quantity.height, (0.001, 1.0))
    around = max(0.05 if quantity.log else 2.0, 0.08 * (high - low))
    low, high = low - around, high + around
    if not quantity.log:  # a share has ends of its own
        low, high = max(-2.0, low), min(103.0, high)
    widest = float(info.bits.max()) if info.bits.size else 4.0
    return [0.7, widest * room], [low, high]


def _ticks(quantity: Quantity, ends: Sequence[float]) -> dict[str, Any]:
    """Marks of a logarithmic axis at 1, 2 and 5 of each decade between its ends; plotly's own otherwise."""
    if not quantity.log:
        return {}
    values = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]
    inside = [value for value in values if ends[0] <= math.log10(value) <= ends[1]]
    return {"tickvals": [math.log10(value) for value in inside], "ticktext": [f"{value:g}" for value in inside]}


def _plain(name: str) -> str:
    """Plotly reads tags in texts."""
    return name.replace("&", "&amp;").replace("<", "&lt;")
