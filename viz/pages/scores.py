"""How evaluated models look as a table, as charts and as a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from viz.figures import bit_breakdown, bits_accuracy, category_bars
from viz.pages.bounded import Bounded
from viz.pages.chart import chart_value, no_chart
from viz.pages.downloads import place_for
from viz.pages.results import Result, breakdown, size
from viz.pages.store import version
from viz.pages.table import Column, Row, table_value

MOST_BARS = 6  # runs in the chart by category, so that bars stay readable
NOTHING = "No run has been evaluated yet: choose one at the top and press Evaluate."


def results_table(found: Sequence[Result], choose: str = "run") -> dict[str, Any]:
    """One row per evaluated model: bits, size, accuracy overall and by category, and the controls. With `choose` a
    click on a row chooses the run."""
    categories = list(dict.fromkeys(name for each in found for name in each.categories))
    columns = [
        Column("Model"),
        Column("Bits, all‑in", True, "every stored bit of the binarized layers over their number of weights"),
        Column("Nominal", True, "what papers print: 1 + the share of salient columns"),
        Column("Size", True, "bytes of the packed layers"),
        Column("Overall", True, "with the 95 % interval and the number of questions"),
        *(Column(name.capitalize(), True) for name in categories),
        Column("Blank picture", True, "visual questions over a grey picture"),
        Column("KL to full", True, "mean KL divergence of the next token to full precision, in nats"),
        Column("Same token", True, "how often both prefer the same next token"),
    ]
    agreement = any("agreement" in each.stored for each in found)
    if agreement:
        columns.append(Column("Same answer", True, "how often the whole answer is that of full precision"))
    columns.append(Column("Perplexity", True, "of the true answers, token by token"))
    columns.append(Column("Fits, s", True, "seconds of the fits alone, without calibration and refinement"))
    rows = []
    for each in found:
        distance = each.stored.get("divergence") or {}
        rows.append(
            Row(
                [
                    (each.name, each.name),
                    plain_cell(each.stored.get("bits_all_in"), "{:.2f}"),
                    plain_cell(each.stored.get("bits_nominal"), "{:.2f}"),
                    (size(each.stored["bytes"]), each.stored["bytes"]) if "bytes" in each.stored else ("", None),
                    share_cell(each.accuracy(), f"n = {each.questions}"),
                    *(share_cell(each.accuracy(name)) for name in categories),
                    share_cell(None if each.blank_visual is None else (each.blank_visual, 0.0, 0.0), interval=False),
                    kl_cell(distance),
                    share_cell((distance["top_agreement"], 0.0, 0.0) if distance else None, interval=False),
                    *([plain_cell(each.stored.get("agreement"), "{:.1%}")] if agreement else []),
                    plain_cell(each.stored.get("perplexity"), "{:.3f}"),
                    plain_cell(None if each.is_full else each.stored.get("seconds"), "{:.0f}"),
                ],
                each.id,
                each.tag,
            )
        )
    return table_value(columns, rows, NOTHING, choose)


def plain_cell(value: float | None, form: str) -> tuple[str, float | None]:
    """A number in one form, and itself to sort by; empty when it is not known."""
    return ("", None) if value is None else (form.format(value), value)


def share_cell(
    value: tuple[float, float, float] | None, more: str = "", interval: bool = True
) -> tuple[str, float | None]:
    """A share in percent with its interval below, and the number to sort by."""
    if value is None:
        return "", None
    share, low, high = value
    small = [f"{100 * low:.0f}–{100 * high:.0f}"] if interval else []
    below = ", ".join([*small, *([more] if more else [])])
    return f"{100 * share:.1f} %" + (f"\n{below}" if below else ""), share


def kl_cell(distance: dict[str, Any]) -> tuple[str, float | None]:
    """KL with its interval below."""
    if not distance:
        return "", None
    low, high = distance["interval"]
    return f"{distance['kl']:.4f}\n{low:.4f}–{high:.4f}", distance["kl"]


def bits_chart(found: Sequence[Result]) -> dict[str, Any]:
    """Accuracy against bits of every evaluated run, full precision as a line."""
    runs = [_measured(each, overall) for each in found if not each.is_full and (overall := each.accuracy()) is not None]
    full = next((each.accuracy() for each in found if each.is_full), None)
    drawn = bits_accuracy.info(runs, full)
    words = "" if full else "Full precision has not been evaluated yet; its line will appear when it has."
    return chart_value("accuracy-against-bits", lambda dark: bits_accuracy.figure(drawn, dark), words)


def distance_chart(found: Sequence[Result]) -> dict[str, Any]:
    """KL to full precision against bits, of those of whom it was measured."""
    known = [(each, each.stored["divergence"]) for each in found if "divergence" in each.stored]
    runs = [_measured(each, (distance["kl"], *distance["interval"])) for each, distance in known]
    drawn = bits_accuracy.info(runs, None, bits_accuracy.DISTANCE)
    words = "Lower is closer to full precision; the scale is logarithmic."
    return chart_value("distance-against-bits", lambda dark: bits_accuracy.figure(drawn, dark), words)


def _measured(each: Result, value: tuple[float, float, float]) -> bits_accuracy.Measured:
    stored = each.stored
    bits = stored["bits_nominal"], stored["bits_all_in"], stored["bytes"]
    return bits_accuracy.Measured(each.name, each.method, *bits, *value, series=each.series)


def first_drawn(found: Sequence[Result]) -> list[Result]:
    """What charts with little room show: full precision, SAB's own runs, then the others from the fewest bits."""

    def rank(each: Result) -> tuple[bool, bool, float]:
        return not each.is_full, not each.method.startswith("sab"), each.stored.get("bits_all_in", 0.0)

    return sorted(found, key=rank)[:MOST_BARS]


