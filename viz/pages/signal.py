"""How a page hears that its tab is shown or that the visitor's selection has changed.

`Shared.selection` is a `gr.State`, whose change event the browser raises for queued events only; the selection changes
outside the queue. So the page's own script, which always knows the selection, sends it.
"""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from viz.pages.shared import script_tags
from viz.pages.store import Selection, Store


def selection_signal(tab: str) -> gr.HTML:
    """An invisible component; listen with `.select(fn)`, where `fn(event: gr.EventData)` reads `signalled(...)`."""
    return _signal(f"SabLens.mountSignal({{tab: '{tab}', send: (data) => trigger('select', data)}});")


def rerun_signal() -> gr.HTML:
    """The same, for when somebody asks to refit the layer that is shown (`SabLens.rerunLayer()`)."""
    return _signal("SabLens.mountRerun({send: (data) => trigger('select', data)});")


def _signal(script: str) -> gr.HTML:
    return gr.HTML(
        value="",
        html_template="<span hidden></span>",
        js_on_load=script,
        head=script_tags("signal.js"),
        apply_default_css=False,
        elem_classes="sab-signal",
    )


def signalled(store: Store, event: gr.EventData) -> Selection:
    """The selection that the browser sent, checked like any other input."""
    sent = event._data if isinstance(event._data, Mapping) else {}
    return store.resolve(Selection.from_query(sent))[0]
