"""Pictures with the look of photographs, made from noise, soft light and natural colours; nothing is downloaded.

They stand for what the model cannot recognise. Several families each for training and for the suite, so that
"photo" is not the name of one texture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sab.demo.things import SIDE

PHOTOGRAPH = "photograph"
Field = NDArray[Any]  # light from 0 to 1, [112, 112], or with colour [112, 112, 3]
Rng = np.random.Generator

_PALETTES = {
    "sky": [(96, 140, 196), (150, 186, 222), (208, 222, 235), (238, 214, 190), (232, 164, 120), (120, 128, 150)],
    "leaf": [(46, 66, 34), (74, 98, 48), (108, 128, 70), (150, 160, 96), (60, 80, 62)],
    "earth": [(92, 72, 52), (132, 106, 78), (168, 144, 112), (196, 178, 148), (70, 58, 48)],
    "stone": [(82, 82, 84), (122, 122, 120), (160, 158, 152), (198, 194, 188), (58, 60, 66)],
    "skin": [(232, 190, 160), (198, 150, 118), (146, 100, 74), (96, 66, 52), (240, 208, 184)],
    "cloth": [(150, 50, 48), (58, 82, 130), (176, 140, 70), (92, 110, 96), (120, 88, 120), (214, 206, 196)],
    "night": [(10, 12, 24), (24, 28, 48), (44, 42, 62), (70, 58, 66)],
}
_Y, _X = (axis.astype(np.float32) / (SIDE - 1) for axis in np.mgrid[0:SIDE, 0:SIDE])


def photograph(family: str, seed: int) -> Image.Image:
    """A picture of that family, 112 x 112 RGB, with the traces of a lens and of JPEG."""
    rng = np.random.default_rng(seed)
    light = (TRAINED | HELD_OUT)[family](rng)
    vignette = 1 - rng.uniform(0, 0.35) * ((_X - 0.5) ** 2 + (_Y - 0.5) ** 2)[..., None] * 2
    light = (np.clip(light, 0, 1) ** rng.uniform(0.75, 1.3)) * vignette * rng.uniform(0.8, 1.1, 3)
    light = light + rng.normal(0, rng.uniform(0.0, 0.035), light.shape).astype(np.float32)
    picture = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    coded = io.BytesIO()
    picture.save(coded, "JPEG", quality=int(rng.integers(45, 95)))
    return Image.open(coded).convert("RGB")


# ------------------------------------------------------------------------------------------------ ingredients
def _noise(rng: Rng, across: int, down: int | None = None) -> Field:
    """Smooth noise around 0 with so many bumps across (and down) the picture."""
    coarse = rng.normal(0, 0.5, (max(2, down or across), max(2, across))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _fractal(rng: Rng, first: int, octaves: int = 4, stretch: float = 1.0, fall: float = 0.55) -> Field:
    """Noise at several scales; `stretch` above 1 draws it out sideways."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(octaves):
        across = min(SIDE, first * 2**octave)
        total += fall**octave * _noise(rng, max(2, round(across / stretch)), across)
    return total


def _colours(rng: Rng, palette: str, count: int) -> Field:
    """Natural colours [count, 3], each moved a little."""
    known = np.array(_PALETTES[palette], np.float32) / 255
    return np.clip(known[rng.choice(len(known), count)] + rng.normal(0, 0.05, (count, 3)), 0, 1).astype(np.float32)


