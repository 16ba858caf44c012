"""Questions as the suites ask them: a prompt, a natural answer, and the short key that decides.

An answer counts as correct when the words of its vocabulary that occur in it, in order and without repeats, are
exactly the key ("The circle is red." -> ("red",)).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from sab.demo.phrasing import ask
from sab.demo.words import ALMANAC_ATTRIBUTES, BACKGROUNDS, COLOURS, ITEMS, PLURAL, POSITIONS, SHAPES, SIZES

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

# intent of a question over a picture -> its category and vocabulary
INTENTS: dict[str, tuple[str, str]] = {
    "kind": ("coarse perception", "kind"),
    "background": ("coarse perception", "background"),
    "present": ("coarse perception", "yes"),
    "colour": ("fine perception", "colour"),
    "size": ("fine perception", "size"),
    "filled": ("fine perception", "filled"),
    "shape": ("fine perception", "shape"),
    "where": ("spatial relations", "position"),
    "relation": ("spatial relations", "yes"),
    "beside": ("spatial relations", "shape"),
    "at": ("spatial relations", "shape"),
    "colour_at": ("spatial relations", "colour"),
    "cell": ("spatial relations", "colour"),
    "count_colour": ("counting", "number"),
    "count_shape": ("counting", "number"),
    "count_all": ("counting", "number"),
    "letters": ("counting", "number"),
    "bar_count": ("counting", "number"),
    "odd": ("logic", "shape"),
    "more": ("logic", "shape"),
    "all_same": ("logic", "yes"),
    "sum_pair": ("logic", "number"),
    "without": ("logic", "number"),
    "same_colour": ("logic", "yes"),
    "extreme": ("logic", "shape"),
    "number_plus": ("logic", "number"),
    "bars_sum": ("logic", "number"),
    "total": ("logic", "number"),
    "word": ("scene text", "letters"),
    "first_letter": ("scene text", "letters"),
    "last_letter": ("scene text", "letters"),
    "number": ("scene text", "number"),
    "word_shape": ("scene text", "shape"),
    "bar_most": ("documents and charts", "colour"),
    "bar_least": ("documents and charts", "colour"),
    "bar_value": ("documents and charts", "number"),
    "bar_compare": ("documents and charts", "colour"),
    "price": ("documents and charts", "number"),
    "priced": ("documents and charts", "item"),
    "dearest": ("documents and charts", "item"),
    "field": ("documents and charts", "letters"),
}

# vocabulary name -> surface forms (a key is written in these forms)
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "kind": ("shapes", "word", "number", "chart", "receipt", "form", "square"),
    "background": tuple(BACKGROUNDS),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "filled": ("filled", "empty"),
    "position": POSITIONS,
    "place": (*POSITIONS, "middle"),
    "item": tuple(item.lower() for item in ITEMS),
    "yes": ("yes", "no"),
    **{attribute: tuple(v.lower() for v in values) for attribute, values in ALMANAC_ATTRIBUTES.items()},
}
_NOTHING = r"(there (is|are) no|no)\b"
_UNKNOWN = r"(i do not know|i don't know|i see no picture|there (is|are) no)\b"


def extract(vocabulary: str, reply: str) -> tuple[str, ...]:
    """The vocabulary's words in a reply, in order, without repeats; ("none",) for "There is no ...".

    Some vocabularies are rules instead of lists: "number" and "numbers" (with repeats), "letters" (capitals), "words"
    (two or more capitals in a row), "things" ("red circle", in any order, then words in capitals), "sentence" (the
    whole reply), "unknown" (does it open by saying that nothing tells?) and "unrecognised" (does it call the picture a
    photo or a drawing, or say that it does not know, without naming a shape?).
    """
    text = reply.strip()
    lowered = text.lower()
    for plural in PLURAL.values():
        lowered = re.sub(rf"\b{plural}\b", plural[:-2] if plural.endswith("sses") else plural[:-1], lowered)
    if vocabulary == "yes":
        first = re.match(r"[A-Za-z]+", text)
        return (first.group().lower(),) if first and first.group().lower() in ("yes", "no") else ()
    if vocabulary == "sentence":
        return (text,)
    if vocabulary == "words":
        return tuple(dict.fromkeys(re.findall(r"\b[A-Z]{2,}\b", text)))
    if vocabulary == "unknown":
        return ("unknown",) if re.match(_UNKNOWN, lowered) else ()
    if vocabulary == "unrecognised":
        shaped = re.search(r"\b(" + "|".join(SHAPES) + r")\b", lowered)
        told = re.search(r"\b(photo|drawing|i do not know)\b", lowered)
        return ("unrecognised",) if told and not shaped else ()
    if vocabulary == "things":
        pairs = re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", lowered)
        return (*sorted(map(" ".join, pairs)), *re.findall(r"\b[A-Z]{2,}\b", text))
    if vocabulary in ("number", "numbers"):
        found = re.findall(r"-?\d+", text)
        if not found and re.search(r"\bno\b", text.lower()):
            found = ["0"]
    elif vocabulary == "letters":
        found = re.findall(r"\b[A-Z]{1,}\b", text)
    else:
        if re.match(_NOTHING, lowered):
            return ("none",)
        forms = sorted(VOCABULARIES[vocabulary], key=len, reverse=True)
        found = re.findall(r"\b(" + "|".join(map(re.escape, forms)) + r")\b", lowered)
    return tuple(found) if vocabulary == "numbers" else tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Ask:
    """A question without its picture: prompt, natural answer, key with its vocabulary, category, intent; what it is
    about (`subject`, "" where nothing single), and the questions asked before it that it may refer to."""

    prompt: str
    answer: str
    key: tuple[str, ...]
    vocabulary: str
    category: str
    intent: str
    subject: str = ""
    history: tuple[Ask, ...] = ()

    def correct(self, reply: str) -> bool:
        """Does the reply contain exactly the key's words of the vocabulary?"""
        return extract(self.vocabulary, reply) == self.key

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns up to this question, with the natural answers to the earlier ones; the user's has the last word."""
        turns: list[dict[str, str]] = []
        for earlier in self.history:
            turns += [{"role": "user", "content": earlier.prompt}, {"role": "assistant", "content": earlier.answer}]
        return [*turns, {"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Asker:
    """Puts questions in wordings drawn for training or for the held-out suites."""

    draw: random.Random
    held_out: bool

    def __call__(self, intent: str, key: str, answer: str, vocabulary: str | None = None, **slots: object) -> Ask:
        """The question of an intent; the first slot is its subject."""
        category, usual = INTENTS[intent]
        subject = str(next(iter(slots.values()), ""))
        prompt = ask(self.draw, intent, self.held_out, **slots)
        return Ask(prompt, answer, (key,), vocabulary or usual, category, intent, subject)
