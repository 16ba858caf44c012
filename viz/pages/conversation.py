"""What the Chat tab keeps on the server: conversations.

History lives here and not in a component, so no visitor can forge a turn or read another's words; the browser holds
an unguessable id only. A `Conversation` keeps one list of questions and, per side, that side's own answers, since each
model must see what it said itself.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from sab.errors import SabError
from viz.pages.gate import Gate, Ticket
from viz.pages.pictures import same_picture, thumbnail

if TYPE_CHECKING:
    from sab.attribution import Swap
    from sab.chat import TokenEvent, TokenScore

SIDES = ("left", "right")
MOST_TURNS = 20
LONGEST_PROMPT = 2000  # characters
LONGEST_SYSTEM = 1000
PIECE = 32  # tokens sent with each drawing of a stream; more than come between two, so a lost one does no harm
WAITING, LOADING, WRITING = "waiting", "loading", "writing"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
OPEN = (WAITING, LOADING, WRITING)


@dataclass(frozen=True)
class Reading:
    """What the other side's model thinks of one token of an answer it was made to read, and the KL of the two
    distributions in nats (see `viz.pages.answering`)."""

    kl: float
    other: TokenScore


@dataclass
class Reply:
    """One side's answer to one question, as it grows. `run` names the side's model, "" is full precision; `begun` are
    ids with which the answer has to begin, the last of them chosen by the visitor; `readings` follow when both sides
    have ended, one for each token."""

    run: str
    state: str = WAITING
    claimed: bool = False
    message: str = ""
    ended: bool = False
    events: list[TokenEvent] = field(default_factory=list)
    begun: tuple[int, ...] = ()
    readings: list[Reading] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


@dataclass(frozen=True)
class Settings:
    """How both sides answer; numbers are checked by `sab.chat.stream`. An empty `system` prompt is left out."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    system: str = ""


@dataclass
class Turn:
    """A question with both answers; `attempt` counts regenerations, so that sampling differs."""

    prompt: str
    settings: Settings
    replies: dict[str, Reply]
    ticket: Ticket
    attempt: int = 0
    _read: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def claim_reading(self) -> bool:
        """Whether the caller is the one to fill the readings: both sides have ended, and nobody else does."""
        return not self.answering and self._read.acquire(blocking=False)

    @property
    def answering(self) -> bool:
        return any(reply.state in OPEN for reply in self.replies.values())

    @property
    def diverged(self) -> int | None:
        """The first token in which the answers differ; None while there is none."""
        from sab.chat import first_divergence

        left, right = (list(self.replies[side].events) for side in SIDES)
        return first_divergence(left, right)


@dataclass
class Finding:
    """The search for the layers that made the difference in one turn (see `viz.pages.differ`): which `side` is
    examined, at which token `place` (None: no token differs), the swaps so far, and how it stands."""

    turn: Turn
    side: str
    place: int | None
    swaps: list[Swap] = field(default_factory=list)
    total: int = 0
    state: str = WAITING
    message: str = ""
    stop: threading.Event = field(default_factory=threading.Event)


class Conversation:
    """One visitor's questions about one picture. Methods may be called from several threads."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(18)
        self.picture: Image.Image | None = None
        self.thumbnail: str | None = None
        self.turns: list[Turn] = []
        self.stop = threading.Event()
        self.editing = False  # the visitor is writing the last question anew
        self.finding: Finding | None = None
        self.fitting = ""  # the job that fits one layer anew
        self._guard = threading.Lock()

    @property
    def answering(self) -> bool:
        return bool(self.turns) and self.turns[-1].answering

    def ask(
        self,
        prompt: object,
        picture: Image.Image | None,
        runs: dict[str, str],
        settings: Settings,
        gate: Gate,
    ) -> bool:
        """Add a question to both sides, or put it in the place of the last one when that is being edited; a picture
        other than before starts anew. True when it did.

        Raises SabError, and changes nothing, for an empty or too long question, while an answer is being written,
        and after MOST_TURNS questions.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise SabError("Write a question first; the box is empty.")
        if len(prompt) > LONGEST_PROMPT:
            raise SabError(f"The question has {len(prompt)} characters; shorten it to {LONGEST_PROMPT}.")
        with self._guard:
            self._refuse_while_answering()
            fresh = bool(self.turns) and not same_picture(picture, self.picture)
            if not fresh and len(self.turns) - self.editing >= MOST_TURNS:
                raise SabError(f"This conversation has {MOST_TURNS} questions; press Clear to start another.")
            if self.editing and self.turns and not fresh:
                self.turns.pop()
            self.editing = False
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
            self.editing = False
            if not self.turns:
                raise SabError("There is no question yet to answer again.")
            self._refuse_while_answering()
            self.stop.clear()
            last = self.turns[-1]
            replies = {side: Reply(runs[side]) for side in SIDES}
            self.turns[-1] = Turn(last.prompt, settings, replies, gate.join(), last.attempt + 1)

    def branch(self, side: object, place: object, token: object, gate: Gate) -> None:
        """Let one side go on from token number `place` of its last answer with `token` instead, which must be one of
        the candidates that the page shows there. The other side's answer stays.

        Raises SabError, and changes nothing, for anything else and while an answer is being written.
        """
        with self._guard:
            self._refuse_while_answering()
            last = self.turns[-1] if self.turns else None
            if last is None or side not in SIDES or type(place) is not int or type(token) is not int:
                raise SabError("Choose a token of the last answer to go on from.")
            mine = last.replies[str(side)]
            if not 0 <= place < len(mine.events) or token not in candidates(last, str(side), place):
                raise SabError("Choose one of the candidates that are shown at a token of the last answer.")
            self.stop.clear()
            begun = (*mine.tokens[:place], token)
            settings = replace(last.settings, max_new_tokens=max(last.settings.max_new_tokens, place + 1))
            other = replace(last.replies[other_side(str(side))], readings=[], claimed=True)
            replies = {
                str(side): Reply(mine.run, events=list(mine.events[:place]), begun=begun),
                other_side(str(side)): other,
            }
            self.turns[-1] = Turn(last.prompt, settings, replies, gate.join(sides=1), last.attempt)

    def clear(self) -> None:
        """Forget everything; a running answer ends."""
        with self._guard:
            self.stop.set()
            self.editing = False
            self.turns = []
            self.picture = self.thumbnail = None

    def claim(self, side: str) -> Turn | None:
        """The turn whose answer on this side nobody writes yet, now the caller's; None when there is none."""
        with self._guard:
            if not self.turns or self.turns[-1].replies[side].claimed:
                return None
            self.turns[-1].replies[side].claimed = True
            return self.turns[-1]

    def _refuse_while_answering(self) -> None:
        if self.answering:
            raise SabError("The last question is still being answered; wait or press Stop.")

    def messages(self, side: str, turn: Turn) -> list[dict[str, str]]:
        """What this side's model reads: the system prompt, its own earlier answers, then the question of `turn`."""
        said: list[dict[str, str]] = []
        if turn.settings.system:
            said.append({"role": "system", "content": turn.settings.system})
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


