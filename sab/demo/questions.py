"""Questions a scene can answer, with a natural answer, the short key that decides, and a category.

`about(scene)` lists every question the scene allows (text-only ones are in `knowledge`). An answer counts as
correct when the words of its vocabulary that occur in it, in order and without repeats, are exactly the key
("The circle is red." -> ("red",)).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sab.demo.phrasing import ask
from sab.demo.scenes import KINDS, Scene, Thing
from sab.demo.words import (
    ALMANAC_ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    ITEMS,
    PLURAL,
    POSITIONS,
    SHAPES,
    SIZES,
)

CATEGORIES = (
    "coarse perception",
    "fine perception",
    "counting",
    "spatial relations",
    "scene text",
    "documents and charts",
    "logic",
    "text-only",
)

KIND_NAMES = {
    "shapes": "shapes",
    "word": "a word",
    "number": "a number",
    "chart": "a bar chart",
    "receipt": "a receipt",
    "form": "a form",
    "grid": "four squares",
}
assert set(KIND_NAMES) == set(KINDS)

# vocabulary name -> surface forms (a key is written in these forms)
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "kind": ("shapes", "word", "number", "chart", "receipt", "form", "square"),
    "background": tuple(BACKGROUNDS),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "filled": ("filled", "empty"),
    "position": POSITIONS,
    "item": tuple(item.lower() for item in ITEMS),
    "yes": ("yes", "no"),
    **{attribute: tuple(v.lower() for v in values) for attribute, values in ALMANAC_ATTRIBUTES.items()},
}


def extract(vocabulary: str, reply: str) -> tuple[str, ...]:
    """The vocabulary's words in a reply, in order, without repeats; ("none",) for "There is no ..."."""
    text = reply.strip()
    if vocabulary == "yes":
        first = re.match(r"[A-Za-z]+", text)
        return (first.group().lower(),) if first and first.group().lower() in ("yes", "no") else ()
    if vocabulary == "number" or vocabulary == "numbers":
        found = re.findall(r"-?\d+", text)
        if not found and re.search(r"\bno\b", text.lower()):
            found = ["0"]
    elif vocabulary == "letters":
        found = re.findall(r"\b[A-Z]{1,}\b", text)
    else:
        lowered = text.lower()
        for plural in PLURAL.values():
            lowered = re.sub(rf"\b{plural}\b", plural[:-2] if plural.endswith("sses") else plural[:-1], lowered)
        if re.match(r"(there (is|are) no|no)\b", lowered):
            return ("none",)
        forms = sorted(VOCABULARIES[vocabulary], key=len, reverse=True)
        found = re.findall(r"\b(" + "|".join(map(re.escape, forms)) + r")\b", lowered)
    return tuple(found) if vocabulary == "numbers" else tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Ask:
    """A question without its picture: prompt, natural answer, key with its vocabulary, category, intent."""

    prompt: str
    answer: str
    key: tuple[str, ...]
    vocabulary: str
    category: str
    intent: str

    def correct(self, reply: str) -> bool:
        """Does the reply contain exactly the key's words of the vocabulary?"""
        return extract(self.vocabulary, reply) == self.key


