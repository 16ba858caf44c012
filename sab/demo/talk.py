"""Talk beyond single questions: follow-ups that refer to the turn before, "I do not know", descriptions, courtesies.

A follow-up is a question the scene allows, put in words that only the turn before makes clear: "And the star?" after
"What colour is the circle?", or "Where is it?". Its answer, key and vocabulary stay those of the full question. What
neither picture nor almanac can tell is answered "I do not know."; what a picture lacks, "There is no word."; and
without a picture, "I see no picture.". The last wording of every list is kept for the held-out suites.
"""

from __future__ import annotations

import random
from dataclasses import replace

from sab.demo.asks import Ask
from sab.demo.knowledge import TEXT_INTENTS, fact, text_question, unlisted_town
from sab.demo.phrasing import ask, choose
from sab.demo.questions import about, description
from sab.demo.scenes import Scene
from sab.demo.things import UNRECOGNISED
from sab.demo.words import ALMANAC_ATTRIBUTES, COLOURS, FIELDS, ITEMS, SHAPES, almanac

UNKNOWN = "I do not know."
NO_PICTURE = "I see no picture."

# intent -> what its next subject is called in "And ...?"
_NEXT = {
    "colour": "the {}",
    "size": "the {}",
    "filled": "the {}",
    "where": "the {}",
    "count_shape": "{}",
    "count_colour": "{} shapes",
    "at": "the {}",
    "colour_at": "the {}",
    "bar_value": "the {} bar",
    "price": "{}",
    "field": "the {}",
    "cell": "the {} square",
}
_AND = ("And {what}?", "What about {what}?", "And what about {what}?", "What of {what}?")
# intent -> how it is asked of "it"
_IT = {
    "colour": ("What colour is it?", "What is its colour?", "Which colour does it have?", "Which colour is it?"),
    "size": ("How big is it?", "Is it big or small?", "What size is it?", "Is it small or big?"),
    "filled": ("Is it filled or empty?", "Is it empty or filled?", "Say if it is filled or empty."),
    "where": ("Where is it?", "In which corner is it?", "Tell me where it is.", "Where do you see it?"),
    "bar_value": ("How tall is it?", "What is its value?", "Tell me its value.", "How high is it?"),
    "price": ("What does it cost?", "How much is it?", "What is its price?", "How much does it cost?"),
}
_NAMING = frozenset(  # intents whose answer names what "it" is then
    "shape at beside extreme odd word_shape bar_most bar_least bar_compare priced dearest".split()
)
_ITS_FACT = (
    "And its {attribute}?",
    "What is its {attribute}?",
    "And the {attribute}?",
    "Which {attribute} does it have?",
)
_PLUS = ("And plus {n}?", "And {n} more?", "Add {n}.", "Plus {n}?")

