"""Chat: ask both models about one picture and see where their answers part.

One event writes the question down, then two generators stream the answers, one per side, each at its own pace; both
write to the same view, which the browser merges. What was said stays on the server (`viz.pages.conversation`); the
tab of the browser remembers the conversation's id, so that a reload loses nothing. A newcomer finds a picture on the
canvas and a question in the box: one press shows two streams.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gradio as gr

from sab.demo.words import COLOURS
from sab.errors import SabError
from viz import showcase
from viz.pages import differ, refit
from viz.pages.answering import answering
from viz.pages.bounded import Bounded
from viz.pages.conversation import DONE, LONGEST_PROMPT, LONGEST_SYSTEM, SIDES, Conversation, Conversations, Settings
from viz.pages.draft import draft, draft_text
from viz.pages.examples import examples, fitting
from viz.pages.examples import shown as shown_examples
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.opened import when_opened
from viz.pages.pictures import data_url, picture_from_url
from viz.pages.samples import Samples, samples
from viz.pages.selection import Selection
from viz.pages.shared import Shared, script_tags
from viz.pages.sides import FULL, answering_model, checked_side, runs_of, side_head, side_names
from viz.pages.signal import LATEST, on_selection
from viz.pages.sketch import sketch
from viz.pages.store import Store
from viz.pages.transcript import as_json, as_markdown, courier, parcel

NEVER_SEEN = "; the embedded model has never seen one in training"
NO_RUN = "There is no run of this model yet, so both sides are full precision: make one in Binarize."
TEMPLATE = (
    '<div class="cv empty"><div class="cv-heads"></div>'
    '<div class="cv-log" role="log" aria-live="off"></div>'
    '<p class="cv-hint">Press Send: both models answer at the same time, and the first token that differs is marked. '
    "Point at a token to see what else could have come there, press it to go on from another one.</p></div>"
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    conversations = Conversations()
    gate = store.gate
    gallery = Bounded(1)

    def offered() -> Samples:
        return gallery.get("samples", samples)

    with gr.Row(elem_id="chat", equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_id="chat-picture"):
            picture = sketch(COLOURS, "sketch", square=store.is_embedded)
        with gr.Column(scale=8, min_width=340, elem_id="chat-main"):
            with gr.Row(elem_id="chat-models"):
                left = gr.Dropdown([(FULL, "")], value="", label="Left", elem_id="chat-left", min_width=140)
                right = gr.Dropdown([(FULL, "")], value="", label="Right", elem_id="chat-right", min_width=140)
            view = gr.HTML(
                value=None,
                html_template=TEMPLATE,
                js_on_load="SabLens.mountConversation({element, props, watch, "
                "branch: (data) => trigger('branch', data)});",
                head=script_tags("candidates.js", "conversation.js"),
                apply_default_css=False,
                elem_id="conversation",
                questions=[],
                left=None,
                right=None,
                left_news=None,
                right_news=None,
            )
            tried = examples("chat-examples", "chat-prompt")
            with gr.Row(elem_id="chat-ask", equal_height=True):
                prompt = gr.Textbox(
                    show_label=False,
                    placeholder="Ask about the picture, or anything without one",
                    lines=1,
                    max_lines=6,
                    max_length=LONGEST_PROMPT,
                    container=False,
                    scale=8,
                    min_width=180,
                    elem_id="chat-prompt",
                )
                drafted = draft("chat-prompt")
                send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="chat-send")
            said = notice("chat-notice")
            with gr.Row(elem_id="chat-actions"):
                stop = gr.Button(
                    "Stop (Esc)", variant="stop", size="sm", min_width=100, interactive=False, elem_id="chat-stop"
                )
                again = gr.Button("Regenerate", size="sm", min_width=100, interactive=False, elem_id="chat-again")
                edit = gr.Button("Edit question", size="sm", min_width=100, interactive=False, elem_id="chat-edit")
                clear = gr.Button("Clear", size="sm", min_width=80, elem_id="chat-clear")
                as_data = gr.Button("JSON", size="sm", min_width=70, interactive=False, elem_id="chat-json")
                as_text = gr.Button("Markdown", size="sm", min_width=90, interactive=False, elem_id="chat-markdown")
            panel = differ.panel("differ")
            with gr.Accordion("How they answer", open=False, elem_id="chat-settings"):
                system = gr.Textbox(
                    value="",
                    label="System prompt",
                    info="stands before the conversation" + (NEVER_SEEN if store.is_embedded else ""),
                    lines=1,
                    max_lines=4,
                    max_length=LONGEST_SYSTEM,
                    elem_id="chat-system",
                )
                with gr.Row():
                    length = gr.Slider(8, 256, value=64, step=8, label="Longest answer, tokens", elem_id="chat-length")
                    temperature = gr.Slider(
                        0.0,
                        1.5,
                        value=0.0,
                        step=0.1,
                        label="Temperature",
                        info="0: always the likeliest token",
                        elem_id="chat-temperature",
                    )
                    seed = gr.Number(
                        value=0, precision=0, label="Seed", minimum=0, maximum=2**31 - 1, elem_id="chat-seed"
                    )
    post = courier("chat-post")

    key = memory("conversation", tab=True)
    followed = gr.State("")
    asked = [left, right, length, temperature, seed, system]

    def choices(selection: Selection, followed: str, one: str, other: str) -> tuple[Any, Any, str, Any]:
        """Both lists of models; the right side follows the run chosen in the header."""
        run = selection.run
        names = side_names(store, *{one or "", other or ""})
        hint = NO_RUN if len(names) == 1 else gr.skip() if followed else ""  # other sentences stay
        if run in (followed, one):
            return gr.Dropdown(choices=names), gr.Dropdown(choices=names), run, hint
        return gr.Dropdown(choices=names), gr.Dropdown(choices=names, value=run), run, hint

    def show(conversation: Conversation, message: str = "") -> dict[Any, Any]:
        """The outputs of an event that changed the questions."""
        sides: dict[str, Any] = {side: side_view(store, conversation, side) for side in SIDES}
        asked_before = bool(conversation.turns)
        resting = asked_before and not conversation.answering
        return {
            key: conversation.id,
            view: gr.HTML(questions=conversation.questions(), **sides),
            said: message,
            stop: gr.Button(interactive=conversation.answering),
            send: gr.Button("Send edited" if conversation.editing else "Send", interactive=not conversation.answering),
            again: gr.Button(interactive=resting),
            edit: gr.Button("Keep as it was" if conversation.editing else "Edit question", interactive=resting),
            as_data: gr.Button(interactive=asked_before),
            as_text: gr.Button(interactive=asked_before),
            panel: differ.view(store, conversation),
        }

    def read(one: object, other: object, *settings: object) -> tuple[dict[str, str], Settings]:
        return {"left": checked_side(store, one), "right": checked_side(store, other)}, checked_settings(*settings)

    def begin(identifier: str, drawn: object, text: object, *asked: object) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        try:
            fresh = conversation.ask(text, picture_from_url(drawn), *read(*asked), gate)
        except SabError as error:
            return {key: conversation.id, said: str(error)}
        message = "A new picture: this is a new conversation." if fresh else ""
        return show(conversation, message) | {drafted: draft_text("", over=text)}

    def begin_example(
        event: gr.EventData, identifier: str, drawn: object, written: object, *asked: object
    ) -> dict[Any, Any]:
        run = sent(event).get("right")
        if run is not None:
            asked = (asked[0], run, *asked[2:])
        if sent(event).get("next") is True:
            conversations.get(identifier).editing = False  # it follows the question that would be replaced
        shown = begin(identifier, drawn, sent(event).get("text"), *asked)
        if run is not None and view in shown:
            shown[right] = gr.Dropdown(value=run)
        if drafted in shown:  # a suggestion goes; what the visitor has begun to write stays
            suggested = offered().suggested(str(written))
            shown[drafted] = draft_text("", over=written) if suggested else gr.skip()
        return shown

    def repeat(identifier: str, *asked: object) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        try:
            conversation.again(*read(*asked), gate)
        except SabError as error:
            return {key: conversation.id, said: str(error)}
        return show(conversation)

    def turn_off(event: gr.EventData, identifier: str) -> dict[Any, Any]:
        """One side goes on from another token than its own."""
        conversation, chosen = conversations.get(identifier), sent(event)
        try:
            conversation.branch(chosen.get("side"), chosen.get("place"), chosen.get("token"), gate)
        except SabError as error:
            return {key: conversation.id, said: str(error)}
        return show(conversation)

    def fit_anew(event: gr.EventData, identifier: str) -> Iterator[dict[Any, Any]]:
        """One layer by another method; when it is fitted, that side has it and both sides answer again."""
        conversation = conversations.get(identifier)
        try:
            turn, side = refit.searched(conversation)
            job = refit.submit(store, conversation, sent(event))
            conversation.fitting = job.id
            for each in store.jobs.follow(job):
                yield {panel: gr.HTML(refit=refit.refit_view(store, each))}
            if job.state != DONE:
                return
            sides = {each: turn.replies[each].run for each in SIDES}
            sides[side] = refit.laid_over(store, sides[side], job, str(sent(event).get("name")))
            conversation.again(sides, turn.settings, gate)
        except SabError as error:
            yield {said: str(error), panel: gr.HTML(refit=None)}
            return
        names = side_names(store, *sides.values())
        chosen = {left: gr.Dropdown(names, value=sides["left"]), right: gr.Dropdown(names, value=sides["right"])}
        shown = show(conversation)
        yield shown | chosen | {panel: gr.HTML(value=differ.view(store, conversation), refit=None)}

    def rewrite(identifier: str) -> dict[Any, Any]:
        """The last question into the box, to be sent in its own place; pressed again, it stays as it was."""
        conversation = conversations.get(identifier)
        if not conversation.turns:
            return {said: "There is no question yet to edit."}
        last = conversation.turns[-1].prompt
        conversation.editing = not conversation.editing
        if conversation.editing:
            return show(conversation) | {drafted: draft_text(last, over=None)}
        return show(conversation) | {drafted: draft_text("", over=last)}

    def forget(identifier: str) -> dict[Any, Any]:
        conversation = conversations.get(identifier)
        conversation.clear()
        return show(conversation)

    def finish(identifier: str) -> dict[Any, Any]:
        return show(conversations.find(identifier)) if identifier else {}

    def halt(identifier: str) -> None:
        conversations.find(identifier).stop.set()

    def heads(identifier: str, one: str, other: str) -> Any:
        """Who will answer on each side, before the first question; and get the models into memory by then."""
        try:
            named = {"left": checked_side(store, one), "right": checked_side(store, other)}
        except SabError:
            return gr.skip()
        prepare(store, *named.values())
        if conversations.find(identifier).turns:
            return gr.skip()
        changed: dict[str, Any] = {side: side_head(store, name) | {"turns": []} for side, name in named.items()}
        return gr.HTML(**changed)

    def save_data(identifier: str) -> dict[str, Any]:
        return parcel(as_json(store, conversations.find(identifier)), "sab-lens-chat.json", "application/json")

    def save_text(identifier: str) -> dict[str, Any]:
        return parcel(as_markdown(store, conversations.find(identifier)), "sab-lens-chat.md", "text/markdown")

    def opened() -> tuple[Any, Any]:
        found = offered()
        pictures = [{"picture": data_url(each.picture), "note": each.note} for each in found.pictures]
        measured = shown_examples(showcase.read(store, found))
        return gr.HTML(samples=pictures), gr.HTML(fitting=fitting(found), shown=measured)

    def restore(identifier: str) -> dict[Any, Any]:
        """After a reload: what was said, and the picture it was said about."""
        conversation = conversations.find(identifier)
        shown = show(conversation)
        if conversation.turns:
            kept = conversation.picture  # the canvas sends this very text back, and its pixels are the same
            shown |= {picture: gr.HTML(restored="" if kept is None else data_url(kept))}
            shown |= {drafted: draft_text("", over=offered().pictures[0].suggestions.questions[0])}
        return shown

    def watch(identifier: str) -> Iterator[dict[Any, Any]]:
        """What is still being written after a reload, to its end."""
        conversation = conversations.find(identifier)
        while conversation.answering:
            yield show(conversation)
            time.sleep(0.25)
        yield show(conversation)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    changed = [key, view, said, stop, send, again, edit, as_data, as_text, panel]

    def then_answer(event: Any) -> None:
        """Both sides start at once and stream at their own pace."""
        for side in SIDES:
            event.then(
                answering(store, conversations, gate, side),
                key,
                view,
                concurrency_id="chat",
                concurrency_limit=60,
                trigger_mode="multiple",  # the next question may come before this generator has quite ended
                **quiet,
            ).then(finish, key, changed, trigger_mode="multiple", **at_once)

    for event in (
        send.click(begin, [key, picture, prompt, *asked], [*changed, drafted], **at_once),
        prompt.submit(begin, [key, picture, prompt, *asked], [*changed, drafted], **at_once),
        tried.select(begin_example, [key, picture, prompt, *asked], [*changed, drafted, right], **at_once),
        again.click(repeat, [key, *asked], changed, **at_once),
        view.branch(turn_off, key, changed, **at_once),
    ):
        then_answer(event)
    fitted = panel.refit(fit_anew, key, [*changed, left, right], concurrency_limit=None, **quiet)
    then_answer(fitted)
    differ.connect(store, conversations, gate, panel, key)
    stop.click(halt, key, None, **at_once)
    edit.click(rewrite, key, [*changed, drafted], **at_once)
    clear.click(forget, key, changed, **at_once)
    as_data.click(save_data, key, post, **at_once)
    as_text.click(save_text, key, post, **at_once)
    on_selection(store, "chat", choices, [followed, left, right], [left, right, followed, said], **at_once).then(
        heads, [key, left, right], view, **LATEST, **at_once
    )
    for choice in (left, right):
        choice.change(heads, [key, left, right], view, **at_once)
    when_opened(fn=opened, outputs=[picture, tried], **at_once)
    restored = key.select(restore, key, [*changed, picture, drafted], **at_once)
    restored.then(watch, key, changed, concurrency_limit=None, **quiet)
    then_answer(restored)  # a side whose event the reload cut off before it began is begun here


def prepare(store: Store, *sides: str) -> None:
    """Build the models of these sides in the background, so that the first question need not wait for them."""

    def build() -> None:
        for side in sides:
            with suppress(SabError):  # it is said where the model is asked for
                answering_model(store, side)

    if store.loaded and any(runs_of(store, side) for side in sides):
        threading.Thread(target=build, name="prepare-sides", daemon=True).start()


def sent(event: gr.EventData) -> dict[str, Any]:
    """What a script sent with an event; an empty dictionary for anything else."""
    return event._data if isinstance(event._data, dict) else {}


def side_view(store: Store, conversation: Conversation, side: str) -> dict[str, Any]:
    """Everything the page shows of one side: who answers, its weights, its answers."""
    run = conversation.turns[-1].replies[side].run if conversation.turns else None
    head = side_head(store, run) if run is not None else {"name": "", "tags": [], "facts": []}
    return head | {"turns": conversation.answers(side)}


def checked_settings(most: object, heat: object, number: object, system: object = "") -> Settings:
    """Settings as values of the right kind; their ranges are checked where they are used."""
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 1 <= most <= 512:
        raise SabError("The longest answer must lie between 1 and 512 tokens.")
    if isinstance(heat, bool) or not isinstance(heat, (int, float)) or not 0 <= heat <= 5:
        raise SabError("The temperature must lie between 0 and 5.")
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 2**31:
        raise SabError("The seed must be a whole number between 0 and 2147483647.")
    system = "" if system is None else system
    if not isinstance(system, str) or len(system) > LONGEST_SYSTEM:
        raise SabError(f"The system prompt must be a text of at most {LONGEST_SYSTEM} characters.")
    return Settings(int(most), float(heat), int(number), system.strip())
