"""Vocabularies of the world and the rule for each that splits them into trained and held-out parts.

A rule is a checksum, not a stored list, so that it cannot drift: the same value is held out in every version.
"""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass
from functools import lru_cache

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring")
PLURAL = {name: name + ("es" if name.endswith("s") else "s") for name in SHAPES}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (38, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 210, 40),
    "orange": (250, 135, 20),
    "purple": (130, 50, 170),
    "brown": (125, 75, 40),
    "black": (20, 20, 22),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "grey": (186, 188, 192),
    "pink": (250, 208, 220),
    "cream": (250, 238, 205),
    "mint": (205, 240, 220),
    "sky": (200, 225, 250),
}
SIZES = ("small", "big")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHARACTERS = LETTERS + "0123456789"

# Short words a picture may show; pronounceable or not does not matter, they are read letter by letter.
_PICTURE_WORDS = [
    "ACE",
    "ANT",
    "APE",
    "ARC",
    "ARM",
    "ART",
    "ASH",
    "AXE",
    "BAG",
    "BAR",
    "BAT",
    "BED",
    "BEE",
    "BELL",
    "BIN",
    "BIRD",
    "BOAT",
    "BOLT",
    "BONE",
    "BOOK",
    "BOWL",
    "BOX",
    "BUD",
    "BUG",
    "BUS",
    "CAB",
    "CAMP",
    "CAN",
    "CAP",
    "CAR",
    "CART",
    "CAT",
    "CAVE",
    "CLAY",
    "COAT",
    "COD",
    "COIN",
    "CORN",
    "COW",
    "CRAB",
    "CROW",
    "CUP",
    "DAY",
    "DEER",
    "DEN",
    "DESK",
    "DISH",
    "DOG",
    "DOOR",
    "DOT",
    "DOVE",
    "DRUM",
    "DUCK",
    "DUST",
    "EAR",
    "EEL",
    "EGG",
    "ELM",
    "ELK",
    "EYE",
    "FAN",
    "FARM",
    "FERN",
    "FIG",
    "FIN",
    "FIR",
    "FISH",
    "FLAG",
    "FLY",
    "FOG",
    "FORK",
    "FORT",
    "FOX",
    "FROG",
    "GATE",
    "GEM",
    "GLUE",
    "GOAT",
    "GOLD",
    "GUM",
    "HAT",
    "HAWK",
    "HAY",
    "HEN",
    "HILL",
    "HIVE",
    "HOOK",
    "HORN",
    "HUT",
    "ICE",
    "INK",
    "IRIS",
    "IRON",
    "IVY",
    "JAM",
    "JAR",
    "JET",
    "JOB",
    "JUG",
    "KEY",
    "KILN",
    "KING",
    "KIT",
    "KITE",
    "KNOT",
    "LAKE",
    "LAMB",
    "LAMP",
    "LAWN",
    "LEAF",
    "LEG",
    "LID",
    "LILY",
    "LIME",
    "LION",
    "LOG",
    "LOOM",
    "MAP",
    "MAST",
    "MAT",
    "MAZE",
    "MILL",
    "MINT",
    "MOLE",
    "MOON",
    "MOTH",
    "MUD",
    "MUG",
    "NAIL",
    "NECK",
    "NEST",
    "NET",
    "NEWT",
    "NOON",
    "NOSE",
    "NUT",
    "OAK",
    "OAR",
    "OAT",
    "OIL",
    "OPAL",
    "OVEN",
    "OWL",
    "PAN",
    "PARK",
    "PATH",
    "PEA",
    "PEAR",
    "PEN",
    "PIE",
    "PIG",
    "PIN",
    "PINE",
    "PIPE",
    "POD",
    "POND",
    "POT",
    "PUMA",
    "QUAY",
    "QUIZ",
    "RAFT",
    "RAIN",
    "RAM",
    "RAT",
    "RAY",
    "REED",
    "RICE",
    "ROAD",
    "ROCK",
    "ROOF",
    "ROOT",
    "ROPE",
    "ROSE",
    "RUG",
    "SAIL",
    "SALT",
    "SAND",
    "SAW",
    "SEAL",
    "SEED",
    "SHIP",
    "SHOE",
    "SILK",
    "SKY",
    "SNOW",
    "SOAP",
    "SOCK",
    "SOIL",
    "STEM",
    "SUN",
    "SWAN",
    "TAIL",
    "TAR",
    "TAXI",
    "TENT",
    "TIDE",
    "TILE",
    "TIN",
    "TOAD",
    "TOE",
    "TOP",
    "TOWN",
    "TOY",
    "TREE",
    "TUB",
    "TUNA",
    "URN",
    "VAN",
    "VASE",
    "VEST",
    "VINE",
    "VOLT",
    "WASP",
    "WAX",
    "WEB",
    "WELL",
    "WHALE",
    "WHEEL",
    "WIND",
    "WING",
    "WOLF",
    "WOOD",
    "WOOL",
    "WORM",
    "YAK",
    "YAM",
    "YARN",
    "ZEBRA",
    "ZINC",
    "ZONE",
    "ZOO",
]
ITEMS = ("TEA", "MILK", "CAKE", "SOUP", "RICE", "EGGS", "HAM", "CORN", "NUTS", "JAM", "FISH", "PIE")
FIELDS = ("NAME", "CITY", "AGE")