def _ramp(value: Field, colours: Field) -> Field:
    """Colours along a value from 0 to 1, [112, 112, 3]."""
    at = np.linspace(0, 1, len(colours))
    flat = np.clip(value, 0, 1)
    return np.stack([np.interp(flat, at, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def _soft(rng: Rng, x: float, y: float, wide: float, high: float, edge: float) -> Field:
    """A blob's cover from 0 to 1: an ellipse with an uneven rim and a soft edge (shares of the side)."""
    bent = 1 + 0.25 * _noise(rng, 4)
    distance = np.sqrt(((_X - x) / wide) ** 2 + ((_Y - y) / high) ** 2) * bent
    return np.clip((1 - distance) / edge + 0.5, 0, 1).astype(np.float32)


def _over(below: Field, above: Field, cover: Field) -> Field:
    return below + (above - below) * cover[..., None]


# ------------------------------------------------------------------------------------------------ trained families
def _landscape(rng: Rng) -> Field:
    """Sky, clouds, a ridge or two, ground, a few dark blobs."""
    sky = _ramp(_Y * rng.uniform(0.8, 1.6) + 0.2 * _fractal(rng, 2, 4, 2.0), _colours(rng, "sky", 3))
    horizon = rng.uniform(0.3, 0.75)
    ground = str(rng.choice(["leaf", "earth", "stone"]))
    for layer in range(int(rng.integers(1, 4))):
        line = horizon + 0.09 * layer + rng.uniform(0.03, 0.16) * _fractal(rng, int(rng.integers(2, 5)))[0]
        cover = np.clip((_Y - line[None, :]) * SIDE / rng.uniform(1, 4), 0, 1)
        haze = _ramp(0.5 + 0.4 * _fractal(rng, 6, 4, rng.uniform(1, 3)), _colours(rng, ground, 3))
        sky = _over(sky, haze + (2 - layer) * rng.uniform(0, 0.08), cover)
    for _ in range(int(rng.integers(0, 4))):
        blob = _soft(
            rng, rng.uniform(), horizon + rng.uniform(-0.1, 0.2), rng.uniform(0.04, 0.16), rng.uniform(0.04, 0.16), 0.4
        )
        sky = _over(sky, _ramp(0.5 + 0.5 * _fractal(rng, 10, 3), _colours(rng, "leaf", 2) * 0.7), blob)
    return sky


def _texture(rng: Rng) -> Field:
    """Stone, grass, wood or cloth from close by."""
    palette = str(rng.choice(["leaf", "earth", "stone", "cloth", "skin"]))
    value = 0.5 + 0.45 * _fractal(rng, int(rng.integers(2, 14)), 4, float(rng.choice([1, 1, 2, 6, 12])))
    return _ramp(value.T if rng.random() < 0.5 else value, _colours(rng, palette, int(rng.integers(2, 5))))


def _close(rng: Rng) -> Field:
    """Something soft and near before a blurred background: a face, a fruit, an animal's side."""
    back = str(rng.choice(["leaf", "earth", "stone", "cloth", "sky"]))
    scene = _ramp(0.5 + 0.6 * _noise(rng, int(rng.integers(2, 5))), _colours(rng, back, 3))
    for _ in range(int(rng.integers(0, 7))):
        wide = rng.uniform(0.04, 0.12)
        glow = _soft(rng, rng.uniform(), rng.uniform(), wide, wide, 0.6)
        scene = _over(scene, scene + rng.uniform(-0.15, 0.25), glow)
    front = str(rng.choice(["skin", "cloth", "earth", "leaf"]))
    x, y = rng.uniform(0.3, 0.7, 2)
    for part in range(int(rng.integers(1, 4))):
        wide, high = rng.uniform(0.14, 0.42, 2) / (1 + 0.5 * part)
        at = (x, y) if part == 0 else (x + rng.uniform(-0.2, 0.2), y + rng.uniform(-0.25, 0.35))
        lit = 0.5 + (_X - at[0]) * rng.uniform(-1, 1) + (at[1] - _Y) * rng.uniform(0, 1) + 0.2 * _fractal(rng, 8, 3)
        scene = _over(scene, _ramp(lit, _colours(rng, front, 3)), _soft(rng, *at, wide, high, rng.uniform(0.05, 0.3)))
    return scene


def _interior(rng: Rng) -> Field:
    """Walls, a floor, furniture as soft-lit planes with shadows."""
    wall = _ramp(0.5 + rng.uniform(-0.8, 0.8) * (_X - 0.5) + 0.08 * _fractal(rng, 3), _colours(rng, "stone", 2) + 0.1)
    floor = _ramp(_Y + 0.15 * _fractal(rng, 12, 3, 6.0), _colours(rng, "earth", 3))
    edge = rng.uniform(0.55, 0.85) + rng.uniform(-0.3, 0.3) * (_X - 0.5)
    room = _over(wall, floor, np.clip((_Y - edge) * 40, 0, 1))
    for _ in range(int(rng.integers(2, 7))):
        left, top = rng.uniform(-0.1, 0.8), rng.uniform(0.0, 0.75)
        right, bottom, lean = left + rng.uniform(0.1, 0.5), top + rng.uniform(0.1, 0.5), rng.uniform(-0.3, 0.3)
        x, y = _X + lean * (_Y - 0.5), _Y + 0.4 * lean * (_X - 0.5)
        within = np.minimum.reduce([x - left, right - x, y - top, bottom - y])
        shadow = np.roll(np.clip(within * 12 + 0.5, 0, 1), (5, 4), (0, 1))
        room = room * (1 - 0.35 * shadow[..., None])
        surface = _ramp(
            0.5 + rng.uniform(-0.5, 0.5) * (x - left) + 0.2 * _fractal(rng, 6, 3), _colours(rng, "cloth", 2)
        )
        room = _over(room, surface, np.clip(within * rng.uniform(25, 90), 0, 1))
    return room


def _still(rng: Rng) -> Field:
    """A few shaded bodies on a table, each with its shadow."""
    table = _ramp(
        0.3 + 0.6 * _Y + 0.15 * _fractal(rng, 6, 4, rng.uniform(1, 5)),
        _colours(rng, str(rng.choice(["earth", "stone", "cloth"])), 3),
    )
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0.15, 0.85), rng.uniform(0.3, 0.8)
        wide, high = rng.uniform(0.08, 0.26, 2)
        table = table * (1 - 0.5 * _soft(rng, x + 0.05, y + high * 0.8, wide * 1.2, high * 0.5, 0.8)[..., None])
        lit = 0.55 - 0.9 * (_X - x) / wide * 0.4 - 0.9 * (_Y - y) / high * 0.4 + 0.12 * _fractal(rng, 10, 3)
        body = _ramp(lit, np.sort(_colours(rng, str(rng.choice(["cloth", "leaf", "skin"])), 3), axis=0))
        table = _over(table, body, _soft(rng, x, y, wide, high, rng.uniform(0.04, 0.15)))
    return table


# ------------------------------------------------------------------------------------------------ held-out families
def _night(rng: Rng) -> Field:
    """A town at night: dark houses, lit windows, glowing lamps."""
    scene = _ramp(_Y + 0.15 * _fractal(rng, 3), _colours(rng, "night", 3))
    picture = Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    left = -5
    while left < SIDE:
        wide, top = int(rng.integers(10, 34)), int(rng.integers(15, 80))
        shade = tuple(int(v) for v in _colours(rng, "night", 1)[0] * 200)
        canvas.rectangle([left, top, left + wide, SIDE], fill=shade)
        for x in range(left + 2, left + wide - 2, 5):
            for y in range(top + 3, SIDE - 3, 6):
                if rng.random() < 0.35:
                    glow = rng.uniform(0.5, 1)
                    canvas.rectangle([x, y, x + 2, y + 2], fill=(int(250 * glow), int(215 * glow), int(140 * glow)))
        left += wide + int(rng.integers(0, 3))
    scene = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), np.float32) / 255
    for _ in range(int(rng.integers(1, 6))):
        across, up, reach = rng.uniform(0, 1), rng.uniform(0.3, 1), rng.uniform(0.03, 0.12)
        light = np.exp(-((_X - across) ** 2 + (_Y - up) ** 2) / reach**2)[..., None]
        scene = scene + light * np.array([1.0, rng.uniform(0.6, 0.9), rng.uniform(0.2, 0.7)], np.float32)
    return scene


