"""Several methods on one model, over one or more calibration seeds: the rows of the paper's table.

A method is run and evaluated once per calibration seed. What a seed changes and which questions were asked are two
sources of chance: accuracy is averaged over the seeds per question first, and the interval is that of the mean over
questions, `mean ± 1.96 sd / sqrt(questions)` (Wilson's where there is one seed, or all questions agree). Gaps between
two methods are paired, question by question, so that questions that are hard for both take no part in their interval.

Every cell of the table is a run directory with its evaluation, answer by answer; a comparison that was stopped
goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sab import calibration, evaluate, runs, sensitivities
from sab.binarizers import METHODS
from sab.errors import SabError
from sab.evaluate import Reference
from sab.files import json_in
from sab.progress import Listener, silent
from sab.recipes import Recipe
from sab.runs import Run

if TYPE_CHECKING:
    from sab.demo.asks import Ask
    from sab.demo.suite import Question
    from sab.models import LVLM

CONTROL = "arb-rc-cgb"  # what `sab` differs from by its map alone
FULL_BITS = 16.0  # checkpoints of this kind are kept in bfloat16
Binarize = Callable[..., Run]


@dataclass(frozen=True)
class Asked:
    """One evaluation, question by question: the stored `figures`, and `correct` [questions] and `kl` [questions]
    (nats to full precision; empty for full precision itself) with the `answers`."""

    figures: dict[str, Any]
    answers: list[str]
    correct: list[bool]
    kl: list[float]

    def stored(self, identity: str) -> dict[str, Any]:
        """The single answers for JSON, with the hash of the questions (`identity_of`)."""
        return {"questions": identity, "answers": self.answers, "correct": self.correct, "kl": self.kl}


def assess(
    lvlm: LVLM,
    full: Reference | None,
    questions: Sequence[Question],
    suite: str,
    batch_size: int = 32,
    progress: Listener | None = None,
    controls: bool = True,
) -> Asked:
    """Accuracy and, with `controls`, the blank-picture control and the divergence from a full-precision model where one
    is given; figures as pages store them."""
    found = evaluate.evaluate(lvlm, questions, False, batch_size, progress, reference=full if controls else None)
    figures = {**found.summary(), "suite": suite}
    if controls:
        figures["blank_picture"] = evaluate.evaluate(lvlm, questions, True, batch_size, progress).summary()
    if found.distances:
        figures["divergence"] = asdict(evaluate.summed(found.distances))
    return Asked(figures, found.answers, found.correct, [distance.kl for distance in found.distances])


def compare(
    full: LVLM,
    recipes: Mapping[str, Recipe],
    questions: Sequence[Question],
    suite: str,
    seeds: Sequence[int],
    directory: Path,
    binarize: Binarize,
    batch_size: int = 32,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """A row for full precision and for each of `recipes` (by the name of its entry), and the gaps to CONTROL.

    `binarize(lvlm, recipe, directory, **shared)` makes a run, and continues or reads one that is there. Runs lie
    below `directory`, named after their entry (and the seed, from the second on). The recipes' own seed is
    ignored.
    """
    tell = progress or silent
    identity = identity_of(questions)
    reference = _kept(directory / f"full-{full.fingerprint[:12]}", identity, {"blank_picture"})
    if reference is None:
        reference = assess(full, None, questions, suite, batch_size, tell)
        place = directory / f"full-{full.fingerprint[:12]}"
        runs.write_evaluation(place, reference.figures, reference.stored(identity))
        reference = _kept(place, identity, {"blank_picture"})  # as it is stored
        assert reference is not None
    cells: dict[str, list[tuple[Run, Asked]]] = {name: [] for name in recipes}
    wanted = Reference(full)
    for number, seed in enumerate(seeds):
        shared: dict[str, dict[str, Any]] = {}  # by kind of sensitivity
        for name, recipe in recipes.items():
            recipe = replace(recipe, seed=seed)
            folder = name.replace("@", "-").replace("+", "-")
            place = directory / (folder if number == 0 else f"{folder}-seed{seed}")
            kind = recipe.sensitivity
            if kind not in shared and not (place / "manifest.json").exists():
                shared[kind] = _shared(full, recipe, tell)
            lvlm = full.copy()
            run = binarize(lvlm, recipe, place, **shared.get(kind, {}))
            found = _kept(place, identity, {"blank_picture", "divergence"})
            if found is None:
                found = assess(lvlm, wanted, questions, suite, batch_size, tell)
                run.record_accuracy(found.figures, found.stored(identity))
                found = _kept(place, identity, {"blank_picture", "divergence"})
                assert found is not None
            cells[name].append((run, found))
    rows = [_full_row(full, recipes, reference)]
    rows += [_row(name, cells[name], questions, reference) for name in recipes]
    gaps = []
    if CONTROL in recipes:
        control = [asked for _, asked in cells[CONTROL]]
        gaps = [gap(name, CONTROL, [a for _, a in cells[name]], control) for name in recipes if name != CONTROL]
    return {"rows": rows, "gaps": gaps}


SAME = ("model", "fingerprint", "suite", "questions", "identity", "seeds", "recipe", "literature")


def check_same(head: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """SabError unless an earlier table has the `head` of this one: both ask the same model the same questions
    (`identity`) in the same setting (`recipe`: what its entries share)."""
    for name in SAME:
        here, there = head[name], earlier.get(name)
        if isinstance(here, dict) and isinstance(there, dict) and here != there:
            name = next(key for key in {**here, **there} if here.get(key) != there.get(key))
            here, there = here.get(name), there.get(name)
        if here != there:
            raise SabError(
                f"The earlier table was made with other {name} ({str(there)[:60]} instead of {str(here)[:60]}): "
                "compare in the same setting, or leave --extend out."
            )


def extended(table: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """`table` (as `python -m sab compare` writes it) with the rows that only `earlier` has, of the same head, rows of
    one method together, from many bits to few; and with its gaps, but for those of which one side has other figures
    now."""
    before = {row["entry"]: row for row in earlier["rows"]}
    anew = {row["entry"]: row for row in table["rows"]}
    same = {name for name, row in before.items() if _figures(anew.get(name, row)) == _figures(row)}
    same -= {entry["first"] for entry in table["gaps"]}
    gaps = [entry for entry in earlier["gaps"] if entry["first"] in same and entry["second"] in same]
    rows = [anew.pop(row["entry"], row) for row in earlier["rows"]]
    for row in anew.values():
        beside = [place for place, each in enumerate(rows) if each["method"] == row["method"]]
        larger = [place for place in beside if rows[place]["bits_all_in"] >= row["bits_all_in"]]
        rows.insert(larger[-1] + 1 if larger else beside[0] if beside else len(rows), row)
    return {**table, "rows": rows, "gaps": gaps + table["gaps"]}


def _figures(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a gap is made from, of one row."""
    return row.get("accuracy_by_seed"), row.get("divergence")


