"""A row of example questions: one click asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from viz.pages.samples import Samples, Suggestions
from viz.pages.shared import script_tags

TITLES = {"agreement": "They agree", "subtle": "A small difference", "gross": "A gross difference"}


def examples(elem_id: str, prompt_id: str) -> gr.HTML:
    """The row; output `gr.HTML(fitting=fitting(samples), shown=shown(...))` to it, the measured ones with `shown`. The
    browser chooses what fits the canvas, so that nothing has to be asked while a person draws, and suggests the first
    question in the text box `prompt_id`. When a question has been asked, its follow-up stands in its place. It sends
    `select` with {"text": question} and, where a run goes with the question, "right": its id."""
    return gr.HTML(
        value="",
        html_template='<div class="ex" role="group" aria-label="Example questions"></div>',
        js_on_load="SabLens.mountExamples({element, props, watch, "
        f"box: '#{prompt_id} textarea', send: (data) => trigger('select', data)}});",
        head=script_tags("examples.js"),
        apply_default_css=False,
        elem_id=elem_id,
        fitting=None,
        shown=[],
    )


def fitting(found: Samples) -> dict[str, Any]:
    """All questions, by what lies on the canvas: a sample picture, any other, none."""
    return {
        "samples": [_offer(picture.suggestions) for picture in found.pictures],
        "any": _offer(found.about_any),
        "none": _offer(found.without),
    }


def _offer(suggestions: Suggestions) -> dict[str, Any]:
    return {"questions": list(suggestions.questions), "follow_ups": dict(suggestions.follow_ups)}


def shown(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the row shows of examples as `viz.showcase.read` gives them."""
    return [
        {
            "kind": each["kind"],
            "title": TITLES[each["kind"]],
            "name": each["name"],
            "question": each["question"],
            "sample": each["picture"],
            "run": each["run"],
        }
        for each in measured
    ]
