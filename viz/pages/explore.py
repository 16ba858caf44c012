"""Explore: from the whole model to a single weight, and what the thresholds make of it.

The tab is one component. Its scripts (assets/js/heatmap.js, explore.js) ask the functions below, which take
one dictionary from the browser, trust nothing in it, and return one that json can write; an error a person
can cause comes back as {"error": sentence}. None of them goes through gradio's queue.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from sab.errors import SabError
from viz.downsample import LOG2_LOW, LOG2_STEP, encode, window
from viz.figures import density, depth, overview
from viz.figures.overview import Report
from viz.pages.cells import cells_csv, cropped
from viz.pages.layer import Layer
from viz.pages.nulls import Nulls, null_answer
from viz.pages.profile import Profiles
from viz.pages.selection import KINDS, Selection
from viz.pages.shared import Shared, script_tags
from viz.pages.store import Store, version
from viz.pages.stored import stored_form

if TYPE_CHECKING:
    from sab.binarizers import LinearCodes
    from sab.runs import Run

Request = Mapping[str, Any]
Answer = dict[str, Any]
FIELDS = ("weight", "binarized")
SCRIPTS = (
    "heatmap.js",
    *(f"explore_{part}.js" for part in ("text", "bins", "lines", "density", "history", "null", "weight", "export")),
    "explore.js",
)
FUNCTIONS = ("overview", "profile", "layer", "exact", "lines", "tile", "cells", "weight", "null", "fisher", "model")
TEMPLATE = '<div class="sab-explore"></div>'
SCRIPT = "SabLens.mountExplore({element, server});"


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    view = ExploreData(store)
    gr.HTML(
        value="",
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        head=script_tags(*SCRIPTS),
        server_functions=[answer(getattr(view, name)) for name in FUNCTIONS],
        apply_default_css=False,
        elem_id="sab-explore",
    )


def answer(function: Callable[[Request], Answer]) -> Callable[[Any], Answer]:
    """A server function around `function`: errors become one sentence, whatever was sent."""

    def call(request: Any) -> Answer:
        try:
            return function(request if isinstance(request, Mapping) else {})
        except SabError as error:
            return {"error": str(error)}
        except Exception:
            logging.getLogger(__name__).exception("explore: %s failed", function.__name__)
            return {"error": "This could not be drawn; the server's log says why. Try another layer."}

    call.__name__ = function.__name__  # how the browser calls it
    return call


class ExploreData:
    """What the server functions read: the store, and a bounded cache of layers ready to be drawn."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nulls = Nulls(store)
        self._profiles = Profiles(store)
        self._layers = store.kept(64e6, cost=lambda layer: layer.language.size)  # about 30 bytes a weight
        self._dense = store.kept(96e6, cost=lambda pair: pair[1].size)

    def overview(self, request: Request) -> Answer:
        """Grid and depth figure of a run as it saw itself, and its linears in forward order."""
        run = self._run(request)
        reports = list(run.reports.values())
        return {
            **self._figures(request, reports, {}),
            "linears": [
                {
                    "name": report.name,
                    "title": _title(report.part, report.block),
                    "part": report.part,
                    "block": report.block,
                    "kind": overview.kind_label(report),
                    "shape": report.shape,
                }
                for report in reports
            ],
            "quantities": {name: quantity._asdict() for name, quantity in overview.QUANTITIES.items()},
            "recipe": {"sensitivity": run.recipe.sensitivity, **asdict(run.recipe.thresholds)},
        }

    def profile(self, request: Request) -> Answer:
        """The same two figures under the thresholds and the sensitivity sent; {} where that is not at hand."""
        seen = self._profiles.reports(self._run(request), Selection.from_query(request))
        return {} if seen is None else self._figures(request, seen, {each.name: each.sparsity for each in seen})

    def _figures(self, request: Request, reports: Sequence[Report], sparsity: Mapping[str, float]) -> Answer:
        dark = request.get("dark") is True
        infos = overview.info(reports, Selection.from_query(request).colour)
        return {
            "grid": _figure(overview.figure(infos, dark)),
            "depth": _figure(depth.figure(depth.info(reports, sparsity), dark)),
        }

    def layer(self, request: Request) -> Answer:
        """Everything about one linear but its pixels: bins, cuts, counts, lines, and its density figure."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        found = self._exact(run, linear, kind, Selection.from_query(request))
        report = run.reports.get(linear)
        binned = density.info(layer.language, layer.vision, _boundaries(found))
        units, recipe = self._store.lvlm.units(linear), self._nulls.map_recipe(run, kind)
        return {
            "shape": layer.language.shape,
            "code": {"low": LOG2_LOW, "step": LOG2_STEP},
            "range": layer.code_range,
            "bins": _bins(binned),
            "density": _figure(density.figure(binned, request.get("dark") is True)),
            "rows": _base64(layer.rows),
            "columns": _base64(layer.columns),
            "units": None if units is None else asdict(units),
            "switched_off": layer.switched_off,
            "exact": found,
            "source": {
                "samples": recipe.samples,
                "seed": recipe.seed,
                "thresholds": asdict(run.recipe.thresholds),
            },
            "report": None
            if report is None
            else {
                "relative_loss": report.relative_loss,
                "bits_nominal": report.bits_nominal,
                "bits_all_in": report.bits_all_in,
                "salient_fraction": report.salient_fraction,
                "tokens_language": report.tokens_language,
                "tokens_vision": report.tokens_vision,
            },
        }

    def exact(self, request: Request) -> Answer:
        """Exact cuts, class counts and r of one linear under the thresholds sent."""
        run, linear, kind = self._place(request)
        return self._exact(run, linear, kind, Selection.from_query(request))

    def lines(self, request: Request) -> Answer:
        """How many weights of each class every row [3, n] and column [3, m] holds, exactly."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        found = layer.classes(Selection.from_query(request).thresholds())
        shape = layer.pyramid.shape
        return {"rows": _base64(found.lines(shape, 0)), "columns": _base64(found.lines(shape, 1))}

    def tile(self, request: Request) -> Answer:
        """The sharpest tile of at most 256² cells that covers a rectangle [top, left, bottom, right]."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        pooling = Selection.from_query(request).pooling
        view = window(layer.pyramid.shape, *_rectangle(request.get("rectangle"), layer.pyramid.shape))
        tile = {
            "factor": view.factor,
            "row": view.row0 * view.factor,
            "column": view.column0 * view.factor,
            "rows": view.shape[0],
            "columns": view.shape[1],
            "language": _base64(encode(layer.pyramid.tile("language", view, pooling))),
            "vision": _base64(encode(layer.pyramid.tile("vision", view, pooling))),
        }
        wanted = request.get("fields")
        for name in FIELDS:
            if isinstance(wanted, list) and name in wanted:
                values = layer.weight if name == "weight" else self._codes(run, linear)[1]
                tile[name] = _base64(layer.pyramid.tile_of(values, view, pooling))
        if view.factor > 1 and pooling == "max":
            tile["representative"] = _base64(layer.pyramid.representative(view))
        return tile

    def cells(self, request: Request) -> Answer:
        """The cells of `tile` that lie in "view", as CSV under the thresholds sent. Values and classes are those of the
        map itself and not of the 16-bit codes that are drawn; a pooled cell gives its strongest weight, or the mean and
        the number of weights in each class."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        selection = Selection.from_query(request)
        found = self._store.significance(run.id, linear, selection.thresholds(), kind)
        view = cropped(
            window(layer.pyramid.shape, *_rectangle(request.get("rectangle"), layer.pyramid.shape)),
            _rectangle(request.get("view"), layer.pyramid.shape),
        )
        return {"csv": cells_csv(layer.pyramid, view, selection.pooling, found)}

    def weight(self, request: Request) -> Answer:
        """What became of one weight: its value, its stored form, and the error between them."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        rows, columns = layer.weight.shape
        row, column = _index(request.get("row"), rows), _index(request.get("column"), columns)
        value = float(layer.weight[row, column])
        found: Answer = {"row": row, "column": column, "weight": value}
        if linear in run.reports:
            codes, dense = self._codes(run, linear)
            stored = float(dense[row, column])
            found |= {"binarized": stored, "lost": value - stored, "stored": stored_form(codes, row, column)}
        return found

    def null(self, request: Request) -> Answer:
        """Null and stability of the map of one linear, or how far they are; {"start": true} begins computing them."""
        run, linear, kind = self._place(request)
        if request.get("start") is True:
            self._nulls.compute(run, kind)
        work, selection = self._nulls.work(run, kind), Selection.from_query(request)
        found, binned = null_answer(
            self._nulls.find(run, kind),
            linear,
            lambda: self._store.weight(run, linear),
            selection.thresholds(),
            lambda: _boundaries(self._exact(run, linear, kind, selection)),
        )
        if binned is not None:
            found["bins"] = _bins(binned)
            found["density"] = _figure(density.figure(binned, request.get("dark") is True, null=True))
        return {"state": work.state, "share": work.share, "message": work.message, **found}

    def fisher(self, request: Request) -> Answer:
        """How far the Fisher sensitivities are; {"start": true} begins computing them."""
        run = self._run(request)
        work = self._store.fisher_work
        if run.sensitivities("fisher"):
            return {"state": "done", "share": 1.0, "message": ""}
        if request.get("start") is True:
            self._store.compute_fisher()
        return {"state": work.state, "share": work.share, "message": work.message}

    def model(self, request: Request) -> Answer:
        """The name of the model, once it is loaded; what a page without a run asks, to say if that failed."""
        _ = self._store.lvlm
        return {"name": self._store.model_name}

    def _run(self, request: Request) -> Run:
        return self._store.run(str(request.get("run", "")))

    def _place(self, request: Request) -> tuple[Run, str, str]:
        run = self._run(request)
        linear, kind = str(request.get("linear", "")), request.get("kind")
        if linear not in run.names:
            raise SabError(f"The run “{run.name}” has no layer “{linear}”: choose one from the grid.")
        return run, linear, kind if kind in KINDS else "input"

    def _layer(self, run: Run, linear: str, kind: str) -> Layer:
        def build() -> Layer:
            found = self._store.significance(run.id, linear, Selection().thresholds(), kind)
            return Layer.of(self._store.weight(run, linear).numpy(), found, self._store.without_language(linear))

        return self._layers.get((version(run), linear, kind), build)

    def _codes(self, run: Run, linear: str) -> tuple[LinearCodes, NDArray[np.float32]]:
        """Codes and the dense weight [n, m] they stand for."""

        def build() -> tuple[LinearCodes, NDArray[np.float32]]:
            codes = run.codes(linear)
            return codes, codes.dense().numpy()

        return self._dense.get((version(run), linear), build)

    def _exact(self, run: Run, linear: str, kind: str, selection: Selection) -> Answer:
        layer, thresholds = self._layer(run, linear, kind), selection.thresholds()
        found = layer.classes(thresholds)
        return {
            "boundaries": {  # json has no infinity
                name: cut if math.isfinite(cut) else None for name, cut in found.boundaries._asdict().items()
            },
            "counts": list(found.counts),
            "unimodal_ratio": found.unimodal_ratio,
            "mean_sparsity": layer.mean_sparsity,
            "switched_off": layer.switched_off,
            "thresholds": asdict(thresholds),
        }


def _title(part: str, block: int) -> str:
    """How a heading calls a block."""
    return overview.Column(part, block).title if part != "decoder" else f"Block {block}"


def _boundaries(exact: Answer) -> density.Boundaries:
    """The cuts of an answer of `exact`, where json wrote infinity as None."""
    return density.Boundaries(**{name: math.inf if cut is None else cut for name, cut in exact["boundaries"].items()})


def _bins(binned: density.DensityInfo) -> Answer:
    """A binned plane for the browser, which counts on it while a threshold is dragged."""
    return {
        "counts": _base64(binned.counts),
        "first": binned.first_code,
        "size": density.CODES_PER_BIN,
        "side": density.BINS,
    }


def _rectangle(sent: Any, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Four finite numbers, or the whole matrix."""
    whole = (0.0, 0.0, float(shape[0]), float(shape[1]))
    if not isinstance(sent, list) or len(sent) != 4:
        return whole
    if not all(isinstance(edge, (int, float)) and math.isfinite(edge) for edge in sent):
        return whole
    top, left, bottom, right = (float(edge) for edge in sent)
    return top, left, bottom, right


def _index(sent: Any, length: int) -> int:
    if isinstance(sent, bool) or not isinstance(sent, (int, float)) or not math.isfinite(sent):
        raise SabError("Row and column of a weight are numbers.")
    return min(max(int(sent), 0), length - 1)


def _figure(figure: Any) -> Any:
    """A plotly figure as plain json; arrays stay base64."""
    return json.loads(figure.to_json())


def _base64(values: NDArray[Any]) -> str:
    """Little-endian bytes of an array, row by row."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
