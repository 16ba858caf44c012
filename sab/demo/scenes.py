"""Sampling scenes, and what each visual token of a scene should know about it.

`sample` draws a frozen description (`things`), `drawing.render` its picture, and `token_labels` says, for each of the
16 visual tokens (4 x 4 cells of 28 pixels), which object is centred there, which characters lie there and which bar
stands there. The labels teach the vision tower in the first training stage and stand in for it in the second.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sab.demo import doodles, photographs
from sab.demo.doodles import DOODLE
from sab.demo.drawing import render
from sab.demo.photographs import PHOTOGRAPH
from sab.demo.strokes import STROKES
from sab.demo.things import CELL, GRID, SIDE, UNRECOGNISED, VAST, Bar, Line, Scene, Thing
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

__all__ = [
    "CELL",
    "GRID",
    "KINDS",
    "SIDE",
    "SLOTS",
    "Bar",
    "Line",
    "Scene",
    "Thing",
    "render",
    "sample",
    "token_labels",
]

KINDS = ("shapes", "word", "number", "chart", "receipt", "form", "grid")
DRAWING = "drawing"  # a kind to sample: shapes drawn by hand


# ------------------------------------------------------------------------------------------------ sampling
def sample(draw: random.Random, held_out: bool, kind: str | None = None, most: int = 5) -> Scene:
    """Draw one scene. `held_out` selects the words, pairs, layouts and families of photographs and doodles that
    training never sees; `most` caps shapes. Without a kind, one of `KINDS`; the further ones, "drawing", "photograph"
    and "doodle", only where asked for."""
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


def _drawing(draw: random.Random, held_out: bool, most: int) -> Scene:
    """Shapes drawn by hand on white: one that fills the picture, or a few as `_shapes` places them."""
    seed = draw.randrange(2**31)
    if draw.random() < 0.25:
        shape, colour = pair(draw, held_out)
        x, y = (SIDE / 2 + draw.uniform(-9, 9) for _ in range(2))
        turn = draw.uniform(-15, 15)
        one = Thing(shape, colour, "big", draw.random() < 0.2, x, y, draw.uniform(VAST, 44.0), turn, 0.0)
        return Scene("shapes", "white", (one,), noise_seed=seed, style=STROKES)
    things = []
    for thing in _shapes(draw, held_out, min(most, 4)).things:
        filled = draw.random() < 0.25 and thing.shape != "ring"
        radius = thing.radius * draw.uniform(1.0, 1.15)
        # Nobody draws over the edge of the canvas; the centre stays in its token.
        x, y = (
            min(max(v, min(0.95 * radius, (c + 1) * CELL - 1)), max(SIDE - 0.95 * radius, c * CELL + 1))
            for v, c in zip((thing.x, thing.y), thing.cell, strict=True)
        )
        things.append(replace(thing, filled=filled, wobble=0.0, radius=radius, x=x, y=y))
    return Scene("shapes", "white", tuple(things), noise_seed=seed, style=STROKES)


def _photograph(draw: random.Random, held_out: bool, most: int) -> Scene:
    family = draw.choice(list(photographs.HELD_OUT if held_out else photographs.TRAINED))
    return Scene(PHOTOGRAPH, "white", noise_seed=draw.randrange(2**31), style=family)


def _doodle(draw: random.Random, held_out: bool, most: int) -> Scene:
    family = draw.choice(list(doodles.HELD_OUT if held_out else doodles.TRAINED))
    return Scene(DOODLE, "white", noise_seed=draw.randrange(2**31), style=family)


_SAMPLERS: dict[str, Callable[[random.Random, bool, int], Scene]] = {
    "shapes": _shapes,
    "word": _word,
    "number": _number,
    "chart": _chart,
    "receipt": _receipt,
    "form": _form,
    "grid": _grid,
    DRAWING: _drawing,
    PHOTOGRAPH: _photograph,
    DOODLE: _doodle,
}


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
    "middle": ("", "vast"),
    "unknown": ("", *UNRECOGNISED),
}


def token_labels(scene: Scene) -> NDArray[np.int64]:
    """Slot values per visual token, [16, slots], tokens in raster order; later things lie on top."""
    names = list(SLOTS)
    labels = np.zeros((GRID * GRID, len(names)), dtype=np.int64)

    def put(token: int, slot: str, value: str) -> None:
        labels[token, names.index(slot)] = SLOTS[slot].index(value)

    if scene.kind in UNRECOGNISED:
        labels[:, names.index("unknown")] = SLOTS["unknown"].index(scene.kind)
        return labels
    for token in range(GRID * GRID):
        put(token, "background", scene.background)
        put(token, "kind", scene.kind)
    for thing in scene.things:
        # One that fills the picture is always told by the same token: which of the four middle ones its centre falls
        # into is chance.
        token = GRID + 1 if thing.vast else thing.cell[1] * GRID + thing.cell[0]
        if thing.vast:
            put(token, "middle", "vast")
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
