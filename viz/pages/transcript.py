"""A conversation as a file: JSON with every token, and Markdown to read."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import gradio as gr

from viz.pages.conversation import SIDES, Conversation, Reply, Turn
from viz.pages.pictures import data_url
from viz.pages.shared import script_tags
from viz.pages.sides import runs_of, side_name
from viz.pages.store import Store


def courier(elem_id: str) -> gr.HTML:
    """An invisible component; output `parcel(...)` to it and the browser saves the file, which lies on no disk here."""
    return gr.HTML(
        value=None,
        html_template="<span hidden></span>",
        js_on_load="watch('value', () => props.value && SabLens.save(props.value.text, props.value.name, "
        "props.value.type));",
        head=script_tags(),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes="sab-signal",
    )


def parcel(text: str, name: str, kind: str) -> dict[str, Any]:
    """A text file for `courier`; the time makes the same file, asked for twice, a new one."""
    return {"text": text, "name": name, "type": kind, "at": time.time()}


def as_json(store: Store, conversation: Conversation) -> str:
    """Everything: questions, settings, both answers token by token with the clock of the server."""
    return json.dumps(
        {
            "model": store.model_name,
            "fingerprint": store.lvlm.fingerprint,
            "exported_at": time.time(),
            "picture": None if conversation.picture is None else data_url(conversation.picture),
            "turns": [
                {
                    "question": turn.prompt,
                    "settings": vars(turn.settings) | {"regenerated": turn.attempt},
                    "first_difference": turn.diverged,
                    **{side: _reply(store, turn.replies[side]) for side in SIDES},
                }
                for turn in list(conversation.turns)
            ],
        },
        indent=1,
        ensure_ascii=False,
    )


def _reply(store: Store, reply: Reply) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = [
        {
            "text": event.text,
            "id": event.token_id,
            "logprob": event.logprob,
            "candidates": [{"text": text, "probability": share} for text, share in event.top],
            "seconds": event.seconds,
            "at": event.at,
        }
        for event in list(reply.events)
    ]
    for token, reading in zip(tokens, list(reply.readings), strict=False):
        token["kl"] = reading.kl
        token["logprob_other"] = reading.other.logprob
        token["candidates_other"] = [{"text": text, "probability": share} for text, share in reading.other.top]
    return {
        "model": side_name(store, reply.run),
        "runs": [run.id for run in runs_of(store, reply.run)],
        "state": reply.state,
        "message": reply.message,
        "chosen_token": len(reply.begun) - 1 if reply.begun else None,
        "text": reply.text,
        "tokens": tokens,
    }


def as_markdown(store: Store, conversation: Conversation) -> str:
    """Questions and answers, and where these part."""
    lines = [f"# A conversation with {store.model_name}", ""]
    if conversation.picture is not None:
        lines += [f"About a picture of {conversation.picture.width} × {conversation.picture.height} pixels.", ""]
    for number, turn in enumerate(list(conversation.turns), 1):
        if turn.settings.system and number == 1:
            lines += [f"System prompt: {_plain(turn.settings.system)}", ""]
        lines += [f"## {number}. {_plain(turn.prompt)}", ""]
        for side in SIDES:
            reply = turn.replies[side]
            lines += [f"**{_plain(side_name(store, reply.run))}** ({side}): {_plain(reply.text.strip()) or '—'}", ""]
        lines += [_verdict(turn), ""]
    return "\n".join(lines)


def _verdict(turn: Turn) -> str:
    place = turn.diverged
    if place is None:
        return "No token differs."
    words = [
        f"“{turn.replies[side].events[place].text or 'end'}” ({math.exp(turn.replies[side].events[place].logprob):.0%})"
        for side in SIDES
    ]
    return _plain(f"First difference at token {place + 1}: {words[0]} against {words[1]}.")


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in " ".join(text.split()))
