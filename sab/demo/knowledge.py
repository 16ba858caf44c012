"""Questions that need no picture: computed answers, spelling, the almanac, and scenes told in words."""

from __future__ import annotations

import random

from sab.demo.asks import Ask
from sab.demo.phrasing import ask
from sab.demo.questions import about
from sab.demo.scenes import sample
from sab.demo.words import ALMANAC_ATTRIBUTES, Town, almanac, checksum, picture_words, town_name

TEXT_INTENTS = (
    "add",
    "subtract",
    "larger",
    "smaller",
    "sort",
    "reverse",
    "spell_last",
    "spell_count",
    "fact",
    "fact_same",
)
_TEXT_WEIGHTS = (10, 8, 4, 3, 5, 4, 2, 2, 16, 3)


def held_out_sum(a: int, b: int) -> bool:
    """Pairs of numbers whose sum and difference training never asks for (one in six)."""
    return (a * 7 + b * 13) % 6 == 0


def text_question(draw: random.Random, held_out: bool, intent: str | None = None, digits: int | None = None) -> Ask:
    """A question that needs no picture. Facts of the almanac cannot be held out; their wordings can."""
    intent = intent or draw.choices(TEXT_INTENTS, weights=_TEXT_WEIGHTS)[0]

    def make(vocabulary: str, key: tuple[str, ...], answer: str, **slots: object) -> Ask:
        subject = str(next(iter(slots.values()), ""))
        return Ask(ask(draw, intent, held_out, **slots), answer, key, vocabulary, "text-only", intent, subject)

    if intent in ("add", "subtract"):
        width = digits or draw.choice((1, 2, 2, 3))
        while True:
            a, b = draw.randrange(10**width), draw.randrange(10**width)
            if intent == "subtract":
                a, b = max(a, b), min(a, b)
            if held_out_sum(a, b) == held_out:
                break
        value = a + b if intent == "add" else a - b
        return make("numbers", (str(value),), f"It is {value}.", a=a, b=b)
    if intent in ("larger", "smaller"):
        width = digits or draw.choice((1, 2, 2, 3))
        a, b = draw.sample(range(10**width), 2)
        value = max(a, b) if intent == "larger" else min(a, b)
        return make("number", (str(value),), f"The {intent} number is {value}.", a=a, b=b)
    if intent == "sort":
        numbers = draw.sample(range(10 ** (digits or draw.choice((1, 2)))), draw.randint(3, 5))
        key = tuple(map(str, sorted(numbers)))
        return make("numbers", key, " ".join(key) + ".", numbers=" ".join(map(str, numbers)))
    if intent in ("reverse", "spell_last", "spell_count"):
        word = draw.choice(picture_words(held_out))
        if intent == "reverse":
            return make("letters", (word[::-1],), f"It is {word[::-1]}.", word=word)
        if intent == "spell_last":
            return make("letters", (word[-1],), f"The last letter is {word[-1]}.", word=word)
        return make("number", (str(len(word)),), f"It has {len(word)} letters.", word=word)
    attribute = draw.choice(list(ALMANAC_ATTRIBUTES))
    town = draw.choice(almanac())
    if intent == "fact":
        return fact(draw, held_out, town, attribute)
    other = draw.choice(almanac())
    if draw.random() < 0.5:
        other = draw.choice([t for t in almanac() if t.facts[attribute] == town.facts[attribute]])
    one, two = town.facts[attribute], other.facts[attribute]
    answer = f"Yes, it is {one}." if one == two else f"No, {one} and {two}."
    return make("yes", ("yes" if one == two else "no",), answer, town=town.name, other=other.name, attribute=attribute)


def fact(draw: random.Random, held_out: bool, town: Town, attribute: str) -> Ask:
    """One fact of the almanac."""
    value = town.facts[attribute]
    prompt = ask(draw, "fact", held_out, town=town.name, attribute=attribute)
    answer = f"The {attribute} of {town.name} is {value}."
    return Ask(prompt, answer, (value.lower(),), attribute, "text-only", "fact", town.name)


def unlisted_town(draw: random.Random, held_out: bool) -> str:
    """A name like those of the almanac's towns that is not among them; one in six is kept for the held-out suites."""
    listed = {town.name for town in almanac()}
    while True:
        name = town_name(draw)
        if name not in listed and (checksum("town " + name) % 6 == 0) == held_out:
            return name


def written_scene(draw: random.Random, held_out: bool, most: int) -> tuple[str, list[Ask]]:
    """A scene told in words, and questions about it: binding without pictures."""
    scene = sample(draw, held_out, "shapes", most)
    things = list(scene.things)
    draw.shuffle(things)
    text = "; ".join(f"{t.size} {t.colour} {t.shape} {t.position}" for t in things) + "."
    about_it = [
        q
        for q in about(scene, draw, held_out)
        if q.intent not in ("background", "filled", "relation", "beside", "extreme", "kind")
    ]
    return text, about_it
