"""Binarize: choose a method and thresholds, binarize the decoder or some of its layers, and watch the error of each.

A run is a job of the worker process (`viz.pages.jobs`); the page only follows it. Runs are shared by all visitors;
each has its own directory and none is ever written over.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from sab.errors import SabError
from viz.figures import layer_error
from viz.pages.chart import chart, chart_value, no_chart
from viz.pages.jobs import Job, Task
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.opened import when_opened
from viz.pages.progress import duration, progress_card, progress_value
from viz.pages.results import accuracy_cell, size
from viz.pages.shared import Shared, header_value
from viz.pages.signal import selection_signal, signalled
from viz.pages.store import THRESHOLD_RANGES, Selection, Store
from viz.pages.table import Column, Row, table, table_value

if TYPE_CHECKING:
    from sab.runs import LinearReport, Recipe, Run

WHOLE, BLOCK, LAYER = "Whole decoder", "One block", "The layer in Explore"
MOST_QUESTIONS = 2000
NO_RUN_CHART = "The error of each layer appears here, one bar at a time, as it is binarized."
COLUMNS = (
    Column("Run"),
    Column("Bits, all‑in", True, "every stored bit of the binarized layers over their number of weights"),
    Column("Nominal", True, "what papers print: 1 + the share of salient columns"),
    Column("Size", True, "bytes of the packed layers"),
    Column("Accuracy", True, "held-out questions answered exactly, with the 95 % interval"),
    Column("Thresholds", False, "top share that is salient / difference quantile / sparsity"),
    Column("Layers", True),
    Column("Time", True, "fitting time of all its layers"),
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    jobs = store.jobs
    default = Selection()
    with gr.Row(elem_id="binarize", equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="binarize-recipe"):
            method = gr.Dropdown(
                [], label="Method", info="How weights become bits.", elem_id="binarize-method", filterable=False
            )
            sensitivity = gr.Radio(
                [("Input side", "input"), ("Fisher", "fisher")],
                value=default.kind,
                label="Significance from",
                info="inputs alone, or inputs and output gradients",
                elem_id="binarize-sensitivity",
            )
            sliders = {
                name: gr.Slider(
                    *THRESHOLD_RANGES[name],
                    value=getattr(default, name),
                    step=0.001,
                    label=label,
                    info=info,
                    elem_id=f"binarize-{name}",
                )
                for name, label, info in (
                    ("salient_top_p", "Salient: top share", "weights this significant for a modality count as salient"),
                    ("diff_quantile", "Unimodal: difference quantile", "how far the two significances must lie apart"),
                    ("sparsity_thr", "Unimodal: sparsity", "how much one modality must dominate, 0 to 1"),
                )
            }
            scope = gr.Radio([WHOLE, BLOCK, LAYER], value=WHOLE, label="Layers", elem_id="binarize-scope")
            block = gr.Number(value=0, precision=0, minimum=0, label="Block", visible=False, elem_id="binarize-block")
            with gr.Row(elem_id="binarize-go"):
                start = gr.Button("Binarize", variant="primary", elem_id="binarize-run", min_width=120)
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="binarize-stop", min_width=80)
            said = notice("binarize-notice")
            with gr.Accordion("Rounds, calibration, questions, seed", open=False, elem_id="binarize-more"):
                iterations = gr.Slider(
                    0, 30, value=15, step=1, label="Rounds", info="of alternating refinement", elem_id="binarize-rounds"
                )
                samples = gr.Slider(
                    16,
                    1024,
                    value=512,
                    step=16,
                    label="Calibration samples",
                    info="conversations on which significance is measured",
                    elem_id="binarize-samples",
                )
                questions = gr.Slider(
                    0,
                    1000,
                    value=200,
                    step=50,
                    label="Held-out questions",
                    info="asked after the run",
                    elem_id="binarize-questions",
                )
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", elem_id="binarize-seed")
        with gr.Column(scale=8, min_width=340):
            card = progress_card("binarize-progress")
            errors = chart("Output error of each layer", no_chart(NO_RUN_CHART), "binarize-errors")
            listed = table("binarize-runs")
            with gr.Row(elem_id="binarize-actions"):
                download = gr.Button("Download the chosen run (zip)", size="sm", elem_id="binarize-download")
                resume = gr.Button("Resume the chosen run", size="sm", elem_id="binarize-resume")
                packed = gr.DownloadButton(visible="hidden", elem_id="binarize-zip")

    mine = memory("job")
    carried = gr.State(explored(default))
    handed: dict[str, Any] = {**sliders, "kind": sensitivity}
    recipe_inputs = [method, *sliders.values(), sensitivity, iterations, scope, block, samples, seed, questions]

    def fill() -> tuple[Any, ...]:
        """The methods and the recipe's defaults, read after the page is up because they come with torch."""
        from sab.binarizers import METHODS
        from sab.runs import Recipe

        recipe = Recipe()
        choices = [(each.label, name) for name, each in METHODS.items()]
        chosen = gr.Dropdown(choices=choices, value=recipe.method, info=METHODS[recipe.method].description)
        return chosen, recipe.iterations, recipe.samples, recipe.seed

    def explain(name: str) -> tuple[Any, ...]:
        from sab.binarizers import METHODS

        chosen = METHODS.get(name)
        weighted = chosen is not None and chosen.uses_significance
        shown = [gr.Slider(interactive=weighted) for _ in sliders]
        info = chosen.description if chosen is not None else ""
        return gr.Dropdown(info=info), *shown, gr.Radio(interactive=weighted)

    def begin(selection: Selection, *values: Any) -> dict[Any, Any]:
        try:
            task, label = new_task(store, selection, values)
            job = jobs.submit(task, label)
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, stop: gr.Button(interactive=True)}

    def carry_on(selection: Selection, asked: Any) -> dict[Any, Any]:
        try:
            run = store.run(selection.run)
            if run.finished:
                raise SabError(f"“{run.name}” is finished; only a stopped run can be resumed.")
            task = Task(store.model, str(run.directory), run.recipe, checked_questions(asked))
            job = jobs.submit(task, run.name)
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, stop: gr.Button(interactive=True)}

    def follow(identifier: str, selection: Selection) -> Iterator[dict[Any, Any]]:
        job = jobs.get(identifier)
        if job is None:
            yield {card: None}
            return
        watched = not job.ended
        for each in jobs.follow(job):
            ended = each.ended
            shown = {
                card: progress_value(each, jobs.before(each), result_facts(store, each)),
                errors: job_chart(store, each),
                stop: gr.Button(interactive=not ended),
            }
            if ended:
                shown[listed] = runs_table(store)
                if watched and each.reports:
                    shown[shared.header] = header_value(store, replace(selection, run=each.run_id))
            yield shown

    def look(event: gr.EventData, identifier: str, seen: dict[str, Any]) -> dict[Any, Any]:
        """The runs, the errors of the chosen one unless this visitor's job is drawing there, and the thresholds and the
        sensitivity of Explore where they have changed since: what a visitor sets here stays otherwise."""
        job = jobs.get(identifier)
        selection = signalled(store, event)
        shown: dict[Any, Any] = {listed: runs_table(store)}
        chosen = explored(selection)
        shown |= {field: chosen[name] for name, field in handed.items() if chosen[name] != seen.get(name)}
        shown[carried] = chosen
        if (job is None or job.ended) and selection.run:
            run = store.run(selection.run)
            shown[errors] = errors_chart(store, list(run.reports.values()), run.names, run.recipe.method)
        return shown

    def halt(identifier: str) -> None:
        job = jobs.get(identifier)
        if job is not None:
            jobs.stop(job)

    def pack(selection: Selection) -> tuple[Any, str]:
        try:
            return gr.DownloadButton(value=str(zipped(store.run(selection.run)))), ""
        except SabError as error:
            return gr.skip(), str(error)

    def place(kind: str, selection: Selection) -> tuple[Any, str]:
        sentence = ""
        if kind == LAYER:
            sentence = f"Explore shows {selection.linear}." if selection.linear else "Choose a layer in Explore first."
        return gr.Number(visible=kind == BLOCK), sentence

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    followed: dict[str, Any] = {
        "fn": follow,
        "inputs": [mine, shared.selection],
        "outputs": [card, errors, stop, listed, shared.header],
        "concurrency_limit": None,
        **quiet,
    }
    selection_signal("binarize").select(
        look, [mine, carried], [listed, errors, carried, *handed.values()], **at_once
    )
    method.change(explain, method, [method, *sliders.values(), sensitivity], **at_once)
    scope.change(place, [scope, shared.selection], [block, said], **at_once)
    start.click(begin, [shared.selection, *recipe_inputs], [said, mine, stop], **at_once).then(**followed)
    resume.click(carry_on, [shared.selection, questions], [said, mine, stop], **at_once).then(**followed)
    stop.click(halt, mine, None, **at_once)
    download.click(pack, shared.selection, [packed, said], **at_once).then(
        None, js="() => document.querySelector('#binarize-zip')?.click()"
    )
    when_opened(fn=fill, outputs=[method, iterations, samples, seed], **at_once)
    mine.select(**followed)  # after a reload, a job that still runs is followed again


