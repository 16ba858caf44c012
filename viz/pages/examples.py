"""A row of example questions: one click asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from viz.pages.samples import Suggestions
from viz.pages.shared import script_tags

TITLES = {"agreement": "They agree", "subtle": "A small difference", "gross": "A gross difference"}


def examples(elem_id: str, questions: Sequence[str] = ()) -> gr.HTML:
    """The row; output `gr.HTML(**suggestions(...))` to change it, `gr.HTML(shown=shown(...))` for the measured ones.
    When a question has been asked, its follow-up stands in its place. It sends `select` with {"text": question} and,
    where a run goes with the question, "right": its id."""
    return gr.HTML(
        value="",
        html_template='<div class="ex" role="group" aria-label="Example questions"></div>',
        js_on_load="SabLens.mountExamples({element, props, watch, send: (data) => trigger('select', data)});",
        head=script_tags("examples.js"),
        apply_default_css=False,
        elem_id=elem_id,
        questions=list(questions),
        follow_ups={},
        shown=[],
    )


def suggestions(found: Suggestions) -> dict[str, Any]:
    """Properties of the row for questions that fit what lies on the canvas."""
    return {"questions": list(found.questions), "follow_ups": dict(found.follow_ups)}


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
