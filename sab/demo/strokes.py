"""Shapes as a hand draws them by mouse on the chat's canvas: open, uneven lines of one pen, now and then filled.

The canvas is white, 448 pixels wide, with round pens of 4, 10 and 22 pixels; the model sees it at a quarter of that.
Each shape is a closed path bent by slow waves, squeezed a little and not quite closed; a star may be drawn in one go
as a pentagram, a cross as two lines, and a ring is two circles.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sab.demo.outlines import outline
from sab.demo.things import SIDE, Scene, Thing
from sab.demo.words import COLOURS

STROKES = "strokes"
PENS = (1.0, 2.5, 5.5)  # widths in pixels of the picture
_PEN_SHARES = (0.3, 0.5, 0.2)
_SCALE = 3  # drawn larger, then reduced as the model's processor does it
_STEP = 2.5  # pixels between two points of a path


def drawn_by_hand(scene: Scene) -> Image.Image:
    """The scene's shapes as pen strokes on white, 112 x 112 RGB."""
    hand = np.random.default_rng(scene.noise_seed)
    picture, canvas = paper()
    chosen = hand.choice(PENS, p=_PEN_SHARES)
    for thing in scene.things:
        pen = chosen * hand.uniform(0.9, 1.1)
        if thing.size == "small":
            pen = min(pen, thing.radius * 0.28)  # a thicker one would leave no shape to see
        colour = COLOURS[thing.colour]
        for path in _paths(thing, hand):
            ink(canvas, path, pen, colour, thing.radius, hand, thing.filled)
    return shrunk(picture)


def paper() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white canvas to draw on, larger than the picture."""
    picture = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE), (255, 255, 255))
    return picture, ImageDraw.Draw(picture)


def shrunk(picture: Image.Image) -> Image.Image:
    """The canvas as the model sees it, 112 x 112."""
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def ink(
    canvas: ImageDraw.ImageDraw,
    path: NDArray[np.float64],
    pen: float,
    colour: tuple[int, int, int],
    reach: float,
    hand: np.random.Generator,
    filled: bool = False,
) -> None:
    """Draw a path [points, 2] by an unsteady hand; path, pen and reach (how far what is drawn extends) in pixels."""
    spaced = _spaced(path)
    points = (_trembling(spaced, min(reach, len(spaced) * _STEP / 2), hand) * _SCALE).tolist()
    corners = [(x, y) for x, y in points]
    if filled:
        canvas.polygon(corners, fill=colour)
    width = pen * _SCALE
    canvas.line(corners, fill=colour, width=max(1, round(width)), joint="curve" if width > 4 else None)
    for x, y in (corners[0], corners[-1]):
        canvas.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=colour)


def _paths(thing: Thing, hand: np.random.Generator) -> list[NDArray[np.float64]]:
    """The lines a hand would draw, in pixels, each [points, 2]."""
    centre = np.array([thing.x, thing.y])
    around = outline(thing)
    if thing.shape == "ring":
        return [_closed(around, hand), _closed(centre + (around - centre) * hand.uniform(0.45, 0.62), hand)]
    if thing.shape == "star" and not thing.filled and hand.random() < 0.5:
        tips = around[::2]
        return [_closed(tips[[0, 2, 4, 1, 3]], hand)]
    if thing.shape == "cross" and not thing.filled and hand.random() < 0.6:
        turn = math.radians(thing.rotation) + (math.pi / 4 if hand.random() < 0.3 else 0.0)
        along = np.array([math.cos(turn), math.sin(turn)]) * thing.radius
        across = np.array([-along[1], along[0]])
        return [_spaced(np.stack([centre - arm, centre + arm])) for arm in (along, across)]
    return [_closed(around, hand)]


def _closed(points: NDArray[np.float64], hand: np.random.Generator) -> NDArray[np.float64]:
    """A closed path begun anywhere whose end misses its beginning a little or runs past it."""
    path = _spaced(np.concatenate([points, points[:1]]))[:-1]
    path = np.roll(path, int(hand.integers(len(path))), axis=0)
    missed = round(hand.uniform(-0.05, 0.06) * len(path))
    if missed > 0:
        return path[: len(path) - missed]
    return np.concatenate([path, path[: 1 - missed]])


def _spaced(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same open path with a point every `_STEP` pixels."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], max(4, int(lengths[-1] / _STEP)))
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], 1)


def _trembling(path: NDArray[np.float64], radius: float, hand: np.random.Generator) -> NDArray[np.float64]:
    """The path squeezed, its corners rounded, and bent by a few slow waves."""
    centre = path.mean(0)
    squeeze = np.eye(2) + hand.normal(0, 0.07, (2, 2))
    path = (path - centre) @ squeeze + centre
    inner = path.copy()
    inner[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    at = np.linspace(0, 2 * math.pi, len(path))[:, None]
    for wave in (1, 2, 3, 5, 8):
        amplitude = hand.normal(0, 0.045 * radius / wave**0.5, (1, 2))
        inner = inner + amplitude * np.sin(wave * at + hand.uniform(0, 2 * math.pi, (1, 2)))
    return inner