def new_task(store: Store, selection: Selection, values: tuple[Any, ...]) -> tuple[Task, str]:
    """The task that the form describes, with its own fresh directory. Raises SabError for wrong values."""
    from sab import runs
    from sab.binarizers import METHODS

    recipe, questions = read_recipe(store, selection, values)
    recipe.validate()
    directory = runs.fresh_directory(store.new_runs, recipe.method)
    scope = "whole decoder" if recipe.linears is None else f"{len(recipe.linears)} linears"
    return Task(store.model, str(directory), recipe, questions), f"{METHODS[recipe.method].label}, {scope}"


def read_recipe(store: Store, selection: Selection, values: tuple[Any, ...]) -> tuple[Recipe, int]:
    """Recipe and number of questions from the form's values, of which nothing is trusted."""
    from sab.runs import Recipe
    from sab.significance import Thresholds

    method, top, quantile, sparsity, sensitivity, iterations, scope, block, samples, seed, questions = values
    thresholds = Thresholds(top, quantile, sparsity).validate()
    linears = None if scope == WHOLE else chosen_linears(store, selection, scope, block)
    recipe = Recipe(
        model=store.model,
        method=method,
        thresholds=thresholds,
        sensitivity=sensitivity,
        samples=whole(samples, "The number of calibration samples"),
        seed=whole(seed, "The seed"),
        iterations=whole(iterations, "The number of rounds"),
        linears=linears,
    )
    return recipe, checked_questions(questions)


