"""Chat: ask both models about one picture and see where their answers part.

One event writes the question down, then two generators stream the answers, one per side, each at its own pace; both
write to the same view, which the browser merges. What was said stays on the server (`viz.pages.conversation`); the
tab of the browser remembers the conversation's id, so that a reload loses nothing. A newcomer finds a picture on the
canvas and a question in the box: one press shows two streams.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from sab.demo.words import COLOURS
from sab.errors import SabError
from viz.pages.conversation import (
    DONE,
    FAILED,
    LOADING,
    SIDES,
    STOPPED,
    WAITING,
    WRITING,
    Conversation,
    Conversations,
    Gate,
    Settings,
    Turn,
    data_url,
    picture_from_url,
)
from viz.pages.examples import examples
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.opened import when_opened
from viz.pages.samples import Samples, samples
from viz.pages.shared import Shared, script_tags
from viz.pages.signal import selection_signal, signalled
from viz.pages.sketch import sketch
from viz.pages.store import Bounded, Store

FULL = "Full precision"
PAUSE = 1 / 15  # seconds between two drawings of a stream
LEFT_EARLY = "The page was closed or reloaded while this was written; Regenerate answers anew."
TEMPLATE = (
    '<div class="cv empty"><div class="cv-heads"></div>'
    '<div class="cv-log" role="log" aria-live="off"></div>'
    '<p class="cv-hint">Press Send: both models answer at the same time, and the first token that differs is marked. '
    "Point at a token to see what else could have come there.</p></div>"
)

log = logging.getLogger(__name__)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    conversations = Conversations()
    gate = Gate()
    gallery = Bounded(1)

    def offered() -> Samples:
        return gallery.get("samples", samples)

    with gr.Row(elem_id="chat", equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_id="chat-picture"):
            picture = sketch(COLOURS, "sketch")
        with gr.Column(scale=8, min_width=340, elem_id="chat-main"):
            with gr.Row(elem_id="chat-models"):
                left = gr.Dropdown([(FULL, "")], value="", label="Left", elem_id="chat-left", min_width=140)
                right = gr.Dropdown([(FULL, "")], value="", label="Right", elem_id="chat-right", min_width=140)
            view = gr.HTML(
                value=None,
                html_template=TEMPLATE,
                js_on_load="SabLens.mountConversation({element, props, watch});",
                head=script_tags("conversation.js"),
                apply_default_css=False,
                elem_id="conversation",
                questions=[],
                left=None,
                right=None,
                left_news=None,
                right_news=None,
            )
            tried = examples("chat-examples")
            with gr.Row(elem_id="chat-ask", equal_height=True):
                prompt = gr.Textbox(
                    show_label=False,
                    placeholder="Ask about the picture, or anything without one",
                    lines=1,
                    max_lines=6,
                    max_length=2000,
                    container=False,
                    scale=8,
                    min_width=180,
                    elem_id="chat-prompt",
                )
                send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="chat-send")
            said = notice("chat-notice")
            with gr.Row(elem_id="chat-actions"):
                stop = gr.Button(
                    "Stop (Esc)", variant="stop", size="sm", min_width=100, interactive=False, elem_id="chat-stop"
                )
                again = gr.Button("Regenerate", size="sm", min_width=100, interactive=False, elem_id="chat-again")
                clear = gr.Button("Clear", size="sm", min_width=100, elem_id="chat-clear")
            with gr.Accordion("How they answer", open=False, elem_id="chat-settings"), gr.Row():
                length = gr.Slider(8, 256, value=64, step=8, label="Longest answer, tokens", elem_id="chat-length")
                temperature = gr.Slider(
                    0.0, 1.5, value=0.0, step=0.1, label="Temperature", info="0: always the likeliest token"
                )
                seed = gr.Number(value=0, precision=0, label="Seed", minimum=0, maximum=2**31 - 1)

    key = memory("conversation", tab=True)
    followed = gr.State("")
    asked = [left, right, length, temperature, seed]

    def choices(event: gr.EventData, followed: str) -> tuple[Any, Any, str]:
        """Both lists of models; the right side follows the run chosen in the header."""
        selection = signalled(store, event)
        names = [(FULL, ""), *model_names(store)]
        if selection.run == followed:
            return gr.Dropdown(choices=names), gr.Dropdown(choices=names), followed
        return gr.Dropdown(choices=names), gr.Dropdown(choices=names, value=selection.run), selection.run

    def show(conversation: Conversation, message: str = "") -> dict[Any, Any]:
        """The outputs of an event that changed the questions."""
        sides: dict[str, Any] = {side: side_view(store, conversation, side) for side in SIDES}
        return {
            key: conversation.id,
            view: gr.HTML(questions=conversation.questions(), **sides),
            said: message,
            stop: gr.Button(interactive=conversation.answering),
            send: gr.Button(interactive=not conversation.answering),
            again: gr.Button(interactive=bool(conversation.turns) and not conversation.answering),
        }

    def begin(
        identifier: str, drawn: object, text: object, one: str, other: str, most: float, heat: float, number: float
    ) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        try:
            runs = {"left": checked_run(store, one), "right": checked_run(store, other)}
            settings = checked_settings(most, heat, number)
            fresh = conversation.ask(text, picture_from_url(drawn), runs, settings, gate)
        except SabError as error:
            return {key: conversation.id, said: str(error)}
        message = "A new picture: this is a new conversation." if fresh else ""
        return show(conversation, message) | {prompt: ""}

    def begin_example(
        event: gr.EventData,
        identifier: str,
        drawn: object,
        written: object,
        one: str,
        other: str,
        most: float,
        heat: float,
        number: float,
    ) -> dict[Any, Any]:
        shown = begin(identifier, drawn, sent(event).get("text"), one, other, most, heat, number)
        if not offered().suggested(str(written)):
            shown.pop(prompt, None)  # what the visitor has begun to write stays
        return shown

    def repeat(identifier: str, one: str, other: str, most: float, heat: float, number: float) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        try:
            runs = {"left": checked_run(store, one), "right": checked_run(store, other)}
            conversation.again(runs, checked_settings(most, heat, number), gate)
        except SabError as error:
            return {key: conversation.id, said: str(error)}
        return show(conversation)

    def forget(identifier: str) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        conversation.clear()
        return show(conversation)

    def finish(identifier: str) -> dict[Any, Any]:
        return show(conversations.get(identifier)) if identifier else {}

    def halt(identifier: str) -> None:
        conversations.get(identifier).stop.set()

    def heads(identifier: str, one: str, other: str) -> Any:
        """Before the first question: who will answer on each side."""
        if conversations.get(identifier).turns:
            return gr.skip()
        try:
            named = {"left": checked_run(store, one), "right": checked_run(store, other)}
            changed: dict[str, Any] = {side: model_head(store, run) | {"turns": []} for side, run in named.items()}
        except SabError:
            return gr.skip()
        return gr.HTML(**changed)

    def on_canvas(event: gr.EventData, written: object) -> tuple[Any, Any]:
        """Questions that fit what lies on the canvas; the first replaces a suggestion, never a visitor's own words."""
        found = fitting(offered(), sent(event))
        text = str(written or "")
        stays = text in found or (text.strip() and not offered().suggested(text))
        first = sent(event).get("kind") == "sample" or text.strip()
        return gr.skip() if stays or not first else found[0], gr.HTML(questions=list(found))

    def opened() -> tuple[Any, Any, Any]:
        found = offered()
        pictures = [{"picture": data_url(each.picture), "note": each.note} for each in found.pictures]
        first = found.pictures[0].questions
        return gr.HTML(samples=pictures), first[0], gr.HTML(questions=list(first))

    def restore(identifier: str) -> dict[Any, Any]:
        """After a reload: what was said, and the picture it was said about."""
        conversation = conversations.get(identifier)
        shown = show(conversation)
        if conversation.turns:
            kept = conversation.picture  # the canvas sends this very text back, and its pixels are the same
            shown |= {picture: gr.HTML(restored="" if kept is None else data_url(kept)), prompt: ""}
        return shown

    def watch(identifier: str) -> Iterator[dict[Any, Any]]:
        """What is still being written after a reload, to its end."""
        conversation = conversations.get(identifier)
        while conversation.answering:
            yield show(conversation)
            time.sleep(0.25)
        yield show(conversation)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    changed = [key, view, said, stop, send, again]
    for event in (
        send.click(begin, [key, picture, prompt, *asked], [*changed, prompt], queue=False, **quiet),
        prompt.submit(begin, [key, picture, prompt, *asked], [*changed, prompt], queue=False, **quiet),
        tried.select(begin_example, [key, picture, prompt, *asked], [*changed, prompt], queue=False, **quiet),
        again.click(repeat, [key, *asked], changed, queue=False, **quiet),
    ):
        streams = [
            event.then(
                answering(store, conversations, gate, side),
                key,
                view,
                concurrency_id="chat",
                concurrency_limit=40,
                **quiet,
            )
            for side in SIDES
        ]
        for stream in streams:
            stream.then(finish, key, changed, queue=False, **quiet)
    stop.click(halt, key, None, queue=False, **quiet)
    clear.click(forget, key, changed, queue=False, **quiet)
    picture.sample(on_canvas, prompt, [prompt, tried], queue=False, **quiet)
    selection_signal("chat").select(choices, followed, [left, right, followed], queue=False, **quiet).then(
        heads, [key, left, right], view, queue=False, **quiet
    )
    for choice in (left, right):
        choice.change(heads, [key, left, right], view, queue=False, **quiet)
    when_opened(fn=opened, outputs=[picture, prompt, tried], queue=False, **quiet)
    key.select(restore, key, [*changed, picture, prompt], queue=False, **quiet).then(
        watch, key, changed, concurrency_limit=None, **quiet
    )


