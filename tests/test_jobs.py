"""The line of jobs: one at a time, others told their place, crashes and stops lose nothing that is finished."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sab.errors import SabError
from viz.pages import jobs as line
from viz.pages import worker
from viz.pages.jobs import Job, Jobs, Task
from viz.pages.progress import about, progress_value


class Actor:
    """Stands in for the worker process: sends what the test tells it to."""

    script: Callable[[Task], Iterator[tuple[str, Any]]]

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.alive = True

    def work(self, task: Task) -> Iterator[tuple[str, Any]]:
        return type(self).script(task)

    def close(self) -> int:
        self.alive = False
        return -9


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setattr(line, "_Worker", Actor)
    return Jobs()


def task(name: str) -> Task:
    return Task(None, f"/runs/{name}", None, 10)


def ended(job: Job) -> None:
    limit = time.monotonic() + 10
    while not job.ended:
        assert time.monotonic() < limit, job
        time.sleep(0.01)


def test_one_job_works_while_the_others_hear_their_place(jobs: Jobs) -> None:
    go = threading.Event()

    def script(_: Task) -> Iterator[tuple[str, Any]]:
        yield "stage", ("fitting", 0.5, 30.0)
        go.wait(10)
        yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    first, second, third = (jobs.submit(task(name), name) for name in "abc")
    while first.stage != "fitting":
        time.sleep(0.01)
    assert [jobs.before(each) for each in (first, second, third)] == [0, 1, 2]
    assert "1 job before yours" in progress_value(second, jobs.before(second))["stage"]
    assert progress_value(first, 0)["left"] == "about 30 seconds left"
    jobs.stop(third)
    assert third.state == line.STOPPED
    go.set()
    ended(second)
    assert [first.state, second.state] == [line.DONE, line.DONE]


def test_a_crash_ends_one_job_with_a_sentence_and_the_next_one_works(jobs: Jobs) -> None:
    def script(work: Task) -> Iterator[tuple[str, Any]]:
        if work.directory.endswith("bad"):
            raise EOFError
        yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    bad, good = jobs.submit(task("bad"), "bad"), jobs.submit(task("good"), "good")
    ended(bad)
    ended(good)
    assert (bad.state, bad.message) == (line.FAILED, line.CRASHED)
    assert good.state == line.DONE


def test_a_run_cannot_be_made_twice_at_once_and_the_line_is_bounded(jobs: Jobs) -> None:
    go = threading.Event()

    def script(_: Task) -> Iterator[tuple[str, Any]]:
        go.wait(10)
        yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    jobs.submit(task("same"), "same")
    with pytest.raises(SabError, match="worked on already"):
        jobs.submit(task("same"), "same")
    for number in range(line.LONGEST_LINE - 1):
        jobs.submit(task(str(number)), "more")
    with pytest.raises(SabError, match="waiting already"):
        jobs.submit(task("too many"), "too many")
    go.set()


def test_followers_see_the_end_even_when_they_come_late(jobs: Jobs) -> None:
    Actor.script = staticmethod(lambda _: iter([("ended", (line.DONE, "ready"))]))
    job = jobs.submit(task("quick"), "quick")
    ended(job)
    assert [each.message for each in jobs.follow(job)] == ["ready"]
    assert jobs.get(job.id) is job
    assert jobs.get({"forged": 1}) is None


def test_remaining_time_is_said_in_words() -> None:
    assert about(3) == "a few seconds"
    assert about(42) == "about 40 seconds"
    assert about(130) == "about 2 minutes"


class Told:
    """Collects what the bench tells."""

    def __init__(self) -> None:
        self.news: list[tuple[str, Any]] = []

    def __call__(self, name: str, value: Any) -> None:
        self.news.append((name, value))


def test_a_stopped_run_keeps_its_layers_and_resumes_to_the_end(tmp_path: Path) -> None:
    from sab import models, runs
    from sab.recipes import Recipe

    names = tuple(name for name in models.load().decoder_linears if ".layers.0.self_attn." in name)
    recipe = Recipe(method="xnor", samples=2, linears=names)
    bench, told, stop = worker.Bench(), Told(), threading.Event()

    def tell(name: str, value: Any) -> None:
        told(name, value)
        if name == "report":
            stop.set()

    work = Task(None, str(tmp_path / "run"), recipe, 0)
    state, sentence = bench.perform(work, stop, tell)
    assert (state, sentence[:8]) == (line.STOPPED, "Stopped:")
    assert len(runs.Run.open(tmp_path / "run").reports) == 3  # q, k and v have one input and are fitted together
    stop.clear()
    assert bench.perform(work, stop, told)[0] == line.DONE
    run = runs.Run.open(tmp_path / "run")
    assert run.finished
    assert tuple(run.reports) == names


def test_an_evaluation_is_stored_with_its_control_and_its_distance(tmp_path: Path) -> None:
    from sab import models, runs
    from sab.recipes import Recipe

    name = next(iter(models.load().decoder_linears))
    bench, told = worker.Bench(), Told()
    stop = threading.Event()
    work = Task(None, str(tmp_path / "run"), Recipe(method="xnor", samples=2, linears=(name,)), 8, blank=True)
    assert bench.perform(work, stop, told) == (line.DONE, "")
    stored = runs.Run.open(tmp_path / "run").accuracy
    assert stored is not None
    assert stored["counts"]["overall"] == 8
    assert stored["blank_picture"]["counts"]["overall"] == 8
    assert stored["divergence"]["kl"] >= 0
    shares = [value[1] for kind, value in told.news if kind == "stage" and "question" in value[0]]
    assert shares == sorted(shares)
    stop.set()
    assert bench.perform(Task(None, str(tmp_path / "run"), None, 8), stop, told)[0] == line.STOPPED
    assert runs.Run.open(tmp_path / "run").accuracy == stored


def test_the_worker_goes_for_its_memory_only_while_nobody_waits(jobs: Jobs) -> None:
    free = threading.Event()

    def script(_: Task) -> Iterator[tuple[str, Any]]:
        free.wait(10)
        yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    assert not jobs.let_go()  # there is none yet
    job = jobs.submit(task("one"), "run")
    while jobs._worker is None:
        time.sleep(0.01)
    process = jobs._worker
    assert not jobs.let_go()
    free.set()
    list(jobs.follow(job))
    while jobs.working_on(job.task.directory):
        time.sleep(0.01)
    assert jobs.let_go()
    assert not process.alive
    assert not jobs.let_go()


def test_the_worker_refuses_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import tiny_folder
    from viz.pages import machine

    monkeypatch.setattr(machine, "free_bytes", lambda: 3_000_000)
    with pytest.raises(SabError, match="2 MB in memory and as much again"):
        worker.Bench().perform(Task(str(tiny_folder()), str(tmp_path / "run"), None, 1), threading.Event(), Told())


def test_the_worker_changes_models_from_task_to_task(tmp_path: Path) -> None:
    from sab import runs
    from sab.recipes import Recipe
    from tests.tiny import tiny_folder

    bench, tiny = worker.Bench(), str(tiny_folder())
    made = []
    for number, model in enumerate((tiny, None, tiny)):
        linear = "model.language_model.layers.0.self_attn.q_proj"
        recipe = Recipe(model=model, method="xnor", samples=2, linears=(linear,))
        work = Task(model, str(tmp_path / str(number)), recipe, 0)
        assert bench.perform(work, threading.Event(), Told())[0] == line.DONE
        made.append(runs.Run.open(tmp_path / str(number)))
    first, other, again = (run.fingerprint for run in made)
    assert first == again != other
    assert made[0].reports.keys() == made[1].reports.keys()
    assert made[0].reports[linear].shape != made[1].reports[linear].shape


def test_a_resumed_run_is_read_anew_by_every_cache(tmp_path: Path) -> None:
    from sab.recipes import Recipe
    from viz.pages.store import Store, version

    store = Store(None, [tmp_path])
    names = tuple(name for name in store.lvlm.decoder_linears if ".layers.0.self_attn." in name)
    bench, told, stop = worker.Bench(), Told(), threading.Event()

    def tell(name: str, value: Any) -> None:
        told(name, value)
        if name == "report":
            stop.set()

    work = Task(None, str(tmp_path / "run"), Recipe(method="xnor", samples=2, linears=names), 0)
    bench.perform(work, stop, tell)
    last = names[-1]
    half, key = store.binarized("run"), version(store.run("run"))
    assert store.binarized("run") is half  # nothing has changed: it is kept
    assert torch.equal(half.linears[last].weight, store.lvlm.linears[last].weight)

    stop.clear()
    bench.perform(work, stop, told)
    store.runs(fresh=True)
    assert version(store.run("run")) != key
    whole = store.binarized("run")
    assert not torch.equal(whole.linears[last].weight, store.lvlm.linears[last].weight)
    assert torch.equal(whole.linears[last].weight, store.run("run").codes(last).dense().to(whole.dtype))


def test_what_is_computed_ahead_is_heard_of_by_the_job_that_needs_it_and_gives_way_to_another(jobs: Jobs) -> None:
    from sab.recipes import Recipe

    recipe = Recipe(samples=8)
    came, seen = threading.Event(), []

    def script(work: Task) -> Iterator[tuple[str, Any]]:
        if not work.directory:
            came.wait(10)
            yield "stage", ("calibration, block 1", 0.5, None)
            actor = jobs._worker
            assert actor is not None
            seen.append(actor.stop.is_set())
            yield "ended", (line.DONE, "")
        else:
            yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    for samples, gives_way in ((8, False), (16, True)):
        came.clear()
        jobs.prepare(recipe)
        while jobs._ahead is not None:
            time.sleep(0.01)
        job = jobs.submit(Task(None, f"/runs/{samples}", Recipe(samples=samples), 0), "run")
        came.set()
        ended(job)
        assert job.state == line.DONE
        assert seen.pop() == gives_way
        assert (job.stage == "calibration, block 1") != gives_way


def test_a_job_stopped_while_it_waits_for_what_is_computed_ahead_makes_nothing(jobs: Jobs) -> None:
    from sab.recipes import Recipe

    told, stopped, worked = threading.Event(), threading.Event(), []

    def script(work: Task) -> Iterator[tuple[str, Any]]:
        if work.directory:
            worked.append(work.directory)
        else:
            told.wait(10)
            yield "stage", ("calibration samples", 0.5, None)
            stopped.wait(10)
        yield "ended", (line.DONE, "")

    Actor.script = staticmethod(script)
    jobs.prepare(Recipe())
    while jobs._ahead is not None:
        time.sleep(0.01)
    job = jobs.submit(Task(None, "/runs/one", Recipe(), 0), "run")
    told.set()
    while job.state == line.WAITING:
        time.sleep(0.01)
    jobs.stop(job)
    stopped.set()
    ended(job)
    assert (job.state, worked) == (line.STOPPED, [])


def test_layers_of_every_part_are_counted(tmp_path: Path) -> None:
    from sab.recipes import Recipe
    from tests.tiny import tiny_folder

    told = Told()
    recipe = Recipe(model=str(tiny_folder()), method="xnor", samples=4, parts=("vision", "projector", "decoder"))
    work = Task(str(tiny_folder()), str(tmp_path / "run"), recipe, 0)
    assert worker.Bench().perform(work, threading.Event(), told)[0] == line.DONE
    reports = [value for name, value in told.news if name == "report"]
    totals = {value for name, value in told.news if name == "total"} | {report.total for report in reports}
    assert totals == {len(reports)}
    assert {report.part for report in reports} == {"vision", "projector", "decoder"}


def test_a_full_disk_is_one_sentence_and_the_layers_before_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    from sab import models, runs
    from sab.recipes import Recipe

    names = tuple(name for name in models.load().decoder_linears if ".layers.0.self_attn." in name)
    work = Task(None, str(tmp_path / "run"), Recipe(method="xnor", samples=2, linears=names), 0)
    bench, told = worker.Bench(), Told()
    store_linear = runs.store_linear

    def full(run: Any, report: Any, codes: Any) -> None:
        if len(run.reports) == 2:
            monkeypatch.setattr(runs.os, "fsync", refuse)
        store_linear(run, report, codes)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs, "store_linear", full)
    with pytest.raises(SabError, match=r"No space left on device.*finished linears of a run are kept"):
        bench.perform(work, threading.Event(), told)
    monkeypatch.undo()
    assert len(runs.Run.open(tmp_path / "run").reports) == 2
    assert bench.perform(work, threading.Event(), told)[0] == line.DONE
    assert runs.Run.open(tmp_path / "run").finished
