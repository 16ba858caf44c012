"""How a page hears that its tab is shown or that the visitor's selection has changed.

`Shared.selection` is a `gr.State`, whose change event the browser raises for queued events only; the selection changes
outside the queue. So the page's own script, which always knows the selection, sends it.

It is sent as the value of a component and not with the event: what happens while the listener is at work is then told
once more when it is done, with the value of that moment. With an event gradio would repeat the old one's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from viz.pages.shared import script_tags
from viz.pages.store import Selection, Store

LATEST: dict[str, Any] = {"trigger_mode": "always_last"}  # what a person does while gradio is at work is not dropped


def on_selection(
    store: Store,
    tab: str,
    listener: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    **event: Any,
) -> Dependency:
    """Call `listener(selection, *inputs)` when the tab is shown, and when the selection or the list of runs changes
    meanwhile. Each listener has a component of its own: two that were told again on one would wake each other forever.
    """

    def heard(sent: object, *values: Any) -> Any:
        return listener(selected(store, sent), *values)

    signal = _signal(f"SabLens.mountSignal({{props, tab: '{tab}', send: () => trigger('select')}});")
    return signal.select(heard, [signal, *inputs], list(outputs), **LATEST, **event)


def sent_selection() -> gr.HTML:
    """What the shell hears of every change of the selection: use it as an input too and read it by `selected`."""
    return _signal("SabLens.mountSelection({props, send: () => trigger('select')});")


def rerun_signal() -> gr.HTML:
    """Sends `select`, with the selection as its data, when somebody asks to refit the layer that is shown
    (`SabLens.rerunLayer()`)."""
    return _signal("SabLens.mountRerun({send: (data) => trigger('select', data)});")


def _signal(script: str) -> gr.HTML:
    """`script` has to name the event as a text: gr.HTML looks there for what may be listened to."""
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
