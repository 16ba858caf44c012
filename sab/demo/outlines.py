"""Outlines of the world's shapes as polygons."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sab.demo.things import Thing


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
