"""Sample pictures for the Chat tab and questions that fit them, from the embedded model's own drawn world.

Scenes and wordings are of the kinds that it was trained on, with seeds that training never uses: examples to begin
with, not a test.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from sab.demo.asks import Ask
    from sab.demo.scenes import Scene

SHOWN = (
    "shapes", "chart", "word", "shapes", "receipt", "grid",
    "shapes", "number", "form", "shapes", "chart", "word",
)  # fmt: skip
FURTHER = 3  # questions beside the description
SEED = 72


@dataclass(frozen=True)
class Suggestions:
    """`questions`, the one to begin with first; `follow_ups`: by some of them, what may be asked next in words that
    only the question before makes clear."""

    questions: tuple[str, ...]
    follow_ups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A picture, what it is called, and what may be asked about it."""

    picture: Image.Image
    note: str
    suggestions: Suggestions


@dataclass(frozen=True)
class Samples:
    """Everything to begin from: pictures, questions about any picture, and questions without one."""

    pictures: tuple[Sample, ...]
    about_any: Suggestions
    without: Suggestions

    def suggested(self, prompt: str) -> bool:
        """Whether a text is one of these questions, so that it may be replaced: nobody has written it."""
        every = (self.about_any, self.without, *(sample.suggestions for sample in self.pictures))
        return any(prompt in each.questions for each in every)


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
    return Samples(tuple(pictures), Suggestions(about_any), _without(random.Random(first - 1)))


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


def _questions(scene: Scene, draw: random.Random) -> Suggestions:
    """The description first, then questions of different categories."""
    from sab.demo.phrasing import wordings
    from sab.demo.questions import about
    from sab.demo.talk import follow_up

    asks = about(scene, draw, False)
    draw.shuffle(asks)
    by_category = {ask.category: ask for ask in asks if ask.intent != "kind"}
    further = {ask.prompt: ask for ask in (*by_category.values(), *asks)}
    first = wordings("describe", False)[0]
    chosen = [ask for prompt, ask in further.items() if prompt != first][:FURTHER]
    return Suggestions(
        (first, *(ask.prompt for ask in chosen)),
        _follow_ups({ask.prompt: follow_up(asks, ask, draw, False) for ask in chosen}),
    )


def _without(draw: random.Random) -> Suggestions:
    """Questions that need no picture, the last of them one that the model cannot answer and should say so."""
    from sab.demo.knowledge import text_question
    from sab.demo.talk import fact_follow_up, unknown

    found: dict[str, Ask] = {}
    while len(found) < 1 + FURTHER:
        ask = text_question(draw, False)
        found.setdefault(ask.intent, ask)
    while (beyond := unknown(None, draw, False)).intent != "beyond":
        pass
    return Suggestions(
        (*(ask.prompt for ask in found.values()), beyond.prompt),
        _follow_ups({ask.prompt: fact_follow_up(ask, draw, False) for ask in found.values()}),
    )


def _follow_ups(found: Mapping[str, Ask | None]) -> dict[str, str]:
    return {prompt: after.prompt for prompt, after in found.items() if after is not None}
