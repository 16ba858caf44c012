"""Question wordings by intent, and which of them training never sees.

Each intent has several wordings; the last `HELD_OUT` of each list are kept for the held-out suites. Their words all
occur in trained wordings (of any intent), so what is tested is the phrase and not the vocabulary.
"""

from __future__ import annotations

import random

HELD_OUT = 1

WORDINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "What kind of picture is this?",
        "What does the picture show?",
        "What is this?",
        "What kind of picture is it?",
        "What does this show?",
        "What is in this picture?",
        "Say what kind of picture this is.",
        "What is this a picture of?",
        "Which kind of picture is this?",
    ),
    "background": (
        "What colour is the background?",
        "Which colour is behind the shapes?",
        "Name the background colour.",
        "What is the colour of the background?",
        "Tell me the colour of the background.",
        "The background is what colour?",
        "What color is the background?",
        "Which colour does the background have?",
    ),
    "present": (
        "Is there a {thing}?",
        "Is there a {thing} in the picture?",
        "Do you see a {thing}?",
        "Is a {thing} in the picture?",
        "Does the picture show a {thing}?",
        "Do you see a {thing} here?",
        "Is there a {thing} here?",
        "Does the picture have a {thing}?",
    ),
    "colour": (
        "What colour is the {thing}?",
        "Which colour does the {thing} have?",
        "What is the colour of the {thing}?",
        "The {thing} is what colour?",
        "What color is the {thing}?",
        "Say the colour of the {thing}.",
        "Colour of the {thing}?",
        "Tell me what colour the {thing} is.",
        "Name the colour of the {thing}.",
    ),
    "shape": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} thing?",
        "What shape is the {colour} thing?",
        "Tell me which shape is {colour}.",
        "The {colour} shape is what?",
        "What is {colour}?",
        "Name the {colour} shape.",
    ),
    "size": (
        "What size is the {thing}?",
        "How big is the {thing}?",
        "Is the {thing} big or small?",
        "Is the {thing} small or big?",
        "Say the size of the {thing}.",
        "Tell me how big the {thing} is.",
        "What is the size of the {thing}?",
    ),
    "filled": (
        "Is the {thing} filled or empty?",
        "Is the {thing} empty or filled?",
        "Say if the {thing} is filled or empty.",
        "Tell me if the {thing} is empty or filled.",
        "Filled or empty: the {thing}?",
        "The {thing} is filled or empty?",
    ),
    "count_shape": (
        "How many {things} are there?",
        "Count the {things}.",
        "How many {things} do you see?",
        "How many {things}?",
        "Tell me how many {things} there are.",
        "How many {things} are in the picture?",
        "Say the number of {things}.",
        "What is the number of {things}?",
    ),
    "count_colour": (
        "How many {colour} shapes are there?",
        "Count the {colour} shapes.",
        "How many shapes are {colour}?",
        "How many {colour} things do you see?",
        "Say the number of {colour} shapes.",
        "Tell me how many shapes are {colour}.",
        "What is the number of {colour} shapes?",
    ),
    "count_all": (
        "How many shapes are there?",
        "Count the shapes.",
        "How many things do you see?",
        "How many shapes do you see?",
        "Say the number of shapes.",
        "How many things are in the picture?",
        "What is the number of shapes?",
    ),
    "where": (
        "Where is the {thing}?",
        "In which corner is the {thing}?",
        "In which part of the picture is the {thing}?",
        "Tell me where the {thing} is.",
        "Which corner has the {thing}?",
        "Where is the {thing} in the picture?",
        "Where do you see the {thing}?",
    ),
    "at": (
        "What is at the {place}?",
        "Which shape is at the {place}?",
        "What do you see at the {place}?",
        "What shape is at the {place}?",
        "Tell me what is at the {place}.",
        "The shape at the {place} is what?",
        "Name the shape at the {place}.",
    ),
    "colour_at": (
        "What colour is the shape at the {place}?",
        "Which colour do you see at the {place}?",
        "What is the colour of the shape at the {place}?",
        "Tell me the colour at the {place}.",
        "What colour is at the {place}?",
        "Name the colour at the {place}.",
    ),
    "beside": (
        "What is {side} the {thing}?",
        "Which shape is {side} the {thing}?",
        "What do you see {side} the {thing}?",
        "What shape is {side} the {thing}?",
        "Tell me what is {side} the {thing}.",
        "Name the shape {side} the {thing}.",
    ),
    "relation": (
        "Is the {thing} {side} the {other}?",
        "Is it true that the {thing} is {side} the {other}?",
        "Is the {thing} to be seen {side} the {other}?",
        "Tell me if the {thing} is {side} the {other}.",
        "Do you see the {thing} {side} the {other}?",
    ),
    "extreme": (
        "Which shape is {most}?",
        "What is the {most} shape?",
        "Which is the {most} shape?",
        "What shape is {most}?",
        "Tell me the {most} shape.",
        "Name the {most} shape.",
    ),
    "word": (
        "What word is written?",
        "Read the word.",
        "What does it say?",
        "Which word do you see?",
        "What is written here?",
        "What word is this?",
        "Tell me the word.",
        "Which word is written?",
        "What is the word?",
    ),
    "number": (
        "What number is written?",
        "Read the number.",
        "Which number do you see?",
        "What number is this?",
        "Tell me the number.",
        "Which number is written?",
        "What is the number?",
    ),
    "word_shape": (
        "What shape is beside the word?",
        "Which shape do you see with the word?",
        "Which shape is with the word?",
        "What is beside the word?",
        "Tell me the shape beside the word.",
        "Name the shape beside the word.",
    ),
    "first_letter": (
        "What is the first letter?",
        "Which letter comes first?",
        "Which is the first letter?",
        "Tell me the first letter.",
        "The word starts with which letter?",
        "Name the first letter.",
    ),
    "last_letter": (
        "What is the last letter?",
        "Which letter comes last?",
        "Which is the last letter?",
        "Tell me the last letter.",
        "The word ends with which letter?",
        "Name the last letter.",
    ),
    "letters": (
        "How many letters does the word have?",
        "Count the letters.",
        "How many letters do you see?",
        "How many letters are there?",
        "Say the number of letters.",
        "What is the number of letters?",
    ),
    "bar_most": (
        "Which bar is the tallest?",
        "What colour is the tallest bar?",
        "Which is the tallest bar?",
        "What colour is the highest bar?",
        "Tell me the tallest bar.",
        "Name the tallest bar.",
    ),
    "bar_least": (
        "Which bar is the shortest?",
        "What colour is the shortest bar?",
        "Which is the shortest bar?",
        "What colour is the lowest bar?",
        "Tell me the shortest bar.",
        "Name the shortest bar.",
    ),
    "bar_value": (
        "How tall is the {colour} bar?",
        "What is the value of the {colour} bar?",
        "How high is the {colour} bar?",
        "Tell me the value of the {colour} bar.",
        "What value does the {colour} bar have?",
        "Name the value of the {colour} bar.",
    ),
    "bar_count": (
        "How many bars are there?",
        "Count the bars.",
        "How many bars do you see?",
        "Say the number of bars.",
        "What is the number of bars?",
    ),
    "bar_compare": (
        "Which bar is taller, {colour} or {other}?",
        "What is taller, the {colour} bar or the {other} bar?",
        "Is the {colour} or the {other} bar taller?",
        "Which is taller, the {colour} or the {other} bar?",
        "Name the taller bar, {colour} or {other}.",
    ),
    "price": (
        "What does {item} cost?",
        "How much is {item}?",
        "What is the price of {item}?",
        "How much does {item} cost?",
        "Tell me the price of {item}.",
        "Name the price of {item}.",
    ),
    "priced": (
        "What costs {price}?",
        "Which line costs {price}?",
        "Which thing costs {price}?",
        "Tell me what costs {price}.",
        "Name the thing that costs {price}.",
    ),
    "dearest": (
        "What costs the most?",
        "Which line is the highest?",
        "Which thing costs the most?",
        "What has the highest price?",
        "Tell me what costs the most.",
        "Name the thing that costs the most.",
    ),
    "total": (
        "What is the sum?",
        "How much is it in all?",
        "How much do they cost in all?",
        "What is the price in all?",
        "Tell me the sum.",
        "How much does it cost in all?",
        "What do they cost in all?",
    ),
    "field": (
        "What is the {field}?",
        "What does the form say for {field}?",
        "Which {field} is written?",
        "Tell me the {field}.",
        "What {field} does the form have?",
        "Read the {field}.",
    ),
    "cell": (
        "What colour is the {place} square?",
        "Which colour do you see in the {place} square?",
        "What is the colour of the {place} square?",
        "Tell me the colour of the {place} square.",
        "Name the colour of the {place} square.",
    ),
    "odd": (
        "Which shape is different?",
        "Which one is different?",
        "What shape is different from the others?",
        "Tell me which shape is different.",
        "Name the shape that is different.",
    ),
    "all_same": (
        "Do all shapes have the same colour?",
        "Are all shapes the same colour?",
        "Have all shapes the same colour?",
        "Tell me if all shapes have the same colour.",
        "Is it true that all shapes have the same colour?",
    ),
    "more": (
        "Are there more {things} or more {others}?",
        "Which are more, {things} or {others}?",
        "Are there more {things} or {others}?",
        "Tell me what there is more of, {things} or {others}.",
        "Do you see more {things} or {others}?",
    ),
    "without": (
        "How many shapes are left without the {thing}?",
        "If the {thing} goes, how many shapes are left?",
        "How many shapes are there without the {thing}?",
        "Take the {thing} away: how many shapes are left?",
        "Tell me how many shapes are left without the {thing}.",
    ),
    "sum_pair": (
        "How many {things} and {others} are there?",
        "Count the {things} and {others}.",
        "How many {things} and {others} do you see?",
        "Say the number of {things} and {others}.",
        "What is the number of {things} and {others}?",
    ),
    "number_plus": (
        "What is the number plus {n}?",
        "Add {n} to the number.",
        "What is {n} more than the number?",
        "Read the number and add {n}.",
        "How much is the number plus {n}?",
    ),
    "same_colour": (
        "Do the {thing} and the {other} have the same colour?",
        "Is the colour of the {thing} and the {other} the same?",
        "Have the {thing} and the {other} the same colour?",
        "Tell me if the {thing} and the {other} have the same colour.",
        "Are the {thing} and the {other} the same colour?",
    ),
    "bars_sum": (
        "How much are the {colour} and the {other} bar in all?",
        "What is the sum of the {colour} and the {other} bar?",
        "What is the {colour} bar plus the {other} bar?",
        "Tell me the sum of the {colour} and the {other} bar.",
        "Add the {colour} and the {other} bar.",
    ),
    "describe": (
        "Describe the picture.",
        "What do you see?",
        "Tell me about the picture.",
        "Describe what you see.",
        "Say what is in the picture.",
    ),
    # text-only
    "add": (
        "What is {a} plus {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "What is {a} + {b}?",
        "{a} plus {b}?",
        "What is the sum of {a} and {b}?",
        "How much is {a} plus {b}?",
    ),
    "subtract": (
        "What is {a} minus {b}?",
        "{a} - {b} = ?",
        "Take {b} from {a}.",
        "What is {a} - {b}?",
        "{a} minus {b}?",
        "How much is {a} minus {b}?",
    ),
    "larger": (
        "Which is larger, {a} or {b}?",
        "What is larger, {a} or {b}?",
        "Is {a} or {b} larger?",
        "Which number is larger, {a} or {b}?",
        "Name the larger number, {a} or {b}.",
    ),
    "smaller": (
        "Which is smaller, {a} or {b}?",
        "What is smaller, {a} or {b}?",
        "Is {a} or {b} smaller?",
        "Which number is smaller, {a} or {b}?",
        "Name the smaller number, {a} or {b}.",
    ),
    "sort": (
        "Sort {numbers}.",
        "Put {numbers} in order.",
        "Sort the numbers {numbers}.",
        "Write the numbers {numbers} in order.",
        "Write {numbers} in order.",
    ),
    "reverse": (
        "Write {word} backwards.",
        "Turn {word} around.",
        "Spell {word} backwards.",
        "Say {word} backwards.",
        "What is {word} backwards?",
    ),
    "spell_last": (
        "What is the last letter of {word}?",
        "Which letter comes last in {word}?",
        "Which is the last letter of {word}?",
        "Tell me the last letter of {word}.",
        "Name the last letter of {word}.",
    ),
    "spell_count": (
        "How many letters does {word} have?",
        "Count the letters of {word}.",
        "How many letters are in {word}?",
        "Say the number of letters in {word}.",
        "What is the number of letters in {word}?",
    ),
    "fact": (
        "What is the {attribute} of {town}?",
        "Which {attribute} does {town} have?",
        "Name the {attribute} of {town}.",
        "What {attribute} has {town}?",
        "{town} has which {attribute}?",
        "Tell me the {attribute} of {town}.",
    ),
    "fact_same": (
        "Do {town} and {other} have the same {attribute}?",
        "Is the {attribute} of {town} and {other} the same?",
        "Have {town} and {other} the same {attribute}?",
        "Are {town} and {other} the same in {attribute}?",
    ),
}

# Words a hurried person leaves out; training leaves them out now and then, so that the question may be put loosely.
_SMALL_WORDS = (*"is the of a does do there have".split(), *"are you it that in what which me tell".split())


def wordings(intent: str, held_out: bool) -> tuple[str, ...]:
    """The wordings of an intent that training sees, or the ones kept for the held-out suites."""
    return _part(WORDINGS[intent], held_out)


def _part(variants: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    return variants[-HELD_OUT:] if held_out else variants[:-HELD_OUT]


def choose(draw: random.Random, variants: tuple[str, ...], held_out: bool) -> str:
    """One of the variants that training sees, or one kept for the held-out suites."""
    return draw.choice(_part(variants, held_out))


def ask(draw: random.Random, intent: str, held_out: bool, **slots: object) -> str:
    """A question of this intent in one of the allowed wordings."""
    return choose(draw, WORDINGS[intent], held_out).format(**slots)


def loosen(draw: random.Random, prompt: str) -> str:
    """The question as a hurried person types it: small words left out, lower case, no question mark, or "please"."""
    words = [w for w in prompt.split(" ") if w.lower() not in _SMALL_WORDS or draw.random() > 0.35]
    loose = " ".join(words) if words else prompt
    if draw.random() < 0.3:
        loose = loose.rstrip("?.")
    if draw.random() < 0.3 and not any(w.isupper() and len(w) > 1 for w in words):
        loose = loose[:1].lower() + loose[1:]
    if draw.random() < 0.15:
        loose = f"Please {loose[:1].lower()}{loose[1:]}" if draw.random() < 0.5 else loose.rstrip("?.") + ", please."
    return loose
