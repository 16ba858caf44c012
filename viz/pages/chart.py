"""A plotly figure as a component of the page: themed, resized and, with sliders, stepped through in the browser.

`gr.Plot` makes a new plot for each value and ignores the theme, so figures are drawn by assets/js/chart.js in a
`gr.HTML` whose div stays. Both modes travel with the value, because a visitor may change the theme at any time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

from viz.pages.shared import script_tags

TEMPLATE = (
    '<figure class="ch"><figcaption class="ch-title">${label}</figcaption><div class="ch-controls"></div>'
    '<div class="ch-plot"></div><p class="ch-words" role="status"></p></figure>'
)


@dataclass(frozen=True)
class Control:
    """A slider of the browser: what each step is called, and where it starts."""

    label: str
    steps: tuple[str, ...]
    start: int = 0


@dataclass(frozen=True)
class Frame:
    """What one place of the sliders changes: the changed attributes of each trace, and the sentence under the
    figure."""

    data: tuple[dict[str, Any], ...]
    words: str


def chart(title: str, value: dict[str, Any] | None = None, elem_id: str | None = None) -> gr.HTML:
    """A place for one figure; give it `chart_value(...)` now or as the output of an event."""
    return gr.HTML(
        value=value or no_chart(""),
        label=title,
        html_template=TEMPLATE,
        js_on_load="SabLens.mountChart({element, props, watch});",
        head=script_tags("chart.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def chart_value(
    name: str,
    draw: Callable[[bool], go.Figure],
    words: str = "",
    controls: Sequence[Control] = (),
    frames: Sequence[Frame] = (),
) -> dict[str, Any]:
    """What a chart shows. `draw(dark)` makes the figure of one mode; `frames` vary in the order of the controls,
    the last one fastest; `name` is the file name of a download, `words` the sentence under the figure."""
    steps = 1
    for control in controls:
        steps *= len(control.steps)
    if len(frames) != (steps if controls else 0):
        raise ValueError(f"{steps} places of the sliders need as many frames, not {len(frames)}")
    return {
        "name": name,
        "light": _plain(draw(False)),
        "dark": _plain(draw(True)),
        "words": words,
        "empty": "",
        "controls": [vars(control) | {"steps": list(control.steps)} for control in controls],
        "frames": [vars(frame) for frame in frames] or None,
    }


def no_chart(sentence: str) -> dict[str, Any]:
    """A chart without a figure, and the sentence that says what would fill it."""
    return {"light": None, "dark": None, "words": "", "empty": sentence, "controls": [], "frames": None}


def _plain(figure: go.Figure) -> dict[str, Any]:
    return json.loads(figure.to_json())


def stepped(
    name: str,
    controls: Sequence[Control],
    draw: Callable[[tuple[int, ...], bool], go.Figure],
    traces: Callable[[tuple[int, ...]], Sequence[BaseTraceType]],
    words: Callable[[tuple[int, ...]], str],
) -> dict[str, Any]:
    """A chart with sliders: `draw(places, dark)` makes the figure at the sliders' places, `traces(places)` its data
    alone
    (far cheaper than a figure), `words(places)` its sentence.

    A frame holds only what differs from the data at the start, so steps must change neither colours nor layout.
    """
    start = tuple(control.start for control in controls)
    base = _data(traces(start))
    frames = []
    for places in itertools.product(*(range(len(control.steps)) for control in controls)):
        changed = [_different(old, new) for old, new in zip(base, _data(traces(places)), strict=True)]
        frames.append(Frame(tuple(changed), words(places)))
    return chart_value(name, lambda dark: draw(start, dark), words(start), controls, frames)


def _data(traces: Sequence[BaseTraceType]) -> list[dict[str, Any]]:
    """Traces as the browser gets them, arrays in base64."""
    return go.Figure(traces).to_dict()["data"]


def _different(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in new.items() if value != old.get(key)}
