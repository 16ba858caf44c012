"""What the Chat tab keeps on the server: conversations, and the queue in front of the device.

History lives here and not in a component, so no visitor can forge a turn or read another's words; the browser holds
an unguessable id only. A `Conversation` keeps one list of questions and, per side, that side's own answers, since each
model must see what it said itself.
"""

from __future__ import annotations

import base64
import io
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from sab.errors import SabError

if TYPE_CHECKING:
    from sab.chat import TokenEvent

SIDES = ("left", "right")
MOST_TURNS = 20
LONGEST_PROMPT = 2000  # characters
THUMBNAIL = 112  # pixels
PIECE = 32  # tokens sent with each drawing of a stream; more than come between two, so a lost one does no harm
WAITING, LOADING, WRITING = "waiting", "loading", "writing"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
OPEN = (WAITING, LOADING, WRITING)


@dataclass
class Reply:
    """One side's answer to one question, as it grows. `run` is a run id, "" for full precision."""

    run: str
    state: str = WAITING
    claimed: bool = False
    message: str = ""
    ended: bool = False
    events: list[TokenEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


@dataclass(frozen=True)
class Settings:
    """How both sides answer; checked by `sab.chat.stream`."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Turn:
    """A question with both answers; `attempt` counts regenerations, so that sampling differs."""

    prompt: str
    settings: Settings
    replies: dict[str, Reply]
    ticket: Ticket
    attempt: int = 0

    @property
    def answering(self) -> bool:
        return any(reply.state in OPEN for reply in self.replies.values())


class Conversation:
    """One visitor's questions about one picture. Methods may be called from several threads."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(18)
        self.picture: Image.Image | None = None
        self.thumbnail: str | None = None
        self.turns: list[Turn] = []
        self.stop = threading.Event()
        self._guard = threading.Lock()

    @property
    def answering(self) -> bool:
        return bool(self.turns) and self.turns[-1].answering

    def ask(
        self, prompt: object, picture: Image.Image | None, runs: dict[str, str], settings: Settings, gate: Gate
    ) -> bool:
        """Add a question to both sides; a picture other than before starts anew. True when it did.

        Raises SabError, and changes nothing, for an empty or too long question, while an answer is being written,
        and after MOST_TURNS questions.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise SabError("Write a question first; the box is empty.")
        if len(prompt) > LONGEST_PROMPT:
            raise SabError(f"The question has {len(prompt)} characters; shorten it to {LONGEST_PROMPT}.")
        with self._guard:
            if self.answering:
                raise SabError("The last question is still being answered; wait or press Stop.")
            fresh = bool(self.turns) and not same_picture(picture, self.picture)
            if not fresh and len(self.turns) >= MOST_TURNS:
                raise SabError(f"This conversation has {MOST_TURNS} questions; press Clear to start another.")
            if fresh:
                self.turns.clear()
            self.picture = picture
            self.thumbnail = None if picture is None else thumbnail(picture)
            self.stop.clear()
            replies = {side: Reply(runs[side]) for side in SIDES}
            self.turns.append(Turn(prompt.strip(), settings, replies, gate.join()))
            return fresh

    def again(self, runs: dict[str, str], settings: Settings, gate: Gate) -> None:
        """Answer the last question anew. Raises SabError when there is none or it is still being answered."""
        with self._guard:
            if not self.turns:
                raise SabError("There is no question yet to answer again.")
            if self.answering:
                raise SabError("The last question is still being answered; wait or press Stop.")
            self.stop.clear()
            last = self.turns[-1]
            replies = {side: Reply(runs[side]) for side in SIDES}
            self.turns[-1] = Turn(last.prompt, settings, replies, gate.join(), last.attempt + 1)

    def clear(self) -> None:
        """Forget everything; a running answer ends."""
        with self._guard:
            self.stop.set()
            self.turns = []
            self.picture = self.thumbnail = None

    def claim(self, side: str) -> Turn | None:
        """The turn whose answer on this side nobody writes yet, now the caller's; None when there is none."""
        with self._guard:
            if not self.turns or self.turns[-1].replies[side].claimed:
                return None
            self.turns[-1].replies[side].claimed = True
            return self.turns[-1]

    def messages(self, side: str, turn: Turn) -> list[dict[str, str]]:
        """What this side's model reads: its own earlier answers, then the question of `turn`."""
        said: list[dict[str, str]] = []
        for earlier in self.turns:
            if earlier is turn:
                break
            if answer := earlier.replies[side].text.strip():
                said += [{"role": "user", "content": earlier.prompt}, {"role": "assistant", "content": answer}]
        return [*said, {"role": "user", "content": turn.prompt}]

    def questions(self) -> list[dict[str, Any]]:
        """What the page shows of the questions."""
        return [
            {"text": turn.prompt, "picture": self.thumbnail if place == 0 else None}
            for place, turn in enumerate(self.turns)
        ]

    def answers(self, side: str) -> list[dict[str, Any]]:
        """What the page shows of one side's answers; texts are plain, the page never reads them as HTML."""
        return [answer_view(turn, side) for turn in list(self.turns)]

    def news(self, side: str) -> dict[str, Any]:
        """The end of the answer being written: its last tokens, `from` the place of the first of them. Streaming
        whole conversations would cost more with every token; the page puts the pieces together."""
        start = max(0, len(self.turns[-1].replies[side].events) - PIECE)
        return answer_view(self.turns[-1], side, start) | {"turn": len(self.turns) - 1, "from": start}


def answer_view(turn: Turn, side: str, start: int = 0) -> dict[str, Any]:
    """One answer from token `start` on, as the page shows it."""
    from sab.chat import first_divergence

    reply = turn.replies[side]
    left, right = (list(turn.replies[each].events) for each in SIDES)
    return {
        "state": reply.state,
        "message": reply.message,
        "facts": speed_facts(reply.events),
        "tokens": [token_view(event) for event in reply.events[start:]],
        "ended": reply.ended,
        "diverged": first_divergence(left, right),
    }


def token_view(event: TokenEvent) -> dict[str, Any]:
    """One token as the page shows it: text, probability, and the likeliest candidates."""
    return {
        "text": event.text,
        "prob": round(math.exp(event.logprob), 5),
        "top": [[text, round(share, 5)] for text, share in event.top],
    }


def speed_facts(events: Sequence[TokenEvent]) -> list[list[str]]:
    """Time to the first token and tokens per second after it, as label and value."""
    if not events:
        return []
    facts = [["first token", f"{events[0].seconds:.2f} s"]]
    elapsed = events[-1].seconds - events[0].seconds
    if len(events) > 1 and elapsed > 0:
        facts.append(["speed", f"{(len(events) - 1) / elapsed:.0f} tokens/s"])
    return facts


def same_picture(one: Image.Image | None, other: Image.Image | None) -> bool:
    """Whether two pictures are pixel for pixel the same (or both missing)."""
    if one is None or other is None:
        return one is other
    return one.size == other.size and one.tobytes() == other.tobytes()


def thumbnail(picture: Image.Image) -> str:
    """A small PNG data URL."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_url(small)


def data_url(picture: Image.Image) -> str:
    """A picture as a PNG data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_from_url(sent: object) -> Image.Image | None:
    """The picture that the page's canvas sent; None when it was blank. Raises SabError for anything else."""
    from sab.chat import open_picture

    if sent is None or sent == "":
        return None
    head, _, body = sent.partition(",") if isinstance(sent, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise SabError("The picture did not arrive whole; put it on the canvas again.")
    if len(body) > 12_000_000:
        raise SabError("The picture is too large; use a smaller one.")
    try:
        content = base64.b64decode(body, validate=True)
    except ValueError as error:
        raise SabError("The picture did not arrive whole; put it on the canvas again.") from error
    return open_picture(content)


class Conversations:
    """The conversations of all visitors, the least recently used forgotten first."""

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, identifier: object) -> Conversation:
        """The conversation of that id, or a new one when it is unknown or forgotten."""
        with self._guard:
            found = self._kept.get(identifier) if isinstance(identifier, str) else None
            if found is None:
                found = Conversation()
                self._kept[found.id] = found
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(found.id)
            return found


class Ticket:
    """A place in the queue; see `Gate`."""

    def __init__(self, now: float) -> None:
        self.seen = now
        self.users = 0
        self.left = 0


class Gate:
    """First come, first served: `places` questions are answered at a time, the others hear how many come before.

    Both sides of a question share one ticket, so they start together. A visitor who goes away stops asking `ahead`,
    and after `patience` seconds the ticket no longer holds anybody up.
    """

    def __init__(self, places: int = 1, patience: float = 15.0, sides: int = len(SIDES)) -> None:
        self._places = places
        self._patience = patience
        self._sides = sides
        self._line: list[Ticket] = []
        self._guard = threading.Lock()

    def join(self) -> Ticket:
        """A ticket at the end of the line."""
        with self._guard:
            ticket = Ticket(time.monotonic())
            self._line.append(ticket)
            return ticket

    def ahead(self, ticket: Ticket) -> int:
        """How many questions must end before this one may start; 0 also enters, and `leave` must follow."""
        with self._guard:
            now = ticket.seen = time.monotonic()
            self._line = [each for each in self._line if each.users or now - each.seen < self._patience]
            if ticket not in self._line:
                self._line.append(ticket)
            before = max(0, self._line.index(ticket) - self._places + 1)
            if not before:
                ticket.users += 1
            return before

    def leave(self, ticket: Ticket) -> None:
        """One side has ended; when the last one has, the next question may start."""
        with self._guard:
            ticket.users -= 1
            ticket.left += 1
            ticket.seen = time.monotonic()
            if ticket.left >= self._sides and ticket in self._line:
                self._line.remove(ticket)
