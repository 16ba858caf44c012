"""Every question a scene allows, each with a natural answer (text-only questions are in `knowledge`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from sab.demo.asks import Ask, Asker
from sab.demo.scenes import KINDS
from sab.demo.things import UNRECOGNISED, Scene, Thing
from sab.demo.words import COLOURS, PLURAL, POSITIONS, SHAPES

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
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


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


def place(thing: Thing) -> str:
    """ "at the top left", or "in the middle" for a shape that fills the picture."""
    return "in the middle" if thing.vast else f"at the {thing.position}"


def describe_thing(thing: Thing) -> str:
    """ "a small red circle at the top left"."""
    return f"a {thing.size} {thing.colour} {thing.shape} {place(thing)}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene) -> str:
    """A full description, in reading order."""
    if scene.kind in UNRECOGNISED:
        return f"A {UNRECOGNISED[scene.kind]}."
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


def description(scene: Scene) -> str:
    """The caption as a sentence: "I see a small red circle at the top left."."""
    text = caption(scene)
    more = " I do not know what it shows." if scene.kind in UNRECOGNISED else ""
    return f"I see {text[0].lower()}{text[1:]}{more}"


def about(scene: Scene, draw: random.Random, held_out: bool) -> list[Ask]:
    """Every question this scene allows, one wording each."""
    put = Asker(draw, held_out)
    if scene.kind in UNRECOGNISED:
        return list(_unrecognised(scene, put))
    asks = list(_SCENE_QUESTIONS[scene.kind](scene, put))
    kind = KIND_NAMES[scene.kind]
    key = "square" if scene.kind == "grid" else kind.split()[-1]
    asks.append(put("kind", key, f"It is {kind}." if kind[:2] == "a " else f"It shows {kind}."))
    return asks


def _shape_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    draw, things = put.draw, scene.things
    shapes, colours = {t.shape for t in things}, {t.colour for t in things}
    yield put("background", scene.background, f"The background is {scene.background}.")
    absent = draw.choice([s for s in SHAPES if s not in shapes])
    there = draw.choice(sorted(shapes))
    if draw.random() < 0.5:
        yield put("present", "yes", f"Yes, there is {article(there)}.", thing=there)
    else:
        yield put("present", "no", f"No, there is no {absent}.", thing=absent)
    if draw.random() < 0.3:
        yield put("colour", "none", f"There is no {absent}.", thing=absent)
    named = [(t, name) for t in things if (name := _name(t, things))]
    for thing, name in named:
        if name == thing.shape:
            yield put("colour", thing.colour, f"The {name} is {thing.colour}.", thing=name)
        yield put("size", thing.size, f"The {name} is {thing.size}.", thing=name)
        if thing.shape != "ring" and not thing.wobble:
            word = "filled" if thing.filled else "empty"
            yield put("filled", word, f"The {name} is {word}.", thing=name)
        if thing.vast:
            yield put("where", "middle", f"The {name} is in the middle.", "place", thing=name)
        else:
            yield put("where", thing.position, f"The {name} is at the {thing.position}.", thing=name)
        yield from _relations(thing, name, named, things, put)
    for colour in sorted(colours):
        matching = [t for t in things if t.colour == colour]
        if len(matching) == 1:
            yield put("shape", matching[0].shape, f"The {matching[0].shape} is {colour}.", colour=colour)
        phrase = count_phrase(len(matching), f"{colour} shape", f"{colour} shapes")
        yield put("count_colour", str(len(matching)), phrase, colour=colour)
    for shape in sorted(shapes):
        count = sum(t.shape == shape for t in things)
        yield put("count_shape", str(count), count_phrase(count, shape, PLURAL[shape]), things=PLURAL[shape])
    if draw.random() < 0.4:
        yield put("count_shape", "0", count_phrase(0, absent, PLURAL[absent]), things=PLURAL[absent])
    yield put("count_all", str(len(things)), count_phrase(len(things), "shape", "shapes"))
    for where in POSITIONS:
        here = [t for t in things if t.position == where and not t.vast]
        if len(here) == 1:
            yield put("at", here[0].shape, f"The {here[0].shape} is at the {where}.", place=where)
            answer = f"The shape at the {where} is {here[0].colour}."
            yield put("colour_at", here[0].colour, answer, place=where)
    yield from _logic(scene, put, named)


def _relations(
    thing: Thing, name: str, named: list[tuple[Thing, str]], things: tuple[Thing, ...], put: Asker
) -> Iterator[Ask]:
    """Where the thing lies by the others, only where that is plain to see."""
    for other, other_name in named:
        if other is thing:
            continue
        for side, apart, level in (
            ("left of", other.x - thing.x, abs(other.y - thing.y)),
            ("right of", thing.x - other.x, abs(other.y - thing.y)),
            ("above", other.y - thing.y, abs(other.x - thing.x)),
            ("below", thing.y - other.y, abs(other.x - thing.x)),
        ):
            if apart > 22 and apart > level * 1.3:
                truth = put.draw.random() < 0.5
                answer = f"{'Yes' if truth else 'No'}, it is {side} the {other_name}."
                said = side if truth else _OPPOSITE[side]
                yield put("relation", "yes" if truth else "no", answer, thing=name, side=said, other=other_name)
                if len(things) <= 3 and sum(1 for t in things if t is not other and _is_side(t, other, side)) == 1:
                    yield put("beside", thing.shape, f"It is the {thing.shape}.", side=side, thing=other_name)


def _is_side(thing: Thing, other: Thing, side: str) -> bool:
    """Is the thing anywhere on that side of the other (by its centre)?"""
    return {
        "left of": thing.x < other.x - 4,
        "right of": thing.x > other.x + 4,
        "above": thing.y < other.y - 4,
        "below": thing.y > other.y + 4,
    }[side]


def _logic(scene: Scene, put: Asker, named: list[tuple[Thing, str]]) -> Iterator[Ask]:
    draw, things = put.draw, scene.things
    shapes = sorted({t.shape for t in things})
    if len(things) >= 3:
        counts = {s: sum(t.shape == s for t in things) for s in shapes}
        lone = [s for s in shapes if counts[s] == 1]
        if len(shapes) == 2 and len(lone) == 1:
            yield put("odd", lone[0], f"The {lone[0]} is different.")
        uneven = [(a, b) for a in shapes for b in shapes if counts[a] > counts[b]]
        if uneven:
            a, b = draw.choice(uneven)
            first, second = draw.sample([a, b], 2)
            answer = f"There are more {PLURAL[a]}."
            yield put("more", a, answer, things=PLURAL[first], others=PLURAL[second])
        same = len({t.colour for t in things}) == 1
        if same or draw.random() < 0.15:
            yield put("all_same", "yes" if same else "no", "Yes, they have." if same else "No, they have not.")
    if len(shapes) >= 2:
        a, b = draw.sample(shapes, 2)
        both = sum(t.shape in (a, b) for t in things)
        yield put("sum_pair", str(both), f"There are {both}.", things=PLURAL[a], others=PLURAL[b])
    if len(named) >= 2:
        (one, one_name), (two, two_name) = draw.sample(named, 2)
        left = len(things) - 1
        yield put("without", str(left), f"There {'is' if left == 1 else 'are'} {left} left.", thing=one_name)
        if len(one_name.split()) == len(two_name.split()) == 1 and (one.colour == two.colour or draw.random() < 0.4):
            same = one.colour == two.colour
            answer = f"Yes, both are {one.colour}." if same else f"No, they are {one.colour} and {two.colour}."
            yield put("same_colour", "yes" if same else "no", answer, thing=one_name, other=two_name)
    if len(things) >= 2:
        for most, key in (
            ("leftmost", min(things, key=lambda t: t.x)),
            ("rightmost", max(things, key=lambda t: t.x)),
            ("highest", min(things, key=lambda t: t.y)),
            ("lowest", max(things, key=lambda t: t.y)),
        ):
            axis = (lambda t: t.x) if most.endswith("most") else (lambda t: t.y)
            if all(t is key or abs(axis(t) - axis(key)) > 10 for t in things):
                yield put("extreme", key.shape, f"The {key.shape} is the {most}.", most=most)


def _word_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    text = scene.lines[0].text
    yield put("background", scene.background, f"The background is {scene.background}.")
    if scene.kind == "number":
        yield put("number", text, f"The number is {text}.")
        n = put.draw.randint(1, 5)
        yield put("number_plus", str(int(text) + n), f"It is {int(text) + n}.", n=n)
        return
    yield put("word", text, f"The word is {text}.")
    yield put("first_letter", text[0], f"The first letter is {text[0]}.")
    yield put("last_letter", text[-1], f"The last letter is {text[-1]}.")
    yield put("letters", str(len(text)), f"It has {len(text)} letters.")
    if scene.things:
        thing = scene.things[0]
        yield put("word_shape", thing.shape, f"The {thing.shape} is beside the word.")
        yield put("colour", thing.colour, f"The {thing.shape} is {thing.colour}.", thing=thing.shape)


def _chart_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    bars = scene.bars
    tall, short = max(bars, key=lambda b: b.value), min(bars, key=lambda b: b.value)
    yield put("bar_most", tall.colour, f"The {tall.colour} bar is the tallest.")
    yield put("bar_least", short.colour, f"The {short.colour} bar is the shortest.")
    yield put("bar_count", str(len(bars)), f"There are {len(bars)} bars.")
    for bar in bars:
        yield put("bar_value", str(bar.value), f"The {bar.colour} bar is {bar.value}.", colour=bar.colour)
    one, two = put.draw.sample(bars, 2)
    taller = max(one, two, key=lambda b: b.value).colour
    yield put("bar_compare", taller, f"The {taller} bar is taller.", colour=one.colour, other=two.colour)
    total = one.value + two.value
    yield put("bars_sum", str(total), f"It is {total}.", colour=one.colour, other=two.colour)


def _receipt_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    rows = [(item.lower(), int(price)) for item, price in scene.rows]
    for item, price in rows:
        yield put("price", str(price), f"It costs {price}.", item=item)
        yield put("priced", item, f"The {item} costs {price}.", price=price)
    dearest = max(rows, key=lambda row: row[1])[0]
    yield put("dearest", dearest, f"The {dearest} costs the most.")
    total = sum(price for _, price in rows)
    yield put("total", str(total), f"The sum is {total}.")


def _form_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    for field, value in scene.rows:
        vocabulary = "number" if field == "AGE" else "letters"
        yield put("field", value, f"The {field.lower()} is {value}.", vocabulary, field=field.lower())


def _grid_questions(scene: Scene, put: Asker) -> Iterator[Ask]:
    for thing in scene.things:
        answer = f"The {thing.position} square is {thing.colour}."
        yield put("cell", thing.colour, answer, place=thing.position)
    for colour in sorted({t.colour for t in scene.things}):
        count = sum(t.colour == colour for t in scene.things)
        phrase = count_phrase(count, f"{colour} shape", f"{colour} shapes")
        yield put("count_colour", str(count), phrase, colour=colour)


def _unrecognised(scene: Scene, put: Asker) -> Iterator[Ask]:
    """What a photo or a doodle shows is not known, so nothing asked about shapes, words or bars can be answered."""
    draw, what = put.draw, f"It is a {UNRECOGNISED[scene.kind]}."
    rule = "unrecognised"
    yield put("kind", rule, f"{what} I do not know what it shows.", rule)
    shape, colour, where = draw.choice(SHAPES), draw.choice(tuple(COLOURS)), draw.choice(POSITIONS)
    for intent, slots in (
        ("present", {"thing": shape}),
        ("colour", {"thing": shape}),
        ("size", {"thing": shape}),
        ("where", {"thing": shape}),
        ("shape", {"colour": colour}),
        ("count_shape", {"things": PLURAL[shape]}),
        ("count_colour", {"colour": colour}),
        ("count_all", {}),
        ("at", {"place": where}),
        ("colour_at", {"place": where}),
        ("background", {}),
        ("word", {}),
        ("number", {}),
        ("bar_count", {}),
    ):
        yield put(intent, rule, f"I do not know. {what}", rule, **slots)


_SCENE_QUESTIONS: dict[str, Callable[[Scene, Asker], Iterator[Ask]]] = {
    "shapes": _shape_questions,
    "word": _word_questions,
    "number": _word_questions,
    "chart": _chart_questions,
    "receipt": _receipt_questions,
    "form": _form_questions,
    "grid": _grid_questions,
}
