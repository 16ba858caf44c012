"""The form of a recipe: its fields, what they become, and how a recipe fills them.

Everything that a recipe may say has a field here, so a recipe that is loaded can be seen whole; fields that the chosen
method does not look at are hidden. Nothing that comes from the browser is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from sab.errors import SabError
from viz.pages.selection import THRESHOLD_RANGES, Selection
from viz.pages.shared import script_tags
from viz.pages.store import Store

if TYPE_CHECKING:
    from sab.recipes import Recipe

ALL, CHOSEN = "All layers", "Chosen layers"
BUDGET_BLOCK_SIZE = 256  # row scales cost half of what they cost at 128
FIRST_BUDGET = 2.0
MOST_QUESTIONS = 2000
PARTS = (("Decoder", "decoder"), ("Projector", "projector"), ("Vision tower", "vision"))
LAYERS_TEMPLATE = '<div class="ly" role="group" aria-label="Layers to binarize"></div>'
THRESHOLDS = (
    ("salient_top_p", "Salient: top share", "weights this significant for a modality count as salient"),
    ("diff_quantile", "Unimodal: difference quantile", "how far the two significances must lie apart"),
    ("sparsity_thr", "Unimodal: sparsity", "how much one modality must dominate, 0 to 1"),
)


@dataclass(frozen=True)
class RecipeForm:
    """The components by name: the fields of a recipe where they are one, "budget" (whether there is one), "scope",
    "layers" (the grid) and "questions" beside them."""

    fields: dict[str, Any]

    def read(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """What a handler with `inputs` was given, by name."""
        return dict(zip(self.fields, values, strict=True))

    @property
    def inputs(self) -> list[Any]:
        return list(self.fields.values())

    def show(self, values: Mapping[str, Any], looks: Mapping[str, Mapping[str, Any]]) -> dict[Any, Any]:
        """Updates for a handler that outputs to the fields: new values, and how fields look (`shown_for`). A slider
        grows to hold what a recipe says."""
        updates: dict[str, dict[str, Any]] = {name: dict(look) for name, look in looks.items()}
        for name, value in values.items():
            field, update = self.fields[name], updates.setdefault(name, {})
            update["value"] = value
            if isinstance(field, gr.Slider):
                update |= {"minimum": min(field.minimum, value), "maximum": max(field.maximum, value)}
        return {self.fields[name]: gr.update(**update) for name, update in updates.items()}


def method_fields() -> dict[str, Any]:
    """What one sees first: the method with its budget and what its map is made from."""
    default = Selection()
    fields: dict[str, Any] = {
        "method": gr.Dropdown(
            [], label="Method", info="How weights become bits.", elem_id="binarize-method", filterable=False
        ),
        "budget": gr.Checkbox(False, label="Within a budget of stored bits", visible=False, elem_id="binarize-budget"),
        "bits": gr.Slider(
            1,
            4,
            value=FIRST_BUDGET,
            step=0.05,
            label="Budget",
            info="stored bits a weight, everything counted",
            visible=False,
            elem_id="binarize-bits",
        ),
        "sensitivity": gr.Radio(
            [("Input side", "input"), ("Fisher", "fisher")],
            value=default.kind,
            label="Significance from",
            info="inputs alone, or inputs and output gradients",
            elem_id="binarize-sensitivity",
        ),
    }
    for name, label, info in THRESHOLDS:
        fields[name] = gr.Slider(
            *THRESHOLD_RANGES[name],
            value=getattr(default, name),
            step=0.001,
            label=label,
            info=info,
            elem_id=f"binarize-{name}",
        )
    return fields


def scope_fields() -> dict[str, Any]:
    """Which layers."""
    return {
        "scope": gr.Radio([ALL, CHOSEN], value=ALL, label="Layers", elem_id="binarize-scope"),
        "parts": gr.CheckboxGroup(
            list(PARTS), value=["decoder"], label="Of these parts", show_label=False, elem_id="binarize-parts"
        ),
        "layers": gr.HTML(
            value=None,
            html_template=LAYERS_TEMPLATE,
            js_on_load="SabLens.mountLayers({element, props, watch});",
            head=script_tags("layers.js"),
            apply_default_css=False,
            visible=False,
            elem_id="binarize-layers",
        ),
    }


def more_fields() -> dict[str, Any]:
    """What most people leave as it is, in two groups: calibration, and how the fit goes about it."""
    with gr.Group(elem_classes="binarize-group"):
        fields: dict[str, Any] = {
            "samples": gr.Slider(
                16,
                1024,
                value=512,
                step=1,
                label="Calibration samples",
                info="conversations on which significance is measured",
                elem_id="binarize-samples",
            ),
            "seed": gr.Number(
                value=0,
                precision=0,
                minimum=0,
                label="Seed",
                info="of the samples and of the refinement",
                elem_id="binarize-seed",
            ),
            "split": gr.Radio(
                [("Token", "token"), ("Corpus", "corpus")],
                value="token",
                label="Vision is",
                info="picture tokens, or every token of a conversation with a picture",
                elem_id="binarize-split",
            ),
            "questions": gr.Slider(
                0,
                1000,
                value=200,
                step=10,
                label="Held-out questions",
                info="asked after the run, for its accuracy",
                elem_id="binarize-questions",
            ),
        }
    with gr.Group(elem_classes="binarize-group"):
        fields |= {
            "iterations": gr.Slider(
                0, 30, value=15, step=1, label="Rounds", info="of alternating refinement", elem_id="binarize-rounds"
            ),
            "refine": gr.Slider(
                0,
                16,
                value=0,
                step=1,
                label="Epochs of block refinement",
                info="scales and bits of a block move together until its output comes near full precision",
                elem_id="binarize-refine",
            ),
            "max_salient": gr.Slider(
                1, 49, value=49, step=1, label="Salient columns", info="per block, at most", elem_id="binarize-salient"
            ),
            "emphasis": gr.Radio(
                [("Constant", "constant"), ("Ramp", "ramp")],
                value="constant",
                label="Emphasis of the map",
                info="in every round alike, or growing",
                elem_id="binarize-emphasis",
            ),
            "keep": gr.Radio(
                [("Magnitude", "magnitude"), ("Hessian", "hessian")],
                value="magnitude",
                label="Weights kept by",
                info="which tenth stays at 8 bits",
                elem_id="binarize-keep",
            ),
            "block_size": gr.Number(
                value=128,
                precision=0,
                step=128,
                label="Block size",
                info="columns that share their row scales, a multiple of 128",
                elem_id="binarize-block-size",
            ),
            "compensation": gr.Radio(
                [("Exact", "exact"), ("Lineage", "lineage"), ("None", "none")],
                value="exact",
                label="Error compensation",
                info="how later columns make up for a block's error; lineage is what the papers do",
                elem_id="binarize-compensation",
            ),
            "damping": gr.Number(
                value=0.01, label="Damping", info="of the Hessian, times its mean diagonal", elem_id="binarize-damping"
            ),
            "beta": gr.Textbox(
                value="",
                label="Weight of vision in the Hessian",
                info="0 to 1; empty: the share of picture tokens",
                placeholder="share of picture tokens",
                max_lines=1,
                max_length=20,
                elem_id="binarize-beta",
            ),
        }
    return fields


def shown_for(method: object, budget: object) -> dict[str, dict[str, Any]]:
    """How fields look under a method: those are shown that it looks at, and it says what it does. Those of the scope
    stay out: answers to two quick choices may arrive in any order, and must not undo each other."""
    from sab.binarizers import METHODS

    chosen = METHODS.get(method) if isinstance(method, str) else None
    if chosen is None:
        return {}
    within = budget is True and "bits" in chosen.settings
    seen = {
        "budget": "bits" in chosen.settings,
        "bits": within,
        "sensitivity": chosen.uses_significance,
        **dict.fromkeys(THRESHOLD_RANGES, chosen.uses_significance),
        "iterations": "iterations" in chosen.settings,
        "refine": chosen.refine is not None,
        "max_salient": "max_salient" in chosen.settings and not within,
        "emphasis": "emphasis" in chosen.settings,
        "keep": "keep" in chosen.settings,
        "compensation": chosen.compensated,
    }
    return {"method": {"info": chosen.description}} | {name: {"visible": visible} for name, visible in seen.items()}


def shown_in(scope: object) -> dict[str, dict[str, Any]]:
    """How the fields look that say which layers."""
    return {"parts": {"visible": scope != CHOSEN}, "layers": {"visible": scope == CHOSEN}}


def layer_grid(store: Store, chosen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The layers of the open model as rows of cells, a row a block, in forward order."""
    info = store.lvlm.info
    rows: dict[tuple[str, int], list[dict[str, str]]] = {}
    for name in store.lvlm.linears:
        place = info[name]
        rows.setdefault((place.part, place.block), []).append({"name": name, "kind": place.kind})
    labels = {key: f"block {key[1]}" if key[1] >= 0 else "outside blocks" for key in rows}
    grid = [{"part": part, "label": labels[part, block], "cells": cells} for (part, block), cells in rows.items()]
    return {"rows": grid, "chosen": list(chosen)}


