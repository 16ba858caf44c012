"""Null and stability of the maps that a run shows: read from disk where they are shipped, else computed on request.

A label needs a null (METHOD 3). `sab.controls` makes it; this keeps one result per model and calibration in memory,
because the halves of Fisher sensitivities are too large to ship.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sab.errors import SabError
from viz.figures import density
from viz.pages.store import FISHER_SAMPLES, Store
from viz.pages.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from sab.control_files import StoredControls
    from sab.recipes import Recipe
    from sab.runs import Run
    from sab.significance import SignificanceMap, Thresholds

SEEDS = 3  # calibration seeds that stability compares


class Nulls:
    """Controls by what the maps depend on; one computation at a time, and none twice."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._shipped: list[StoredControls] | None = None
        self._computed: list[StoredControls] = []
        self._works: dict[str, Work] = {}

    def find(self, run: Run, kind: str) -> StoredControls | None:
        """The controls of a run's maps; those with halves, from which nulls can be drawn, come first."""
        from sab import control_files

        with self._guard:
            if self._shipped is None:
                self._shipped = []
                for path in sorted(control_files.SHIPPED.glob("controls-*.json")):
                    self._shipped.append(control_files.read(path))
        conditions = self._conditions(run, kind)
        found = [each for each in (*self._computed, *self._shipped) if each.matches(conditions)]
        return max(found, key=lambda each: bool(each.halves), default=None)

    def work(self, run: Run, kind: str) -> Work:
        """How far the computation for these maps is."""
        return self._works.setdefault(str(self._conditions(run, kind)), Work())

    def compute(self, run: Run, kind: str) -> None:
        """Start computing the controls of a run's maps in the background, unless that is under way or done."""
        work, recipe = self.work(run, kind), self.map_recipe(run, kind)

        def task() -> None:
            from sab import calibration
            from sab.control_files import StoredControls
            from sab.controls import controls

            lvlm = self._store.lvlm
            if lvlm.fingerprint != run.fingerprint:
                raise SabError("The null of a run is computed with its own model open: choose a run of this model.")
            calibrations = [
                calibration.choose(recipe.calibration, recipe.samples, recipe.seed + step, recipe.split)
                for step in range(SEEDS)
            ]
            with self._store.device_lock:
                found = controls(
                    lvlm,
                    calibrations,
                    kind,
                    recipe.split,
                    recipe.thresholds,
                    recipe.damping,
                    lambda _, share: work.advance(share),
                )
            self._computed = [StoredControls.of(found, self._conditions(run, kind)), *self._computed][:2]

        work.start(task, f"null-{kind}")

    def map_recipe(self, run: Run, kind: str) -> Recipe:
        """What the maps of this kind were made with: the run's recipe, or what the page computes Fisher maps with."""
        if kind == "fisher" and not run.sensitivities("fisher"):
            return replace(
                run.recipe, sensitivity=kind, samples=FISHER_SAMPLES, seed=0, split="token", calibration=None
            )
        return replace(run.recipe, sensitivity=kind)

    def _conditions(self, run: Run, kind: str) -> Mapping[str, Any]:
        return self.map_recipe(run, kind).map_conditions(run.fingerprint)


def null_maps(weight: Tensor, halves: tuple[Tensor, ...], thresholds: Thresholds) -> dict[str, SignificanceMap]:
    """The maps of half A against half B of each modality, by its name."""
    from sab.significance import significance_map

    language_a, language_b, vision_a, vision_b = halves
    return {
        "language": significance_map(weight, language_a, language_b, thresholds),
        "vision": significance_map(weight, vision_a, vision_b, thresholds),
    }


def null_density(maps: Mapping[str, SignificanceMap], boundaries: density.Boundaries) -> density.DensityInfo:
    """Both nulls in one plane, half A across and half B up."""
    first, second = (
        np.stack([getattr(found, side).numpy() for found in maps.values()]) for side in ("language", "vision")
    )
    return density.info(first, second, boundaries)


def shares(counts: Mapping[str, int]) -> dict[str, float | None]:
    """Of the weights of a map: the salient share, and the unimodal share of the salient ones (None without any)."""
    total = sum(counts.values())
    salient = total - counts["neither"]
    unimodal = counts["language-only"] + counts["vision-only"]
    return {"salient": salient / total, "unimodal": unimodal / salient if salient else None}


Answer = dict[str, Any]


def null_answer(
    stored: StoredControls | None,
    linear: str,
    weight: Callable[[], Tensor],
    thresholds: Thresholds,
    boundaries: Callable[[], density.Boundaries],
) -> tuple[Answer, density.DensityInfo | None]:
    """What the page shows of the controls of one linear: figures at the thresholds they were made with, shares of the
    nulls at the thresholds given where their halves are at hand, and then the binned plane too."""
    if stored is None or linear not in stored.figures["linears"]:
        return {}, None
    figures = stored.figures
    answer: Answer = {
        "figures": {
            "linear": _without_ratios(figures["linears"][linear]),
            "thresholds": figures["thresholds"],
            "samples": figures["samples"],
            "seeds": figures["seeds"],
            "tokens_half": min(figures["tokens_half"]),
        }
    }
    if linear not in stored.halves:
        return answer, None
    maps = null_maps(weight(), stored.halves[linear], thresholds)
    answer["nulls"] = {name: shares(found.counts()) for name, found in maps.items()}
    return answer, null_density(maps, boundaries())


def _without_ratios(figures: Mapping[str, Any]) -> Answer:
    """The figures of a linear, contrasts by their unimodal share alone."""
    names = ("full", "matched", "null_language", "null_vision")
    shown: Answer = {name: figures[name]["unimodal_share"] for name in names}
    return shown | {"signal": figures["signal"], "stability": figures["stability"]}
