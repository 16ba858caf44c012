"""The picture of a chat as a component: a canvas that takes uploads, drops, pastes, samples and drawings.

The value is a data URL of the canvas, or None while it is blank; `picture_from_url` reads it on the server. The first
sample lies on the canvas from the start. The component sends `sample` with {"kind", "index"} when something of another
kind lies there: a sample, something of the visitor's own, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from viz.pages.shared import script_tags

# Strokes of 24 x 24 icons, drawn for this page.
ICONS = {
    "pencil": "M4 20l1-4L16.5 4.5a2.1 2.1 0 0 1 3 3L8 19l-4 1zM14.5 6.5l3 3",
    "fill": "M11 3l8.5 8.5-7.5 7.5-8-8L12 3.5M4 11h15M20 15c1.4 2 1.7 3.4.6 4.4-.8.7-2 .5-2.6-.4-.6-1 .1-2.300 2-4z",
    "eraser": "M8 20h12M4.500 14.500l9-9 6 6-8.500 8.500H8l-3.500-3.500zM9 10l6 6",
    "undo": "M8 5L4 9l4 4M4 9h9a6 6 0 0 1 0 12h-3",
    "redo": "M16 5l4 4-4 4M20 9h-9a6 6 0 0 0 0 12h3",
    "clear": "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.500 11v5M13.500 11v5",
    "upload": "M12 16V4M7 9l5-5 5 5M4 16v4h16v-4",
}
SIZES = {"thin": 4, "medium": 10, "thick": 22}


def sketch(colours: Mapping[str, tuple[int, int, int]], elem_id: str, square: bool) -> gr.HTML:
    """The canvas with its tools; output `gr.HTML(samples=[{"picture": data URL, "note"}])` to it, and
    `gr.HTML(restored=data URL or "")` to put back what lay there before a reload. `square`: whether pictures of
    other shapes are put on a white square."""
    return gr.HTML(
        value=None,
        html_template=_template(colours, square),
        js_on_load="SabLens.mountSketch({element, props, watch});",
        head=script_tags("sketch.js"),
        apply_default_css=False,
        elem_id=elem_id,
        samples=[],
        restored=None,
    )


def _template(colours: Mapping[str, tuple[int, int, int]], square: bool) -> str:
    tools = "".join(_button("tool", name, name, _icon(name)) for name in ("pencil", "fill", "eraser"))
    sizes = "".join(
        _button("size", str(size), f"{name} line", f'<i class="dot" style="width:{min(size, 16)}px"></i>')
        for name, size in SIZES.items()
    )
    actions = "".join(_button("do", name, name, _icon(name)) for name in ("undo", "redo", "clear"))
    swatches = "".join(
        _button(
            "colour", f"#{red:02x}{green:02x}{blue:02x}", name, f'<i style="background:rgb({red},{green},{blue})"></i>'
        )
        for name, (red, green, blue) in {**colours, "white": (255, 255, 255)}.items()
    )
    return (
        f'<div class="sk" data-square="{str(square).lower()}"><div class="sk-stage blank">'
        '<canvas width="448" height="448" tabindex="0" '
        'aria-label="Picture: draw here, or drop or paste a file"></canvas>'
        '<p class="sk-hint">Draw, drop, paste or upload a picture, or take a sample below</p></div>'
        '<p class="sk-note" role="status"></p>'
        f'<div class="sk-bar"><span>{_button("do", "upload", "upload a picture", _icon("upload") + "Upload")}'
        f'{_button("do", "draw", "drawing tools", _icon("pencil") + "Draw")}</span><span>{actions}</span>'
        '<input type="file" accept="image/png,image/jpeg,image/webp" hidden></div>'
        '<div class="sk-tools" role="toolbar" aria-label="Drawing tools">'
        f'<div class="sk-bar"><span>{tools}</span><span>{sizes}</span></div>'
        f'<div class="sk-colours" role="group" aria-label="Colours">{swatches}</div></div>'
        '<h4 class="sk-title">Sample pictures</h4><div class="sk-samples"></div></div>'
    )


def _button(group: str, value: str, name: str, content: str) -> str:
    return f'<button type="button" data-{group}="{value}" title="{name}" aria-label="{name}">{content}</button>'


def _icon(name: str) -> str:
    return f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{ICONS[name]}"/></svg>'