def recipe_of(store: Store, form: Mapping[str, Any]) -> tuple[Recipe, int]:
    """The recipe that a form says, and the number of questions. Raises SabError, in one sentence, for values that no
    recipe may have."""
    from sab.binarizers import METHODS
    from sab.parts import in_forward_order
    from sab.recipes import Recipe
    from sab.significance import Thresholds

    method = METHODS.get(form["method"]) if isinstance(form["method"], str) else None
    if method is None:
        raise SabError("Choose a method from the list.")
    thresholds = Thresholds(*(form[name] for name in THRESHOLD_RANGES)).validate()
    within = form["budget"] is True and "bits" in method.settings
    linears, parts = chosen_layers(store, form) if form["scope"] == CHOSEN else (None, form["parts"])
    if form["scope"] not in (ALL, CHOSEN) or not isinstance(parts, list) or not parts:
        raise SabError("Choose which layers to binarize.")
    refine = whole(form["refine"], "The number of epochs of refinement") if method.refine is not None else None
    recipe = Recipe(
        model=store.model,
        method=form["method"],
        thresholds=thresholds if method.uses_significance else Thresholds(),
        sensitivity=form["sensitivity"] if method.uses_significance else Recipe.sensitivity,
        split=form["split"],
        samples=whole(form["samples"], "The number of calibration samples"),
        seed=whole(form["seed"], "The seed"),
        iterations=whole(form["iterations"], "The number of rounds"),
        parts=in_forward_order(str(part) for part in parts),
        linears=linears,
        beta=number_or_none(form["beta"], "The weight of vision in the Hessian"),
        compensation=form["compensation"],
        search="budget" if within else Recipe.search,
        bits=form["bits"] if within else None,
        max_salient=whole(form["max_salient"], "The number of salient columns"),
        emphasis=form["emphasis"],
        block_size=whole(form["block_size"], "The block size"),
        damping=form["damping"],
        keep=form["keep"],
        refine=None if refine == method.refine else refine,
    )
    recipe.validate()
    return recipe, checked_questions(form["questions"])


