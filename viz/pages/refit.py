"""Another method for one layer: a run of this single linear, made by the worker, is laid over a side of the chat.

The linear is fitted with the calibration samples of the side's own run, on inputs of the full-precision model (a run of
one linear has no binarized layers before it), so the figures say what this layer by itself can still win or lose.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sab.errors import SabError
from viz.pages.conversation import Conversation, Turn
from viz.pages.jobs import Job
from viz.pages.progress import progress_value
from viz.pages.sides import OVER, runs_of
from viz.pages.store import Store
from viz.pages.worker import Task


def submit(store: Store, conversation: Conversation, sent: dict[str, Any]) -> Job:
    """Ask the worker to fit the linear `sent["name"]` of the searched side by `sent["method"]`, with `sent["top"]` as
    the salient share. Raises SabError, in one sentence, for anything that cannot be done."""
    from sab import runs
    from sab.binarizers import METHODS
    from sab.recipes import Recipe

    turn, side = searched(conversation)
    base = runs_of(store, turn.replies[side].run)[0]
    name, method, top = sent.get("name"), sent.get("method"), sent.get("top")
    if not isinstance(name, str) or name not in base.names:
        raise SabError("Choose a layer of the map first.")
    if not isinstance(method, str) or method not in METHODS:
        raise SabError("Choose a method from the list.")
    if isinstance(top, bool) or not isinstance(top, (int, float)) or not math.isfinite(top) or not 0 < top <= 0.5:
        raise SabError("The salient share must lie above 0 and at most 50 %.")
    kept = base.recipe
    recipe = Recipe(
        model=store.model,
        method=method,
        thresholds=replace(kept.thresholds, salient_top_p=float(top)),
        sensitivity=kept.sensitivity,
        split=kept.split,
        samples=kept.samples,
        seed=kept.seed,
        calibration=kept.calibration,
        parts=(store.lvlm.info[name].part,),
        linears=(name,),
    )
    recipe.validate()
    directory = runs.fresh_directory(store.new_runs, method)
    return store.jobs.submit(Task(store.place, str(directory), recipe, 0), f"{METHODS[method].label} for one layer")


def searched(conversation: Conversation) -> tuple[Turn, str]:
    """The turn and the side on whose map the layer was chosen. SabError when there is no map any more."""
    finding = conversation.finding
    if finding is None or not conversation.turns or finding.turn is not conversation.turns[-1]:
        raise SabError("Search the layers of the last answer first.")
    return finding.turn, finding.side


def laid_over(store: Store, side: str, job: Job, name: str) -> str:
    """The side with the job's run over it; an earlier run of the same single linear gives way to it."""
    kept = [run.id for run in runs_of(store, side) if run.names != (name,)]
    return OVER.join([*kept, store.run(job.run_id).id])


def refit_view(store: Store, job: Job) -> dict[str, Any]:
    """What the card shows of the fit while it is made."""
    return progress_value(job, store.jobs.before(job))
