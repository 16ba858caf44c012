"""Scenes: what a picture holds, how it is drawn, and what each visual token should know about it.

A scene is a frozen description; `render` draws it (112 x 112 RGB) and `token_labels` says, for each of the 16
visual tokens (4 x 4 cells of 28 pixels), which object is centred there, which characters lie there and which bar
stands there. The labels teach the vision tower in the first training stage.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sab.demo.words import (
    BACKGROUNDS,
    CHARACTERS,
    COLOURS,
    FIELDS,
    ITEMS,
    SHAPES,
    SIZES,
    checksum,
    held_out_layout,
    held_out_pair,
    picture_words,
)

SIDE = 112  # pixels of a picture's side
CELL = 28  # pixels of a visual token's side (patch 14, merge 2)
GRID = SIDE // CELL
_SUPERSAMPLE = 2  # drawn at twice the size, then reduced: smooth edges

KINDS = ("shapes", "word", "number", "chart", "receipt", "form", "grid")


@dataclass(frozen=True)
class Thing:
    """One shape: centre and radius in pixels, rotation in degrees, wobble as a share of the radius."""

    shape: str
    colour: str
    size: str
    filled: bool
    x: float
    y: float
    radius: float
    rotation: float
    wobble: float

    @property
    def cell(self) -> tuple[int, int]:
        """The visual token (column, row) the centre lies in."""
        return int(self.x // CELL), int(self.y // CELL)

    @property
    def position(self) -> str:
        """The quarter of the picture the centre lies in."""
        return f"{'top' if self.y < SIDE / 2 else 'bottom'} {'left' if self.x < SIDE / 2 else 'right'}"


@dataclass(frozen=True)
class Line:
    """A line of text drawn character by character: left edge and middle in pixels, advance per character."""

    text: str
    x: float
    y: float
    advance: float
    size: float
    colour: str = "black"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: which of the four columns it stands in, its colour and its value 1..6."""

    column: int
    colour: str
    value: int


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows. `rows` holds a receipt's (item, price) or a form's (field, value) pairs."""

    kind: str
    background: str
    things: tuple[Thing, ...] = ()
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    noise: float = 0.0
    noise_seed: int = 0


# ------------------------------------------------------------------------------------------------ sampling
def sample(draw: random.Random, held_out: bool, kind: str | None = None, most: int = 5) -> Scene:
    """Draw one scene. `held_out` selects the words, pairs and layouts training never sees; `most` caps shapes."""
    kind = kind or draw.choices(KINDS, weights=(46, 15, 7, 11, 9, 7, 5))[0]
    return _SAMPLERS[kind](draw, held_out, most)


def _style(draw: random.Random) -> tuple[str, float, int]:
    return draw.choice(list(BACKGROUNDS)), draw.choice((0.0, 0.0, 4.0, 10.0)), draw.randrange(2**31)


def pair(draw: random.Random, held_out: bool | None) -> tuple[str, str]:
    """A (shape, colour) pair, held out, trained, or (None) either."""
    while True:
        shape, colour = draw.choice(SHAPES), draw.choice(list(COLOURS))
        if held_out is None or held_out_pair(shape, colour) == held_out:
            return shape, colour


def _cells(draw: random.Random, count: int, held_out: bool, allowed: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for _ in range(400):
        cells = draw.sample(allowed, count)
        if held_out_layout(tuple(cells)) == held_out:
            return cells
    # A few counts over few cells have no held-out set; the nearest honest thing is one more cell.
    return _cells(draw, count + 1 if count < len(allowed) else count - 1, held_out, allowed)


def _thing(draw: random.Random, shape: str, colour: str, cell: tuple[int, int], size: str | None = None) -> Thing:
    size = size or draw.choice(SIZES)
    radius = draw.uniform(8.5, 11.0) if size == "small" else draw.uniform(14.5, 19.0)
    drift = 5.0 if size == "small" else 3.0
    x = (cell[0] + 0.5) * CELL + draw.uniform(-drift, drift)
    y = (cell[1] + 0.5) * CELL + draw.uniform(-drift, drift)
    x, y = (min(max(v, radius * 0.8), SIDE - radius * 0.8) for v in (x, y))
    # Clamping a big shape must not push its centre into the neighbouring token.
    x, y = (min(max(v, c * CELL + 1), (c + 1) * CELL - 1) for v, c in ((x, cell[0]), (y, cell[1])))
    turn = draw.uniform(-18, 18) if draw.random() < 0.7 else 0.0
    wobble = draw.choice((0.0, 0.0, 0.04, 0.10))
    return Thing(shape, colour, size, draw.random() < 0.75, x, y, radius, turn, wobble)


def _shapes(draw: random.Random, held_out: bool, most: int) -> Scene:
    background, noise, seed = _style(draw)
    count = draw.randint(1, most)
    everywhere = [(c, r) for c in range(GRID) for r in range(GRID)]
    cells = _cells(draw, count, held_out, everywhere)
    things: list[Thing] = []
    repeat = draw.random() < 0.5  # half of the scenes repeat shapes or colours, or counting would be trivial
    for index, cell in enumerate(cells):
        shape, colour = pair(draw, held_out if index == 0 else (None if held_out else False))
        if repeat and things and draw.random() < 0.6:
            other = draw.choice(things)
            candidate = (other.shape, colour) if draw.random() < 0.5 else (shape, other.colour)
            if held_out or not held_out_pair(*candidate):
                shape, colour = candidate
        crowded = any(
            abs(cell[0] - t.cell[0]) <= 1 and abs(cell[1] - t.cell[1]) <= 1 and t.size == "big" for t in things
        )
        things.append(_thing(draw, shape, colour, cell, "small" if crowded and draw.random() < 0.85 else None))
    return Scene("shapes", background, tuple(things), noise=noise, noise_seed=seed)


def _text_line(draw: random.Random, text: str, row: int, colour: str = "black", left: float | None = None) -> Line:
    widest = min(26.0, (SIDE - 6) / len(text))
    advance = draw.uniform(max(14.0, widest * 0.7), widest) if widest > 14 else 14.0
    size = min(advance * 1.25, 26.0)
    span = advance * len(text)
    x = draw.uniform(2, max(2.0, SIDE - span - 2)) if left is None else left
    return Line(text, x, (row + 0.5) * CELL + draw.uniform(-3, 3), advance, size, colour)


def _word(draw: random.Random, held_out: bool, most: int) -> Scene:
    background, noise, seed = _style(draw)
    row = draw.randrange(GRID)
    line = _text_line(draw, draw.choice(picture_words(held_out)), row, draw.choice(("black", "blue", "red", "purple")))
    things: tuple[Thing, ...] = ()
    if draw.random() < 0.5:
        free = [(c, r) for c in range(GRID) for r in range(GRID) if abs(r - row) >= 1]
        shape, colour = pair(draw, held_out)
        things = (_thing(draw, shape, colour, draw.choice(free), "small"),)
    return Scene("word", background, things, (line,), noise=noise, noise_seed=seed)


def _number(draw: random.Random, held_out: bool, most: int) -> Scene:
    background, noise, seed = _style(draw)
    digits = draw.randint(1, 3)
    while True:
        value = draw.randrange(10 ** (digits - 1), 10**digits)
        if (value % 6 == 0) == held_out or digits == 1:
            break
    line = _text_line(draw, str(value), draw.randrange(GRID), draw.choice(("black", "blue", "red", "purple")))
    return Scene("number", background, (), (line,), noise=noise, noise_seed=seed)


def _chart(draw: random.Random, held_out: bool, most: int) -> Scene:
    background, noise, seed = _style(draw)
    count = draw.randint(2, 4)
    while True:
        columns = sorted(draw.sample(range(GRID), count))
        values = draw.sample(range(1, 7), count)
        if held_out_layout(tuple(zip(columns, values, strict=True))) == held_out:
            break
    colours = draw.sample(list(COLOURS), count)
    bars = tuple(Bar(c, colour, v) for c, colour, v in zip(columns, colours, values, strict=True))
    return Scene("chart", background, bars=bars, noise=noise, noise_seed=seed)


def _receipt(draw: random.Random, held_out: bool, most: int) -> Scene:
    background, noise, seed = (
        draw.choice(("white", "cream", "grey")),
        draw.choice((0.0, 4.0)),
        draw.randrange(2**31),
    )
    count = draw.randint(2, 3)
    while True:
        items, prices = draw.sample(ITEMS, count), draw.sample(range(1, 10), count)
        if (checksum_of(items, prices) % 6 == 0) == held_out:
            break
    rows = tuple((item, str(price)) for item, price in zip(items, prices, strict=True))
    lines = tuple(
        line
        for index, (item, price) in enumerate(rows)
        for line in (
            Line(item, 3, (index + 0.5) * CELL, 14, 16.5),
            Line(price, 95, (index + 0.5) * CELL, 14, 16.5),
        )
    )
    return Scene("receipt", background, lines=lines, rows=rows, noise=noise, noise_seed=seed)


def checksum_of(items: list[str], prices: list[int]) -> int:
    """The receipt's layout: its items and prices in order."""
    return checksum("receipt " + " ".join(f"{i}{p}" for i, p in zip(items, prices, strict=True)))


