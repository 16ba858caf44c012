"""Which models may be asked on the page, and what becomes of asking several."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sab.errors import SabError
from sab.runs import ASSET_RUNS
from viz.pages.evaluation import FULL_CHOICE, NONE_CHOSEN, NONE_TO_ASK, EvaluationBar, choices_of
from viz.pages.jobs import LONGEST_LINE, Job, Task
from viz.pages.selection import Selection
from viz.pages.store import Store


class Line:
    """Takes tasks until it is full, and works on none."""

    def __init__(self, room: int = LONGEST_LINE) -> None:
        self.room = room
        self.jobs: dict[str, Job] = {}
        self.stopped: list[str] = []

    def submit(self, task: Task, label: str) -> Job:
        if len(self.jobs) >= self.room:
            raise SabError("the line is full.")
        job = Job(task, label)
        self.jobs[job.id] = job
        return job

    def get(self, identifier: object) -> Job | None:
        return self.jobs.get(str(identifier))

    def stop(self, job: Job) -> None:
        self.stopped.append(job.label)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs of one's own beside those that came with the program."""
    for name in ("mine", "other"):
        shutil.copytree(ASSET_RUNS / "xnor", tmp_path / name)
    return Store(None, [tmp_path])


def bar(store: Store, line: Line) -> EvaluationBar:
    store.jobs = line  # type: ignore[assignment]
    with gr.Blocks():
        return EvaluationBar(store)


def test_only_what_keeps_no_shipped_figures_is_offered(store: Store) -> None:
    assert {value for _, value in choices_of(store)} == {"mine", "other"}
    made = bar(store, Line())

    def chosen(run: str, offered: str | None, before: object) -> object:
        return made.offer(Selection(run=run), offered, before)[made.chosen].get("value", "as it was")

    assert chosen("other", None, []) == ["other"]
    assert chosen("sab", "other", ["other"]) == []
    assert chosen("other", "other", ["mine"]) == "as it was"  # a visitor's own choice stays
    assert chosen("other", "other", ["mine", "deleted"]) == ["mine"]
    assert chosen("other", "other", "forged") == []
    assert made.offer(Selection(run="other"), None, [])[made.offered] == "other"


def test_a_page_without_runs_of_its_own_says_what_to_do(tmp_path: Path) -> None:
    made = bar(Store(None, [tmp_path]), Line())
    offered = made.offer(Selection(run="sab"), None, [])[made.chosen]
    assert offered["info"] == NONE_TO_ASK
    assert not offered["interactive"]
    assert made.begin(["sab"], 50) == {made.said: NONE_TO_ASK}


def test_full_precision_is_offered_where_it_has_no_shipped_figures(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sab import runs

    monkeypatch.setattr(runs, "ASSET_RUNS", tmp_path / "none")
    assert FULL_CHOICE in {value for _, value in choices_of(store)}


def test_several_models_become_jobs_in_the_order_chosen_and_stop_together(store: Store) -> None:
    line = Line()
    made = bar(store, line)
    shown: dict[Any, Any] = made.begin(["other", "mine"], 100)
    assert shown[made.said] == ""
    assert [Path(job.task.directory).name for job in line.jobs.values()] == ["other", "mine"]
    assert all(job.task.questions == 100 for job in line.jobs.values())
    made.halt(shown[made.mine])
    assert len(line.stopped) == 2


def test_what_finds_no_place_in_the_line_is_said_and_the_rest_is_asked(store: Store) -> None:
    line = Line(room=1)
    made = bar(store, line)
    shown: dict[Any, Any] = made.begin(["mine", "other"], 50)
    assert "the line is full" in shown[made.said]
    assert shown[made.mine] == next(iter(line.jobs))


@pytest.mark.parametrize("sent", [[], None, "mine", ["sab"], ["gone"], [7]])
def test_a_forged_or_empty_choice_is_one_sentence(store: Store, sent: object) -> None:
    line = Line()
    made = bar(store, line)
    said = made.begin(sent, 50)[made.said]
    assert said == NONE_CHOSEN or "choose again" in said
    assert not line.jobs