def chosen_linears(store: Store, selection: Selection, scope: object, block: object) -> tuple[str, ...]:
    """Names of the linears of one block or of the layer in Explore. Raises SabError when there are none."""
    if scope == LAYER:
        if not selection.linear:
            raise SabError("Choose a layer in Explore first.")
        return (selection.linear,)
    if scope != BLOCK:
        raise SabError("Choose which layers to binarize.")
    number = whole(block, "The block")
    info = store.lvlm.info
    names = tuple(name for name in store.lvlm.decoder_linears if info[name].block == number)
    if not names:
        raise SabError(f"The decoder has no block {number}; choose one from 0 to {len(store.lvlm.blocks) - 1}.")
    return names


def whole(value: object, what: str) -> int:
    """A whole number. Raises SabError naming `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise SabError(f"{what} must be a whole number.")
    return int(value)


def checked_questions(value: object) -> int:
    """A number of questions to ask."""
    number = whole(value, "The number of questions")
    if not 0 <= number <= MOST_QUESTIONS:
        raise SabError(f"The number of questions must lie between 0 and {MOST_QUESTIONS}.")
    return number


def explored(selection: Selection) -> dict[str, Any]:
    """What Explore hands over to the form, by the selection's names."""
    return {name: getattr(selection, name) for name in (*THRESHOLD_RANGES, "kind")}