def _foliage(rng: Rng) -> Field:
    """Many leaves over each other, the upper ones brighter."""
    picture = Image.fromarray(
        (_ramp(0.3 + 0.3 * _fractal(rng, 4), _colours(rng, "leaf", 2) * 0.5) * 255).astype("uint8")
    )
    canvas = ImageDraw.Draw(picture)
    palette = str(rng.choice(["leaf", "leaf", "earth"]))
    for depth in np.linspace(0.4, 1.15, int(rng.integers(70, 200))):
        x, y = rng.uniform(-5, SIDE + 5, 2)
        turn, long, wide = rng.uniform(0, math.pi), rng.uniform(4, 12), rng.uniform(1.5, 4)
        at = np.linspace(0, 2 * math.pi, 9)
        along, across = long * np.cos(at), wide * np.sin(at) * np.abs(np.sin(at))
        leaf = np.stack(
            [
                x + along * math.cos(turn) - across * math.sin(turn),
                y + along * math.sin(turn) + across * math.cos(turn),
            ],
            1,
        )
        shade = tuple(int(v) for v in np.clip(_colours(rng, palette, 1)[0] * depth, 0, 1) * 255)
        canvas.polygon([tuple(point) for point in leaf.tolist()], fill=shade)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(0.5)), np.float32) / 255