# asked of a picture that holds the thing, yet nothing in it tells
_UNTOLD = (
    "Who drew the {thing}?",
    "How old is the {thing}?",
    "What does the {thing} cost in the shop?",
    "What is the name of the {thing}?",
    "Why is the {thing} there?",
    "Who made this picture?",
    "When was this made?",
    "How heavy is the {thing}?",
    "What is the {thing} for?",
    "Where was this made?",
    "What does the {thing} smell of?",
    "Is the {thing} warm?",
    "Whose {thing} is this?",
    "What will the {thing} do next?",
    "Who likes the {thing}?",
    "What is behind the {thing}?",
    "Is the {thing} made of wood?",
    "Can the {thing} move?",
    "Who gave you this picture?",
    "Which day was it?",
    "What is inside the {thing}?",
)
_UNTOLD_HELD_OUT = (
    "Who made the {thing}?",
    "When was the {thing} made?",
    "Where was the {thing} drawn?",
    "Is the {thing} heavy?",
    "Who gave you the {thing}?",
    "What is the {thing} made of?",
)
# beyond picture and almanac
_BEYOND = (
    "Who won the game?",
    "What is the weather like?",
    "What time is it?",
    "Who is the king of {land}?",
    "What is the capital of {land}?",
    "How far is it to {land}?",
    "How do I cook {dish}?",
    "Write me a poem about {dish}.",
    "Tell me a joke.",
    "What did {name} say?",
    "Where does {name} live?",
    "How old is {name}?",
    "Can you play music?",
    "What is the meaning of life?",
    "Who wrote the book about {name}?",
    "Translate this into the language of {land}.",
    "When does the train go?",
    "What is my name?",
    "What did I eat today?",
    "Which film is good?",
    "How many people live in {land}?",
    "Is {name} at home?",
    "What is the news?",
    "Book a table for {name}.",
    "Do you like {dish}?",
    "Why is the sky blue?",
    "How does a phone work?",
    "Who is {name}?",
    "What is {dish} made of?",
    "Find me a house in {land}.",
    "Should I buy {dish} for {name}?",
    "Call {name}.",
)
_BEYOND_HELD_OUT = (
    "How do I get to {land}?",
    "What does {name} do?",
    "When did {name} go to {land}?",
    "Tell me about {land}.",
    "Is there {dish} at home?",
    "How old is the king of {land}?",
)
_FILLERS = {
    "land": ("France", "Peru", "Kenya", "Japan", "Norway", "the moon", "Rome", "my town", "Chile", "Egypt"),
    "dish": ("rice", "pasta", "a stew", "pizza", "noodles", "dinner", "porridge", "tofu", "a pancake"),
    "name": ("Anna", "Ben", "Carla", "my mother", "David", "the doctor", "Elif", "the teacher", "Omar"),
}
_FILLERS_HELD_OUT = {
    "land": ("Spain", "India", "Berlin", "Cuba"),
    "dish": ("curry", "a sandwich", "lunch"),
    "name": ("Maria", "my brother", "Peter", "the driver"),
}
_COURTESIES: dict[str, tuple[str, ...]] = {
    "Hello. What do you want to know?": ("Hello.", "Hello!", "Hi.", "Hi!", "Good morning.", "Hey.", "Hello there."),
    "You are welcome.": ("Thank you.", "Thanks!", "Thanks.", "Thank you!", "Thank you, good.", "Many thanks."),
    "I am a small model that reads small pictures.": (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me what you are.",
        "Tell me who you are.",
    ),
    "I can tell you about shapes, words, numbers, bar charts, receipts and forms, and I know an almanac.": (
        "What can you do?",
        "What do you know?",
        "How can you help me?",
        "What can I ask you?",
        "Tell me what you can do.",
    ),
    "Goodbye.": ("Bye.", "Goodbye.", "Bye!", "See you.", "Goodbye!"),
}


# ------------------------------------------------------------------------------------------------ follow-ups
def after(previous: Ask, question: Ask) -> Ask:
    """The question with the previous one, and all before that, as its history."""
    return replace(question, history=(*previous.history, replace(previous, history=())))


def follow_up(asks: list[Ask], previous: Ask, draw: random.Random, held_out: bool) -> Ask | None:
    """A question of the scene in words that refer to the previous one; None where none fits."""
    found: list[Ask] = []
    if previous.intent in _NEXT:
        for one in asks:
            if one.intent == previous.intent and one.subject != previous.subject:
                what = _NEXT[one.intent].format(one.subject)
                found.append(replace(one, prompt=choose(draw, _AND, held_out).format(what=what)))
    if previous.key != ("none",):
        referent = previous.key[0] if previous.intent in _NAMING else previous.subject
        if previous.intent in _NAMING or previous.intent in _IT:
            alike = [one for one in asks if one.intent in _IT and one.subject == referent]
            found += [
                replace(one, prompt=choose(draw, _IT[one.intent], held_out))
                for one in alike
                if one.intent != previous.intent
            ]
    return after(previous, draw.choice(found)) if found else None