def other_side(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def candidates(turn: Turn, side: str, place: int) -> set[int]:
    """Ids of the tokens that the page shows at one place of a side's answer: both models' likeliest ones, and what
    the other side took there if nothing before it differs."""
    mine, theirs = turn.replies[side], turn.replies[other_side(side)]
    found = {mine.events[place].token_id, *mine.events[place].top_ids}
    if place < len(mine.readings):
        found.update(mine.readings[place].other.top_ids)
    if place < len(theirs.events) and mine.tokens[:place] == theirs.tokens[:place]:
        found.update((theirs.events[place].token_id, *theirs.events[place].top_ids))
    return found


def answer_view(turn: Turn, side: str, start: int = 0) -> dict[str, Any]:
    """One answer from token `start` on, as the page shows it."""
    reply = turn.replies[side]
    readings = list(reply.readings)
    tokens = [token_view(event) for event in reply.events[start:]]
    for token, reading in zip(tokens, readings[start:], strict=False):
        token["kl"] = round(reading.kl, 6)
        token["other"] = candidate_rows(reading.other)
    return {
        "state": reply.state,
        "message": reply.message,
        "facts": speed_facts(reply.events[max(0, len(reply.begun) - 1) :]),
        "tokens": tokens,
        "ended": reply.ended,
        "diverged": turn.diverged,
        "forced": len(reply.begun) - 1 if reply.begun else None,
    }


def token_view(event: TokenEvent) -> dict[str, Any]:
    """One token as the page shows it: text, id, probability, and the likeliest candidates."""
    return {
        "text": event.text,
        "id": event.token_id,
        "prob": round(math.exp(event.logprob), 5),
        "top": candidate_rows(event),
    }


def candidate_rows(score: TokenEvent | TokenScore) -> list[list[Any]]:
    """Text, probability and id of the likeliest tokens."""
    return [[text, round(share, 5), token] for (text, share), token in zip(score.top, score.top_ids, strict=True)]


def speed_facts(events: Sequence[TokenEvent]) -> list[list[str]]:
    """Time to the first token and tokens per second after it, as label and value."""
    if not events:
        return []
    facts = [["first token", f"{events[0].seconds:.2f} s"]]
    elapsed = events[-1].seconds - events[0].seconds
    if len(events) > 1 and elapsed > 0:
        facts.append(["speed", f"{(len(events) - 1) / elapsed:.0f} tokens/s"])
    return facts


class Conversations:
    """The conversations of all visitors, the least recently used forgotten first."""

    def __init__(self, most: int = 200) -> None:
        self._most = most
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._guard = threading.Lock()

    def find(self, identifier: object) -> Conversation:
        """The conversation of that id; an empty one that nobody keeps when it is unknown or forgotten, so that looking
        pushes no other visitor's out."""
        with self._guard:
            found = self._kept.get(identifier) if isinstance(identifier, str) else None
            if found is None:
                return Conversation()
            self._kept.move_to_end(found.id)
            return found

    def get(self, identifier: object) -> Conversation:
        """The conversation of that id, or a new one, kept, when it is unknown or forgotten."""
        with self._guard:
            found = self._kept.get(identifier) if isinstance(identifier, str) else None
            if found is None:
                found = Conversation()
                self._kept[found.id] = found
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(found.id)
            return found
