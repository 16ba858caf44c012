"""Benchmark: every evaluated run by category of question, with its true bits.

Figures come from what evaluations have stored; the button asks the chosen run, or full precision, more questions.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sab.errors import SabError
from viz.figures import bit_breakdown, bits_accuracy, category_bars
from viz.pages.binarize import checked_questions
from viz.pages.chart import chart, chart_value, no_chart
from viz.pages.jobs import Task
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.progress import progress_card, progress_value
from viz.pages.results import (
    FULL,
    Result,
    breakdown,
    full_directory,
    results,
    size,
)
from viz.pages.shared import Shared
from viz.pages.signal import selection_signal
from viz.pages.store import Bounded, Selection, Store, version
from viz.pages.table import Column, Row, table, table_value

MOST_BARS = 6  # runs in the chart by category, so that bars stay readable
NOTHING = "No run has been evaluated yet: choose one at the top and press Evaluate."
WHAT_COUNTS = (
    "Each answer is greedy and must be exactly right. The bars and brackets are 95 % Wilson intervals: two rows whose "
    "intervals overlap widely have not been told apart. *Blank picture* asks the visual questions over a grey picture: "
    "what is still right there needed no picture. These are figures of a small model on its own generated world; "
    "**they do not predict what a 7B model does**, and no row here can be compared with a row of the paper."
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    jobs = store.jobs
    counted = Bounded(32)

    gr.Markdown(WHAT_COUNTS, elem_id="benchmark-note")
    listed = table("benchmark-table")
    with gr.Row(elem_id="benchmark-actions"):
        questions = gr.Slider(
            50,
            2000,
            value=200,
            step=50,
            label="Questions",
            info="held out from training",
            elem_id="benchmark-questions",
            min_width=200,
        )
        with gr.Row(elem_id="benchmark-buttons"):
            start = gr.Button("Evaluate the chosen run", variant="primary", min_width=150, elem_id="benchmark-run")
            start_full = gr.Button("Evaluate full precision", min_width=150, elem_id="benchmark-full")
            stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, elem_id="benchmark-stop")
        with gr.Row(elem_id="benchmark-export"):
            as_csv = gr.Button("Export CSV", size="sm", min_width=90, elem_id="benchmark-csv")
            as_json = gr.Button("Export JSON", size="sm", min_width=90, elem_id="benchmark-json")
            file = gr.DownloadButton(visible="hidden", elem_id="benchmark-file")
    said = notice("benchmark-notice")
    card = progress_card("benchmark-progress")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=340):
            against = chart("Accuracy against bits", no_chart(NOTHING), "benchmark-bits")
            parts = chart("What the bits store", no_chart(NOTHING), "benchmark-parts")
        with gr.Column(scale=1, min_width=340):
            bars = chart("Accuracy by category", no_chart(NOTHING), "benchmark-categories")

    mine = memory("evaluation")

    def draw() -> dict[Any, Any]:
        found = results(store)
        drawn = {listed: results_table(found)}
        if not found:
            return drawn | {each: no_chart(NOTHING) for each in (against, parts, bars)}
        return drawn | {
            against: bits_chart(found),
            bars: categories_chart(found),
            parts: parts_chart([each for each in first_drawn(found) if each.run is not None], counted),
        }

    def begin(selection: Selection, asked: Any) -> dict[Any, Any]:
        try:
            run = store.run(selection.run)
            task = Task(store.model, str(run.directory), None, checked_questions(asked), blank=True)
            job = jobs.submit(task, f"Evaluating {run.name}")
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, stop: gr.Button(interactive=True)}

    def begin_full(asked: Any) -> dict[Any, Any]:
        try:
            directory = store.new_runs / full_directory(store, store.lvlm.fingerprint).name
            directory.mkdir(parents=True, exist_ok=True)
            task = Task(store.model, str(directory), None, checked_questions(asked), blank=True)
            job = jobs.submit(task, f"Evaluating {FULL.lower()}")
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, stop: gr.Button(interactive=True)}

    def follow(identifier: str) -> Iterator[dict[Any, Any]]:
        job = jobs.get(identifier)
        if job is None:
            yield {card: None}
            return
        for each in jobs.follow(job):
            shown = {card: progress_value(each, jobs.before(each)), stop: gr.Button(interactive=not each.ended)}
            yield shown | (draw() if each.ended else {})

    def halt(identifier: str) -> None:
        job = jobs.get(identifier)
        if job is not None:
            jobs.stop(job)

    def export_csv() -> tuple[Any, str]:
        return exported(results(store), "csv")

    def export_json() -> tuple[Any, str]:
        return exported(results(store), "json")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    drawn = [listed, against, bars, parts]
    followed: dict[str, Any] = {
        "fn": follow,
        "inputs": mine,
        "outputs": [card, stop, *drawn],
        "concurrency_limit": None,
        **quiet,
    }
    start.click(begin, [shared.selection, questions], [said, mine, stop], **at_once).then(**followed)
    start_full.click(begin_full, questions, [said, mine, stop], **at_once).then(**followed)
    stop.click(halt, mine, None, **at_once)
    fetch = "() => document.querySelector('#benchmark-file')?.click()"
    as_csv.click(export_csv, None, [file, said], **at_once).then(None, js=fetch)
    as_json.click(export_json, None, [file, said], **at_once).then(None, js=fetch)
    selection_signal("benchmark").select(draw, None, drawn, **at_once)
    mine.select(**followed)


def results_table(found: Sequence[Result]) -> dict[str, Any]:
    """One row per evaluated model: bits, size, accuracy overall and by category, and the controls."""
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
    rows = []
    for each in found:
        run = each.run
        distance = each.stored.get("divergence") or {}
        rows.append(
            Row(
                [
                    (each.name, each.name),
                    (f"{run.bits_all_in:.2f}", run.bits_all_in) if run else ("", None),
                    (f"{run.bits_nominal:.2f}", run.bits_nominal) if run else ("", None),
                    (size(run.bytes), run.bytes) if run else ("", None),
                    share_cell(each.accuracy(), f"n = {each.questions}"),
                    *(share_cell(each.accuracy(name)) for name in categories),
                    share_cell(None if each.blank_visual is None else (each.blank_visual, 0.0, 0.0), interval=False),
                    kl_cell(distance),
                    share_cell((distance["top_agreement"], 0.0, 0.0) if distance else None, interval=False),
                ],
                each.id,
            )
        )
    return table_value(columns, rows, NOTHING, "run")


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
    runs = [
        bits_accuracy.Measured(
            each.name, each.method, each.run.bits_nominal, each.run.bits_all_in, each.run.bytes, *overall
        )
        for each in found
        if each.run is not None and (overall := each.accuracy()) is not None
    ]
    full = next((each.accuracy() for each in found if each.run is None), None)
    drawn = bits_accuracy.info(runs, full)
    words = "" if full else "Full precision has not been evaluated yet; its line will appear when it has."
    return chart_value("accuracy-against-bits", lambda dark: bits_accuracy.figure(drawn, dark), words)


def first_drawn(found: Sequence[Result]) -> list[Result]:
    """What charts with little room show: full precision, SAB's own runs, then the others from the fewest bits."""

    def rank(each: Result) -> tuple[bool, bool, float]:
        bits = each.run.bits_all_in if each.run is not None else 0.0
        return each.run is not None, not each.method.startswith("sab"), bits

    return sorted(found, key=rank)[:MOST_BARS]


def categories_chart(found: Sequence[Result]) -> dict[str, Any]:
    """Bars by category of the models that are drawn first."""
    chosen = first_drawn(found)
    names = list(dict.fromkeys(name for each in chosen for name in each.categories))
    scores = [
        category_bars.Scores(
            each.name, each.method, {name: share for name in names if (share := each.accuracy(name)) is not None}
        )
        for each in chosen
    ]
    drawn = category_bars.info(scores, names)
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


def exported(found: Sequence[Result], kind: str) -> tuple[Any, str]:
    """A file with everything the table shows, unrounded, and a sentence when there is nothing to write."""
    if not found:
        return gr.skip(), NOTHING
    rows = [record(each) for each in found]
    path = Path(tempfile.mkdtemp(prefix="sab-lens-")) / f"benchmark.{kind}"
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
    run = each.run
    about = {"name": each.name, "method": each.method, "run": each.id or None}
    sizes = (
        {}
        if run is None
        else {
            "bits_nominal": run.bits_nominal,
            "bits_all_in": run.bits_all_in,
            "bytes": run.bytes,
            "seconds": run.seconds,
            "recipe": run.recipe.to_json(),
        }
    )
    return {**about, **sizes, **each.stored}


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
