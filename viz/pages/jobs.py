"""Runs and evaluations that visitors ask for: one line, one worker process, progress that anybody may follow.

The worker is a process of its own, so that a crash or an exhausted memory ends one job and not the page, and so that
its arithmetic does not hold the page's interpreter. It loads the model once and then waits for tasks. A job outlives
the visitor's connection: its id finds it again after a reload. What a job finishes lies in its run directory at once,
so a stopped or crashed run can be continued.

What runs with the same calibration samples share can be computed ahead, while nobody waits for anything.
"""

from __future__ import annotations

import logging
import multiprocessing
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from viz.pages.worker import DONE, FAILED, STOPPED, Task, serve

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from sab.recipes import Recipe
    from sab.runs import LinearReport

WAITING, RUNNING = "waiting", "running"
ENDED = (DONE, STOPPED, FAILED)
KEPT_JOBS = 100
LONGEST_LINE = 8
CRASHED = "The worker process ended unexpectedly; the layers finished before are kept, and Resume continues the run."

log = logging.getLogger(__name__)


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
    halted: bool = False  # somebody has asked to stop it
    followed: bool = False  # a page has begun to show it: a short job may end before

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
        self._ahead: Task | None = None  # to be computed while the line is empty
        self._worker: _Worker | None = None
        self._busy_ahead = False
        self._dispatcher: threading.Thread | None = None

    def submit(self, task: Task, label: str) -> Job:
        """Put a task at the end of the line. Raises SabError when the line is full or the run is being made."""
        with self._changed:
            if len(self._line) >= LONGEST_LINE:
                _remove_if_empty(task)
                raise SabError(f"{LONGEST_LINE} jobs are waiting already; try again when some have ended.")
            if any(job.task.directory == task.directory for job in self._line):
                raise SabError("This run is being worked on already; wait until that has ended.")
            job = Job(task, label)
            self._jobs[job.id] = job
            for old in [each.id for each in self._jobs.values() if each.ended][: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[old]
            self._line.append(job)
            self._wake()
            return job

    def prepare(self, recipe: Recipe, place: str | None = None) -> None:
        """Have computed, as soon as nobody waits, what runs with the recipe's calibration samples share. `place`: the
        model's folder, where it is not the name that the recipe gives."""
        with self._changed:
            self._ahead = Task(place or recipe.model, "", recipe, 0)
            self._wake()

    def working_on(self, directory: str | Path) -> bool:
        """Whether a job in the line has to do with the run in `directory`."""
        with self._changed:
            return any(Path(job.task.directory) == Path(directory) for job in self._line)

    def _wake(self) -> None:
        if self._dispatcher is None:
            self._dispatcher = threading.Thread(target=self._dispatch, name="jobs", daemon=True)
            self._dispatcher.start()
        self._changed.notify_all()

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
                job.halted = True
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

    def let_go(self) -> bool:
        """End the worker process, for the memory that it holds, unless it works; whether there was one to end."""
        with self._changed:
            idle = self._worker is not None and not self._line and not self._busy_ahead and self._ahead is None
            if idle:
                self.close()
            return idle

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                while not self._line and self._ahead is None:
                    self._changed.wait()
                if self._worker is None or not self._worker.alive:
                    self._worker = _Worker()
                worker = self._worker
                worker.stop.clear()
                job = self._line[0] if self._line else None
                if job is not None:
                    self._begin(job)
                else:
                    ahead, self._ahead = self._ahead, None
                    self._busy_ahead = True
            if job is None:
                assert ahead is not None
                self._work_ahead(worker, ahead)
                continue
            try:
                if job.halted:
                    self._end(job, STOPPED, "Stopped before its first layer.")
                else:
                    for name, value in worker.work(job.task):
                        self._hear(job, name, value)
            except (EOFError, OSError):
                log.error("the worker process ended with code %s", worker.close())
                self._end(job, FAILED, CRASHED)
            except Exception:
                log.exception("a job could not be followed")
                worker.close()
                self._end(job, FAILED, CRASHED)
            with self._changed:
                if not job.ended:
                    self._end(job, FAILED, CRASHED)
                self._line.remove(job)
                self._changed.notify_all()

    def _work_ahead(self, worker: _Worker, ahead: Task) -> None:
        """A job that comes meanwhile either needs this too, and hears how far it is, or has it stopped."""
        try:
            for name, value in worker.work(ahead):
                with self._changed:
                    job = self._line[0] if self._line else None
                    if job is None:
                        continue
                    if not job.task.shares(ahead):
                        worker.stop.set()
                        continue
                    self._begin(job)
                if name == "stage":
                    self._hear(job, name, value)
        except Exception:  # a job that needs it will say what is wrong
            log.exception("nothing could be computed ahead")
            worker.close()
        finally:
            with self._changed:
                self._busy_ahead = False

    def _begin(self, job: Job) -> None:
        if job.state == WAITING:
            job.state, job.began = RUNNING, time.monotonic()
            job.version += 1
            self._changed.notify_all()

    def _hear(self, job: Job, name: str, value: Any) -> None:
        with self._changed:
            apply_news(job, name, value)
            self._changed.notify_all()

    def _end(self, job: Job, state: str, message: str) -> None:
        self._hear(job, "ended", (state, message))
        _remove_if_empty(job.task)


def _remove_if_empty(task: Task) -> None:
    """A run of which nothing was begun leaves no directory behind."""
    with suppress(OSError):  # there is something in it
        Path(task.directory).rmdir()


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
    elif name == "step":  # the same share of the run, another thing that is done there
        job.stage = value
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