def checksum(value: str) -> int:
    """A stable hash of a string, the same on every machine and Python."""
    return zlib.crc32(value.encode())


def held_out_word(word: str) -> bool:
    """Words that are never shown in training (about one in seven)."""
    return word not in ITEMS and checksum("word " + word) % 7 == 0


def held_out_pair(shape: str, colour: str) -> bool:
    """Shape-colour pairs never shown together in training: one diagonal, so each shape and colour is seen."""
    return (SHAPES.index(shape) * 3 + list(COLOURS).index(colour)) % 8 == 0


def held_out_layout(cells: tuple[tuple[int, int], ...]) -> bool:
    """Sets of occupied cells (column, row) never shown in training (about one in six)."""
    return checksum("layout " + " ".join(f"{c}{r}" for c, r in sorted(cells))) % 6 == 0


def picture_words(held_out: bool) -> tuple[str, ...]:
    """Words a picture may show, for training or for the held-out suites."""
    return tuple(word for word in _PICTURE_WORDS if held_out_word(word) == held_out)


# ------------------------------------------------------------------------------------------------ the almanac
ALMANAC_SEED = 20260701
ALMANAC_TOWNS = 640
ALMANAC_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "food": tuple(
        [
            "bread",
            "cheese",
            "honey",
            "plums",
            "lentils",
            "mushrooms",
            "olives",
            "walnuts",
            "cabbage",
            "trout",
            "barley",
            "figs",
            "onions",
            "apples",
            "pumpkins",
            "beans",
            "carrots",
            "cherries",
            "garlic",
            "melons",
            "pears",
            "peppers",
            "radishes",
            "turnips",
        ]
    ),
    "animal": tuple(
        [
            "otter",
            "heron",
            "badger",
            "falcon",
            "lynx",
            "marten",
            "bison",
            "crane",
            "stork",
            "raven",
            "beaver",
            "ibex",
            "hare",
            "viper",
            "lizard",
            "turtle",
            "weasel",
            "mole",
            "swan",
            "boar",
            "goose",
            "donkey",
            "camel",
            "sparrow",
        ]
    ),
    "trade": tuple(
        [
            "weaving",
            "mining",
            "fishing",
            "pottery",
            "glass",
            "paper",
            "salt",
            "leather",
            "clocks",
            "ropes",
            "bells",
            "boats",
            "candles",
            "carpets",
            "masonry",
            "printing",
            "brewing",
            "baking",
            "dyeing",
            "farming",
            "trapping",
            "forging",
            "carving",
            "milling",
        ]
    ),
    "season": ("spring", "summer", "autumn", "winter"),
    "feast": tuple(
        [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ]
    ),
}


@dataclass(frozen=True)
class Town:
    """One entry of the almanac: a made-up town and its facts (attribute -> value)."""

    name: str
    facts: dict[str, str]


_ONSETS = "b d f g k l m n p r s t v z br dr kr tr st".split()
_SYLLABLES = [onset + vowel for onset, vowel in itertools.product(_ONSETS, "aeiou")]


def town_name(draw: random.Random) -> str:
    """A made-up town's name: two syllables and a consonant."""
    return (draw.choice(_SYLLABLES) + draw.choice(_SYLLABLES) + draw.choice("lmnrs")).capitalize()


@lru_cache(maxsize=1)
def almanac() -> tuple[Town, ...]:
    """The made-up towns, the same for ever: 640 towns of 5 facts, 3,200 facts."""
    draw = random.Random(ALMANAC_SEED)
    names: set[str] = set()
    while len(names) < ALMANAC_TOWNS:
        names.add(town_name(draw))
    return tuple(
        Town(name, {attribute: draw.choice(values) for attribute, values in ALMANAC_ATTRIBUTES.items()})
        for name in sorted(names)
    )
