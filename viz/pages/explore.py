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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from sab.errors import SabError
from viz.downsample import LOG2_LOW, LOG2_STEP, Pyramid, Window, encode, window
from viz.figures import density, depth, overview
from viz.pages.shared import Shared, script_tags
from viz.pages.store import KINDS, Bounded, Selection, Store, version

if TYPE_CHECKING:
    from sab.runs import Run
    from sab.significance import SignificanceMap

Request = Mapping[str, Any]
Answer = dict[str, Any]
FIELDS = ("weight", "binarized")
TEMPLATE = '<div class="sab-explore"></div>'
SCRIPT = "SabLens.mountExplore({element, server});"


@dataclass(frozen=True)
class Layer:
    """What the tab draws of one linear [n, m] of one run, whatever the thresholds.

    column_ratio [m], row_ratio [n]: log2 of vision over language significance, each summed along the line.
    """

    pyramid: Pyramid
    weight: NDArray[np.float32]
    language: NDArray[np.float32]
    vision: NDArray[np.float32]
    column_ratio: NDArray[np.float32]
    row_ratio: NDArray[np.float32]
    switched_off: str


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    view = ExploreData(store)
    gr.HTML(
        value="",
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        head=script_tags("heatmap.js", "explore.js"),
        server_functions=[
            answer(view.overview),
            answer(view.layer),
            answer(view.exact),
            answer(view.tile),
            answer(view.cells),
            answer(view.weight),
            answer(view.fisher),
            answer(view.model),
        ],
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
        self._layers = Bounded(96e6, cost=lambda layer: layer.language.size)  # about 17 bytes a weight
        self._dense = Bounded(96e6, cost=lambda pair: pair[0].size)

    def overview(self, request: Request) -> Answer:
        """Grid and depth figure of a run, and its linears in forward order."""
        run = self._run(request)
        selection = Selection.from_query(request)
        dark = request.get("dark") is True
        reports = list(run.reports.values())
        infos = overview.info(reports, selection.colour)
        return {
            "grid": _figure(overview.figure(infos, dark)),
            "depth": _figure(depth.figure(depth.info(reports), dark)),
            "linears": [
                {"name": report.name, "block": report.block, "kind": report.kind, "shape": report.shape}
                for report in reports
            ],
            "quantities": {name: quantity._asdict() for name, quantity in overview.QUANTITIES.items()},
            "recipe": {"sensitivity": run.recipe.sensitivity, **asdict(run.recipe.thresholds)},
        }

    def layer(self, request: Request) -> Answer:
        """Everything about one linear but its pixels: bins, cuts, counts, causes, and its density figure."""
        run, linear, kind = self._place(request)
        layer = self._layer(run, linear, kind)
        found = self._exact(run, linear, kind, Selection.from_query(request))
        report = run.reports.get(linear)
        cuts = {name: math.inf if cut is None else cut for name, cut in found["boundaries"].items()}
        binned = density.info(layer.language, layer.vision, density.Boundaries(**cuts))
        return {
            "shape": layer.language.shape,
            "code": {"low": LOG2_LOW, "step": LOG2_STEP},
            "range": _range(layer),
            "bins": {
                "counts": _base64(binned.counts),
                "first": binned.first_code,
                "size": density.CODES_PER_BIN,
                "side": density.BINS,
            },
            "density": _figure(density.figure(binned, request.get("dark") is True)),
            "column_ratio": _base64(layer.column_ratio),
            "row_ratio": _base64(layer.row_ratio),
            "switched_off": layer.switched_off,
            "exact": found,
            "source": {
                "samples": run.recipe.samples,
                "seed": run.recipe.seed,
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
                values = layer.weight if name == "weight" else self._codes(run, linear)[0]
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
            dense, signs, two = self._codes(run, linear)
            stored = float(dense[row, column])
            found |= {"binarized": stored, "lost": value - stored, "code": int(signs[row, column])}
            found["integer"] = two is None
            found["two_bits"] = bool(two[column]) if two is not None else False
        return found

    def fisher(self, request: Request) -> Answer:
        """How far the Fisher sensitivities are; {"start": true} begins computing them."""
        run = self._run(request)
        work = self._store.fisher_work
        if run.sensitivity(next(iter(run.names), ""), "fisher") is not None:
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
            language, vision = found.language.numpy(), found.vision.numpy()
            return Layer(
                pyramid=Pyramid(language, vision),
                weight=self._store.weight(run, linear).numpy(),
                language=language,
                vision=vision,
                column_ratio=_log_ratio(vision.sum(axis=0), language.sum(axis=0)),
                row_ratio=_log_ratio(vision.sum(axis=1), language.sum(axis=1)),
                switched_off=found.switched_off or "",
            )

        return self._layers.get((version(run), linear, kind), build)

    def _codes(
        self, run: Run, linear: str
    ) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_] | None]:
        """Dense stored weight, signs (or integer codes), and which columns have a second bit (None for
        integer codes)."""

        def build() -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_] | None]:
            codes = run.codes(linear)
            salient = getattr(codes, "salient", None)
            two = None if salient is None else salient.numpy()
            return codes.dense().numpy(), codes.signs().numpy(), two

        return self._dense.get((version(run), linear), build)

    def _exact(self, run: Run, linear: str, kind: str, selection: Selection) -> Answer:
        found = self._store.significance(run.id, linear, selection.thresholds(), kind)
        counts = list(found.counts().values())
        return {
            "boundaries": {  # json has no infinity
                name: cut if math.isfinite(cut) else None for name, cut in boundaries(found)._asdict().items()
            },
            "counts": counts,
            "unimodal_ratio": found.unimodal_ratio,
            "mean_sparsity": float(found.sparsity.mean()),
            "switched_off": found.switched_off or "",
            "thresholds": asdict(found.thresholds),
        }


