"""What the form of Binarize sends is checked before anything is started, and says what a recipe says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sab.binarizers import METHODS
from sab.compensate import FitSettings, fit_linear
from sab.errors import SabError
from sab.recipes import Recipe
from sab.significance import Thresholds, significance_map
from viz.pages import recipe_form
from viz.pages.recipe_form import ALL, CHOSEN
from viz.pages.store import Store

UP = "model.language_model.layers.0.mlp.up_proj"
STORE = Store()


def form(recipe: Recipe | None = None, **changes: Any) -> dict[str, Any]:
    return recipe_form.values_of(STORE, recipe or Recipe(samples=64)) | {"questions": 10} | changes


def read(**changes: Any) -> tuple[Recipe, int]:
    return recipe_form.recipe_of(STORE, form(**changes))


def test_the_form_becomes_the_recipe_it_shows() -> None:
    recipe, questions = read(salient_top_p=0.1, samples=32)
    assert (recipe.method, recipe.samples, recipe.thresholds.salient_top_p) == ("sab", 32, 0.1)
    assert recipe.linears is None
    assert questions == 10


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(sensitivity="fisher", thresholds=Thresholds(0.6, 0.1, 0.2), split="corpus", samples=2000, seed=7),
        Recipe(method="sab-h", search="budget", bits=1.75, block_size=256, refine=2),
        Recipe(method="sab-h", refine=0, iterations=3, linears=(UP,)),
        Recipe(method="pb-llm", keep="hessian", damping=0.1, beta=0.0, compensation="none"),
        Recipe(method="arb", max_salient=5, iterations=0, compensation="lineage", parts=("vision", "decoder")),
        Recipe(emphasis="ramp", block_size=512),
        *(Recipe(method=name) for name in METHODS),
    ],
)
def test_a_recipe_that_fills_the_form_comes_out_of_it(recipe: Recipe) -> None:
    assert recipe_form.recipe_of(STORE, form(recipe))[0] == recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"salient_top_p": float("nan")},
        {"salient_top_p": True},
        {"diff_quantile": 2.0},
        {"sparsity_thr": None},
        {"sparsity_thr": "0.1"},
        {"method": "sabotage"},
        {"method": ["sab"]},
        {"sensitivity": "both"},
        {"samples": 0},
        {"samples": 1.5},
        {"samples": float("inf")},
        {"seed": -1},
        {"seed": None},
        {"iterations": float("nan")},
        {"questions": 10_000_000},
        {"scope": "everything"},
        {"scope": CHOSEN},
        {"scope": CHOSEN, "layers": None},
        {"scope": CHOSEN, "layers": {"chosen": ["model.head", 3]}},
        {"parts": []},
        {"parts": ["head"]},
        {"parts": "decoder"},
        {"method": "sab-h", "budget": True, "bits": float("nan")},
        {"method": "sab-h", "budget": True, "bits": 17},
        {"block_size": 100},
        {"damping": 0},
        {"damping": None},
        {"beta": "2"},
        {"beta": "nan"},
        {"beta": "half"},
        {"refine": -1},
    ],
)
def test_wrong_values_are_one_sentence_and_start_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(SabError) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


def test_ticked_layers_are_run_in_forward_order_whatever_part_they_are_of() -> None:
    vision = next(name for name, info in STORE.lvlm.info.items() if info.part == "vision")
    recipe, _ = read(scope=CHOSEN, layers={"chosen": [UP, vision, "unheard of"]}, parts=["projector"])
    assert recipe.linears == (vision, UP)
    assert recipe.parts == ("vision", "decoder")
    grid = recipe_form.layer_grid(STORE, (UP,))
    assert [cell["name"] for row in grid["rows"] for cell in row["cells"]] == list(STORE.lvlm.linears)


def test_one_layer_alone_is_not_refined_with_its_block() -> None:
    recipe = recipe_form.only_layer(STORE, Recipe(method="sab-h"), UP)
    assert (recipe.linears, recipe.parts, recipe.refine_epochs) == ((UP,), ("decoder",), 0)
    with pytest.raises(SabError, match="Choose a layer in Explore"):
        recipe_form.only_layer(STORE, Recipe(), "")


def test_a_recipe_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    for model, fingerprint, fits in (
        (None, None, True),
        ("Qwen/Qwen2.5-VL-3B-Instruct", None, False),
        ("elsewhere", STORE.lvlm.fingerprint, True),
        (None, "0" * 64, False),
    ):
        recipe = Recipe(model=model)
        path.write_text(json.dumps({"recipe": recipe.to_json(), "fingerprint": fingerprint}))
        if fits:
            assert recipe_form.loaded_recipe(STORE, path) == replace(recipe, model=None)
        else:
            with pytest.raises(SabError, match="another model"):
                recipe_form.loaded_recipe(STORE, path)


def test_a_recipe_that_names_files_of_the_machine_is_left_to_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(Recipe(calibration=str(tmp_path)).to_json()))
    with pytest.raises(SabError, match="quantize --recipe"):
        recipe_form.loaded_recipe(STORE, path)


def test_only_what_the_method_looks_at_is_shown() -> None:
    shown = recipe_form.shown_for("xnor", True)
    assert not any(shown[name]["visible"] for name in ("bits", "salient_top_p", "iterations", "keep"))
    assert shown["refine"]["visible"]
    assert recipe_form.shown_for("sab-h", True)["bits"]["visible"]
    assert [look["visible"] for look in recipe_form.shown_in(CHOSEN).values()] == [False, True]
    assert not set(shown) & set(recipe_form.shown_in(ALL))  # answers in any order leave both as they were chosen


OTHER = {"iterations": 1, "max_salient": 2, "emphasis": "ramp", "keep": "hessian"}


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_changes_the_codes_of_the_methods_that_name_it_and_of_no_other(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 256, generator=generator) * torch.rand(256, generator=generator).square()
    inputs = torch.randn(600, 256, generator=generator) @ torch.randn(256, 256, generator=generator)
    hessian = inputs.T @ inputs / 300
    sensitivities = (torch.rand(256, generator=generator), torch.rand(256, generator=generator))
    significance = significance_map(weight, *sensitivities, Thresholds())

    def codes(settings: FitSettings) -> torch.Tensor:
        return fit_linear(weight, hessian, name, settings, significance).weight

    plain = codes(FitSettings())
    for setting, value in OTHER.items():
        changed = not torch.equal(codes(replace(FitSettings(), **{setting: value})), plain)
        assert changed == (setting in METHODS[name].settings), setting
