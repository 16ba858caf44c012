"""Binarize: choose a method and thresholds, binarize the model or some of its layers, watch the error of each, compare.

A run is a job of the worker process (`viz.pages.jobs`); the page only follows it. Runs are shared by all visitors;
each has its own directory and none is ever written over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from sab.errors import SabError
from viz.figures import layer_error
from viz.pages import recipe_form
from viz.pages.chart import chart, chart_value, no_chart
from viz.pages.jobs import Job, Task
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.opened import when_opened
from viz.pages.pinned import PinnedRuns
from viz.pages.progress import progress_card, progress_value
from viz.pages.recipe_form import CHOSEN, RecipeForm, checked_questions, recipe_of
from viz.pages.results import accuracy_cell, results, size
from viz.pages.run_list import RunList
from viz.pages.scores import bits_chart
from viz.pages.selection import THRESHOLD_RANGES, Selection
from viz.pages.shared import Shared, header_value
from viz.pages.signal import LATEST, on_selection, reading, rerun_signal, selected
from viz.pages.store import Store

if TYPE_CHECKING:
    from sab.recipes import Recipe
    from sab.runs import LinearReport

NO_RUN_CHART = "The error of each layer appears here, one bar at a time, as it is binarized."
NO_ACCURACY = "Every run that has been asked held-out questions becomes a point here."
NO_LAYER = "Rerun the layer in Explore"
RERUN_HINT = (
    "*Rerun* refits one layer on full-precision inputs with what is set above, without questions or refinement, and "
    "pins it beside the run you came from."
)


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    jobs = store.jobs
    default = Selection()
    with gr.Row(elem_id="binarize", equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="binarize-recipe"):
            fields = recipe_form.method_fields() | recipe_form.scope_fields()
            with gr.Row(elem_id="binarize-go"):
                start = gr.Button("Binarize", variant="primary", elem_id="binarize-run", min_width=120)
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="binarize-stop", min_width=80)
            rerun = gr.Button(NO_LAYER, interactive=False, elem_id="binarize-rerun")
            gr.Markdown(RERUN_HINT, elem_id="binarize-rerun-hint")
            said = notice("binarize-notice")
            with gr.Accordion("Calibration, rounds, seed", open=False, elem_id="binarize-more"):
                fields |= recipe_form.more_fields()
            load = gr.UploadButton("Load a recipe (JSON)", file_types=[".json"], size="sm", elem_id="binarize-load")
        with gr.Column(scale=8, min_width=340):
            card = progress_card("binarize-progress")
            errors = chart("Output error of each layer", no_chart(NO_RUN_CHART), "binarize-errors")
            runs = RunList(store, shared)
            pinned = PinnedRuns(store)
            against = chart("Accuracy against bits", no_chart(NO_ACCURACY), "binarize-bits-chart")

    form = RecipeForm(fields)
    mine = memory("job")
    beside = gr.State("")  # the run that a rerun of one of its layers is compared with
    carried = gr.State(explored(default))
    compared = gr.State(("", "", ""))
    rerun_asked = rerun_signal()
    handed: dict[str, Any] = {name: fields["sensitivity" if name == "kind" else name] for name in explored(default)}

    def fill() -> dict[Any, Any]:
        """The methods and the recipe's defaults, read after the page is up because they come with torch."""
        from sab.binarizers import METHODS
        from sab.recipes import Recipe

        recipe = Recipe()
        looks = recipe_form.shown_for(recipe.method, False)
        looks["method"]["choices"] = [(each.label, name) for name, each in METHODS.items()]
        values = {name: getattr(recipe, name) for name in ("method", "iterations", "samples", "seed")}
        if not store.is_embedded:  # questions of another world, and a large model needs hours for them
            values["questions"] = 0
        return form.show(values, looks)

    def choose_method(method: object, budget: object) -> dict[Any, Any]:
        from sab.binarizers import METHODS

        chosen = METHODS.get(method) if isinstance(method, str) else None
        values = {} if chosen is None else {"refine": chosen.refine or 0}
        return form.show(values, recipe_form.shown_for(method, budget))

    def choose_budget(method: object, budget: object) -> dict[Any, Any]:
        from sab.recipes import Recipe

        size = recipe_form.BUDGET_BLOCK_SIZE if budget is True else Recipe.block_size
        return form.show({"block_size": size}, recipe_form.shown_for(method, budget))

    def choose_scope(scope: object, layers: object) -> dict[Any, Any]:
        try:
            fresh = scope == CHOSEN and not isinstance(layers, dict)
            values = {"layers": recipe_form.layer_grid(store)} if fresh else {}
        except SabError as error:
            return {said: str(error)}
        return {said: ""} | form.show(values, recipe_form.shown_in(scope))

    def fill_with(recipe: Recipe, sentence: str) -> dict[Any, Any]:
        values = recipe_form.values_of(store, recipe)
        looks = recipe_form.shown_for(recipe.method, values["budget"]) | recipe_form.shown_in(values["scope"])
        return {said: sentence} | form.show(values, looks)

    def load_file(path: str | None) -> dict[Any, Any]:
        try:
            recipe = recipe_form.loaded_recipe(store, path or "")
            return fill_with(recipe, "The recipe is in the form; press Binarize to make its run.")
        except SabError as error:
            return {said: str(error)}

    def load_chosen(selection: Selection) -> dict[Any, Any]:
        try:
            run = store.run(selection.run)
            recipe = recipe_form.loaded_recipe(store, run.directory / "recipe.json")
            return fill_with(recipe, f"The recipe of “{run.name}” is in the form.")
        except SabError as error:
            return {said: str(error)}

    def submit(recipe: Recipe, questions: int, label: str, compare_with: str = "") -> dict[Any, Any]:
        from sab import runs as run_directories

        directory = run_directories.fresh_directory(store.new_runs, recipe.method)
        job = jobs.submit(Task(store.place, str(directory), recipe, questions), label)
        return {said: "", mine: job.id, beside: compare_with, stop: gr.Button(interactive=True)}

    def begin(*values: Any) -> dict[Any, Any]:
        try:
            recipe, questions = recipe_of(store, form.read(values))
            return submit(recipe, questions, f"{method_label(recipe)}, {scope_words(recipe)}")
        except SabError as error:
            return {said: str(error)}

    def begin_layer(selection: Selection, *values: Any) -> dict[Any, Any]:
        """The layer that Explore shows, with what the form says."""
        try:
            read = form.read(values) | {"scope": recipe_form.ALL, "parts": ["decoder"]}
            return one_layer(recipe_of(store, read)[0], selection)
        except SabError as error:
            return {said: str(error)}

    def begin_again(event: gr.EventData) -> dict[Any, Any]:
        """The layer that Explore shows, with its thresholds and the recipe of its run."""
        from sab.binarizers import METHODS

        selection = selected(store, event._data)
        try:
            run = store.run(selection.run)
            recipe = replace(run.recipe, model=store.model)
            if METHODS[recipe.method].uses_significance:
                recipe = replace(recipe, thresholds=selection.thresholds(), sensitivity=selection.kind)
                return one_layer(recipe, selection)
            sentence = (
                f"{method_label(recipe)} does not look at thresholds: its codes stay as they are whatever you set."
            )
            return one_layer(recipe, selection) | {said: sentence}
        except SabError as error:
            return {said: str(error)}

    def one_layer(recipe: Recipe, selection: Selection) -> dict[Any, Any]:
        recipe = recipe_form.only_layer(store, recipe, selection.linear)
        recipe.validate()
        return submit(recipe, 0, f"{method_label(recipe)}, {layer_words(store, selection)}", selection.run)

    def carry_on(selection: Selection, asked: Any) -> dict[Any, Any]:
        try:
            run = store.run(selection.run)
            if run.finished:
                raise SabError(f"“{run.name}” is finished; only a stopped run can be resumed.")
            task = Task(store.place, str(run.directory), run.recipe, checked_questions(asked))
            job = jobs.submit(task, run.name)
        except SabError as error:
            return {said: str(error)}
        return {said: "", mine: job.id, beside: "", stop: gr.Button(interactive=True)}

    def follow(identifier: str, sent: object, compare_with: str) -> Iterator[dict[Any, Any]]:
        """The job to its end, where the page turns to its run; one that had ended and was shown is only shown again."""
        job = jobs.get(identifier)
        if job is None:
            yield {card: None}
            return
        selection = selected(store, sent)
        watched = not (job.ended and job.followed)
        job.followed = True
        for each in jobs.follow(job):
            ended = each.ended
            shown = {
                card: progress_value(each, jobs.before(each), result_facts(store, each)),
                errors: job_chart(store, each),
                stop: gr.Button(interactive=not ended),
            }
            if ended:
                shown |= runs.show(selection)
                if watched and each.reports:
                    change = {"run": each.run_id}
                    if compare_with:
                        change |= {"pin_a": compare_with, "pin_b": each.run_id}
                    shown[shared.header] = header_value(store, selection, change=change)
            yield shown

    def look(
        selection: Selection, identifier: str, seen: dict[str, Any], drawn: tuple[str, str, str]
    ) -> dict[Any, Any]:
        """The runs, the errors of the chosen one unless this visitor's job is drawing there, and the thresholds and the
        sensitivity of Explore where they have changed since: what a visitor sets here stays otherwise."""
        store.prepare_runs()
        job = jobs.get(identifier)
        shown: dict[Any, Any] = runs.show(selection)
        chosen = explored(selection)
        shown |= {field: chosen[name] for name, field in handed.items() if chosen[name] != seen.get(name)}
        shown[carried] = chosen
        found = [each for each in results(store) if each.is_full or each.run is not None]
        shown[against] = bits_chart(found) if found else no_chart(NO_ACCURACY)
        layer = layer_words(store, selection) if selection.linear else ""
        shown[rerun] = gr.Button(f"Rerun {layer}" if layer else NO_LAYER, interactive=bool(layer))
        pins = (selection.pin_a, selection.pin_b, selection.linear)
        if pins != drawn:
            shown |= pinned.show(selection)
            shown[compared] = pins
        run = next((run for run in store.runs() if run.id == selection.run), None)  # it may have been deleted by now
        if (job is None or job.ended) and run is not None:
            shown[errors] = errors_chart(store, list(run.reports.values()), run.names, run.recipe.method)
        return shown

    def halt(identifier: str) -> None:
        job = jobs.get(identifier)
        if job is not None:
            jobs.stop(job)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    followed: dict[str, Any] = {
        "fn": follow,
        "inputs": [mine, shared.selection, beside],
        "outputs": [card, errors, stop, shared.header, *runs.outputs],
        "concurrency_limit": None,
        "trigger_mode": "multiple",  # the next job may come before the last one's generator has quite ended
        **quiet,
    }
    begun = [said, mine, beside, stop]
    on_selection(
        store,
        "binarize",
        look,
        [mine, carried, compared],
        [errors, against, rerun, carried, compared, *handed.values(), *runs.outputs, *pinned.outputs],
        **at_once,
    )
    what = [fields["method"], fields["budget"]]
    fields["method"].input(choose_method, what, form.inputs, **LATEST, **at_once)
    fields["budget"].input(choose_budget, what, form.inputs, **LATEST, **at_once)
    fields["scope"].input(choose_scope, [fields["scope"], fields["layers"]], [said, *form.inputs], **LATEST, **at_once)
    start.click(begin, form.inputs, begun, **at_once).then(**followed)
    rerun.click(reading(store, begin_layer), [shared.selection, *form.inputs], begun, **at_once).then(**followed)
    rerun_asked.select(begin_again, None, begun, **at_once).then(**followed)
    resumed = [shared.selection, fields["questions"]]
    runs.resume.click(reading(store, carry_on), resumed, begun, **at_once).then(**followed)
    stop.click(halt, mine, None, **at_once)
    load.upload(load_file, load, [said, *form.inputs], **at_once)
    runs.reuse.click(reading(store, load_chosen), shared.selection, [said, *form.inputs], **at_once)
    show_layer = reading(store, pinned.show_layer)
    pinned.layer.input(show_layer, [shared.selection, pinned.layer], pinned.map, **LATEST, **at_once)
    runs.listen()
    when_opened(fn=fill, outputs=form.inputs, **at_once)
    mine.select(**followed)  # after a reload, a job that still runs is followed again