def cropped(tile: Window, rectangle: tuple[float, float, float, float]) -> Window:
    """The cells of a tile that a rectangle of weights touches, at least one."""
    top, left, bottom, right = (edge / tile.factor for edge in rectangle)
    row0 = min(max(math.floor(top), tile.row0), tile.row1 - 1)
    column0 = min(max(math.floor(left), tile.column0), tile.column1 - 1)
    row1 = min(max(math.ceil(bottom), row0 + 1), tile.row1)
    column1 = min(max(math.ceil(right), column0 + 1), tile.column1)
    return Window(tile.factor, row0, row1, column0, column1)


def cells_csv(pyramid: Pyramid, view: Window, pooling: str, found: SignificanceMap) -> str:
    """One line a cell of a window: its place, how many weights a side it pools, both significances, and its class."""
    rows, columns = np.mgrid[view.row0 : view.row1, view.column0 : view.column1].reshape(2, -1) * view.factor
    head = ["row", "column", "pooled", "significance_language", "significance_vision"]
    partition = found.partition.numpy()
    if view.factor > 1 and pooling == "mean":
        weights = np.minimum(rows + view.factor, partition.shape[0]) - rows
        weights *= np.minimum(columns + view.factor, partition.shape[1]) - columns
        masks = [partition == code for code in range(len(overview.CLASS_NAMES))]
        shares = [pyramid.tile_of(mask, view, pooling).reshape(-1) for mask in masks]
        last = [np.rint(share * weights).astype(int).astype(str) for share in shares]
        head += overview.CLASS_NAMES
    else:
        if view.factor > 1:
            rows, columns = np.divmod(pyramid.representative(view).reshape(-1), partition.shape[1])
        names = np.array(overview.CLASS_NAMES)
        last = [texts(found.sparsity.numpy()[rows, columns]), names[partition[rows, columns]]]
        head += ["sparsity", "class"]
    values = [texts(pyramid.tile(name, view, pooling).reshape(-1)) for name in ("language", "vision")]
    lines = zip(rows.astype(str), columns.astype(str), [str(view.factor)] * rows.size, *values, *last, strict=True)
    return "\n".join([",".join(head), *(",".join(line) for line in lines)]) + "\n"


def texts(values: NDArray[np.float32]) -> list[str]:
    """Nine digits, which read back to the same float32."""
    return [f"{value:.9g}" for value in values.tolist()]


def boundaries(found: SignificanceMap) -> density.Boundaries:
    """Where a map's thresholds cut, read off the map: the smallest salient significance of each modality and
    the smallest difference that counts. Infinite where nothing is salient."""
    language, vision = found.language.numpy().reshape(-1), found.vision.numpy().reshape(-1)
    share, sparsity = found.thresholds.salient_top_p, found.thresholds.sparsity_thr
    among = np.abs(language - vision)[found.partition.numpy().reshape(-1) > 0]
    difference = math.inf
    if among.size:
        rank = int(found.thresholds.diff_quantile * (among.size - 1))
        difference = float(np.partition(among, rank)[rank])
    return density.Boundaries(
        language=_smallest_of_top(language, share),
        vision=_smallest_of_top(vision, share),
        difference=difference,
        ratio=density.ratio_of_sparsity(sparsity),
    )


def _smallest_of_top(values: NDArray[np.float32], share: float) -> float:
    count = min(values.size, max(1, round(share * values.size))) if share > 0 else 0
    if not count:
        return math.inf
    cut = float(np.partition(values, values.size - count)[values.size - count])
    return cut if cut > 0 else float(np.min(values[values > 0], initial=math.inf))


def _range(layer: Layer) -> list[int]:
    """Codes between which colours run: the lowest hundredth of the stronger significances, and the largest."""
    stronger = encode(np.maximum(layer.language, layer.vision)).reshape(-1)
    place = stronger.size // 100
    return [int(np.partition(stronger, place)[place]), int(stronger.max())]


def _log_ratio(vision: NDArray[np.float32], language: NDArray[np.float32]) -> NDArray[np.float32]:
    """log2(vision / language), ±40 where one of them is nothing, 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(vision.astype(np.float64)) - np.log2(language.astype(np.float64))
    return np.nan_to_num(np.clip(ratio, -40, 40), nan=0.0).astype(np.float32)


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