def read_table(path: Path) -> dict[str, Any]:
    """A table that a comparison has written. Raises SabError where the file is none."""
    try:
        found = json_in(path)
        whole = [all(name in row for name in ("entry", "method", "bits_all_in")) for row in found["rows"]]
        if whole and all(whole) and all("first" in entry and "second" in entry for entry in found["gaps"]):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SabError(f"{path} is no table of a comparison: name a file that compare --table has written.") from error
    raise SabError(f"{path} is no whole table: name a file that compare --table has written.")


def identity_of(questions: Iterable[Ask]) -> str:
    """A hash of prompts and true answers: what stored answers are answers to. Pictures are not in it: whoever changes
    how they are drawn has to measure anew."""
    return hashlib.sha256("\n".join(f"{one.prompt}\t{one.answer}" for one in questions).encode()).hexdigest()


def gap(first: str, second: str, one: Sequence[Asked], two: Sequence[Asked]) -> dict[str, Any]:
    """How far `first` lies above `second`, paired by question and averaged over seeds: accuracy (share) and KL
    (nats), each with its 95 % interval."""
    found: dict[str, Any] = {"first": first, "second": second}
    for name in ("correct", "kl"):
        difference = np.mean([getattr(a, name) for a in one], 0) - np.mean([getattr(b, name) for b in two], 0)
        value, low, high = _mean_interval(difference)
        found["accuracy" if name == "correct" else "kl"] = {"value": value, "interval": [low, high]}
    return found


def _shared(full: LVLM, recipe: Recipe, tell: Listener) -> dict[str, Any]:
    """What all methods of one seed share: the samples, and the maps where the decoder takes part."""
    samples = calibration.choose(recipe.calibration, recipe.samples, recipe.seed, recipe.split)
    if "decoder" not in recipe.parts:
        return {"samples": samples}
    found = sensitivities.maps(full, samples, recipe.sensitivity, recipe.split, tell, recipe.damping)
    return {"samples": samples, "sensitivities": found}


def _mean_interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % interval of values over questions."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    margin = evaluate.Z_95 * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.inf
    return mean, mean - margin, mean + margin