def method_label(recipe: Recipe) -> str:
    """The method as people read it, with its budget."""
    from sab.binarizers import METHODS

    budget = f" within {recipe.bits:g} bits" if recipe.bits is not None else ""
    return METHODS[recipe.method].label + budget


def scope_words(recipe: Recipe) -> str:
    """Which layers a recipe is for."""
    if recipe.linears is not None:
        return f"{len(recipe.linears)} {'layer' if len(recipe.linears) == 1 else 'layers'}"
    return " and ".join(recipe.parts)


def layer_words(store: Store, selection: Selection) -> str:
    """The selected layer as people read it: from its run's report, or else from the model."""
    linear = selection.linear
    try:
        report = store.run(selection.run).reports.get(linear)
    except SabError:
        report = None
    known = report or (store.lvlm.info.get(linear) if store.loaded else None)
    if known is None:
        return linear.rpartition(".")[2]
    block = f"block {known.block}, " if known.block >= 0 else ""
    return f"{'' if known.part == 'decoder' else known.part + ' '}{block}{known.kind}"


def explored(selection: Selection) -> dict[str, Any]:
    """What Explore hands over to the form, by the selection's names."""
    return {name: getattr(selection, name) for name in (*THRESHOLD_RANGES, "kind")}


def job_chart(store: Store, job: Job) -> dict[str, Any]:
    """The error of each linear that the job has finished, room left for those to come."""
    recipe = job.task.recipe
    names: Sequence[str] = ("",) * job.total
    if recipe is not None and job.reports and store.loaded:
        from sab.sequential import chosen_linears

        names = chosen_linears(store.lvlm, recipe)
    return errors_chart(store, job.reports, names, recipe.method if recipe is not None else "")


def errors_chart(store: Store, reports: Sequence[LinearReport], names: Sequence[str], method: str) -> dict[str, Any]:
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
