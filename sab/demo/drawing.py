"""Drawing a scene as a 112 x 112 RGB picture; the same scene gives the same pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sab.demo.doodles import DOODLE, doodle
from sab.demo.outlines import outline
from sab.demo.photographs import PHOTOGRAPH, photograph
from sab.demo.strokes import STROKES, drawn_by_hand
from sab.demo.things import CELL, GRID, SIDE, Scene, Thing
from sab.demo.words import BACKGROUNDS, COLOURS

_SUPERSAMPLE = 2  # drawn at twice the size, then reduced: smooth edges


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


@lru_cache(maxsize=256)  # loading one takes longer than drawing a line with it
def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a 112 x 112 RGB picture; the same scene gives the same pixels."""
    if scene.kind == PHOTOGRAPH:
        return photograph(scene.style, scene.noise_seed)
    if scene.kind == DOODLE:
        return doodle(scene.style, scene.noise_seed)
    if scene.style == STROKES:
        return drawn_by_hand(scene)
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
