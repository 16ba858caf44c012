"""A row of example questions: one click asks."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from viz.pages.shared import script_tags


def examples(elem_id: str, questions: Sequence[str] = ()) -> gr.HTML:
    """The row; output `gr.HTML(questions=[...])` to change it. It sends `select` with {"text": question}."""
    return gr.HTML(
        value="",
        html_template='<div class="ex" role="group" aria-label="Example questions"></div>',
        js_on_load="SabLens.mountExamples({element, props, watch, send: (data) => trigger('select', data)});",
        head=script_tags("examples.js"),
        apply_default_css=False,
        elem_id=elem_id,
        questions=list(questions),
    )
