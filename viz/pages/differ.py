"""Why did they differ: the layers that move the binarized side's next token away from full precision.

The search (`sab.attribution`) reads one text: the conversation as the full-precision side has read it (the left side's
where neither is), and that side's answer. It waits its turn in the same line as the questions, can be stopped, and
fills the map as it goes. A cell of the map opens its layer: how the picture's tokens feed it, the way to Explore, and
a form that has this one layer fitted anew by the worker, after which both sides answer again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from sab.errors import SabError
from viz.pages.answering import place_in_line, queued
from viz.pages.conversation import (
    DONE,
    FAILED,
    OPEN,
    SIDES,
    STOPPED,
    WRITING,
    Conversation,
    Conversations,
    Finding,
    Turn,
)
from viz.pages.gate import Gate
from viz.pages.pictures import data_url
from viz.pages.shared import script_tags
from viz.pages.sides import model_of, runs_of, side_name
from viz.pages.store import Store

if TYPE_CHECKING:
    from sab.attribution import Swap
    from sab.models import LVLM

PAUSE = 1 / 8  # seconds between two drawings of the map
SHORT = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up"}
SHORT |= {"down_proj": "down", "qkv": "qkv", "proj": "out"}
WHOLE = "all"

log = logging.getLogger(__name__)


def panel(elem_id: str) -> gr.HTML:
    """The card. It sends `find` {"side"}, `halt`, `layer` {"names"} and `refit` {"name", "method", "top"}; output
    `view(...)` to it, and `gr.HTML(refit=...)` while a layer is fitted anew."""
    return gr.HTML(
        value=None,
        html_template='<section class="df" aria-label="Why did they differ?" hidden></section>',
        js_on_load="SabLens.mountDiffer({element, props, watch, find: (data) => trigger('find', data), "
        "halt: (data) => trigger('halt', data), layer: (data) => trigger('layer', data), "
        "refit: (data) => trigger('refit', data)});",
        head=script_tags("differ.js"),
        apply_default_css=False,
        elem_id=elem_id,
        layer=None,
        refit=None,
    )


def connect(store: Store, conversations: Conversations, gate: Gate, card: gr.HTML, key: gr.HTML) -> None:
    """Let the card do what it offers; `key` holds the id of the visitor's conversation."""

    def find(event: gr.EventData, identifier: str) -> Iterator[Any]:
        conversation = conversations.find(identifier)
        sent = event._data if isinstance(event._data, dict) else {}
        try:
            finding = begin(conversation, sent.get("side"))
        except SabError as error:
            yield view(store, conversation, str(error))
            return
        for _ in search(store, conversation, finding, gate):
            yield view(store, conversation)

    def halt(identifier: str) -> None:
        conversation = conversations.find(identifier)
        if conversation.finding is not None:
            conversation.finding.stop.set()
        job = store.jobs.get(conversation.fitting)
        if job is not None:
            store.jobs.stop(job)

    def layer(event: gr.EventData, identifier: str) -> Any:
        sent = event._data if isinstance(event._data, dict) else {}
        return gr.HTML(layer=layer_view(store, conversations.find(identifier), sent.get("names")))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    card.find(find, key, card, concurrency_id="chat", **quiet)
    card.halt(halt, key, None, queue=False, **quiet)
    card.layer(layer, key, card, queue=False, **quiet)


def begin(conversation: Conversation, side: object) -> Finding:
    """A new search on the last turn. Raises SabError, in one sentence, where there is nothing to search."""
    turn = conversation.turns[-1] if conversation.turns else None
    if turn is None or turn.answering:
        raise SabError("Wait until both sides have answered.")
    running = conversation.finding
    if running is not None and running.turn is turn and running.state in OPEN:
        raise SabError("The layers are being searched already.")
    sides = examined(turn)
    if not sides:
        raise SabError("Both sides are full precision, so there is nothing to attribute; choose a run for one side.")
    if side is not None and side not in sides:
        raise SabError("This side is full precision; choose the other one.")
    if not turn.replies[reference(turn)].events:
        raise SabError("There is no answer to compare the models on; press Regenerate.")
    conversation.finding = Finding(turn, str(side or sides[-1]), turn.diverged)
    return conversation.finding


def examined(turn: Turn) -> list[str]:
    """The sides whose layers may be searched: those that are not full precision."""
    return [side for side in SIDES if turn.replies[side].run]


def reference(turn: Turn) -> str:
    """The side whose text both models read: full precision where there is one, else the left."""
    return next((side for side in SIDES if not turn.replies[side].run), SIDES[0])


def search(store: Store, conversation: Conversation, finding: Finding, gate: Gate) -> Iterator[None]:
    """Fill the finding; yields whenever it is time to draw."""
    from sab import attribution

    ticket = gate.join(sides=1)
    inside = False
    turn, read = finding.turn, reference(finding.turn)
    try:
        for ahead in queued(gate, ticket, finding.stop):
            inside = not ahead
            finding.message = place_in_line(ahead) if ahead else ""
            yield
        if not inside:
            finding.state, finding.message = STOPPED, "Stopped before it began."
            return
        finding.state = WRITING
        full, binarized = store.lvlm, model_of(store, turn.replies[finding.side].run)
        groups = attribution.swap_groups(full, binarized)
        finding.total = 1 + 2 * len(groups)
        inputs = full.prepare(conversation.messages(read, turn), conversation.picture)
        shown = 0.0
        for swap in attribution.attribute(full, binarized, inputs, turn.replies[read].tokens, groups, finding.stop):
            finding.swaps.append(swap)
            if time.monotonic() - shown >= PAUSE:
                shown = time.monotonic()
                yield
        stopped = len(finding.swaps) < finding.total
        finding.state = STOPPED if stopped else DONE
        finding.message = "Stopped: what was swapped by then stays." if stopped else ""
    except SabError as error:
        finding.state, finding.message = FAILED, str(error)
    except Exception:
        log.exception("searching the layers that made the difference")
        finding.state, finding.message = FAILED, "The search failed inside the app; press the button to try again."
    finally:
        if finding.state in OPEN:  # the visitor has gone
            finding.state, finding.message = STOPPED, "The page was closed meanwhile; search again."
        if inside:
            gate.leave(ticket)
    yield


def view(store: Store, conversation: Conversation, refusal: str = "") -> dict[str, Any]:
    """What the card shows of the last turn: whether a search is possible, and what it has found."""
    turn = conversation.turns[-1] if conversation.turns else None
    if turn is None:
        return {"state": "hidden"}
    finding = conversation.finding
    found = finding if finding is not None and finding.turn is turn else None
    sides = examined(turn)
    shown: dict[str, Any] = {
        "state": found.state if found else "idle",
        "message": refusal or (found.message if found else idle_message(turn)),
        "ready": bool(sides) and not turn.answering and bool(turn.replies[reference(turn)].events),
        "sides": [[side, side_name(store, turn.replies[side].run)] for side in sides],
        "side": found.side if found else sides[-1] if sides else "",
        "diverged": turn.diverged is not None,
        "histories": turn is not conversation.turns[0],
    }
    if found and found.swaps:
        shown |= map_view(store, found)
    return shown


def idle_message(turn: Turn) -> str:
    """What can be searched before anybody has asked."""
    if not examined(turn):
        return "Both sides are full precision: there is nothing to attribute. Choose a run for one side."
    if turn.answering:
        return ""
    if turn.diverged is None:
        return "No token differs. The layers can still be ranked by the mean KL along the answer."
    return ""