def sent(event: gr.EventData) -> dict[str, Any]:
    """What a script sent with an event; an empty dictionary for anything else."""
    return event._data if isinstance(event._data, dict) else {}


def fitting(found: Samples, canvas: dict[str, Any]) -> tuple[str, ...]:
    """Example questions for a canvas {"kind": "sample" | "own" | "none", "index": number of the sample}."""
    index = canvas.get("index")
    if canvas.get("kind") == "sample" and type(index) is int and 0 <= index < len(found.pictures):
        return found.pictures[index].questions
    return found.without if canvas.get("kind") == "none" else found.about_any


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
            while not inside and not conversation.stop.is_set():
                ahead = gate.ahead(turn.ticket)
                inside = ahead == 0
                if not inside:
                    reply.message = f"Waiting: {ahead} {'question' if ahead == 1 else 'questions'} before yours."
                    yield drawn()
                    time.sleep(0.25)
            if inside:
                reply.state, reply.message = LOADING, "" if store.loaded else "Loading the model…"
                yield drawn()
                for _ in written(store, conversation, turn, side):
                    yield drawn()
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
            if reply.state in (WAITING, LOADING, WRITING):
                reply.state = STOPPED
            if inside:
                gate.leave(turn.ticket)
        yield drawn()

    return answer


