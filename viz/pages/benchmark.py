"""Benchmark: every evaluated run by category of question, with its true bits.

Figures come from what evaluations have stored; the button asks the chosen run, or full precision, more questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from sab.errors import SabError
from viz.pages.chart import chart, no_chart
from viz.pages.comparison import PAPER_NOTE, compared, findings, heading, paper_table, read_comparison
from viz.pages.jobs import Task
from viz.pages.labels import falls_table, knockouts_chart, read_checks
from viz.pages.labels import said as said_of
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.progress import progress_card, progress_value
from viz.pages.questions import question_browser
from viz.pages.recipe_form import checked_questions
from viz.pages.results import FULL, current_fingerprint, full_directory, read_evaluation, results
from viz.pages.run_list import is_shipped
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
from viz.pages.signal import selection_signal
from viz.pages.store import Bounded, Selection, Store
from viz.pages.table import table

WHAT_COUNTS = (
    "Each answer is greedy and must be exactly right. The brackets are 95 % intervals: two rows whose "
    "intervals overlap widely have not been told apart. *Blank picture* asks the visual questions over a grey picture: "
    "what is still right there needed no picture. These are figures of a small model on its own generated world; "
    "**they do not predict what a 7B model does**, and no row here can be compared with a row of the paper."
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    jobs = store.jobs
    counted = Bounded(32)

    gr.Markdown(WHAT_COUNTS, elem_id="benchmark-note")
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

    gr.Markdown("### Question by question", elem_id="benchmark-questions-heading")
    question_browser(store)

    mine = memory("evaluation")

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

    def begin(selection: Selection, asked: Any) -> dict[Any, Any]:
        try:
            run = store.run(selection.run)
            if is_shipped(run):
                refuse_shipped(run.name, run.accuracy)
            task = Task(store.model, str(run.directory), None, checked_questions(asked), blank=True)
            job = jobs.submit(task, f"Evaluating {run.name}")
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, stop: gr.Button(interactive=True)}

    def begin_full(asked: Any) -> dict[Any, Any]:
        try:
            known = full_directory(store, store.lvlm.fingerprint)
            directory = store.new_runs / known.name
            if known != directory:
                refuse_shipped(FULL, read_evaluation(known))
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

    def export_runs(kind: str) -> tuple[Any, str]:
        return exported(results(store), kind)

    def export_comparison(kind: str) -> tuple[Any, str]:
        made = comparison()
        return exported([] if made is None else compared(made), kind, "comparison")

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
    for button, export, kind in (
        (as_csv, export_runs, "csv"),
        (as_json, export_runs, "json"),
        (table_csv, export_comparison, "csv"),
        (table_json, export_comparison, "json"),
    ):
        button.click(partial(export, kind), None, [file, said], **at_once).then(None, js=fetch)
    shown = selection_signal("benchmark")
    shown.select(draw, None, drawn, **at_once)
    shown.select(
        draw_shipped,
        None,
        [section, title, ranked, front, apart, words, paper, labels_section, labels_said, lost, falls],
        **at_once,
    )
    mine.select(**followed)


def refuse_shipped(name: str, stored: dict[str, Any] | None) -> None:
    """What came with the program is the same for every visitor, so its figures stay as they are. SabError where there
    are any."""
    if stored is not None:
        raise SabError(
            f"“{name}” came with the program and has been asked {stored['counts']['overall']:,} questions: its figures "
            "stand in the table. Make a run of your own in Binarize to evaluate it here."
        )
