"""A short text that this visitor's browser remembers, such as the id of the job they have started.

`gr.BrowserState` is empty in the page's load event when it stands in a tab that is not shown yet.
"""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import script_tags


def memory(name: str, tab: bool = False) -> gr.HTML:
    """An invisible component: output a text to it to have it remembered, use it as an input to read it. It sends
    `select` when its page is shown for the first time after a reload and something is remembered. `tab`: only this tab
    of the browser remembers, so that two tabs do not share it."""
    options = f"name: '{name}', tab: {str(tab).lower()}"
    return gr.HTML(
        value=None,
        html_template="<span hidden></span>",
        js_on_load=f"SabLens.mountMemory({{props, watch, {options}, send: (data) => trigger('select', data)}});",
        head=script_tags("memory.js"),
        apply_default_css=False,
        elem_classes="sab-signal",
    )