def _full_row(full: LVLM, recipes: Mapping[str, Recipe], reference: Asked) -> dict[str, Any]:
    parts = next(iter(recipes.values())).parts if recipes else Recipe.parts
    weights = sum(linear.weight.numel() for name, linear in full.linears.items() if full.info[name].part in parts)
    sizes = {"bits_nominal": FULL_BITS, "bits_all_in": FULL_BITS, "bytes": int(weights * FULL_BITS / 8)}
    named = {"entry": "full", "method": "full", "label": "Full precision", **sizes}
    return {**reference.figures, **named, "seconds": 0.0}


def _row(
    name: str, cells: Sequence[tuple[Run, Asked]], questions: Sequence[Question], reference: Asked
) -> dict[str, Any]:
    """One method's row: means over its calibration seeds."""
    asked = [found for _, found in cells]
    figures = [found.figures for found in asked]
    made = [run for run, _ in cells]
    correct = np.mean([found.correct for found in asked], 0)  # per question, over seeds
    accuracy = _average([entry["accuracy"] for entry in figures])
    interval = figures[0]["interval"]
    if len(cells) > 1:
        places = {group: [i for i, q in enumerate(questions) if group in ("overall", q.category)] for group in accuracy}
        interval = {group: _interval(correct[inside]) for group, inside in places.items()}
    kl, low, high = _mean_interval(np.mean([found.kl for found in asked], 0))
    first = figures[0]
    same = [evaluate.agreement(found.answers, reference.answers) for found in asked]
    recipe = made[0].recipe
    budget = f" {recipe.bits:g} bits" if recipe.bits is not None else ""
    spatial = " (Fisher)" if recipe.sensitivity == "fisher" else ""
    refined = " refined" if recipe.refine else ""
    return {
        "entry": name,
        "run": made[0].id,
        "method": recipe.method,
        "label": METHODS[recipe.method].label + budget + spatial + refined,
        "linears": len(made[0].reports),
        "bits_nominal": float(np.mean([run.bits_nominal for run in made])),
        "bits_all_in": float(np.mean([run.bits_all_in for run in made])),
        "bytes": round(float(np.mean([run.bytes for run in made]))),
        "seconds": float(np.mean([run.seconds for run in made])),
        "finished": all(run.finished for run in made),
        "seeds": len(cells),
        "accuracy": accuracy,
        "accuracy_by_seed": [entry["accuracy"]["overall"] for entry in figures],
        "interval": interval,
        "counts": first["counts"],
        "blank_picture": _blank([entry["blank_picture"] for entry in figures]),
        "perplexity": float(np.mean([entry["perplexity"] for entry in figures])),
        "tokens_per_second": float(np.mean([entry["tokens_per_second"] for entry in figures])),
        "divergence": {
            "kl": kl,
            "interval": [low, high],
            "top_agreement": float(np.mean([entry["divergence"]["top_agreement"] for entry in figures])),
            "tokens": first["divergence"]["tokens"],
        },
        "agreement": float(np.mean(same)),
        "suite": first["suite"],
    }


def _blank(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The control over seeds. Its single answers are not kept: the interval is Wilson's at the mean, as of one seed, so
    that it is rather too wide."""
    counts, accuracy = figures[0]["counts"], _average([entry["accuracy"] for entry in figures])
    interval = {name: list(evaluate.wilson(share * counts[name], counts[name])) for name, share in accuracy.items()}
    return {"accuracy": accuracy, "counts": counts, "interval": interval}


def _interval(correct: Any) -> list[float]:
    """95 % interval of the mean of `correct` [questions], shares over seeds; Wilson's where all questions agree, of
    which the other would say that nothing is uncertain."""
    if np.ptp(correct) == 0:
        return list(evaluate.wilson(float(np.sum(correct)), len(correct)))
    _, low, high = _mean_interval(correct)
    return [max(0.0, low), min(1.0, high)]


def _average(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([entry[key] for entry in entries])) for key in entries[0]}


def _kept(directory: Path, identity: str, controls: set[str]) -> Asked | None:
    """A stored evaluation on exactly these questions, with these of the controls, else None."""
    try:
        answers = json_in(directory / "answers.json")
        figures = json_in(directory / "accuracy.json")
        whole = figures["counts"]["overall"] == len(answers["correct"]) and controls <= figures.keys()
        if answers["questions"] != identity or not whole:
            return None
        return Asked(figures, answers["answers"], answers["correct"], answers["kl"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is measured again