def map_view(store: Store, finding: Finding) -> dict[str, Any]:
    """The map: rows are blocks, columns linears; each cell the KL left or caused, at the token and on average."""
    lvlm = store.lvlm
    place = finding.place
    read = finding.turn.replies[reference(finding.turn)]
    whole = finding.swaps[0].kl
    cells: dict[tuple[str, ...], dict[str, Any]] = {}
    for swap in finding.swaps[1:]:
        cell = cells.setdefault(swap.names, cell_view(lvlm, swap.names))
        cell[swap.direction] = figures(swap, place)
    kinds = dict.fromkeys(lvlm.info[name].kind for name in lvlm.linears if (name,) in cells)
    columns = [*kinds, *([WHOLE] if any(len(names) > 1 for names in cells) else [])]
    return {
        "share": len(finding.swaps) / max(1, finding.total),
        "token": None if place is None else place + 1,
        "words": None if place is None else [word(finding.turn.replies[side].events[place].text) for side in SIDES],
        "read": read.text.strip(),
        "whole": figures(finding.swaps[0], place),
        "tokens": len(whole),
        "run": [run.id for run in runs_of(store, finding.turn.replies[finding.side].run)],
        "name": side_name(store, finding.turn.replies[finding.side].run),
        "columns": [[kind, SHORT.get(kind, kind)] for kind in columns],
        "rows": list(dict.fromkeys(cell["row"] for cell in cells.values())),
        "cells": list(cells.values()),
    }


def cell_view(lvlm: LVLM, names: Sequence[str]) -> dict[str, Any]:
    """Where a swap stands on the map: a linear by itself, or a whole block."""
    info = lvlm.info[names[0]]
    part = "block" if info.part == "decoder" else info.part
    row = f"{part} {info.block}" if info.block >= 0 else part
    return {"names": list(names), "row": row, "column": info.kind if len(names) == 1 else WHOLE}


def figures(swap: Swap, place: int | None) -> list[float | None]:
    """KL in nats at the token that differs (None where there is none), and its mean over the answer."""
    at = None if place is None or place >= len(swap.kl) else round(float(swap.kl[place]), 7)
    return [at, round(float(swap.kl.mean()), 7)]


def word(text: str) -> str:
    """A token's text as a person can see it."""
    return text.strip() or ("space" if text else "the end")


def layer_view(store: Store, conversation: Conversation, names: object) -> dict[str, Any] | None:
    """One layer of the map: how the picture's tokens feed it, and what it may be fitted with anew. None for what is not
    on the map."""
    from sab import attribution
    from sab.binarizers import METHODS

    finding = conversation.finding
    if finding is None or not isinstance(names, list) or len(names) != 1 or not finding.swaps:
        return None
    if not any(swap.names == tuple(names) for swap in finding.swaps):
        return None
    name = names[0]
    turn, read = finding.turn, reference(finding.turn)
    run = next(run for run in reversed(runs_of(store, turn.replies[finding.side].run)) if name in run.reports)
    report = run.reports[name]
    shown: dict[str, Any] = {
        "name": name,
        "run": run.id,
        "facts": [
            ["fitted by", run.name],
            ["relative error", f"{report.relative_loss:.3f}"],
            ["bits all-in", f"{report.bits_all_in:.2f}"],
        ],
        "feed": None,
        "methods": [[method, each.label, each.uses_significance] for method, each in METHODS.items()],
        "method": run.recipe.method,
        "top": run.recipe.thresholds.salient_top_p,
    }
    if conversation.picture is None or name not in store.lvlm.decoder_linears:
        return shown
    full, binarized = store.lvlm, model_of(store, turn.replies[finding.side].run)
    inputs = full.prepare(conversation.messages(read, turn), conversation.picture)
    grid = full.picture_grid(inputs)
    probe = attribution.Probe(binarized, inputs, turn.replies[read].tokens)
    weights = full.linears[name].weight, binarized.linears[name].weight
    found = attribution.feed(probe, *weights, name)
    if grid is None or found is None:
        return shown
    picture = conversation.picture.copy()
    picture.thumbnail((448, 448))
    shown["feed"] = {
        "grid": list(grid),
        "picture": data_url(picture),
        "error": [round(value, 5) for value in found.error.tolist()],
        "signal": [round(value, 5) for value in found.signal.tolist()],
        "error_share": found.error_share,
        "signal_share": found.signal_share,
    }
    return shown
