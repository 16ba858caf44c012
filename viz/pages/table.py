"""A table of the page: plain text cells, sorted in the browser, rows that can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from viz.pages.shared import script_tags


@dataclass(frozen=True)
class Column:
    """A heading; `number` aligns right and sorts from the largest, `hint` explains it on hover."""

    label: str
    number: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """Cells as (text, what to sort by, None for last); a line break in a text makes the rest small. A row with an
    `id` can be chosen; `tag` stands behind its first cell."""

    cells: Sequence[tuple[str, float | str | None]]
    id: str = ""
    tag: str = ""


def table(elem_id: str) -> gr.HTML:
    """An empty table; give it `table_value(...)`."""
    return gr.HTML(
        value=None,
        html_template='<div class="tb"></div>',
        js_on_load="SabLens.mountTable({element, props, watch});",
        head=script_tags("table.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def table_value(
    columns: Sequence[Column],
    rows: Sequence[Row],
    empty: str,
    choose: str = "",
    pins: bool = False,
) -> dict[str, Any]:
    """What a table shows. `choose`: "run" makes a click choose the run of the whole page; `pins`: rows can be pinned as
    A and B; `empty` is said when there are no rows."""
    return {
        "columns": [vars(column) for column in columns],
        "rows": [
            {
                "id": row.id,
                "tag": row.tag,
                "cells": [text for text, _ in row.cells],
                "sort": [order for _, order in row.cells],
            }
            for row in rows
        ],
        "empty": empty,
        "choose": choose,
        "pins": pins,
    }
