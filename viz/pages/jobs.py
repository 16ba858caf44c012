"""Runs and evaluations that visitors ask for: one line, one worker process, progress that anybody may follow.

The worker is a process of its own, so that a crash or an exhausted memory ends one job and not the page, and so that
its arithmetic does not hold the page's interpreter. It loads the model once and then waits for tasks. A job outlives
the visitor's connection: its id finds it again after a reload. What a job finishes lies in its run directory at once,
so a stopped or crashed run can be continued.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sab.errors import SabError

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from sab.models import LVLM
    from sab.runs import LinearReport, Recipe

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
ENDED = (DONE, STOPPED, FAILED)
KEPT_JOBS = 100
LONGEST_LINE = 8
CRASHED = "The worker process ended unexpectedly; the layers finished before are kept, and Resume continues the run."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What the worker is asked to do. A recipe makes or continues the run in `directory`; `questions` > 0 then asks
    the run, or full precision when the directory holds no run, that many held-out questions; `blank` asks them again
    with blank pictures and measures the distance to full precision."""

    model: str | None
    directory: str
    recipe: Recipe | None
    questions: int
    blank: bool = False


@dataclass
class Job:
    """A task in the line, as the page sees it. `version` grows with each change, so followers know when to draw."""

    task: Task
    label: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = WAITING
    stage: str = ""
    share: float = 0.0  # of the stage that is running
    remaining: float | None = None  # seconds, of the stage that is running
    total: int = 0
    reports: list[LinearReport] = field(default_factory=list)
    message: str = ""
    note: str = ""  # something to know about the result, such as too few calibration tokens
    version: int = 0
    began: float = 0.0
    seconds: float = 0.0

    @property
    def run_id(self) -> str:
        return Path(self.task.directory).name

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Jobs:
    """The line of jobs and the worker that takes them one after the other."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._line: list[Job] = []
        self._changed = threading.Condition()
        self._worker: _Worker | None = None
        self._dispatcher: threading.Thread | None = None

    def submit(self, task: Task, label: str) -> Job:
        """Put a task at the end of the line. Raises SabError when the line is full or the run is being made."""
        with self._changed:
            if len(self._line) >= LONGEST_LINE:
                raise SabError(f"{LONGEST_LINE} jobs are waiting already; try again when some have ended.")
            if any(job.task.directory == task.directory for job in self._line):
                raise SabError("This run is being worked on already; wait until that has ended.")
            job = Job(task, label)
            self._jobs[job.id] = job
            for old in [each.id for each in self._jobs.values() if each.ended][: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[old]
            self._line.append(job)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="jobs", daemon=True)
                self._dispatcher.start()
            self._changed.notify_all()
            return job

    def get(self, identifier: object) -> Job | None:
        """The job of that id, None when it is unknown or long gone."""
        return self._jobs.get(identifier) if isinstance(identifier, str) else None

    def before(self, job: Job) -> int:
        """How many jobs must end before this one starts."""
        with self._changed:
            return self._line.index(job) if job in self._line else 0

    def stop(self, job: Job) -> None:
        """End a job between two layers or questions; one that still waits leaves the line."""
        with self._changed:
            if job.ended:
                return
            if job.state == WAITING:
                self._line.remove(job)
                self._end(job, STOPPED, "Taken out of the line before it began.")
            elif self._worker is not None:
                job.message = "Stopping after the current step…"
                job.version += 1
                self._worker.stop.set()
            self._changed.notify_all()

    def follow(self, job: Job, pause: float = 0.2) -> Iterator[Job]:
        """Yield the job whenever it or its place in the line has changed, at most every `pause` seconds, to its end."""
        seen: tuple[int, int] | None = None
        while True:
            now = (job.version, self.before(job))
            if now != seen:
                seen = now
                yield job
                if job.ended and seen[0] == job.version:
                    return
                time.sleep(pause)
            else:
                with self._changed:
                    self._changed.wait(timeout=1.0)

    def close(self) -> None:
        """End the worker process, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    self._changed.wait()
                job = self._line[0]
                job.state, job.began = RUNNING, time.monotonic()
                job.version += 1
                if self._worker is None or not self._worker.alive:
                    self._worker = _Worker()
                worker = self._worker
                worker.stop.clear()
                self._changed.notify_all()
            try:
                for name, value in worker.work(job.task):
                    with self._changed:
                        apply_news(job, name, value)
                        self._changed.notify_all()
            except (EOFError, OSError):
                log.error("the worker process ended with code %s", worker.close())
                with self._changed:
                    self._end(job, FAILED, CRASHED)
            except Exception:
                log.exception("a job could not be followed")
                worker.close()
                with self._changed:
                    self._end(job, FAILED, CRASHED)
            with self._changed:
                if not job.ended:
                    self._end(job, FAILED, CRASHED)
                self._line.remove(job)
                self._changed.notify_all()

    @staticmethod
    def _end(job: Job, state: str, message: str) -> None:
        apply_news(job, "ended", (state, message))


def apply_news(job: Job, name: str, value: Any) -> None:
    """Write one piece of news from the worker into the job."""
    now = time.monotonic()
    if name == "report":
        job.reports.append(value)
        job.total = value.total
        job.share, job.remaining = value.done / value.total, value.eta_seconds
        job.stage = f"block {value.block}, {value.kind} done"
    elif name == "stage":
        job.stage, job.share, job.remaining = value
    elif name == "total":
        job.total = value
    elif name == "note":
        job.note = value
    elif name == "ended":
        job.state, job.message = value
        job.seconds = now - job.began if job.began else 0.0
    job.version += 1


