"""What the form of Binarize sends is checked before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from sab.errors import SabError
from viz.pages import binarize
from viz.pages.store import Selection, Store

FORM = {
    "method": "sab",
    "top": 0.05,
    "quantile": 0.5,
    "sparsity": 0.005,
    "sensitivity": "input",
    "iterations": 15,
    "scope": binarize.WHOLE,
    "block": 0,
    "samples": 64,
    "seed": 0,
    "questions": 10,
}


def read(selection: Selection | None = None, **changes: Any) -> Any:
    values = tuple((FORM | changes).values())
    recipe, questions = binarize.read_recipe(Store(), selection or Selection(), values)
    recipe.validate()
    return recipe, questions


def test_the_form_becomes_the_recipe_it_shows() -> None:
    recipe, questions = read(top=0.1, samples=32, method="billm")
    assert (recipe.method, recipe.samples, recipe.thresholds.salient_top_p) == ("billm", 32, 0.1)
    assert recipe.linears is None
    assert questions == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"top": float("nan")},
        {"top": True},
        {"quantile": 2.0},
        {"sparsity": None},
        {"sparsity": "0.1"},
        {"method": "sabotage"},
        {"sensitivity": "both"},
        {"samples": 0},
        {"samples": 1.5},
        {"samples": float("inf")},
        {"seed": -1},
        {"seed": None},
        {"iterations": float("nan")},
        {"questions": 10_000_000},
        {"scope": "everything"},
        {"scope": binarize.LAYER},
    ],
)
def test_wrong_values_are_one_sentence_and_start_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(SabError) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


def test_the_layer_in_explore_is_the_one_that_is_run() -> None:
    name = "model.language_model.layers.0.mlp.up_proj"
    recipe, _ = read(Selection(linear=name), scope=binarize.LAYER)
    assert recipe.linears == (name,)