def chosen_layers(store: Store, form: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """Names and parts of the layers that are ticked in the grid. Raises SabError when there are none."""
    grid = form["layers"]
    ticked = grid.get("chosen") if isinstance(grid, dict) else None
    ticked = {name for name in ticked if isinstance(name, str)} if isinstance(ticked, list) else set()
    names = tuple(name for name in store.lvlm.linears if name in ticked)
    if not names:
        raise SabError("Tick at least one layer in the grid, or choose all layers.")
    return names, list({store.lvlm.info[name].part: None for name in names})


def values_of(store: Store, recipe: Recipe) -> dict[str, Any]:
    """What the fields show of a recipe; `recipe_of` gives the recipe back. Raises SabError for layers that the open
    model does not have."""
    from sab.binarizers import METHODS

    linears = recipe.linears or ()
    unknown = [name for name in linears if name not in store.lvlm.linears]
    if unknown:
        raise SabError(f"The recipe names a layer “{unknown[0][:80]}” that this model does not have.")
    values = {name: getattr(recipe.thresholds, name) for name in THRESHOLD_RANGES}
    same = ("method", "sensitivity", "split", "samples", "seed", "iterations", "compensation", "max_salient")
    values |= {name: getattr(recipe, name) for name in (*same, "emphasis", "block_size", "damping", "keep")}
    return values | {
        "beta": "" if recipe.beta is None else repr(recipe.beta),
        "budget": recipe.bits is not None,
        "bits": FIRST_BUDGET if recipe.bits is None else recipe.bits,
        "refine": recipe.refine_epochs if METHODS[recipe.method].refine is not None else 0,
        "scope": CHOSEN if recipe.linears else ALL,
        "parts": list(recipe.parts),
        "layers": layer_grid(store, linears),
    }


def only_layer(store: Store, recipe: Recipe, linear: str) -> Recipe:
    """The same recipe for one layer alone, without refinement of its block, whose other layers stay as they are. Raises
    SabError where the open model has no such layer."""
    from sab.binarizers import METHODS

    if linear not in store.lvlm.linears:
        raise SabError("Choose a layer in Explore first: click a cell of its grid.")
    refine = 0 if METHODS[recipe.method].refine else None
    return replace(recipe, linears=(linear,), parts=(store.lvlm.info[linear].part,), refine=refine)


def loaded_recipe(store: Store, path: str | Path) -> Recipe:
    """The recipe of a file, for the open model. Raises SabError for a file that holds none and for one of another
    model."""
    from sab.library import read_recipe

    found = read_recipe(path)
    named = found.recipe.model
    same = store.is_named(named) if found.fingerprint is None else found.fingerprint == store.lvlm.fingerprint
    if not same:
        raise SabError(
            f"This recipe is for another model ({named or 'the embedded one'}): open that by the name at the top, or "
            f"choose a recipe for {store.model_name}."
        )
    if found.recipe.calibration is not None:  # a visitor must not name files of the machine the page runs on
        raise SabError(
            f"This recipe is calibrated on {found.recipe.calibration}, which the page does not read: repeat it with "
            "python -m sab quantize --recipe."
        )
    return replace(found.recipe, model=store.model)


def whole(value: object, what: str) -> int:
    """A whole number. Raises SabError naming `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise SabError(f"{what} must be a whole number.")
    return int(value)


def number_or_none(value: object, what: str) -> float | None:
    """A number that is written in a text field, which a number field could not leave empty. Raises SabError naming
    `what`."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        return float(text) if text else None
    except ValueError as error:
        raise SabError(f"{what} must be a number, or empty.") from error


def checked_questions(value: object) -> int:
    """A number of questions to ask."""
    number = whole(value, "The number of questions")
    if not 0 <= number <= MOST_QUESTIONS:
        raise SabError(f"The number of questions must lie between 0 and {MOST_QUESTIONS}.")
    return number