def by_category(found: Sequence[Result]) -> category_bars.CategoryBarsInfo:
    """The arrays of the bars of some models, in every category that one of them was asked about."""
    names = list(dict.fromkeys(name for each in found for name in each.categories))
    scores = [
        category_bars.Scores(
            each.name, each.method, {name: share for name in names if (share := each.accuracy(name)) is not None}
        )
        for each in found
    ]
    return category_bars.info(scores, names)


def categories_chart(found: Sequence[Result]) -> dict[str, Any]:
    """Bars by category of the models that are drawn first."""
    chosen = first_drawn(found)
    drawn = by_category(chosen)
    left = len(found) - len(chosen)
    words = f"{left} more in the table." if left else ""
    return chart_value("accuracy-by-category", lambda dark: category_bars.figure(drawn, dark), words)


def parts_chart(found: Sequence[Result], counted: Bounded) -> dict[str, Any]:
    """Stored bits by what they hold."""
    runs = [(each.name, each.run) for each in found if each.run is not None]
    if not runs:
        return no_chart("The bits of a run appear here once one has been evaluated.")
    pairs = [counted.get(version(run), lambda run=run: breakdown(run)) for _, run in runs]  # type: ignore[misc]
    drawn = bit_breakdown.info(
        [name for name, _ in runs],
        [bits for bits, _ in pairs],
        [weights for _, weights in pairs],
        [run.bits_nominal for _, run in runs],
    )
    return chart_value("stored-bits", lambda dark: bit_breakdown.figure(drawn, dark))


def exported(found: Sequence[Result], kind: str, name: str = "benchmark") -> tuple[Any, str]:
    """A file with everything the table shows, unrounded, and a sentence when there is nothing to write."""
    if not found:
        return gr.skip(), NOTHING
    rows = [record(each) for each in found]
    path = place_for(f"{name}.{kind}")
    if kind == "json":
        path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    else:
        flat = [flattened(row) for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        path.write_text(text.getvalue(), encoding="utf-8")
    return gr.DownloadButton(value=str(path)), ""


def record(each: Result) -> dict[str, Any]:
    """One row of the export."""
    about = {"name": each.name, "method": each.method, "run": each.id or None}
    recipe = {} if each.run is None else {"recipe": each.run.recipe.to_json()}
    return {**about, **recipe, **each.stored}


def flattened(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted columns; a pair becomes .low and .high."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            flat |= flattened(value, f"{name}.")
        elif isinstance(value, list) and len(value) == 2 and "interval" in name:
            flat |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        else:
            flat[name] = json.dumps(value) if isinstance(value, list) else value
    return flat