def _form(draw: random.Random, held_out: bool, most: int) -> Scene:
    background = draw.choice(("white", "cream", "mint"))
    words = picture_words(held_out)
    values = {
        "NAME": draw.choice([w for w in words if len(w) <= 3]),
        "CITY": draw.choice([w for w in words if len(w) <= 3]),
        "AGE": str(draw.randint(10, 99)),
    }
    rows = tuple((field, values[field]) for field in draw.sample(FIELDS, draw.randint(2, 3)))
    lines = tuple(
        line
        for index, (field, value) in enumerate(rows)
        for line in (
            Line(field, 2, (index + 0.5) * CELL, 14, 16.5, "blue"),
            Line(value, 68, (index + 0.5) * CELL, 14, 16.5),
        )
    )
    return Scene("form", background, lines=lines, rows=rows, noise_seed=draw.randrange(2**31))


def _grid(draw: random.Random, held_out: bool, most: int) -> Scene:
    """Four coloured squares, one in each quarter."""
    background, noise, seed = _style(draw)
    while True:
        # In training the squares keep to the pairs that training may show.
        palette = [c for c in COLOURS if held_out or not held_out_pair("square", c)]
        colours = [draw.choice(palette) for _ in range(4)]
        if (checksum("grid " + " ".join(colours)) % 6 == 0) == held_out:
            break
    cells = [(draw.choice((0, 1)) + 2 * (i % 2), draw.choice((0, 1)) + 2 * (i // 2)) for i in range(4)]
    things = tuple(
        Thing("square", colour, "small", True, (c + 0.5) * CELL, (r + 0.5) * CELL, 13.0, 0.0, 0.0)
        for colour, (c, r) in zip(colours, cells, strict=True)
    )
    return Scene("grid", background, things, noise=noise, noise_seed=seed)


_SAMPLERS: dict[str, Callable[[random.Random, bool, int], Scene]] = {
    "shapes": _shapes,
    "word": _word,
    "number": _number,
    "chart": _chart,
    "receipt": _receipt,
    "form": _form,
    "grid": _grid,
}


# ------------------------------------------------------------------------------------------------ drawing
def outline(thing: Thing) -> NDArray[np.float64]:
    """The polygon of a shape, in pixels, [points, 2]; a ring is drawn from a circle's polygon."""
    if thing.shape in ("circle", "ring"):
        angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
    elif thing.shape == "heart":
        t = np.linspace(0, 2 * math.pi, 44, endpoint=False)
        points = (
            np.stack(
                [
                    16 * np.sin(t) ** 3,
                    -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)),
                ],
                1,
            )
            / 16.5
        )
    elif thing.shape == "star":
        angles = np.arange(10) * math.pi / 5 - math.pi / 2
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * np.where(np.arange(10) % 2, 0.45, 1.1)[:, None]
    elif thing.shape == "cross":
        w = 0.34
        points = np.array(
            [
                (-w, -1),
                (w, -1),
                (w, -w),
                (1, -w),
                (1, w),
                (w, w),
                (w, 1),
                (-w, 1),
                (-w, w),
                (-1, w),
                (-1, -w),
                (-w, -w),
            ]
        )
    else:
        corners = {"square": (4, 45, 1.2), "diamond": (4, 0, 1.1), "triangle": (3, -90, 1.15)}
        count, start, scale = corners[thing.shape]
        angles = np.arange(count) * 2 * math.pi / count + math.radians(start)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * scale
        if thing.shape == "diamond":
            points = points * (0.72, 1.0)
    if thing.wobble:
        # A hand's line: more points along each edge, moved a little, the same for the same shape.
        hand = np.random.default_rng(int(thing.x * 1000 + thing.y * 7919))
        steps = max(1, 36 // len(points))
        following = np.roll(points, -1, axis=0)
        along = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
        points = (points[:, None] * (1 - along) + following[:, None] * along).reshape(-1, 2)
        points = points + hand.normal(0, thing.wobble * 0.6, points.shape)
    turn = math.radians(thing.rotation)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return points @ rotation.T * thing.radius + (thing.x, thing.y)


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing) -> None:
    colour = COLOURS[thing.colour]
    points = [(float(x), float(y)) for x, y in outline(thing) * _SUPERSAMPLE]
    width = round((3.0 if thing.size == "small" else 4.0) * _SUPERSAMPLE)
    if thing.shape == "ring":
        canvas.line([*points, points[0], points[1]], fill=colour, width=round(width * 1.6), joint="curve")
    elif thing.filled:
        canvas.polygon(points, fill=colour)
    else:
        canvas.line([*points, points[0], points[1]], fill=colour, width=width, joint="curve")


def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a 112 x 112 RGB picture; the same scene gives the same pixels."""
    scale = _SUPERSAMPLE
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUNDS[scene.background])
    canvas = ImageDraw.Draw(picture)
    if scene.kind == "chart":
        for level in range(7):
            y = (SIDE - 6 - level * 16) * scale
            canvas.line([(0, y), (SIDE * scale, y)], fill=(150, 150, 150) if level else (40, 40, 40), width=scale)
    for bar in scene.bars:
        left = bar.column * CELL + 5
        canvas.rectangle(
            [left * scale, (SIDE - 6 - bar.value * 16) * scale, (left + 18) * scale, (SIDE - 6) * scale],
            fill=COLOURS[bar.colour],
        )
    if scene.kind in ("receipt", "form"):
        for row in range(1, GRID):
            canvas.line(
                [(0, row * CELL * scale), (SIDE * scale, row * CELL * scale)],
                fill=(205, 205, 205),
                width=scale,
            )
    for thing in scene.things:
        _draw_thing(canvas, thing)
    for line in scene.lines:
        font = _font(line.size * scale)
        for index, character in enumerate(line.text):
            x = (line.x + (index + 0.5) * line.advance) * scale
            canvas.text(
                (x, line.y * scale),
                character,
                font=font,
                fill=COLOURS[line.colour],
                anchor="mm",
                stroke_width=scale // 2,
            )
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    if scene.noise:
        grain = np.random.default_rng(scene.noise_seed).normal(0, scene.noise, (SIDE, SIDE, 3))
        picture = Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))
    return picture


# ------------------------------------------------------------------------------------------------ token labels
# What a visual token can hold; value 0 always means "nothing of that sort here".
SLOTS: dict[str, tuple[str, ...]] = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS),
    "size": ("", *SIZES),
    "filled": ("", "empty", "filled"),
    "left character": ("", *CHARACTERS),
    "right character": ("", *CHARACTERS),
    "bar colour": ("", *COLOURS),
    "bar value": ("", "1", "2", "3", "4", "5", "6"),
    "text colour": ("", "black", "blue", "red", "purple"),
    "background": ("", *BACKGROUNDS),
    "kind": ("", *KINDS),
}


def token_labels(scene: Scene) -> NDArray[np.int64]:
    """Slot values per visual token, [16, slots], tokens in raster order; later things lie on top."""
    names = list(SLOTS)
    labels = np.zeros((GRID * GRID, len(names)), dtype=np.int64)

    def put(token: int, slot: str, value: str) -> None:
        labels[token, names.index(slot)] = SLOTS[slot].index(value)

    for token in range(GRID * GRID):
        put(token, "background", scene.background)
        put(token, "kind", scene.kind)
    for thing in scene.things:
        token = thing.cell[1] * GRID + thing.cell[0]
        put(token, "shape", thing.shape)
        put(token, "colour", thing.colour)
        put(token, "size", thing.size)
        put(token, "filled", "filled" if thing.filled and thing.shape != "ring" else "empty")
    for line in scene.lines:
        for index, character in enumerate(line.text):
            half = min(2 * GRID - 1, int((line.x + (index + 0.5) * line.advance) // (CELL / 2)))
            token = min(GRID - 1, int(line.y // CELL)) * GRID + half // 2
            put(token, "right character" if half % 2 else "left character", character)
            put(token, "text colour", line.colour)
    for bar in scene.bars:
        token = (GRID - 1) * GRID + bar.column
        put(token, "bar colour", bar.colour)
        put(token, "bar value", str(bar.value))
    return labels