def job_chart(store: Store, job: Job) -> dict[str, Any]:
    """The error of each linear that the job has finished, room left for those to come."""
    recipe = job.task.recipe
    names = recipe.linears if recipe is not None else None
    if names is None:
        names = tuple(store.lvlm.decoder_linears) if job.reports and store.loaded else ("",) * job.total
    return errors_chart(store, job.reports, names, recipe.method if recipe is not None else "")


def errors_chart(
    store: Store, reports: Sequence[LinearReport], names: Sequence[str], method: str
) -> dict[str, Any]:
    """One bar per finished linear, and room for those of `names` that are still to come, in forward order."""
    if not reports:
        return no_chart(NO_RUN_CHART)
    waiting = names[len(reports) :]
    known = store.lvlm.info if store.loaded else {}
    drawn = layer_error.info(
        [report.name for report in reports] + list(waiting),
        [report.block for report in reports] + [known[name].block if name in known else None for name in waiting],
        [report.kind for report in reports] + [known[name].kind if name in known else "" for name in waiting],
        [report.relative_loss for report in reports] + [None] * len(waiting),
        method,
    )
    worst = max(reports, key=lambda report: report.relative_loss)
    words = f"{len(reports)} of {len(names)} layers; the largest error is that of block {worst.block}, {worst.kind}: "
    words += f"{100 * worst.relative_loss:.2f} % of its output energy."
    return chart_value("layer-error", lambda dark: layer_error.figure(drawn, dark), words)


def result_facts(store: Store, job: Job) -> list[tuple[str, str]]:
    """What came out so far: bits and size from the reports, accuracy from the run once it was asked."""
    if not job.reports:
        return []
    weights = sum(report.weights for report in job.reports)
    all_in = sum(report.bits_all_in * report.weights for report in job.reports) / weights
    nominal = sum(report.bits_nominal * report.weights for report in job.reports) / weights
    facts = [
        ("bits per weight, all-in", f"{all_in:.2f}"),
        ("bits, nominal", f"{nominal:.2f}"),
        ("packed size", size(sum(report.bytes for report in job.reports))),
    ]
    if job.ended:
        accuracy, _, interval = accuracy_cell(store.run(job.run_id).accuracy)[0].partition("\n")
        if accuracy:
            facts.append((f"held-out accuracy, {interval}", accuracy))
    return facts


def runs_table(store: Store) -> dict[str, Any]:
    """All runs, newest first; a click chooses one for the whole page."""
    rows = []
    for run in reversed(store.runs(fresh=True)):
        thresholds = run.recipe.thresholds
        values = (thresholds.salient_top_p, thresholds.diff_quantile, thresholds.sparsity_thr)
        used = uses_significance(run)
        rows.append(
            Row(
                [
                    (f"{run.name}\n{run.id}", run.name),
                    (f"{run.bits_all_in:.2f}" if run.reports else "", run.bits_all_in if run.reports else None),
                    (f"{run.bits_nominal:.2f}" if run.reports else "", run.bits_nominal if run.reports else None),
                    (size(run.bytes), run.bytes),
                    accuracy_cell(run.accuracy),
                    (" / ".join(f"{value:g}" for value in values) if used else "not used", None),
                    (f"{len(run.reports)} of {len(run.names)}", len(run.reports)),
                    (duration(run.seconds), run.seconds),
                ],
                run.id,
                "" if run.finished else "unfinished",
            )
        )
    return table_value(COLUMNS, rows, "No runs yet: choose a method and press Binarize.", "run")


def uses_significance(run: Run) -> bool:
    """Whether the run's method looks at the map at all."""
    from sab.binarizers import METHODS

    return METHODS[run.recipe.method].uses_significance


def zipped(run: Run) -> Path:
    """A zip of the run directory in a fresh temporary folder; codes do not compress, so they are only stored."""
    path = Path(tempfile.mkdtemp(prefix="sab-lens-")) / f"{run.id}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(run.directory.rglob("*")):
            if file.is_file() and not file.name.startswith(".tmp-"):
                archive.write(file, f"{run.id}/{file.relative_to(run.directory).as_posix()}")
    return path
