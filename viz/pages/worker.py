"""What the worker process does: it keeps the model, makes runs, and asks them questions.

What full precision does with the calibration samples does not depend on the method, so it is kept between runs
(`sab.calibrated`). News about a task are (name, value) pairs: "stage" (words, share, seconds left), "step" (words),
"total" (linears), "report" (a LinearReport), "note" (words), and last "ended" (state, sentence).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sab.errors import SabError

if TYPE_CHECKING:
    from sab.calibrated import Calibrated
    from sab.models import LVLM
    from sab.recipes import Recipe

DONE, STOPPED, FAILED = "done", "stopped", "failed"
KEPT_BYTES = 1e9  # of what runs with the same calibration samples share
Tell = Callable[[str, Any], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What the worker is asked to do. A recipe makes or continues the run in `directory`; `questions` > 0 then asks
    the run, or full precision when the directory holds no run, that many held-out questions; `blank` asks them again
    with blank pictures and measures the distance to full precision. Without a directory nothing is made: what runs
    share that have the recipe's calibration samples is computed ahead."""

    model: str | None
    directory: str
    recipe: Recipe | None
    questions: int
    blank: bool = False

    def shares(self, other: Task) -> bool:
        """Whether both calibrate the same model with the same samples."""
        return (
            self.recipe is not None
            and other.recipe is not None
            and self.model == other.model
            and calibration_key(self.recipe) == calibration_key(other.recipe)
        )


def serve(pipe: Connection, stop: Any) -> None:
    """The worker's life: take a task, send news, until the page goes away."""
    os.nice(5)  # the page answers first
    threading.Thread(target=_end_with_the_page, name="page", daemon=True).start()
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


def _end_with_the_page() -> None:
    """A page that was killed closes no pipe in the middle of a long computation: nobody must go on computing for it."""
    page = multiprocessing.parent_process()
    if page is not None:
        page.join()
        os._exit(0)


class Bench:
    """Where the worker keeps the loaded model, and what it does with the samples of the last calibration."""

    def __init__(self) -> None:
        self._model: tuple[str | None, LVLM] | None = None
        self._known: tuple[Any, Calibrated] | None = None

    def perform(self, task: Task, stop: Any, tell: Tell) -> tuple[str, str]:
        """Do the task; returns the state and the sentence it ends with."""
        from sab import models, runs

        tell("stage", ("loading the model", 0.0, None))
        if self._model is None or self._model[0] != task.model:
            self._model = self._known = None
            if task.model is not None:  # the page holds a model too; the embedded ones always fit
                from viz.pages.machine import Machine

                Machine().make_room(Path(task.model).name, task.model)
            self._model = (task.model, models.load(task.model))
        full = self._model[1]
        directory = Path(task.directory)
        if task.recipe is not None and not task.directory:
            return self._prepare(full, task.recipe, stop, tell)
        simulated = full.copy()
        if task.recipe is not None:
            try:
                known = self._calibrated(full, task.recipe, stop, tell)
            except _Halted:
                with suppress(OSError):
                    directory.rmdir()  # nothing lies in it yet
                return STOPPED, "Stopped before its first layer."
            done = binarize(simulated, task.recipe, directory, stop, tell, known)
            run = runs.Run.open(directory)
            if not run.finished:
                return STOPPED, f"Stopped: {done} layers are finished and kept. Resume continues with the next one."
        elif (directory / "recipe.json").exists():
            run = runs.Run.open(directory)
            run.apply(simulated)
        if task.questions:
            return examine(full, simulated, task, stop, tell)
        return DONE, ""

    def _prepare(self, full: LVLM, recipe: Recipe, stop: Any, tell: Tell) -> tuple[str, str]:
        try:
            known = self._calibrated(full, recipe, stop, tell)
            blocks = len(full.blocks) if known.keeps else 0
            for step in range(2 * blocks):  # by modality, which the maps take too, then for methods that judge rounds
                halt_if(stop)
                tell("stage", (f"calibration, block {step % blocks}", step / (2 * blocks), None))
                known.moments(step % blocks, [], judged=step >= blocks)
        except _Halted:
            return STOPPED, ""
        return DONE, ""

    def _calibrated(self, full: LVLM, recipe: Recipe, stop: Any, tell: Tell) -> Calibrated:
        """What full precision does with the recipe's samples. Raises _Halted when stopped while they are read."""
        from sab import calibration
        from sab.calibrated import Calibrated

        def progress(stage: str, share: float) -> None:
            halt_if(stop)
            tell("stage", (stage, share, None))

        recipe.validate()
        progress("calibration samples", 0.0)
        key = calibration_key(recipe)
        if self._known is None or self._known[0] != key:
            self._known = None
            samples = calibration.choose(recipe.calibration, recipe.samples, recipe.seed, recipe.split)
            self._known = key, Calibrated(full, samples, recipe.split, KEPT_BYTES)
        known = self._known[1]
        known.progress = progress
        if "decoder" in recipe.parts:
            _ = known.batches
        return known


