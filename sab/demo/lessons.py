"""What one training step shows: how often each kind of scene, question and conversation comes.

Most of it are questions about the world's pictures (`OLD_SHARE`). Where a suite's scenes teach too little, lessons
bend the sample without touching the suites: words become random letters (a few hundred words would be learned by
heart and never read), filled and empty come equally often, some scenes are arranged so that rare questions (all the
same colour, the odd one out) have something to ask about, and hard questions are asked more often, now and then after
the questions that they are made of (the values of two bars before their sum).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from sab.demo.asks import VOCABULARIES, Ask
from sab.demo.doodles import DOODLE
from sab.demo.knowledge import TEXT_INTENTS, text_question, written_scene
from sab.demo.photographs import PHOTOGRAPH
from sab.demo.phrasing import loosen
from sab.demo.questions import about
from sab.demo.scenes import DRAWING, Scene, Thing, pair, sample
from sab.demo.strokes import STROKES
from sab.demo.talk import conversation, described, unknown
from sab.demo.things import UNRECOGNISED
from sab.demo.words import COLOURS, LETTERS, SHAPES, held_out_pair, picture_words

Item = tuple[list[dict[str, str]], Scene | None]  # the turns of a dialogue and its scene

# What a dialogue is about. Old abilities keep nearly three quarters.
OLD_SHARE = 0.72
_NEW_SHARES = {DRAWING: 10, PHOTOGRAPH: 4, DOODLE: 2, "conversation": 14}
# Kinds of scenes the decoder is trained on: what is written is learned last, so it is shown more than it is asked.
KIND_SHARES = {"shapes": 32, "word": 14, "number": 9, "chart": 16, "receipt": 18, "form": 7, "grid": 4}
# Questions that fail most are asked this many times as often as the others of their scene.
_HARD = {"price": 3, "priced": 2, "bars_sum": 3, "number_plus": 2, "filled": 2, "relation": 2, "count_colour": 2}
_HARD |= {"odd": 3, "all_same": 3, "same_colour": 3, "word": 2, "first_letter": 2, "line_of": 2}
LOOSE = 0.3  # share of questions put loosely (`phrasing.loosen`)
_RESPELT = 0.6  # share of written scenes whose words are random letters
_BALANCED = 0.5  # share of shape scenes whose shapes are filled or empty at the toss of a coin
_ARRANGED = 0.25  # share of shape scenes arranged for rare questions
_STEP_BY_STEP = 0.4  # share of composed questions that come after the questions they are made of
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer the question.", "Be short.")


def items(draw: random.Random, count: int, most: int, picture_share: float, turns: int) -> list[Item]:
    """Dialogues for one step: a share over scenes, the rest text; now and then a system prompt."""
    made: list[Item] = []
    for _ in range(count):
        if draw.random() < OLD_SHARE:
            scene = lesson_scene(draw, most) if draw.random() < picture_share else None
            asks = lesson(draw, scene, turns, most)
        else:
            scene, asks = _new(draw, picture_share, turns, most)
        made.append((spoken(draw, asks), scene))
    return made


def spoken(draw: random.Random, asks: list[Ask]) -> list[dict[str, str]]:
    """The turns of a dialogue, some questions put loosely, now and then after a system prompt."""
    messages: list[dict[str, str]] = []
    if draw.random() < 0.05:
        messages.append({"role": "system", "content": draw.choice(SYSTEM_PROMPTS)})
    for one in asks:
        prompt = loosen(draw, one.prompt) if draw.random() < LOOSE else one.prompt
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": one.answer})
    return messages


def _new(draw: random.Random, picture_share: float, turns: int, most: int) -> tuple[Scene | None, list[Ask]]:
    kind = draw.choices(list(_NEW_SHARES), weights=list(_NEW_SHARES.values()))[0]
    if kind == DRAWING:
        scene = sample(draw, False, DRAWING, most)
        if draw.random() < 0.3:
            return scene, conversation(scene, draw, turns, False)
        return scene, lesson(draw, scene, turns, most)
    if kind in UNRECOGNISED:
        scene = sample(draw, False, kind)
        asks = conversation(scene, draw, 3, False)
        # Beside a photo or a doodle, a question of general kind is answered as ever.
        return scene, [*asks, text_question(draw, False)] if draw.random() < 0.5 else asks
    chosen = lesson_scene(draw, most) if draw.random() < picture_share else None
    return chosen, conversation(chosen, draw, turns, False)


def picture_scene(draw: random.Random) -> Scene:
    """A scene for the tower alone; what a hand drew is hardest to recognise and comes more often than in `items`."""
    if draw.random() < 0.65:
        return lesson_scene(draw, 5)
    return sample(draw, False, draw.choices((DRAWING, PHOTOGRAPH, DOODLE), weights=(9, 3, 2))[0])


# ------------------------------------------------------------------------------------------------ scenes
def lesson_scene(draw: random.Random, most: int) -> Scene:
    """A scene of the world's kinds, bent as the head of this file says."""
    kind = draw.choices(list(KIND_SHARES), weights=list(KIND_SHARES.values()))[0]
    scene = sample(draw, False, kind, most)
    if kind in ("word", "form") and draw.random() < _RESPELT:
        return respelt(draw, scene)
    if kind != "shapes":
        return scene
    if len(scene.things) >= 2 and draw.random() < _ARRANGED:
        scene = draw.choice((_one_colour, _odd_one))(draw, scene)
    if draw.random() < _BALANCED:
        things = [replace(t, filled=draw.random() < 0.5, wobble=draw.choice((0.0, t.wobble))) for t in scene.things]
        scene = replace(scene, things=tuple(things))
    return scene


