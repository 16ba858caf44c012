"""Suites of questions with disjoint seeds, and the calibration dialogues.

- `final`: held-out wordings, words, shape-colour pairs and layouts; the figures the README quotes.
- `tuning`: the same rules with other seeds, for choosing between variants.
- `trained`: combinations like those trained on, with seeds training never uses.
- `calibration`: like training, with seeds of its own.

Beyond single questions, all held out in wording and picture (`ABILITIES`):
- `talk`: the last question of a conversation, clear only from the turn before; descriptions; courtesies.
- `unknown`: questions that neither picture nor almanac answers.
- `strokes`: questions about shapes drawn by hand.
- `unrecognised`: questions about pictures like photographs and about doodles, of families that training never shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from sab.demo.asks import CATEGORIES, VOCABULARIES, Ask
from sab.demo.doodles import DOODLE
from sab.demo.knowledge import text_question, written_scene
from sab.demo.photographs import PHOTOGRAPH
from sab.demo.phrasing import ask
from sab.demo.questions import about, caption
from sab.demo.scenes import DRAWING, KINDS, Scene, render, sample
from sab.demo.talk import courtesy, described, next_question, opening, unknown
from sab.errors import SabError

__all__ = ["ABILITIES", "CATEGORIES", "CHECKS", "SUITES", "Question", "questions", "samples", "scene_questions"]

# suite -> (base of its seeds, held out?); training draws its seeds below 2**40
SUITES: dict[str, tuple[int, bool]] = {
    "final": (2**44, True),
    "tuning": (2**45, True),
    "calibration": (2**46, False),
    "trained": (2**47, False),
    "talk": (2**49, True),
    "unknown": (2**50, True),
    "strokes": (2**51, True),
    "unrecognised": (2**52, True),
}
# What a training in progress is checked on: suite -> questions.
CHECKS = {"trained": 320, "tuning": 320, "talk": 96, "unknown": 64, "strokes": 96, "unrecognised": 48}
_KINDS_BY_CATEGORY: dict[str, tuple[str, ...]] = {
    "coarse perception": KINDS,
    "fine perception": ("shapes",),
    "counting": ("shapes", "shapes", "shapes", "grid", "chart", "word"),
    "spatial relations": ("shapes", "shapes", "shapes", "grid"),
    "scene text": ("word", "word", "number"),
    "documents and charts": ("chart", "receipt", "form"),
    "logic": ("shapes", "shapes", "shapes", "chart", "receipt", "number"),
}


@dataclass(frozen=True)
class _Pictured:
    picture: Image.Image | None


@dataclass(frozen=True)
class Question(Ask, _Pictured):
    """A question with its picture (112 x 112 RGB, or None), which comes first."""

    @classmethod
    def over(cls, scene: Scene | None, ask: Ask) -> Question:
        """The question over the drawn scene, or without a picture."""
        return cls(render(scene) if scene else None, **vars(ask))


def _one(draw: random.Random, category: str, held_out: bool) -> tuple[Scene | None, Ask]:
    if category == "text-only":
        if draw.random() < 0.15:
            while True:
                text, asks = written_scene(draw, held_out, 4)
                if asks:
                    chosen = draw.choice(asks)
                    return None, replace(chosen, prompt=f"{text} {chosen.prompt}", category=category)
        return None, text_question(draw, held_out)

    def shown(intent: str | None) -> tuple[Scene, list[Ask]]:
        """A scene with questions of the category, and of the intent where one is given."""
        while True:
            scene = sample(draw, held_out, draw.choice(_KINDS_BY_CATEGORY[category]))
            asks = [q for q in about(scene, draw, held_out) if q.category == category and intent in (None, q.intent)]
            if asks:
                return scene, asks

    # First an intent, then a question: rare intents are asked as often as frequent ones.
    scene, fitting = shown(None)
    intent = draw.choice(sorted({q.intent for q in fitting}))
    alike = [q for q in fitting if q.intent == intent]
    answers = VOCABULARIES.get(alike[0].vocabulary, ())
    if len(answers) == 2:
        # Both answers come equally often: most shapes are filled, and guessing must not be right most of the time.
        wanted = (draw.choice(answers),)
        while not (alike := [q for q in alike if q.key == wanted]):
            scene, alike = shown(intent)
    return scene, draw.choice(alike)


def _any_scene(draw: random.Random, held_out: bool) -> Scene:
    return sample(draw, held_out, draw.choice(KINDS))


def _followed(draw: random.Random, held_out: bool) -> tuple[Scene | None, Ask]:
    """A follow-up to one or two turns, over a picture or about the almanac and sums."""
    while True:
        scene = _any_scene(draw, held_out) if draw.random() < 0.75 else None
        asks = about(scene, draw, held_out) if scene else []
        one: Ask | None = opening(asks, draw, held_out)
        for _ in range(draw.randint(1, 2)):
            one = next_question(asks, one, draw, held_out) if one else None
        if one is not None:
            return scene, replace(one, category="follow-up")


def _described(draw: random.Random, held_out: bool) -> tuple[Scene, Ask]:
    scene = _any_scene(draw, held_out)
    return scene, described(scene, draw, held_out)


def _courteous(draw: random.Random, held_out: bool) -> tuple[Scene | None, Ask]:
    return (_any_scene(draw, held_out) if draw.random() < 0.5 else None), courtesy(draw, held_out)


def _unanswerable(draw: random.Random, held_out: bool) -> tuple[Scene | None, Ask]:
    scene = _any_scene(draw, held_out) if draw.random() < 0.6 else None
    one = unknown(scene, draw, held_out)
    return scene, replace(one, category=one.intent)


def _by_hand(draw: random.Random, held_out: bool) -> tuple[Scene, Ask]:
    scene = sample(draw, held_out, DRAWING)
    asks = [*about(scene, draw, held_out), described(scene, draw, held_out)]
    intent = draw.choice(sorted({q.intent for q in asks if q.intent not in ("background", "kind")}))
    return scene, draw.choice([q for q in asks if q.intent == intent])


def _unrecognised(draw: random.Random, held_out: bool) -> tuple[Scene, Ask]:
    scene = sample(draw, held_out, draw.choice((PHOTOGRAPH, PHOTOGRAPH, DOODLE)))
    asks = [*about(scene, draw, held_out), described(scene, draw, held_out)]
    return scene, replace(draw.choice(asks), category=f"{scene.kind}s")


# suite -> what makes its questions, in turn
ABILITIES: dict[str, tuple[Callable[[random.Random, bool], tuple[Scene | None, Ask]], ...]] = {
    "talk": (_followed, _followed, _followed, _described, _described, _courteous),
    "unknown": (_unanswerable,),
    "strokes": (_by_hand,),
    "unrecognised": (_unrecognised,),
}


def scene_questions(suite: str, count: int, seed: int = 0) -> list[tuple[Scene | None, Ask]]:
    """`count` (scene, question) pairs of a suite, the categories in turn; the same seed gives the same ones.

    Raises `SabError` for an unknown suite or a negative count.
    """
    if suite not in SUITES:
        raise SabError(f"There is no suite '{suite}'; choose one of {', '.join(SUITES)}.")
    if count < 0:
        raise SabError("The number of questions cannot be negative.")
    base, held_out = SUITES[suite]
    makers = ABILITIES.get(suite)
    found = []
    for index in range(count):
        draw = random.Random(base + seed * 1_000_003 + index)
        if makers is None:
            found.append(_one(draw, CATEGORIES[index % len(CATEGORIES)], held_out))
        else:
            found.append(makers[index % len(makers)](draw, held_out))
    return found


def questions(suite: str, count: int, seed: int = 0) -> list[Question]:
    """The questions of `scene_questions` with their pictures drawn; raises what that raises."""
    return [Question.over(scene, one) for scene, one in scene_questions(suite, count, seed)]


def dialogue(
    draw: random.Random, scene: Scene | None, turns: int, held_out: bool = False, most: int = 4
) -> list[dict[str, str]]:
    """User and assistant turns about a scene, or without one about text; a caption now and then."""
    messages: list[dict[str, str]] = []

    def say(prompt: str, answer: str) -> None:
        messages.extend(({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))

    if scene is not None:
        if draw.random() < 0.25:
            say(ask(draw, "describe", held_out), caption(scene))
        asks = about(scene, draw, held_out)
        by_intent = sorted({q.intent for q in asks})
        for intent in draw.sample(by_intent, min(turns, len(by_intent))):
            one = draw.choice([q for q in asks if q.intent == intent])
            say(one.prompt, one.answer)
    elif draw.random() < 0.3:
        text, asks = written_scene(draw, held_out, most)
        chosen = draw.sample(asks, min(turns, len(asks)))
        for index, one in enumerate(chosen):
            say(f"{text} {one.prompt}" if index == 0 else one.prompt, one.answer)
    else:
        for _ in range(turns):
            one = text_question(draw, held_out)
            say(one.prompt, one.answer)
    return messages


def samples(count: int, seed: int = 0) -> list[tuple[list[dict[str, str]], Image.Image | None]]:
    """Calibration dialogues (messages, picture): seven in eight over a picture, the rest text-only.

    Two turns each, since visual tokens are the scarce ones: 512 dialogues hold 7,168, above the 8 for each of the
    768 inputs of the embedded model's widest linear.
    """
    base, held_out = SUITES["calibration"]
    found: list[tuple[list[dict[str, str]], Image.Image | None]] = []
    for index in range(count):
        draw = random.Random(base + seed * 1_000_003 + index)
        scene = sample(draw, held_out) if index % 8 else None
        found.append((dialogue(draw, scene, 2, held_out), render(scene) if scene else None))
    return found