def article(word: str) -> str:
    """The word with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def count_phrase(count: int, one: str, many: str) -> str:
    """ "There are 3 circles.", "There is 1 circle.", "There are no circles."."""
    if count == 0:
        return f"There are no {many}."
    return f"There is 1 {one}." if count == 1 else f"There are {count} {many}."


def _name(thing: Thing, things: tuple[Thing, ...]) -> str | None:
    """The shortest name that picks this thing out ("circle", "red circle"), None where none does."""
    alike = [t for t in things if t.shape == thing.shape]
    if len(alike) == 1:
        return thing.shape
    if sum(t.colour == thing.colour for t in alike) == 1:
        return f"{thing.colour} {thing.shape}"
    return None


def describe_thing(thing: Thing) -> str:
    """ "a small red circle at the top left"."""
    return f"a {thing.size} {thing.colour} {thing.shape} at the {thing.position}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene) -> str:
    """A full description, in reading order."""
    if scene.kind == "chart":
        return "A bar chart: " + _join([f"the {b.colour} bar is {b.value}" for b in scene.bars]) + "."
    if scene.kind == "receipt":
        return "A receipt: " + _join([f"{item.lower()} costs {price}" for item, price in scene.rows]) + "."
    if scene.kind == "form":
        return "A form: " + _join([f"the {field.lower()} is {value}" for field, value in scene.rows]) + "."
    if scene.kind == "grid":
        return "Four squares: " + _join([f"{t.colour} at the {t.position}" for t in scene.things]) + "."
    ordered = sorted(scene.things, key=lambda t: (t.cell[1], t.cell[0]))
    parts = [describe_thing(t) for t in ordered]
    if scene.kind in ("word", "number"):
        parts.insert(0, f"the {scene.kind} {scene.lines[0].text}")
    text = _join(parts)
    return text[0].upper() + text[1:] + "."


# ------------------------------------------------------------------------------------------------ over pictures
def about(scene: Scene, draw: random.Random, held_out: bool) -> list[Ask]:
    """Every question this scene allows, one wording each."""
    asks = list(_SCENE_QUESTIONS[scene.kind](scene, draw, held_out))
    kind = KIND_NAMES[scene.kind]
    key = ("square" if scene.kind == "grid" else kind.split()[-1],)
    asks.append(
        Ask(
            ask(draw, "kind", held_out),
            f"It is {kind}." if kind[:2] == "a " else f"It shows {kind}.",
            key,
            "kind",
            "coarse perception",
            "kind",
        )
    )
    return asks


def _shape_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    things = scene.things
    shapes, colours = {t.shape for t in things}, {t.colour for t in things}

    def make(intent: str, category: str, vocabulary: str, key: str, answer: str, **slots: object) -> Ask:
        return Ask(ask(draw, intent, held_out, **slots), answer, (key,), vocabulary, category, intent)

    yield make(
        "background",
        "coarse perception",
        "background",
        scene.background,
        f"The background is {scene.background}.",
    )
    absent = draw.choice([s for s in SHAPES if s not in shapes])
    there = draw.choice(sorted(shapes))
    if draw.random() < 0.5:
        yield make("present", "coarse perception", "yes", "yes", f"Yes, there is {article(there)}.", thing=there)
    else:
        yield make("present", "coarse perception", "yes", "no", f"No, there is no {absent}.", thing=absent)
    if draw.random() < 0.3:
        yield make("colour", "fine perception", "colour", "none", f"There is no {absent}.", thing=absent)
    named = [(t, name) for t in things if (name := _name(t, things))]
    for thing, name in named:
        if name == thing.shape:
            yield make(
                "colour",
                "fine perception",
                "colour",
                thing.colour,
                f"The {name} is {thing.colour}.",
                thing=name,
            )
        yield make("size", "fine perception", "size", thing.size, f"The {name} is {thing.size}.", thing=name)
        if thing.shape != "ring" and not thing.wobble:
            word = "filled" if thing.filled else "empty"
            yield make("filled", "fine perception", "filled", word, f"The {name} is {word}.", thing=name)
        yield make(
            "where",
            "spatial relations",
            "position",
            thing.position,
            f"The {name} is at the {thing.position}.",
            thing=name,
        )
        # relations only where they are plain to see
        others = [(o, n) for o, n in named if o is not thing]
        for other, other_name in others:
            for side, apart, level in (
                ("left of", other.x - thing.x, abs(other.y - thing.y)),
                ("right of", thing.x - other.x, abs(other.y - thing.y)),
                ("above", other.y - thing.y, abs(other.x - thing.x)),
                ("below", thing.y - other.y, abs(other.x - thing.x)),
            ):
                if apart > 22 and apart > level * 1.3:
                    truth = draw.random() < 0.5
                    said = (
                        side
                        if truth
                        else {
                            "left of": "right of",
                            "right of": "left of",
                            "above": "below",
                            "below": "above",
                        }[side]
                    )
                    answer = f"Yes, it is {side} the {other_name}." if truth else f"No, it is {side} the {other_name}."
                    yield make(
                        "relation",
                        "spatial relations",
                        "yes",
                        "yes" if truth else "no",
                        answer,
                        thing=name,
                        side=said,
                        other=other_name,
                    )
                    if len(things) <= 3 and sum(1 for t in things if t is not other and _is_side(t, other, side)) == 1:
                        yield make(
                            "beside",
                            "spatial relations",
                            "shape",
                            thing.shape,
                            f"It is the {thing.shape}.",
                            side=side,
                            thing=other_name,
                        )
    for colour in sorted(colours):
        matching = [t for t in things if t.colour == colour]
        if len(matching) == 1:
            yield make(
                "shape",
                "fine perception",
                "shape",
                matching[0].shape,
                f"The {matching[0].shape} is {colour}.",
                colour=colour,
            )
        yield make(
            "count_colour",
            "counting",
            "number",
            str(len(matching)),
            count_phrase(len(matching), f"{colour} shape", f"{colour} shapes"),
            colour=colour,
        )
    for shape in sorted(shapes):
        count = sum(t.shape == shape for t in things)
        yield make(
            "count_shape",
            "counting",
            "number",
            str(count),
            count_phrase(count, shape, PLURAL[shape]),
            things=PLURAL[shape],
        )
    if draw.random() < 0.4:
        yield make(
            "count_shape",
            "counting",
            "number",
            "0",
            count_phrase(0, absent, PLURAL[absent]),
            things=PLURAL[absent],
        )
    yield make("count_all", "counting", "number", str(len(things)), count_phrase(len(things), "shape", "shapes"))
    for place in POSITIONS:
        here = [t for t in things if t.position == place]
        if len(here) == 1:
            yield make(
                "at",
                "spatial relations",
                "shape",
                here[0].shape,
                f"The {here[0].shape} is at the {place}.",
                place=place,
            )
            yield make(
                "colour_at",
                "spatial relations",
                "colour",
                here[0].colour,
                f"The shape at the {place} is {here[0].colour}.",
                place=place,
            )
    yield from _logic(scene, draw, held_out, named)


def _is_side(thing: Thing, other: Thing, side: str) -> bool:
    """Is the thing anywhere on that side of the other (by its centre)?"""
    return {
        "left of": thing.x < other.x - 4,
        "right of": thing.x > other.x + 4,
        "above": thing.y < other.y - 4,
        "below": thing.y > other.y + 4,
    }[side]


def _logic(scene: Scene, draw: random.Random, held_out: bool, named: list[tuple[Thing, str]]) -> Iterator[Ask]:
    things = scene.things
    shapes = sorted({t.shape for t in things})

    def make(intent: str, vocabulary: str, key: str, answer: str, **slots: object) -> Ask:
        return Ask(ask(draw, intent, held_out, **slots), answer, (key,), vocabulary, "logic", intent)

    if len(things) >= 3:
        counts = {s: sum(t.shape == s for t in things) for s in shapes}
        lone = [s for s in shapes if counts[s] == 1]
        if len(shapes) == 2 and len(lone) == 1:
            yield make("odd", "shape", lone[0], f"The {lone[0]} is different.")
        uneven = [(a, b) for a in shapes for b in shapes if counts[a] > counts[b]]
        if uneven:
            a, b = draw.choice(uneven)
            first, second = draw.sample([a, b], 2)
            yield make(
                "more",
                "shape",
                a,
                f"There are more {PLURAL[a]}.",
                things=PLURAL[first],
                others=PLURAL[second],
            )
        same = len({t.colour for t in things}) == 1
        if same or draw.random() < 0.15:
            yield make(
                "all_same",
                "yes",
                "yes" if same else "no",
                "Yes, they have." if same else "No, they have not.",
            )
    if len(shapes) >= 2:
        a, b = draw.sample(shapes, 2)
        both = sum(t.shape in (a, b) for t in things)
        yield make("sum_pair", "number", str(both), f"There are {both}.", things=PLURAL[a], others=PLURAL[b])
    if len(named) >= 2:
        (one, one_name), (two, two_name) = draw.sample(named, 2)
        left = len(things) - 1
        yield make(
            "without",
            "number",
            str(left),
            f"There is {left} left." if left == 1 else f"There are {left} left.",
            thing=one_name,
        )
        if len(one_name.split()) == len(two_name.split()) == 1 and (one.colour == two.colour or draw.random() < 0.4):
            same = one.colour == two.colour
            answer = f"Yes, both are {one.colour}." if same else f"No, they are {one.colour} and {two.colour}."
            yield make("same_colour", "yes", "yes" if same else "no", answer, thing=one_name, other=two_name)
    if len(things) >= 2:
        for most, key in (
            ("leftmost", min(things, key=lambda t: t.x)),
            ("rightmost", max(things, key=lambda t: t.x)),
            ("highest", min(things, key=lambda t: t.y)),
            ("lowest", max(things, key=lambda t: t.y)),
        ):
            axis = (lambda t: t.x) if most.endswith("most") else (lambda t: t.y)
            if all(t is key or abs(axis(t) - axis(key)) > 10 for t in things):
                yield make("extreme", "shape", key.shape, f"The {key.shape} is the {most}.", most=most)


def _word_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    text = scene.lines[0].text

    def make(intent: str, vocabulary: str, key: str, answer: str, category: str = "scene text", **slots: object) -> Ask:
        return Ask(ask(draw, intent, held_out, **slots), answer, (key,), vocabulary, category, intent)

    yield make(
        "background",
        "background",
        scene.background,
        f"The background is {scene.background}.",
        "coarse perception",
    )
    if scene.kind == "number":
        yield make("number", "number", text, f"The number is {text}.")
        n = draw.randint(1, 5)
        yield make("number_plus", "number", str(int(text) + n), f"It is {int(text) + n}.", "logic", n=n)
        return
    yield make("word", "letters", text, f"The word is {text}.")
    yield make("first_letter", "letters", text[0], f"The first letter is {text[0]}.")
    yield make("last_letter", "letters", text[-1], f"The last letter is {text[-1]}.")
    yield make("letters", "number", str(len(text)), f"It has {len(text)} letters.", "counting")
    if scene.things:
        thing = scene.things[0]
        yield make("word_shape", "shape", thing.shape, f"The {thing.shape} is beside the word.")
        yield make(
            "colour",
            "colour",
            thing.colour,
            f"The {thing.shape} is {thing.colour}.",
            "fine perception",
            thing=thing.shape,
        )


def _chart_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    bars = scene.bars

    def make(
        intent: str,
        vocabulary: str,
        key: str,
        answer: str,
        category: str = "documents and charts",
        **slots: object,
    ) -> Ask:
        return Ask(ask(draw, intent, held_out, **slots), answer, (key,), vocabulary, category, intent)

    tall, short = max(bars, key=lambda b: b.value), min(bars, key=lambda b: b.value)
    yield make("bar_most", "colour", tall.colour, f"The {tall.colour} bar is the tallest.")
    yield make("bar_least", "colour", short.colour, f"The {short.colour} bar is the shortest.")
    yield make("bar_count", "number", str(len(bars)), f"There are {len(bars)} bars.", "counting")
    for bar in bars:
        yield make("bar_value", "number", str(bar.value), f"The {bar.colour} bar is {bar.value}.", colour=bar.colour)
    one, two = draw.sample(bars, 2)
    taller = max(one, two, key=lambda b: b.value)
    yield make(
        "bar_compare",
        "colour",
        taller.colour,
        f"The {taller.colour} bar is taller.",
        colour=one.colour,
        other=two.colour,
    )
    yield make(
        "bars_sum",
        "number",
        str(one.value + two.value),
        f"It is {one.value + two.value}.",
        "logic",
        colour=one.colour,
        other=two.colour,
    )


def _receipt_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    rows = [(item.lower(), int(price)) for item, price in scene.rows]

    def make(
        intent: str,
        vocabulary: str,
        key: str,
        answer: str,
        category: str = "documents and charts",
        **slots: object,
    ) -> Ask:
        return Ask(ask(draw, intent, held_out, **slots), answer, (key,), vocabulary, category, intent)

    for item, price in rows:
        yield make("price", "number", str(price), f"It costs {price}.", item=item)
        yield make("priced", "item", item, f"The {item} costs {price}.", price=price)
    dearest = max(rows, key=lambda row: row[1])[0]
    yield make("dearest", "item", dearest, f"The {dearest} costs the most.")
    total = sum(price for _, price in rows)
    yield make("total", "number", str(total), f"The sum is {total}.", "logic")


def _form_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    for field, value in scene.rows:
        vocabulary = "number" if field == "AGE" else "letters"
        yield Ask(
            ask(draw, "field", held_out, field=field.lower()),
            f"The {field.lower()} is {value}.",
            (value,),
            vocabulary,
            "documents and charts",
            "field",
        )


def _grid_questions(scene: Scene, draw: random.Random, held_out: bool) -> Iterator[Ask]:
    for thing in scene.things:
        yield Ask(
            ask(draw, "cell", held_out, place=thing.position),
            f"The {thing.position} square is {thing.colour}.",
            (thing.colour,),
            "colour",
            "spatial relations",
            "cell",
        )
    for colour in sorted({t.colour for t in scene.things}):
        count = sum(t.colour == colour for t in scene.things)
        yield Ask(
            ask(draw, "count_colour", held_out, colour=colour),
            count_phrase(count, f"{colour} shape", f"{colour} shapes"),
            (str(count),),
            "number",
            "counting",
            "count_colour",
        )


_SCENE_QUESTIONS: dict[str, Callable[[Scene, random.Random, bool], Iterator[Ask]]] = {
    "shapes": _shape_questions,
    "word": _word_questions,
    "number": _word_questions,
    "chart": _chart_questions,
    "receipt": _receipt_questions,
    "form": _form_questions,
    "grid": _grid_questions,
}


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    """The shape-colour pairs a scene shows."""
    return {(t.shape, t.colour) for t in scene.things}
