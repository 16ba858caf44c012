"""How the weights of one linear lie in the plane of both significances, and where the thresholds cut it.

The counts are binned on the 16-bit log codes of `viz.downsample`, 64 codes (4.4 %) a bin, 256 bins down from
the largest; smaller values share bin 0. The browser moves the same bins when a threshold is dragged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from viz import theme
from viz.downsample import CODES, LOG2_LOW, LOG2_STEP, encode

BINS = 256
CODES_PER_BIN = 64


class Boundaries(NamedTuple):
    """Where thresholds cut, in units of the mean significance: a weight is salient from `language` or from
    `vision` on, and unimodal where one is more than `ratio` times the other and they differ by `difference`."""

    language: float
    vision: float
    difference: float
    ratio: float


class DensityInfo(NamedTuple):
    """counts [vision bin, language bin]; bin b ≥ 1 covers codes from first_code + 64·b on."""

    counts: NDArray[np.uint32]
    first_code: int
    boundaries: Boundaries

    def edges(self) -> NDArray[np.float64]:
        """log10 of the significance at the lower edge of each bin and the upper edge of the last, [257]."""
        codes = self.first_code + CODES_PER_BIN * np.arange(BINS + 1, dtype=np.float64) - 0.5
        return np.asarray((LOG2_LOW + (codes - 1) * LOG2_STEP) * math.log10(2), dtype=np.float64)


def ratio_of_sparsity(sparsity: float) -> float:
    """The ratio of the two significances at which ρ reaches a value: the positive root t ≥ 1 of
    (1 + t)/√(1 + t²) = √2 − ρ(√2 − 1). 0.005 is a ratio of 1.11; infinite at ρ = 1."""
    root = math.sqrt(2.0)
    cosine = (root - min(max(sparsity, 0.0), 1.0) * (root - 1.0)) ** 2 - 1.0
    if cosine <= 0.0:
        return math.inf
    return (1.0 + math.sqrt(max(0.0, 1.0 - cosine * cosine))) / cosine


def info(language: NDArray[np.float32], vision: NDArray[np.float32], boundaries: Boundaries) -> DensityInfo:
    """Bin two significance maps of the same shape."""
    codes = encode(language).reshape(-1), encode(vision).reshape(-1)
    top = max(int(codes[0].max(initial=0)), int(codes[1].max(initial=0)), CODES_PER_BIN * BINS)
    first = top + 1 - CODES_PER_BIN * BINS
    places = [(np.maximum(code, first).astype(np.int32) - first) // CODES_PER_BIN for code in codes]
    counts = np.bincount(places[1] * BINS + places[0], minlength=BINS * BINS).astype(np.uint32)
    assert top <= CODES
    return DensityInfo(counts.reshape(BINS, BINS), first, boundaries)


def figure(info: DensityInfo, dark: bool = False, null: bool = False) -> go.Figure:
    """The density with its threshold lines: named shapes, which the browser takes out and moves by itself. A null has
    two halves of one modality on its axes."""
    colours = theme.palette(dark)
    edges = info.edges()
    centres = (edges[:-1] + edges[1:]) / 2
    counts = info.counts.astype(np.float32)
    shown = np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).astype(np.float32)
    low = _lowest(info.counts, edges)
    names = ("S̄ half A", "S̄ half B") if null else ("S̄ language", "S̄ vision")
    drawn = go.Figure(
        go.Heatmap(
            z=shown,
            x=centres,
            y=centres,
            colorscale=theme.ramp_scale(dark),
            showscale=False,
            hovertemplate=(
                f"{names[0]} 10^%{{x:.2f}}<br>{names[1]} 10^%{{y:.2f}}<br>10^%{{z:.1f}} weights<extra></extra>"
            ),
        )
    )
    shapes = [
        {
            "type": "path",
            "name": name,
            "path": "M" + "L".join(f"{x:.4f},{y:.4f}" for x, y in zip(*points, strict=True)),
            "line": {"color": colour, "width": 1.75},
        }
        for name, points, colour in _lines(info.boundaries, low, float(edges[-1]), colours)
    ]
    ticks = {
        "tickprefix": "10<sup>",
        "ticksuffix": "</sup>",
        "range": [low, float(edges[-1])],
        "fixedrange": True,
        "dtick": 1,
    }
    drawn.update_layout(
        template=theme.template(dark),
        shapes=shapes,
        xaxis={**ticks, "title": {"text": f"{names[0]} (1 = mean)"}},
        yaxis={**ticks, "title": {"text": names[1]}},
    )
    return drawn


def _lowest(counts: NDArray[np.uint32], edges: NDArray[np.float64]) -> float:
    """Left end of the axes: leaves out the lowest thousandth of the weights and the shared bin."""
    below = np.cumsum(counts.sum(axis=0) + counts.sum(axis=1))
    start = int(np.searchsorted(below, below[-1] * 0.02)) if below[-1] else 0
    return float(edges[min(max(start, 1), BINS - 16)])


def _lines(
    boundaries: Boundaries, low: float, high: float, colours: theme.Palette
) -> list[tuple[str, tuple[list[float], list[float]], str]]:
    """Name, points (log10) and colour of the threshold lines."""
    language, vision = (_log10(value, high + 1) for value in (boundaries.language, boundaries.vision))
    tilt = _log10(boundaries.ratio, high - low + 1)
    lines = [
        ("salient-language", ([language, language], [low, high]), colours.language),
        ("salient-vision", ([low, high], [vision, vision]), colours.vision),
        ("ratio-above", ([low, high], [low + tilt, high + tilt]), colours.cross),
        ("ratio-below", ([low, high], [low - tilt, high - tilt]), colours.cross),
    ]
    along = np.linspace(low, high, 80)
    other = np.log10(10.0**along + max(boundaries.difference, 0.0))
    points = along.tolist(), other.tolist()
    lines.append(("difference-above", points, colours.muted))
    lines.append(("difference-below", (points[1], points[0]), colours.muted))
    return lines


def _log10(value: float, otherwise: float) -> float:
    return math.log10(value) if 0.0 < value < math.inf else otherwise
