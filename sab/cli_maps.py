"""The commands about maps: `python -m sab controls` and `causal`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from sab.options import add_maps, add_model, add_suite, asked_questions, load_dense, recipe_of_maps, write_result
from sab.terminal import Parser, Progress

if TYPE_CHECKING:
    from sab.demo.suite import Question
    from sab.recipes import Recipe


def add_map_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """The commands `controls` and `causal` with their options."""
    controls = commands.add_parser("controls", help="null and stability of the maps")
    controls.set_defaults(run=_controls)
    add_model(controls, "folder or Hugging Face id; the embedded model when left out")
    add_maps(controls)
    controls.add_argument("--seeds", type=int, default=3, help="calibration seeds to compare, from --seed on")
    controls.add_argument("--out", type=Path, help="write the figures to this JSON file as well")

    causal = commands.add_parser(
        "causal",
        help="zero weights of each label and see which answers fall",
        description="Zero equally many and equally large weights of each label and see which answers fall. "
        "Text-only questions are added to the --limit of the suite until they are half of all.",
    )
    causal.set_defaults(run=_causal)
    add_model(causal, "folder or Hugging Face id; the embedded model when left out")
    add_maps(causal)
    add_suite(causal)
    causal.add_argument("--share", default="0.25,0.5,0.9", help="percent of the weights, comma-separated")
    causal.add_argument("--random-draws", type=int, default=3, help="sets of random weights")
    causal.add_argument("--out", type=Path, help="write the figures to this JSON file as well")


def _balanced(options: argparse.Namespace) -> Sequence[Question]:
    """The questions of `asked_questions`, and text-only ones of the same suite until they are half of all."""
    from sab.demo.suite import CATEGORIES, Question, scene_questions

    asked = list(asked_questions(options))
    missing = sum(1 if question.picture is not None else -1 for question in asked)
    suite = "final" if options.suite == "demo" else options.suite
    # another seed, so that no question is asked twice; the categories take turns there
    others = scene_questions(suite, max(0, missing) * len(CATEGORIES), seed=1)
    return [*asked, *(Question(None, **asdict(ask)) for scene, ask in others if scene is None)]


def _map_recipe(options: argparse.Namespace) -> Recipe:
    """A recipe of which only the maps matter, checked."""
    from sab.files import check_writable

    if options.out is not None:
        check_writable(options.out, "--out")
    recipe = recipe_of_maps(options)
    recipe.validate()
    return recipe


def _controls(options: argparse.Namespace) -> dict[str, Any]:
    from sab import calibration
    from sab.control_files import StoredControls, check_name
    from sab.controls import controls

    if options.out is not None:
        check_name(options.out)
    recipe = _map_recipe(options)
    if options.seeds < 1:
        raise SabError("--seeds must be at least 1.")
    lvlm = load_dense(options, options.model)
    progress = Progress()
    calibrations = [
        calibration.choose(recipe.calibration, recipe.samples, recipe.seed + step, recipe.split)
        for step in range(options.seeds)
    ]
    found = controls(lvlm, calibrations, recipe.sensitivity, recipe.split, recipe.thresholds, recipe.damping, progress)
    stored = StoredControls.of(found, recipe.map_conditions(lvlm.fingerprint))
    result = dict(stored.figures)
    progress.say(
        f"Unimodal share of the salient weights ({recipe.sensitivity} sensitivity); null and matched at "
        f"{min(found.tokens_half)} tokens a side; rho > {recipe.thresholds.sparsity_thr:g} is a ratio of "
        f"{result['threshold_ratio']:.3g}"
    )
    progress.say(
        f"{'':12s}  {'map':>6s} {'matched':>8s} {'null l':>7s} {'null v':>7s}"
        f"   {'ratio 5-95 %':>14s} {'null v 5-95 %':>14s} {'signal':>6s}"
        f"   {'same class':>10s} {'kappa':>6s} {'corr.':>6s}"
    )
    kinds: dict[str, list[str]] = {}
    for name in found.linears:
        kinds.setdefault(lvlm.info[name].kind, []).append(name)
    for kind, names in [*kinds.items(), ("overall", None)]:
        row = found.overall(names)
        shares = (row.full, row.matched, row.null_language, row.null_vision)
        ranges = " ".join(f"{part.ratio(0.05):7.2f}-{part.ratio(0.95):6.2f}" for part in (row.matched, row.null_vision))
        stable = row.agreement
        kept = f"{100 * stable.same_class:8.1f} % {stable.kappa:6.2f} {stable.correlation:6.2f}" if stable else ""
        progress.say(
            f"{kind:12s}  "
            + " ".join(f"{100 * part.unimodal_share:5.1f} %" for part in shares)
            + f"   {ranges} {row.signal:6.2f}   {kept}"
        )
    if options.out is not None:
        write_result(result, lambda: stored.write(options.out))
    return result


def _causal(options: argparse.Namespace) -> dict[str, Any]:
    from sab import calibration, sensitivities
    from sab.causal import PICTURE, TEXT, causal, check_shares
    from sab.files import write_json

    recipe = _map_recipe(options)
    try:
        shares = [float(share) / 100 for share in options.share.split(",")]
    except ValueError as error:
        raise SabError("--share takes percents, comma-separated, such as 0.25,0.5,1.") from error
    check_shares(shares)
    if options.random_draws < 1:
        raise SabError("--random-draws must be at least 1.")
    asked = _balanced(options)
    lvlm = load_dense(options, options.model)
    progress = Progress()
    samples = calibration.choose(recipe.calibration, recipe.samples, recipe.seed, recipe.split)
    maps = sensitivities.maps(lvlm, samples, recipe.sensitivity, recipe.split, progress, recipe.damping)
    found = causal(
        lvlm,
        maps,
        asked,
        shares,
        recipe.thresholds,
        options.random_draws,
        recipe.seed,
        options.batch_size,
        progress=progress,
    )
    for share in found.left_out:
        progress.say(f"{100 * share:g} % cannot be matched between the labels; {100 * found.largest_share:.2g} % can.")
    categories = [name for name in found.full.accuracy if name not in ("overall", PICTURE, TEXT)]
    progress.say("Accuracy in percent, with a picture and without, then by category: " + ", ".join(categories))
    for row in [found.full, *found.knockouts]:
        kl = " ".join(
            f"{row.divergence[part].kl:8.4f}" if part in row.divergence else " " * 8 for part in (PICTURE, TEXT)
        )
        columns = [name for name in (PICTURE, TEXT) if name in row.accuracy]
        progress.say(
            f"{100 * row.share:5.2f} %  {row.label:14s} KL {kl}   "
            + " ".join(f"{100 * row.accuracy[name]:5.1f}" for name in columns)
            + "  |"
            + " ".join(f"{100 * row.accuracy[name]:4.0f}" for name in categories)
        )
    for contrast in found.selectivity:
        low, high = contrast.interval
        progress.say(
            f"{100 * contrast.share:5.2f} %  {contrast.first} against {contrast.second}: "
            f"{contrast.value:+.2f} ({low:+.2f} to {high:+.2f}) doublings of KL towards questions with pictures"
        )
    for share, difference in found.tolerance.items():
        progress.say(f"{100 * share:5.2f} %  the sets differ in the sum of squares by {100 * difference:.2f} % at most")
    conditions = {
        **recipe.map_conditions(lvlm.fingerprint),
        "suite": options.suite,
        "questions": len(asked),
    }
    result = {**conditions, **found.summary()}
    if options.out is not None:
        write_result(result, lambda: write_json(options.out, result))
    return result