def fact_follow_up(previous: Ask, draw: random.Random, held_out: bool) -> Ask | None:
    """After a fact of the almanac or a sum: another fact of the town, the same of another town, or a further sum."""
    if previous.intent in ("add", "subtract"):
        n = draw.randint(1, 9)
        value = int(previous.key[0]) + n
        prompt = choose(draw, _PLUS, held_out).format(n=n)
        return after(
            previous, replace(previous, prompt=prompt, answer=f"It is {value}.", key=(str(value),), intent="add")
        )
    if previous.intent != "fact":
        return None
    town = next(t for t in almanac() if t.name == previous.subject)
    attribute = previous.vocabulary
    if draw.random() < 0.6:
        attribute = draw.choice([a for a in ALMANAC_ATTRIBUTES if a != attribute])
        prompt = choose(draw, _ITS_FACT, held_out).format(attribute=attribute)
    else:
        town = draw.choice(almanac())
        prompt = choose(draw, _AND, held_out).format(what=town.name)
    return after(previous, replace(fact(draw, held_out, town, attribute), prompt=prompt))


# ------------------------------------------------------------------------------------------------ what is not known
def unknown(scene: Scene | None, draw: random.Random, held_out: bool) -> Ask:
    """A question that cannot be answered, over a picture or without one."""
    if scene is None:
        return draw.choice((_without_picture, _beyond, _unlisted))(draw, held_out)
    if scene.kind not in UNRECOGNISED and draw.random() < 0.4:
        return _absent(scene, draw, held_out)
    return draw.choice((_untold, _untold, _beyond))(draw, held_out, scene)


def _unanswered(intent: str, prompt: str, answer: str = UNKNOWN) -> Ask:
    return Ask(prompt, answer, ("unknown",), "unknown", "unknown", intent)


def _untold(draw: random.Random, held_out: bool, scene: Scene) -> Ask:
    names = [t.shape for t in scene.things] or [
        {"chart": "chart", "receipt": "receipt", "form": "form"}.get(scene.kind, "picture"),
        "picture",
    ]
    prompt = draw.choice(_UNTOLD_HELD_OUT if held_out else _UNTOLD)
    return _unanswered("untold", prompt.format(thing=draw.choice(names)))


def _beyond(draw: random.Random, held_out: bool, scene: Scene | None = None) -> Ask:
    fillers = _FILLERS_HELD_OUT if held_out else _FILLERS
    chosen = {slot: draw.choice(values) for slot, values in fillers.items()}
    return _unanswered("beyond", draw.choice(_BEYOND_HELD_OUT if held_out else _BEYOND).format(**chosen))


def _unlisted(draw: random.Random, held_out: bool) -> Ask:
    slots = {"attribute": draw.choice(list(ALMANAC_ATTRIBUTES)), "town": unlisted_town(draw, held_out)}
    return _unanswered("unlisted", ask(draw, "fact", held_out, **slots))


def _without_picture(draw: random.Random, held_out: bool) -> Ask:
    shape = draw.choice(SHAPES)
    colour = draw.choice(list(COLOURS))
    intent, slots = draw.choice(
        (
            ("colour", {"thing": shape}),
            ("size", {"thing": shape}),
            ("where", {"thing": shape}),
            ("shape", {"colour": colour}),
            ("count_shape", {"things": f"{shape}s"}),
            ("count_all", {}),
            ("background", {}),
            ("describe", {}),
            ("kind", {}),
            ("word", {}),
            ("number", {}),
            ("bar_most", {}),
            ("dearest", {}),
        )
    )
    return _unanswered("no picture", ask(draw, intent, held_out, **slots), NO_PICTURE)