def _water(rng: Rng) -> Field:
    """Waves that run to the horizon and the light on them."""
    horizon = rng.uniform(0.15, 0.5)
    depth = np.clip((_Y - horizon) / (1 - horizon), 0.02, 1)
    phase = rng.uniform(14, 40) / (depth + 0.12) + 3 * _fractal(rng, 3, 3, 3.0)
    ripple = np.sin(phase + 2 * _noise(rng, 6)) * 0.25 * np.sqrt(depth)
    glint = np.exp(-(((_X - rng.uniform(0.2, 0.8)) / rng.uniform(0.08, 0.3)) ** 2)) * rng.uniform(0, 0.6)
    sea = _ramp(depth * 0.8 + ripple + 0.1 * _fractal(rng, 12, 2, 4.0), _colours(rng, "sky", 3) * 0.8)
    sea = sea + (glint * np.clip(ripple * 4, 0, 1))[..., None]
    sky = _ramp(_Y * 1.5 + 0.15 * _fractal(rng, 2, 4, 3.0), _colours(rng, "sky", 3))
    return _over(sky, sea, np.clip((_Y - horizon) * 60, 0, 1))


def _flower(rng: Rng) -> Field:
    """A flower from close by: petals around a core before leaves out of focus."""
    back = _ramp(0.5 + 0.5 * _noise(rng, 4), _colours(rng, "leaf", 3))
    x, y = rng.uniform(0.35, 0.65, 2)
    angle, distance = np.arctan2(_Y - y, _X - x), np.hypot(_X - x, _Y - y)
    petals = rng.integers(5, 13)
    reach = rng.uniform(0.25, 0.5) * (0.75 + 0.25 * np.abs(np.cos(petals * angle / 2 + rng.uniform(0, 6))))
    reach = reach * (1 + 0.1 * _noise(rng, 5))
    lit = distance / reach * 0.8 + 0.15 * np.cos(petals * angle) + 0.1 * _fractal(rng, 10, 3)
    flower = _over(
        back,
        _ramp(lit, _colours(rng, str(rng.choice(["cloth", "skin"])), 3) + 0.1),
        np.clip((reach - distance) * 40, 0, 1),
    )
    core = np.clip((rng.uniform(0.05, 0.12) - distance) * 50, 0, 1)
    return _over(flower, _ramp(0.5 + 0.6 * _fractal(rng, 24, 2), _colours(rng, "earth", 2)), core)


TRAINED: dict[str, Callable[[Rng], Field]] = {
    "landscape": _landscape,
    "texture": _texture,
    "close": _close,
    "interior": _interior,
    "still": _still,
}
HELD_OUT: dict[str, Callable[[Rng], Field]] = {
    "night": _night,
    "foliage": _foliage,
    "water": _water,
    "flower": _flower,
}
