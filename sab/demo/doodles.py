"""Drawings by mouse of nothing the world knows: a zigzag, a tangle, a stick figure. Several families each for training
and for the suite, as `photographs` has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sab.demo.strokes import ink, paper, shrunk
from sab.demo.things import SIDE
from sab.demo.words import COLOURS

DOODLE = "doodle"
Path = NDArray[Any]  # [points, 2] around 0, about 1 in reach
Rng = np.random.Generator


def doodle(family: str, seed: int) -> Image.Image:
    """A drawing of that family in pen strokes on white, 112 x 112 RGB."""
    hand = np.random.default_rng(seed)
    reach = hand.uniform(18, 46)
    centre = SIDE / 2 + hand.uniform(-1, 1, 2) * (SIDE / 2 - reach) * 0.8
    turn = hand.normal(0, 0.15)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    colours = [COLOURS[str(name)] for name in hand.choice(list(COLOURS), 2)]
    pen = hand.choice((1.0, 2.5, 2.5, 5.5))
    picture, canvas = paper()
    for path in (TRAINED | HELD_OUT)[family](hand):
        colour = colours[int(hand.random() < 0.15)]
        ink(canvas, path @ rotation.T * reach * (1, hand.uniform(0.7, 1.1)) + centre, pen, colour, reach, hand)
    return shrunk(picture)


def _smooth(points: Path, steps: int = 10) -> Path:
    """A curve through the points (Catmull-Rom)."""
    p = np.concatenate([points[:1], points, points[-1:]])
    at = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i][:, None] for i in range(4))
    curve = b + 0.5 * at * (c - a + at * (2 * a - 5 * b + 4 * c - d + at * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def _line(*points: tuple[float, float]) -> Path:
    return np.array(points, float)


def _arc(x: float, y: float, wide: float, high: float, start: float = 0.0, end: float = 2 * math.pi) -> Path:
    at = np.linspace(start, end, 24)
    return np.stack([x + wide * np.cos(at), y + high * np.sin(at)], 1)


# ------------------------------------------------------------------------------------------------ trained families
def _zigzag(hand: Rng) -> list[Path]:
    count = int(hand.integers(5, 14))
    x = np.linspace(-1, 1, count)
    return [
        np.stack([x, hand.uniform(0.3, 0.9) * np.where(np.arange(count) % 2, 1, -1) * hand.uniform(0.6, 1, count)], 1)
    ]


def _tangle(hand: Rng) -> list[Path]:
    return [_smooth(hand.uniform(-1, 1, (int(hand.integers(6, 16)), 2)))]


def _spiral(hand: Rng) -> list[Path]:
    at = np.linspace(0.15, 1, 90)
    turns = hand.uniform(2.5, 5) * 2 * math.pi * hand.choice((-1, 1))
    return [np.stack([at * np.cos(turns * at), at * np.sin(turns * at)], 1)]


def _figure(hand: Rng) -> list[Path]:
    """A stick figure."""
    arms, legs = hand.uniform(-0.4, 0.3, 2), hand.uniform(0.2, 0.6, 2)
    body = [_line((0, -0.4), (0, 0.35)), _arc(0, -0.68, 0.26, 0.28)]
    body += [_line((-0.6, arms[0]), (0, -0.15), (0.6, arms[1]))]
    return [*body, _line((-legs[0], 1), (0, 0.35), (legs[1], 1))]


def _tree(hand: Rng) -> list[Path]:
    crown = _arc(0, -0.35, 0.65, 0.6)
    crown = crown * (1 + 0.12 * np.sin(np.linspace(0, hand.integers(6, 10) * 2 * math.pi, len(crown))))[:, None]
    return [_line((-0.12, 1), (-0.1, 0.2)), _line((0.12, 1), (0.1, 0.2)), crown]


def _hatching(hand: Rng) -> list[Path]:
    return [
        _line((x - 0.2, -hand.uniform(0.4, 1)), (x + 0.2, hand.uniform(0.4, 1)))
        for x in np.linspace(-0.8, 0.8, int(hand.integers(4, 9)))
    ]


def _table(hand: Rng) -> list[Path]:
    top = _line((-1, -0.2), (1, -0.2), (0.8, 0.05), (-0.8, 0.05), (-1, -0.2))
    return [top, *[_line((x, 0.05), (x, 0.9)) for x in (-0.75, -0.4, 0.45, 0.75)]]


# ------------------------------------------------------------------------------------------------ held-out families
def _fish(hand: Rng) -> list[Path]:
    body = _arc(-0.1, 0, 0.7, 0.38, 0.35, 2 * math.pi - 0.35)
    return [np.concatenate([_line((1, -0.4)), body, _line((1, 0.4), (1, -0.4))]), _arc(-0.45, -0.1, 0.05, 0.05)]


def _cloud(hand: Rng) -> list[Path]:
    bows = int(hand.integers(5, 8))
    at = np.linspace(0, 2 * math.pi, 90)
    reach = 0.7 + 0.25 * np.abs(np.sin(at * bows / 2))
    rain = [_line((x, 0.7), (x - 0.1, 1)) for x in np.linspace(-0.5, 0.5, int(hand.integers(0, 5)))]
    return [np.stack([reach * np.cos(at), 0.6 * reach * np.sin(at)], 1), *rain]


def _cup(hand: Rng) -> list[Path]:
    return [_line((-0.7, -0.6), (-0.5, 0.7), (0.4, 0.7), (0.6, -0.6), (-0.7, -0.6)), _arc(0.6, 0, 0.35, 0.3, -1.5, 1.5)]


def _ladder(hand: Rng) -> list[Path]:
    rungs = [_line((-0.3, y), (0.3, y)) for y in np.linspace(-0.8, 0.8, int(hand.integers(4, 8)))]
    return [_line((-0.3, -1), (-0.3, 1)), _line((0.3, -1), (0.3, 1)), *rungs]


def _scrawl(hand: Rng) -> list[Path]:
    """A line of joined writing that nobody can read."""
    at = np.linspace(0, hand.uniform(4, 8) * 2 * math.pi, 140)
    drift = np.linspace(-1, 1, 140)
    high = np.interp(at, np.linspace(0, at[-1], 12), hand.uniform(0.15, 0.5, 12))
    return [np.stack([drift + 0.12 * np.cos(at), high * np.sin(at)], 1)]


TRAINED: dict[str, Callable[[Rng], list[Path]]] = {
    "zigzag": _zigzag,
    "tangle": _tangle,
    "spiral": _spiral,
    "figure": _figure,
    "tree": _tree,
    "hatching": _hatching,
    "table": _table,
}
HELD_OUT: dict[str, Callable[[Rng], list[Path]]] = {
    "fish": _fish,
    "cloud": _cloud,
    "cup": _cup,
    "ladder": _ladder,
    "scrawl": _scrawl,
}
