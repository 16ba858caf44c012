"""What a picture holds: shapes, lines of text, bars, and the scene that joins them. Frozen, drawn by `drawing`."""

from __future__ import annotations

from dataclasses import dataclass

SIDE = 112  # pixels of a picture's side
CELL = 28  # pixels of a visual token's side (patch 14, merge 2)
GRID = SIDE // CELL
# Kinds of pictures of which the model knows no more than what it calls them.
UNRECOGNISED = {"photograph": "photo", "doodle": "drawing"}
VAST = 25.0  # radius in pixels from which a shape fills the picture: it is then "in the middle"


@dataclass(frozen=True)
class Thing:
    """One shape: centre and radius in pixels, rotation in degrees, wobble as a share of the radius."""

    shape: str
    colour: str
    size: str
    filled: bool
    x: float
    y: float
    radius: float
    rotation: float
    wobble: float

    @property
    def cell(self) -> tuple[int, int]:
        """The visual token (column, row) the centre lies in."""
        return int(self.x // CELL), int(self.y // CELL)

    @property
    def vast(self) -> bool:
        """Does it fill the picture, as a single shape drawn by hand may?"""
        return self.radius >= VAST

    @property
    def position(self) -> str:
        """The quarter of the picture the centre lies in."""
        return f"{'top' if self.y < SIDE / 2 else 'bottom'} {'left' if self.x < SIDE / 2 else 'right'}"


@dataclass(frozen=True)
class Line:
    """A line of text drawn character by character: left edge and middle in pixels, advance per character."""

    text: str
    x: float
    y: float
    advance: float
    size: float
    colour: str = "black"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: which of the four columns it stands in, its colour and its value 1..6."""

    column: int
    colour: str
    value: int


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows. `rows` holds a receipt's (item, price) or a form's (field, value) pairs; `style` is
    how it is drawn: "" as the world's pictures are, "strokes" by hand, or the family of a photograph or a doodle."""

    kind: str
    background: str
    things: tuple[Thing, ...] = ()
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    noise: float = 0.0
    noise_seed: int = 0
    style: str = ""