def _absent(scene: Scene, draw: random.Random, held_out: bool) -> Ask:
    """A question about a part the picture does not have: "There is no word."."""
    colour = draw.choice(list(COLOURS))
    item = draw.choice([i for i in ITEMS if (i, "") not in [(name, "") for name, _ in scene.rows]]).lower()
    fields = [f.lower() for f in FIELDS if f not in [name for name, _ in scene.rows]]
    found: list[tuple[str, dict[str, str], str]] = [("price", {"item": item}, f"There is no {item}.")]
    if fields:
        field = draw.choice(fields)
        found.append(("field", {"field": field}, f"There is no {field}."))
    if scene.kind in ("shapes", "chart", "grid"):
        found += [
            (intent, {}, "There is no word.") for intent in ("word", "first_letter", "last_letter", "letters")
        ] + [("number", {}, "There is no number.")]
    if scene.kind == "chart":
        absent = draw.choice([c for c in COLOURS if c not in [bar.colour for bar in scene.bars]])
        found += [("bar_value", {"colour": absent}, f"There is no {absent} bar.")] * 2
    else:
        found += [(intent, {}, "There are no bars.") for intent in ("bar_most", "bar_least")]
        found.append(("bar_value", {"colour": colour}, "There are no bars."))
    intent, slots, answer = draw.choice(found)
    return _unanswered("absent", ask(draw, intent, held_out, **slots), answer)


# ------------------------------------------------------------------------------------------------ the rest
def described(scene: Scene, draw: random.Random, held_out: bool) -> Ask:
    """ "Describe the picture.", decided by the things or the numbers that the answer has to name."""
    key: tuple[str, ...]
    if scene.kind in UNRECOGNISED:
        key, vocabulary = ("unrecognised",), "unrecognised"
    elif scene.kind in ("chart", "receipt", "number"):
        shown = [str(bar.value) for bar in scene.bars] or [price for _, price in scene.rows] or [scene.lines[0].text]
        key, vocabulary = tuple(shown), "numbers"
    elif scene.kind == "grid":
        key, vocabulary = tuple(dict.fromkeys(t.colour for t in scene.things)), "colour"
    elif scene.kind == "form":
        key, vocabulary = tuple(dict.fromkeys(value for _, value in scene.rows if value.isalpha())), "words"
    else:
        words = [line.text for line in scene.lines]
        key, vocabulary = (*sorted(f"{t.colour} {t.shape}" for t in scene.things), *words), "things"
    return Ask(ask(draw, "describe", held_out), description(scene), key, vocabulary, "description", "describe")


def courtesy(draw: random.Random, held_out: bool) -> Ask:
    """A greeting, thanks, or a question about the model itself; the answer is one fixed sentence."""
    answer = draw.choice(list(_COURTESIES))
    return Ask(choose(draw, _COURTESIES[answer], held_out), answer, (answer,), "sentence", "courtesy", "courtesy")


def conversation(scene: Scene | None, draw: random.Random, turns: int, held_out: bool) -> list[Ask]:
    """Questions of one conversation, in order: plain ones with their follow-ups, unanswerable ones, a description."""
    asks = about(scene, draw, held_out) if scene else []
    said: list[Ask] = []
    for _ in range(4 * turns):  # a scene with little to ask ends the talk early
        if len(said) >= turns:
            break
        chance = draw.random()
        if chance < 0.05:
            said.append(courtesy(draw, held_out))
        elif chance < 0.25:
            said.append(unknown(scene, draw, held_out))
        elif chance < 0.35 and scene:
            said.append(described(scene, draw, held_out))
        else:
            one: Ask | None = opening(asks, draw, held_out)
            while one is not None and one.answer not in {before.answer for before in said}:
                said.append(one)
                more = len(said) < turns and draw.random() < 0.75
                one = next_question(asks, one, draw, held_out) if more else None
    return said


def opening(asks: list[Ask], draw: random.Random, held_out: bool) -> Ask:
    """A question that others can follow: over the scene, or a fact or sum where there is none."""
    if not asks:
        return text_question(draw, held_out, draw.choice(("fact", "fact", "fact", "add", *TEXT_INTENTS)))
    intent = draw.choice(sorted({one.intent for one in asks}))
    return draw.choice([one for one in asks if one.intent == intent])


def next_question(asks: list[Ask], previous: Ask, draw: random.Random, held_out: bool) -> Ask | None:
    """What may be asked after the previous question without naming its subject again."""
    return follow_up(asks, previous, draw, held_out) if asks else fact_follow_up(previous, draw, held_out)
