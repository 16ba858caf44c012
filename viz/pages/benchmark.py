"""Benchmark: every evaluated run by category of question, with its true bits.

Figures come from what evaluations have stored; the bar asks one's own runs more questions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from viz.pages.chart import chart, no_chart
from viz.pages.comparison import PAPER_NOTE, compared, findings, heading, paper_table, read_comparison
from viz.pages.evaluation import EvaluationBar
from viz.pages.labels import falls_table, knockouts_chart, read_checks
from viz.pages.labels import said as said_of
from viz.pages.questions import question_browser
from viz.pages.results import current_fingerprint, results
from viz.pages.scores import (
    NOTHING,
    bits_chart,
    categories_chart,
    distance_chart,
    exported,
    first_drawn,
    parts_chart,
    results_table,
)
from viz.pages.shared import Shared
from viz.pages.signal import on_selection
from viz.pages.store import Store
from viz.pages.table import table

WHAT_COUNTS = (
    "Each answer is greedy and must be exactly right. The brackets are 95 % intervals: two rows whose "
    "intervals overlap widely have not been told apart. *Blank picture* asks the visual questions over a grey picture: "
    "what is still right there needed no picture. "
)
OWN_WORLD = (
    "These are figures of a small model on its own generated world; **they do not predict what a 7B model does**, and "
    "no row here can be compared with a row of the paper."
)
OTHER_WORLD = (
    "The questions are those of the embedded model's generated world, in its own short wordings, which this model was "
    "not trained on: **read how far a run falls below full precision, not how high either stands.** No row here can be "
    "compared with a row of the paper."
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    counted = store.kept(32)

    gr.Markdown(WHAT_COUNTS + (OWN_WORLD if store.is_embedded else OTHER_WORLD), elem_id="benchmark-note")
    with gr.Column(visible=False, elem_id="comparison") as section:
        title = gr.Markdown(elem_id="comparison-heading")
        ranked = table("comparison-table")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                front = chart("Accuracy against bits", no_chart(""), "comparison-bits")
            with gr.Column(scale=1, min_width=340):
                apart = chart("Distance to full precision against bits", no_chart(""), "comparison-distance")
        with gr.Row(elem_id="comparison-said"):
            words = gr.Markdown(elem_id="comparison-findings")
            with gr.Row(elem_id="comparison-export"):
                table_csv = gr.Button("Export CSV", size="sm", min_width=90, elem_id="comparison-csv")
                table_json = gr.Button("Export JSON", size="sm", min_width=90, elem_id="comparison-json")
        with gr.Accordion("The paper's table, and what may be compared", open=False, elem_id="comparison-paper"):
            gr.Markdown(PAPER_NOTE)
            paper = table("paper-table")
    with gr.Column(visible=False, elem_id="labels") as labels_section:
        labels_said = gr.Markdown(elem_id="labels-said")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                lost = chart("Weights of one label set to zero", no_chart(""), "labels-chart")
            with gr.Column(scale=1, min_width=340):
                falls = table("labels-table")
    gr.Markdown("### Runs, one by one", elem_id="benchmark-runs-heading")
    listed = table("benchmark-table")
    bar = EvaluationBar(store)
    with bar.exports:
        as_csv = gr.Button("Export CSV", size="sm", min_width=90, elem_id="benchmark-csv")
        as_json = gr.Button("Export JSON", size="sm", min_width=90, elem_id="benchmark-json")
        file = gr.DownloadButton(visible="hidden", elem_id="benchmark-file")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=340):
            against = chart("Accuracy against bits", no_chart(NOTHING), "benchmark-bits")
            parts = chart("What the bits store", no_chart(NOTHING), "benchmark-parts")
        with gr.Column(scale=1, min_width=340):
            bars = chart("Accuracy by category", no_chart(NOTHING), "benchmark-categories")

    gr.Markdown("### Question by question", elem_id="benchmark-questions-heading")
    question_browser(store)

    def comparison() -> dict[str, Any] | None:
        return read_comparison(current_fingerprint(store, store.runs()))

    def draw_shipped() -> dict[Any, Any]:
        checks = read_checks(current_fingerprint(store, store.runs()))
        shown: dict[Any, Any] = {labels_section: gr.Column(visible=bool(checks))}
        if checks:
            shown |= {labels_said: said_of(checks), lost: knockouts_chart(checks), falls: falls_table(checks)}
        made = comparison()
        if made is None:
            return shown | {section: gr.Column(visible=False)}
        found = compared(made)
        return shown | {
            paper: paper_table(),
            section: gr.Column(visible=True),
            title: heading(made),
            ranked: results_table(found, choose=""),
            front: bits_chart(found),
            apart: distance_chart(found),
            words: findings(made),
        }

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

    def export_runs(kind: str) -> tuple[Any, str]:
        return exported(results(store), kind)

    def export_comparison(kind: str) -> tuple[Any, str]:
        made = comparison()
        return exported([] if made is None else compared(made), kind, "comparison")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    drawn = [listed, against, bars, parts]
    bar.listen(draw, drawn, quiet)
    fetch = "() => document.querySelector('#benchmark-file')?.click()"
    for button, export, kind in (
        (as_csv, export_runs, "csv"),
        (as_json, export_runs, "json"),
        (table_csv, export_comparison, "csv"),
        (table_json, export_comparison, "json"),
    ):
        button.click(partial(export, kind), None, [file, bar.said], **at_once).then(None, js=fetch)
    shipped = [section, title, ranked, front, apart, words, paper, labels_section, labels_said, lost, falls]
    on_selection(store, "benchmark", lambda selection: draw(), [], drawn, **at_once)
    on_selection(
        store, "benchmark", bar.offer, [bar.offered, bar.chosen], [bar.chosen, bar.offered], **at_once
    )
    on_selection(store, "benchmark", lambda selection: draw_shipped(), [], shipped, **at_once)
