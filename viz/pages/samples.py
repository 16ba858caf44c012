"""Sample pictures for the Chat tab and questions that fit them, from the embedded model's own drawn world.

Scenes and wordings are of the kinds that it was trained on, with seeds that training never uses: examples to begin
with, not a test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from sab.demo.scenes import Scene

SHOWN = (
    "shapes", "chart", "word", "shapes", "receipt", "grid",
    "shapes", "number", "form", "shapes", "chart", "word",
)  # fmt: skip
FURTHER = 3  # questions beside the description
SEED = 72


@dataclass(frozen=True)
class Sample:
    """A picture, what it is called, and questions about it, the one to begin with first."""

    picture: Image.Image
    note: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Everything to begin from: pictures, questions about any picture, and questions without one."""

    pictures: tuple[Sample, ...]
    about_any: tuple[str, ...]
    without: tuple[str, ...]

    def suggested(self, prompt: str) -> bool:
        """Whether a text is one of these questions, so that it may be replaced: nobody has written it."""
        every = (*self.about_any, *self.without, *(each for sample in self.pictures for each in sample.questions))
        return prompt in every


def samples() -> Samples:
    """The same ones each time."""
    from sab.demo.phrasing import wordings
    from sab.demo.scenes import render
    from sab.demo.suite import SUITES

    first = SUITES["trained"][0] + SEED * 1_000_003
    pictures = []
    for number, kind in enumerate(SHOWN):
        draw = random.Random(first + number)
        scene = _scene(draw, kind)
        pictures.append(Sample(render(scene), f"sample picture: {scene.kind}", _questions(scene, draw)))
    about_any = tuple(wordings(intent, False)[0] for intent in ("describe", "count_all", "background"))
    return Samples(tuple(pictures), about_any, _without(random.Random(first - 1)))


def _scene(draw: random.Random, kind: str) -> Scene:
    """A scene with something to tell: of shapes three or more, different ones, and none cut off at the edge."""
    from sab.demo.scenes import SIDE, sample

    while True:
        scene = sample(draw, False, kind)
        if kind != "shapes":
            return scene
        reach = [(at, 1.25 * thing.radius) for thing in scene.things for at in (thing.x, thing.y)]
        whole = all(radius <= at <= SIDE - radius for at, radius in reach)
        if len({thing.shape for thing in scene.things}) >= 3 and whole:
            return scene


def _questions(scene: Scene, draw: random.Random) -> tuple[str, ...]:
    """The description first, then questions of different categories."""
    from sab.demo.phrasing import wordings
    from sab.demo.questions import about

    asks = about(scene, draw, False)
    draw.shuffle(asks)
    by_category = {ask.category: ask.prompt for ask in asks if ask.intent != "kind"}
    further = [*by_category.values(), *(ask.prompt for ask in asks)]
    return tuple(dict.fromkeys([wordings("describe", False)[0], *further]))[: 1 + FURTHER]


def _without(draw: random.Random) -> tuple[str, ...]:
    """Questions that need no picture."""
    from sab.demo.knowledge import text_question

    found: dict[str, str] = {}
    while len(found) < 1 + FURTHER:
        ask = text_question(draw, False)
        found.setdefault(ask.intent, ask.prompt)
    return tuple(found.values())