def written(store: Store, conversation: Conversation, turn: Turn, side: str) -> Iterator[None]:
    """Fill the reply of one side; yields whenever it is time to draw again."""
    from sab import chat

    reply = turn.replies[side]
    lvlm = store.binarized(reply.run) if reply.run else store.lvlm
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


def side_view(store: Store, conversation: Conversation, side: str) -> dict[str, Any]:
    """Everything the page shows of one side: who answers, its weights, its answers."""
    run = conversation.turns[-1].replies[side].run if conversation.turns else None
    head = model_head(store, run) if run is not None else {"name": "", "tags": [], "facts": []}
    return head | {"turns": conversation.answers(side)}


def model_head(store: Store, run_id: str) -> dict[str, Any]:
    """Name, tags and weight memory of one side. `simulated`: binarized weights are held dequantized."""
    held = f"{weight_bytes(store) / 1e6:.1f} MB" if store.loaded else ""
    if not run_id:
        return {"name": FULL, "tags": [], "facts": [["weights in memory", held]] if held else []}
    run = store.run(run_id)
    tags = [f"{run.bits_all_in:.2f} bits all-in", f"{run.bits_nominal:.2f} nominal", "simulated"]
    facts = [["weights in memory", f"{held}, dequantized"]] if held else []
    return {"name": run.name, "tags": tags, "facts": [*facts, ["packed linears", f"{run.bytes / 1e6:.2f} MB"]]}


def model_names(store: Store) -> list[tuple[str, str]]:
    """Name and id of every run; runs of one name are told apart by their id."""
    runs = store.runs()
    names = [run.name for run in runs]
    return [(run.name if names.count(run.name) == 1 else f"{run.name} · {run.id}", run.id) for run in runs]


def weight_bytes(store: Store) -> int:
    """Bytes of all parameters of the model in memory; a simulated run takes as many."""
    return sum(each.numel() * each.element_size() for each in store.lvlm.model.parameters())


def checked_run(store: Store, run_id: object) -> str:
    """A run id that exists, or "" for full precision. Raises SabError for anything else."""
    if run_id in ("", None):
        return ""
    if not isinstance(run_id, str):
        raise SabError("Choose a model for each side from its list.")
    return store.run(run_id).id


def checked_settings(most: object, heat: object, number: object) -> Settings:
    """Settings as numbers of the right kind; their ranges are checked where they are used."""
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 1 <= most <= 512:
        raise SabError("The longest answer must lie between 1 and 512 tokens.")
    if isinstance(heat, bool) or not isinstance(heat, (int, float)) or not 0 <= heat <= 5:
        raise SabError("The temperature must lie between 0 and 5.")
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 2**31:
        raise SabError("The seed must be a whole number between 0 and 2147483647.")
    return Settings(int(most), float(heat), int(number))
