"""What the page writes into a box that a person types in.

An answer of the server comes when it comes: what has been typed since it was asked for must not be lost. So such a box
is never the output of an event; the browser writes the text, and only over what stood there when it was asked for.
"""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

from viz.pages.shared import script_tags


def draft(elem_id: str) -> gr.HTML:
    """An invisible component for the text box of this id; output `draft_text(...)` to it."""
    return gr.HTML(
        value=None,
        html_template="<span hidden></span>",
        js_on_load=f"SabLens.mountDraft({{props, watch, box: '#{elem_id} textarea'}});",
        head=script_tags("draft.js"),
        apply_default_css=False,
        elem_classes="sab-signal",
    )


def draft_text(text: str, over: object) -> Any:
    """`text` for the box, if it still holds `over`; None: whatever it holds, for what a person has asked to see."""
    return gr.HTML(value={"text": text, "over": over, "turn": secrets.token_hex(8)})
