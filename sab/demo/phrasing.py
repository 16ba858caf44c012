"""Question wordings by intent, and which of them training never sees.

Each intent has several wordings; the last `HELD_OUT` of each list are kept for the held-out suites. The words in
those also occur in trained wordings of other intents, so what is tested is the phrase and not the vocabulary.
"""

from __future__ import annotations

import random

HELD_OUT = 1

WORDINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "What kind of picture is this?",
        "What does the picture show?",
        "What is this?",
        "What sort of picture is it?",
    ),
    "background": (
        "What colour is the background?",
        "Which colour is behind the shapes?",
        "Name the background colour.",
        "Which colour does the background have?",
    ),
    "present": (
        "Is there a {thing}?",
        "Is there a {thing} in the picture?",
        "Do you see a {thing}?",
        "Can you see a {thing}?",
    ),
    "colour": (
        "What colour is the {thing}?",
        "Which colour does the {thing} have?",
        "What is the colour of the {thing}?",
        "The {thing} is what colour?",
        "Name the colour of the {thing}.",
    ),
    "shape": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} thing?",
        "What shape is the {colour} thing?",
        "Name the {colour} shape.",
    ),
    "size": (
        "What size is the {thing}?",
        "How big is the {thing}?",
        "Is the {thing} big or small?",
        "Name the size of the {thing}.",
    ),
    "filled": (
        "Is the {thing} filled or empty?",
        "Is the {thing} empty or filled?",
        "Filled or empty: the {thing}?",
    ),
    "count_shape": (
        "How many {things} are there?",
        "Count the {things}.",
        "How many {things} do you see?",
        "What is the number of {things}?",
    ),
    "count_colour": (
        "How many {colour} shapes are there?",
        "Count the {colour} shapes.",
        "How many shapes are {colour}?",
        "What is the number of {colour} shapes?",
    ),
    "count_all": (
        "How many shapes are there?",
        "Count the shapes.",
        "How many things do you see?",
        "What is the number of shapes?",
    ),
    "where": (
        "Where is the {thing}?",
        "In which corner is the {thing}?",
        "Which part of the picture has the {thing}?",
        "Where do you see the {thing}?",
    ),
    "at": (
        "What is at the {place}?",
        "Which shape is at the {place}?",
        "What do you see at the {place}?",
        "Name the shape at the {place}.",
    ),
    "colour_at": (
        "What colour is the shape at the {place}?",
        "Which colour do you see at the {place}?",
        "Name the colour at the {place}.",
    ),
    "beside": (
        "What is {side} the {thing}?",
        "Which shape is {side} the {thing}?",
        "What do you see {side} the {thing}?",
        "Name the shape {side} the {thing}.",
    ),
    "relation": (
        "Is the {thing} {side} the {other}?",
        "Is it true that the {thing} is {side} the {other}?",
        "Do you see the {thing} {side} the {other}?",
    ),
    "extreme": ("Which shape is {most}?", "What is the {most} shape?", "Name the {most} shape."),
    "word": (
        "What word is written?",
        "Read the word.",
        "What does it say?",
        "Which word do you see?",
        "What is the word?",
    ),
    "number": (
        "What number is written?",
        "Read the number.",
        "Which number do you see?",
        "What is the number?",
    ),
    "word_shape": (
        "What shape is beside the word?",
        "Which shape do you see with the word?",
        "Name the shape beside the word.",
    ),
    "first_letter": ("What is the first letter?", "Which letter comes first?", "Name the first letter."),
    "last_letter": ("What is the last letter?", "Which letter comes last?", "Name the last letter."),
    "letters": (
        "How many letters does the word have?",
        "Count the letters.",
        "What is the number of letters?",
    ),
    "bar_most": ("Which bar is the tallest?", "What colour is the tallest bar?", "Name the tallest bar."),
    "bar_least": ("Which bar is the shortest?", "What colour is the shortest bar?", "Name the shortest bar."),
    "bar_value": (
        "How tall is the {colour} bar?",
        "What is the value of the {colour} bar?",
        "How high is the {colour} bar?",
        "Name the value of the {colour} bar.",
    ),
    "bar_count": ("How many bars are there?", "Count the bars.", "What is the number of bars?"),
    "bar_compare": (
        "Which bar is taller, {colour} or {other}?",
        "What is taller, the {colour} bar or the {other} bar?",
        "Name the taller bar, {colour} or {other}.",
    ),
    "price": (
        "What does {item} cost?",
        "How much is {item}?",
        "What is the price of {item}?",
        "Name the price of {item}.",
    ),
    "priced": ("What costs {price}?", "Which line costs {price}?", "Name the thing that costs {price}."),
    "dearest": ("What costs the most?", "Which line is the highest?", "Name the thing that costs the most."),
    "total": (
        "What is the sum?",
        "How much is it in all?",
        "How much do they cost in all?",
        "What do they cost in all?",
    ),
    "field": (
        "What is the {field}?",
        "What does the form say for {field}?",
        "Read the {field}.",
        "Name the {field}.",
    ),
    "cell": (
        "What colour is the {place} square?",
        "Which colour do you see in the {place} square?",
        "Name the colour of the {place} square.",
    ),
    "odd": ("Which shape is different?", "Which one is different?", "Name the shape that is different."),
    "all_same": (
        "Do all shapes have the same colour?",
        "Are all shapes the same colour?",
        "Is it true that all shapes have the same colour?",
    ),
    "more": (
        "Are there more {things} or more {others}?",
        "Which are more, {things} or {others}?",
        "Do you see more {things} or {others}?",
    ),
    "without": (
        "How many shapes are left without the {thing}?",
        "If the {thing} goes, how many shapes are left?",
        "Without the {thing}, how many shapes are there?",
    ),
    "sum_pair": (
        "How many {things} and {others} are there?",
        "Count the {things} and {others}.",
        "What is the number of {things} and {others}?",
    ),
    "number_plus": (
        "What is the number plus {n}?",
        "Add {n} to the number.",
        "How much is the number plus {n}?",
    ),
    "same_colour": (
        "Do the {thing} and the {other} have the same colour?",
        "Is the colour of the {thing} and the {other} the same?",
        "Are the {thing} and the {other} the same colour?",
    ),
    "bars_sum": (
        "How much are the {colour} and the {other} bar in all?",
        "What is the sum of the {colour} and the {other} bar?",
        "Add the {colour} and the {other} bar.",
    ),
    "describe": (
        "Describe the picture.",
        "What do you see?",
        "Tell me about the picture.",
        "Say what is in the picture.",
    ),
    # text-only
    "add": ("What is {a} plus {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "How much is {a} plus {b}?"),
    "subtract": (
        "What is {a} minus {b}?",
        "{a} - {b} = ?",
        "Take {b} from {a}.",
        "How much is {a} minus {b}?",
    ),
    "larger": (
        "Which is larger, {a} or {b}?",
        "What is larger, {a} or {b}?",
        "Name the larger number, {a} or {b}.",
    ),
    "smaller": (
        "Which is smaller, {a} or {b}?",
        "What is smaller, {a} or {b}?",
        "Name the smaller number, {a} or {b}.",
    ),
    "sort": ("Sort {numbers}.", "Put {numbers} in order.", "Write {numbers} in order."),
    "reverse": ("Write {word} backwards.", "Turn {word} around.", "What is {word} backwards?"),
    "spell_last": (
        "What is the last letter of {word}?",
        "Which letter comes last in {word}?",
        "Name the last letter of {word}.",
    ),
    "spell_count": (
        "How many letters does {word} have?",
        "Count the letters of {word}.",
        "What is the number of letters in {word}?",
    ),
    "fact": (
        "What is the {attribute} of {town}?",
        "Which {attribute} does {town} have?",
        "Name the {attribute} of {town}.",
        "Tell me the {attribute} of {town}.",
    ),
    "fact_same": (
        "Do {town} and {other} have the same {attribute}?",
        "Is the {attribute} of {town} and {other} the same?",
        "Are {town} and {other} the same in {attribute}?",
    ),
}


def wordings(intent: str, held_out: bool) -> tuple[str, ...]:
    """The wordings of an intent that training sees, or the ones kept for the held-out suites."""
    both = WORDINGS[intent]
    return both[-HELD_OUT:] if held_out else both[:-HELD_OUT]


def ask(draw: random.Random, intent: str, held_out: bool, **slots: object) -> str:
    """A question of this intent in one of the allowed wordings."""
    return draw.choice(wordings(intent, held_out)).format(**slots)