def calibration_key(recipe: Recipe) -> tuple[int, int, str, str | None]:
    """What calibration samples and their tokens depend on."""
    return recipe.samples, recipe.seed, recipe.split, recipe.calibration


def halt_if(stop: Any) -> None:
    """Raises _Halted once a visitor has asked to stop."""
    if stop.is_set():
        raise _Halted


def binarize(
    simulated: LVLM,
    recipe: Recipe,
    directory: Path,
    stop: Any,
    tell: Tell,
    known: Calibrated | None = None,
) -> int:
    """Binarize a copy of the model in place; returns how many linears are done."""
    from sab import sequential

    tell("total", len(sequential.chosen_linears(simulated, recipe)))
    done = 0

    def progress(stage: str, share: float) -> None:
        if stage in simulated.linears:
            return
        if stage.startswith("block"):
            tell("step", stage)
        else:
            tell("stage", (stage, share, None))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: tell("note", str(message))
        for report in sequential.quantize(simulated, recipe, directory, stop, calibrated=known, progress=progress):
            done = report.done
            tell("report", report)
    return done


class _Halted(Exception):
    """A visitor has stopped an evaluation between two batches."""


class _Meter:
    """Progress over the passes of an evaluation, (stage, words) in their order, whose costs differ; also where a stop
    is noticed."""

    COSTS: ClassVar[dict[str, float]] = {"answers": 1.0, "likelihoods": 0.9}  # full precision is asked as well

    def __init__(self, passes: Sequence[tuple[str, str]], stop: Any, tell: Tell) -> None:
        self._passes = list(passes)
        self._whole = sum(self.COSTS[stage] for stage, _ in passes)
        self._passed = 0.0
        self._stop = stop
        self._tell = tell
        self._began = time.monotonic()

    def hear(self, stage: str, share: float) -> None:
        """The progress callback of `sab.evaluate`."""
        halt_if(self._stop)
        words = self._passes[0][1]
        done = (self._passed + self.COSTS[stage] * share) / self._whole
        if share >= 1:
            self._passed += self.COSTS[stage]
            del self._passes[: len(self._passes) > 1]
        left = (time.monotonic() - self._began) * (1 - done) / done if done else None
        self._tell("stage", (words, done, left))


ASKING = [("answers", "asking held-out questions"), ("likelihoods", "asking held-out questions")]
BLANKED = [(stage, "asking again with the pictures blanked") for stage, _ in ASKING]


def examine(full: LVLM, simulated: LVLM, task: Task, stop: Any, tell: Tell) -> tuple[str, str]:
    """Ask held-out questions and store the figures beside the run; a stopped evaluation stores nothing."""
    from sab import runs
    from sab.compare import assess, identity_of
    from sab.demo.suite import questions
    from sab.evaluate import Reference

    directory = Path(task.directory)
    is_run = (directory / "recipe.json").exists()
    asked = questions("final", task.questions)
    meter = _Meter([*ASKING, *(BLANKED * task.blank)], stop, tell)
    tell("stage", (f"asking {task.questions} held-out questions", 0.0, None))
    try:
        reference = Reference(full) if is_run else None
        found = assess(simulated, reference, asked, "final", progress=meter.hear, controls=task.blank)
    except _Halted:
        return STOPPED, "Stopped: no accuracy was stored."
    answers = found.stored(identity_of(asked))
    if is_run:
        runs.Run.open(directory).record_accuracy(found.figures, answers)
    else:
        runs.write_evaluation(directory, found.figures, answers)
    return DONE, ""
