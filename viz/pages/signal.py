"""The visitor's selection as an input, and how a page hears that its tab is shown or that the selection has changed.

The selection is the browser's. It travels as the value of an invisible component that a script keeps up to date, so
that whatever a person presses goes with what they have chosen by then. A listener is told of changes in the same way,
not by an event's data: what happens while it is at work is told once more when it is done, with the value of that
moment, where gradio would repeat the old event's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import gradio as gr
from gradio.events import Dependency

from viz.pages.selection import Selection
from viz.pages.shared import script_tags
from viz.pages.store import Store

LATEST: dict[str, Any] = {"trigger_mode": "always_last"}  # what a person does while gradio is at work is not dropped


def on_selection(
    store: Store,
    tab: str,
    listener: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    also: Sequence[Any] = (),
    **event: Any,
) -> Dependency:
    """Call `listener(selection, *inputs)` when the tab is shown, and when the selection or the list of runs changes
    meanwhile; `also`: other events that it listens to, one call after the other. Each listener has a component of its
    own: two that were told again on one would wake each other forever.
    """

    signal = _signal(f"SabLens.mountSignal({{props, tab: '{tab}', send: () => trigger('select')}});")
    triggers = [signal.select, *also]
    return gr.on(triggers, reading(store, listener), [signal, *inputs], list(outputs), **LATEST, **event)


def selection_source() -> gr.HTML:
    """What `Shared.selection` is; as the first input of `reading(store, function)` it is a `Selection`."""
    return _signal("SabLens.mountSelection({props});")


def reading(store: Store, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(selection, *inputs)`, its selection checked like any other input."""

    @wraps(function)
    def called(sent: object, *values: Any) -> Any:
        return function(selected(store, sent), *values)

    return called


def rerun_signal() -> gr.HTML:
    """Sends `select`, with the selection as its data, when somebody asks to refit the layer that is shown
    (`SabLens.rerunLayer()`)."""
    return _signal("SabLens.mountRerun({send: (data) => trigger('select', data)});")


def _signal(script: str) -> gr.HTML:
    """`script` has to name any event as a text: gr.HTML looks there for what may be listened to."""
    return gr.HTML(
        value="",
        html_template="<span hidden></span>",
        js_on_load=script,
        head=script_tags("signal.js"),
        apply_default_css=False,
        elem_classes="sab-signal",
    )


def selected(store: Store, sent: object) -> Selection:
    """The selection that the browser sent, checked like any other input."""
    return store.resolve(Selection.from_query(sent if isinstance(sent, Mapping) else {}))[0]