class _Worker:
    """The process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.stop: Event = context.Event()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self.stop), name="sab-worker", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def work(self, task: Task) -> Iterator[tuple[str, Any]]:
        """News about the task until it has ended. EOFError when the process dies."""
        self._pipe.send(task)
        while True:
            name, value = self._pipe.recv()
            yield name, value
            if name == "ended":
                return

    def close(self) -> int | None:
        """End the process; returns its exit code."""
        self._pipe.close()
        self._process.join(timeout=1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def serve(pipe: Connection, stop: Event) -> None:
    """The worker's life: take a task, send news, until the page goes away."""
    os.nice(5)  # the page answers first
    bench = Bench()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return

        def tell(name: str, value: Any) -> None:
            pipe.send((name, value))

        try:
            tell("ended", bench.perform(task, stop, tell))
        except SabError as error:
            tell("ended", (FAILED, str(error)))
        except BrokenPipeError:
            return
        except Exception:
            log.exception("a job failed")
            tell("ended", (FAILED, "The run failed inside the app; the layers finished before are kept."))


class Bench:
    """Where the worker keeps the loaded model between tasks."""

    def __init__(self) -> None:
        self._model: tuple[str | None, Any] | None = None

    def perform(self, task: Task, stop: Event, tell: Callable[[str, Any], None]) -> tuple[str, str]:
        """Do the task; returns the state and the sentence it ends with."""
        from sab import models, runs

        tell("stage", ("loading the model", 0.0, None))
        if self._model is None or self._model[0] != task.model:
            self._model = None
            self._model = (task.model, models.load(task.model))
        full = self._model[1]
        simulated = full.copy()
        directory = Path(task.directory)
        if task.recipe is not None:
            done = binarize(simulated, task.recipe, directory, stop, tell)
            run = runs.Run.open(directory)
            if not run.finished:
                return STOPPED, f"Stopped: {done} layers are finished and kept. Resume continues with the next one."
        elif (directory / "recipe.json").exists():
            run = runs.Run.open(directory)
            run.apply(simulated)
        if task.questions:
            return examine(full, simulated, task, stop, tell)
        return DONE, ""


def binarize(simulated: LVLM, recipe: Recipe, directory: Path, stop: Any, tell: Callable[[str, Any], None]) -> int:
    """Binarize a copy of the model in place; returns how many linears are done."""
    from sab import sequential

    total = len(recipe.linears) if recipe.linears is not None else len(simulated.decoder_linears)
    tell("total", total)
    done = 0

    def progress(stage: str, share: float) -> None:
        if stage not in simulated.linears and not stage.startswith("block"):
            tell("stage", (stage, share, None))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: tell("note", str(message))
        for report in sequential.quantize(simulated, recipe, directory, stop, progress=progress):
            done = report.done
            tell("report", replace(report, total=total))
    return done


class _Halted(Exception):
    """A visitor has stopped an evaluation between two batches."""


class _Meter:
    """Progress over the stages of an evaluation, whose costs differ; also where a stop is noticed."""

    COSTS: ClassVar[dict[str, float]] = {"answers": 1.0, "likelihoods": 0.4, "divergence": 0.8}

    def __init__(self, stages: Sequence[str], stop: Any, tell: Callable[[str, Any], None]) -> None:
        self._whole = sum(self.COSTS[stage] for stage in stages)
        self._passed = 0.0
        self._stop = stop
        self._tell = tell
        self._began = time.monotonic()

    def listen(self, words: str) -> Callable[[str, float], None]:
        """A progress callback of `sab.evaluate` that says `words`."""

        def progress(stage: str, share: float) -> None:
            if self._stop.is_set():
                raise _Halted
            done = (self._passed + self.COSTS[stage] * share) / self._whole
            self._passed += self.COSTS[stage] if share >= 1 else 0.0
            left = (time.monotonic() - self._began) * (1 - done) / done if done else None
            self._tell("stage", (words, done, left))

        return progress


def examine(full: LVLM, simulated: LVLM, task: Task, stop: Any, tell: Callable[[str, Any], None]) -> tuple[str, str]:
    """Ask held-out questions and store the figures beside the run; a stopped evaluation stores nothing."""
    from sab import evaluate, runs
    from sab.demo.suite import questions

    directory = Path(task.directory)
    is_run = (directory / "recipe.json").exists()
    asked = questions("final", task.questions)
    stages = ["answers", "likelihoods"] * (2 if task.blank else 1) + ["divergence"] * (is_run and task.blank)
    meter = _Meter(stages, stop, tell)
    tell("stage", (f"asking {task.questions} held-out questions", 0.0, None))
    try:
        figures = evaluate.evaluate(simulated, asked, progress=meter.listen("asking held-out questions")).summary()
        figures["suite"] = "final"
        if task.blank:
            listen = meter.listen("asking again with the pictures blanked")
            figures["blank_picture"] = evaluate.evaluate(simulated, asked, True, progress=listen).summary()
        if is_run and task.blank:
            listen = meter.listen("comparing with full precision, token by token")
            figures["divergence"] = asdict(evaluate.divergence(full, simulated, asked, progress=listen))
    except _Halted:
        return STOPPED, "Stopped: no accuracy was stored."
    if is_run:
        runs.Run.open(directory).record_accuracy(figures)
    else:
        runs.write_json(directory / "accuracy.json", figures)
    return DONE, ""
