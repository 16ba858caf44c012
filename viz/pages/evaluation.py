"""The bar that asks runs, and full precision, the held-out questions, one job a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from sab.errors import SabError
from viz.pages.jobs import Job, Task
from viz.pages.memory import memory
from viz.pages.notice import notice
from viz.pages.progress import progress_card, progress_value
from viz.pages.recipe_form import checked_questions
from viz.pages.results import FULL, current_fingerprint, full_directory, read_evaluation
from viz.pages.run_list import is_shipped
from viz.pages.selection import Selection
from viz.pages.store import Store

FULL_CHOICE = "full precision"  # no run's id has a space
NONE_TO_ASK = (
    "What came with the program has its figures in the tables and keeps them. Make a run of your own in Binarize; it "
    "can then be asked here."
)
NONE_CHOSEN = "Choose at least one model to evaluate."


class EvaluationBar:
    """The components of the bar and what they do."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with gr.Row(elem_id="benchmark-actions"):
            self.chosen = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                label="Models",
                info="your own runs, one or several",
                elem_id="benchmark-models",
                min_width=240,
            )
            self.questions = gr.Slider(
                50,
                2000,
                value=200,
                step=50,
                label="Questions",
                info="held out from training" if store.is_embedded else "of the embedded model's world",
                elem_id="benchmark-questions",
                min_width=200,
            )
            with gr.Row(elem_id="benchmark-buttons"):
                self.start = gr.Button("Evaluate", variant="primary", min_width=120, elem_id="benchmark-run")
                self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, elem_id="benchmark-stop")
            self.exports = gr.Row(elem_id="benchmark-export")
        self.said = notice("benchmark-notice")
        self.card = progress_card("benchmark-progress")
        self.mine = memory("evaluation")  # the ids of the jobs, with commas between
        self.offered = gr.State(None)  # the run of the page that was offered last

    def listen(self, draw: Callable[[], dict[Any, Any]], drawn: Sequence[Any], quiet: dict[str, Any]) -> None:
        """Wire the events; `draw` fills the outputs `drawn` with what evaluations have found by then."""
        at_once: dict[str, Any] = {**quiet, "queue": False}
        followed: dict[str, Any] = {
            "fn": partial(self.follow, draw),
            "inputs": self.mine,
            "outputs": [self.card, self.stop, *drawn],
            "concurrency_limit": None,
            "trigger_mode": "multiple",  # the next evaluation may come before the last one's generator has quite ended
            **quiet,
        }
        asked = self.start.click(
            self.begin, [self.chosen, self.questions], [self.said, self.mine, self.stop], **at_once
        )
        asked.then(**followed)
        self.stop.click(self.halt, self.mine, None, **at_once)
        self.mine.select(**followed)

    def offer(self, selection: Selection, offered: str | None, chosen: object) -> dict[Any, Any]:
        """What may be asked now. The run of the page, where that is one's own, is chosen when it becomes that; what a
        visitor has chosen stays otherwise, but for runs that are gone."""
        choices = choices_of(self.store)
        known = [value for _, value in choices]
        update: dict[str, Any] = {"choices": choices, "interactive": bool(choices)}
        kept = [each for each in chosen if each in known] if isinstance(chosen, list) else []
        if selection.run != offered:
            update["value"] = [selection.run] if selection.run in known else []
        elif kept != chosen:
            update["value"] = kept
        info = "your own runs, one or several" if choices else NONE_TO_ASK
        return {self.chosen: gr.update(info=info, **update), self.offered: selection.run}

    def begin(self, chosen: object, asked: object) -> dict[Any, Any]:
        """Put one job a model into the line; what does not fit any more is said."""
        begun: list[Job] = []
        refusal = ""
        try:
            tasks = self._tasks(chosen, checked_questions(asked))
        except SabError as error:
            return {self.said: str(error)}
        for name, task in tasks:
            try:
                begun.append(self.store.jobs.submit(task, f"Evaluating {name}"))
            except SabError as error:
                refusal = f"{name}: {error}"
                break
        shown: dict[Any, Any] = {self.said: refusal}
        if begun:
            shown |= {self.mine: ",".join(job.id for job in begun), self.stop: gr.Button(interactive=True)}
        return shown

    def _tasks(self, chosen: object, questions: int) -> list[tuple[str, Task]]:
        names = {value: name for name, value in choices_of(self.store)}
        if not names:
            raise SabError(NONE_TO_ASK)
        if not isinstance(chosen, list) or not chosen:
            raise SabError(NONE_CHOSEN)
        tasks = []
        for value in chosen:
            if value not in names:
                raise SabError("One of the chosen runs is not there any more, or came with the program; choose again.")
            if value == FULL_CHOICE:
                directory = full_directory(self.store, self.store.lvlm.fingerprint)
                directory.mkdir(parents=True, exist_ok=True)
            else:
                directory = self.store.run(value).directory
            tasks.append((names[value], Task(self.store.place, str(directory), None, questions, blank=True)))
        return tasks

    def follow(self, draw: Callable[[], dict[Any, Any]], identifiers: str) -> Iterator[dict[Any, Any]]:
        """Show the jobs one after the other, and each one's figures as soon as they are there."""
        jobs = self._jobs(identifiers)
        if not jobs:
            yield {self.card: None}
            return
        for place, job in enumerate(jobs, start=1):
            facts = [("model", f"{place} of {len(jobs)}")] if len(jobs) > 1 else []
            for each in self.store.jobs.follow(job):
                over = each.ended and place == len(jobs)
                shown = {
                    self.card: progress_value(each, self.store.jobs.before(each), facts),
                    self.stop: gr.Button(interactive=not over),
                }
                yield shown | (draw() if each.ended else {})

    def halt(self, identifiers: str) -> None:
        """Stop all of them, the waiting ones first."""
        for job in reversed(self._jobs(identifiers)):
            self.store.jobs.stop(job)

    def _jobs(self, identifiers: object) -> list[Job]:
        named = identifiers.split(",") if isinstance(identifiers, str) else []
        return [job for each in named if (job := self.store.jobs.get(each)) is not None]


def choices_of(store: Store) -> list[tuple[str, str]]:
    """Names and ids of what may be asked: of the weights that are shown, what keeps no figures that came with the
    program."""
    runs = [run for run in store.runs() if run.reports]
    fingerprint = current_fingerprint(store, runs)
    known = full_directory(store, fingerprint)
    choices = []
    if fingerprint and (known.parent == store.new_runs or read_evaluation(known) is None):
        choices.append((FULL, FULL_CHOICE))
    for run in runs:
        if run.fingerprint == fingerprint and not (is_shipped(run) and run.accuracy):
            choices.append((run.name, run.id))
    return choices