def respelt(draw: random.Random, scene: Scene) -> Scene:
    """The scene with random letters for the words of a line of text or a form's values; none is a held-out word."""
    new: dict[str, str] = {}
    texts = [value for _, value in scene.rows] or [line.text for line in scene.lines]
    for text in (t for t in texts if t.isalpha()):
        while True:
            letters = "".join(draw.choice(LETTERS) for _ in text)
            if letters not in picture_words(True):
                break
        new[text] = letters
    fields = {field for field, _ in scene.rows}
    lines = [line if line.text in fields else replace(line, text=new.get(line.text, line.text)) for line in scene.lines]
    rows = tuple((field, new.get(value, value)) for field, value in scene.rows)
    return replace(scene, lines=tuple(lines), rows=rows)


def _one_colour(draw: random.Random, scene: Scene) -> Scene:
    """All shapes in one colour, as long as no pair is then held out."""
    shapes = {t.shape for t in scene.things}
    allowed = [colour for colour in COLOURS if not any(held_out_pair(shape, colour) for shape in shapes)]
    if not allowed:
        return scene
    colour = draw.choice(allowed)
    return replace(scene, things=tuple(replace(t, colour=colour) for t in scene.things))


def _odd_one(draw: random.Random, scene: Scene) -> Scene:
    """All of one shape but one."""
    usual, other = draw.sample(SHAPES, 2)
    odd = draw.randrange(len(scene.things))
    return replace(
        scene, things=tuple(_reshaped(draw, t, other if i == odd else usual) for i, t in enumerate(scene.things))
    )


def _reshaped(draw: random.Random, thing: Thing, shape: str) -> Thing:
    colour = thing.colour
    while held_out_pair(shape, colour):
        colour = pair(draw, False)[1]
    return replace(thing, shape=shape, colour=colour)


# ------------------------------------------------------------------------------------------------ questions
def lesson(draw: random.Random, scene: Scene | None, turns: int, most: int) -> list[Ask]:
    """Single questions about a scene, or without one about text; a description now and then."""
    if scene is None:
        return _text_lesson(draw, turns, most)
    asks = [*about(scene, draw, False), *_line_questions(draw, scene)]
    said: list[Ask] = []
    if draw.random() < (0.35 if scene.kind in ("chart", "receipt", "form") or scene.style == STROKES else 0.25):
        said.append(described(scene, draw, False))
    if draw.random() < 0.04:
        said.append(unknown(scene, draw, False))
    while len(said) < turns and asks:
        one = _drawn(draw, asks)
        if one.intent in _PARTS and draw.random() < _STEP_BY_STEP:
            said += _PARTS[one.intent](one, asks, draw)
        said.append(one)
        # Another of its intent only where it is hard, and the same one never.
        asks = [a for a in asks if a.intent != one.intent or (a.intent in _HARD and a.subject != one.subject)]
    return said


def _drawn(draw: random.Random, asks: list[Ask]) -> Ask:
    """An intent first, hard ones more often; of two possible answers, either as often as the other."""
    intents = sorted({one.intent for one in asks})
    intent = draw.choices(intents, weights=[_HARD.get(name, 1) for name in intents])[0]
    alike = [one for one in asks if one.intent == intent]
    if len(VOCABULARIES.get(alike[0].vocabulary, ())) == 2:
        key = draw.choice(sorted({one.key for one in alike}))
        alike = [one for one in alike if one.key == key]
    return draw.choice(alike)


def _bars_first(one: Ask, asks: list[Ask], draw: random.Random) -> list[Ask]:
    values = [a for a in asks if a.intent == "bar_value" and a.subject in one.prompt.split()]
    return draw.sample(values, len(values))


def _number_first(one: Ask, asks: list[Ask], draw: random.Random) -> list[Ask]:
    return [a for a in asks if a.intent == "number"][:1]


def _line_first(one: Ask, asks: list[Ask], draw: random.Random) -> list[Ask]:
    return [a for a in asks if a.intent == "line_of" and a.subject == one.subject]


_PARTS: dict[str, Callable[[Ask, list[Ask], random.Random], list[Ask]]] = {
    "bars_sum": _bars_first,
    "number_plus": _number_first,
    "price": _line_first,
}


def _line_questions(draw: random.Random, scene: Scene) -> list[Ask]:
    """Which line of a receipt holds what: the first half of finding a price."""
    if scene.kind != "receipt":
        return []
    asks = []
    for number, (name, price) in enumerate(scene.rows, start=1):
        item = name.lower()
        where = draw.choice((f"Which line has {item}?", f"In which line is {item}?", f"Tell me the line of {item}."))
        asks.append(_line_ask(where, f"The {item} is in line {number}.", str(number), "number", "line_of", item))
        what = draw.choice((f"What is in line {number}?", f"Read line {number}.", f"What does line {number} say?"))
        answer = f"The {item} costs {price}."
        asks.append(_line_ask(what, answer, item, "item", "line", str(number)))
    return asks


def _line_ask(prompt: str, answer: str, key: str, vocabulary: str, intent: str, subject: str) -> Ask:
    return Ask(prompt, answer, (key,), vocabulary, "documents and charts", intent, subject)


def _text_lesson(draw: random.Random, turns: int, most: int) -> list[Ask]:
    if draw.random() < 0.3:
        text, asks = written_scene(draw, False, most)
        chosen = draw.sample(asks, min(turns, len(asks)))
        return [replace(chosen[0], prompt=f"{text} {chosen[0].prompt}"), *chosen[1:]] if chosen else []
    said = []
    for _ in range(turns):
        # Spelling is practised on random letters too, as reading is.
        intent = draw.choice(TEXT_INTENTS) if draw.random() < 0.2 else None
        said.append(text_question(draw, False, intent))
    return said
