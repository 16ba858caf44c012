"""Writing the answers of the chat: one generator per side, in turn with the other visitors.

When both sides have ended, each model reads the other's answer too (teacher forcing, one pass each): for every token
of an answer the page then knows both models' candidates, also behind the first difference, and the distance of the
two distributions, KL(P ‖ Q) in nats. P is the full-precision model where one side is, else the left one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from sab.errors import SabError
from viz.pages.conversation import (
    DONE,
    FAILED,
    LOADING,
    OPEN,
    SIDES,
    STOPPED,
    WRITING,
    Conversation,
    Conversations,
    Reading,
    Turn,
    other_side,
)
from viz.pages.gate import Gate, Ticket
from viz.pages.sides import answering_model
from viz.pages.store import Store

PAUSE = 1 / 15  # seconds between two drawings of a stream
ASK_AGAIN = 0.25  # seconds between two looks at the line, where nobody leaves it
LEFT_EARLY = "The page was closed or reloaded while this was written; Regenerate answers anew."

log = logging.getLogger(__name__)


def queued(gate: Gate, ticket: Ticket, stop: threading.Event) -> Iterator[int]:
    """Wait for one's turn, yielding how many come before; ends with 0 when it is one's turn (`gate.leave` must follow),
    and without it when `stop` is set."""
    while not stop.is_set():
        ahead = gate.ahead(ticket)
        yield ahead
        if not ahead:
            return
        gate.wait(ASK_AGAIN)


def place_in_line(ahead: int) -> str:
    """What a waiting visitor reads."""
    return f"Waiting: {ahead} {'question' if ahead == 1 else 'questions'} before yours."


def answering(store: Store, conversations: Conversations, gate: Gate, side: str) -> Callable[[str], Iterator[Any]]:
    """The generator that answers the last question on one side."""

    def answer(identifier: str) -> Iterator[Any]:
        conversation = conversations.get(identifier)
        turn = conversation.claim(side)
        if turn is None:
            yield gr.skip()
            return
        reply = turn.replies[side]

        def drawn() -> Any:
            changed: dict[str, Any] = {f"{side}_news": conversation.news(side) if conversation.turns else None}
            return gr.HTML(**changed)

        inside = False
        try:
            for ahead in queued(gate, turn.ticket, conversation.stop):
                inside = not ahead
                if ahead:
                    reply.message = place_in_line(ahead)
                    yield drawn()
            if inside:
                reply.state, reply.message = LOADING, "" if store.loaded else "Loading the model…"
                yield drawn()
                for _ in written(store, conversation, turn, side):
                    yield drawn()
                yield drawn()
                read_each_other(store, conversation, turn)
            else:
                reply.state, reply.message = STOPPED, "Stopped."
        except SabError as error:
            reply.state, reply.message = FAILED, str(error)
        except GeneratorExit:  # the visitor has gone: nobody reads the other side either
            conversation.stop.set()
            reply.message = LEFT_EARLY
            raise
        except Exception:
            log.exception("answering on the %s side", side)
            reply.state = FAILED
            reply.message = (
                "This answer failed inside the app; the conversation is kept. Press Regenerate to try again."
            )
        finally:
            if reply.state in OPEN:
                reply.state = STOPPED
            if inside:
                gate.leave(turn.ticket)
        yield drawn()

    return answer


def written(store: Store, conversation: Conversation, turn: Turn, side: str) -> Iterator[None]:
    """Fill the reply of one side; yields whenever it is time to draw again."""
    from sab import chat

    reply = turn.replies[side]
    lvlm = answering_model(store, reply.run)
    reply.state, reply.message = WRITING, ""
    shown = 0.0
    for event in chat.stream(
        lvlm,
        conversation.messages(side, turn),
        conversation.picture,
        max_new_tokens=turn.settings.max_new_tokens,
        temperature=turn.settings.temperature,
        seed=turn.settings.seed + turn.attempt,
        stop=conversation.stop,
        begun=reply.begun,
    ):
        reply.events.append(event)
        reply.ended = event.token_id in lvlm.end_tokens
        now = time.monotonic()
        if now - shown >= PAUSE:
            shown = now
            yield
    if reply.ended:
        reply.state = DONE
    elif conversation.stop.is_set():
        reply.state, reply.message = STOPPED, "Stopped."
    else:
        reply.state, reply.message = DONE, f"Cut at {turn.settings.max_new_tokens} tokens."


def read_each_other(store: Store, conversation: Conversation, turn: Turn) -> None:
    """Let both models read both answers, once both have ended: fills the readings of each."""
    if not turn.claim_reading():
        return
    from sab.chat import answer_logprobs, token_score
    from sab.evaluate import token_kl

    models = {side: answering_model(store, turn.replies[side].run) for side in SIDES}
    first = SIDES[0] if not turn.replies[SIDES[0]].run or turn.replies[SIDES[1]].run else SIDES[1]
    for side in SIDES:
        reply, other = turn.replies[side], other_side(side)
        if not reply.events or reply.state == FAILED:
            continue
        messages = conversation.messages(side, turn)
        try:
            rows = {
                each: answer_logprobs(lvlm, messages, conversation.picture, reply.tokens)
                for each, lvlm in models.items()
            }
        except SabError:  # an answer that cannot be read again is shown without
            continue
        distances = token_kl(rows[first], rows[other_side(first)]).tolist()
        reply.readings = [
            Reading(kl, token_score(models[other], row, token))
            for kl, row, token in zip(distances, rows[other], reply.tokens, strict=True)
        ]
