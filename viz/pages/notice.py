"""One sentence that tells a person what went wrong or what happened, where they look, instead of a toast."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import script_tags


def notice(elem_id: str) -> gr.HTML:
    """An empty place for a sentence; output plain text to it ("" hides it). It is never read as HTML."""
    return gr.HTML(
        value="",
        html_template='<p class="sab-notice" role="status"></p>',
        js_on_load="SabLens.mountNotice({element, props, watch});",
        head=script_tags("notice.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )
