"""How fast the page is, by the functions it runs on: `python -m sab bench ui` for Explore, `bench rerun` for Binarize.

A synthetic decoder of two linears, one of the size asked for and one of 256 × 256, is put into a store; the tab's own
server functions are called in this process, and where there is a Chromium the page is opened in it, so that the time of
a frame is what the page's own script spends (performance.now) between the pointer's move and the end of drawing.

    tile     a new tile of the large layer, at random places and zooms, from request to answer
    exact    class counts, r and cuts of the large layer under random thresholds, as on letting go
    counts   the same while a threshold is dragged: in the browser, from the binned plane; and how far off
    frame    script of one frame of a drag on a 256 × 256 layer with six maps
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sab.binarizers import METHODS
from sab.errors import SabError
from sab.models import LVLM, LinearInfo, load
from sab.progress import Listener, silent
from sab.recipes import Recipe
from sab.runs import start, store_sensitivities
from viz.pages.explore import ExploreData
from viz.pages.store import Store
from viz.pages.worker import Bench, Task

LARGE, SMALL = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
FRAME_SIZE = (256, 256)
GOALS = {"tile_ms": 300.0, "counts_ms": 100.0, "counts_off": 0.005, "frame_ms": 8.0}
RERUN = ("sab", "sab-h", "arb-x", "billm", "gptq2")


def synthetic_store(shapes: dict[str, tuple[int, int]], directory: Path, seed: int = 0) -> Store:
    """A store around a model of the given linears and one run of it, without codes, in `directory`. Columns differ by
    modality as input sensitivities do."""
    generator = torch.Generator().manual_seed(seed)
    linears: dict[str, nn.Linear] = {}
    sensitivities = {}
    for name, (rows, columns) in shapes.items():
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.randn(rows, columns, generator=generator), requires_grad=False)
        linears[name] = linear
        shared, language, vision = torch.randn(3, columns, generator=generator)
        sensitivities[name] = (shared + 0.3 * language).exp(), (shared + 0.3 * vision).exp()
    info = {name: LinearInfo(name, "decoder", block, name.rsplit(".", 1)[-1]) for block, name in enumerate(shapes)}
    lvlm = LVLM(
        model=nn.ModuleList(linears.values()),
        processor=None,
        family="synthetic",
        source="synthetic",
        linears=linears,
        info=info,
        device=torch.device("cpu"),
        image_token_id=0,
        fingerprint=f"synthetic-{seed}",
    )
    run = start(directory / "synthetic", Recipe(model="synthetic"), lvlm, list(shapes))
    store_sensitivities(run, "input", sensitivities)
    return Store("synthetic", [directory], lvlm)


def ui(
    rows: int = 4096, columns: int = 11008, repeats: int = 60, seed: int = 0, progress: Listener | None = None
) -> dict[str, Any]:
    """Percentiles of what the module describes, in milliseconds, and the goals. SabError for sizes that make no sense.
    Without a Chromium (or playwright) what needs one is None."""
    if not (256 <= rows <= 65536 and 256 <= columns <= 65536):
        raise SabError(f"a layer of {rows} × {columns} is not measured; give 256 to 65536 rows and columns")
    if not 10 <= repeats <= 10_000:
        raise SabError(f"--repeats is {repeats}; give 10 to 10000")
    tell = progress or silent
    with tempfile.TemporaryDirectory(prefix="sab-bench-") as folder:
        tell("a synthetic layer", 0.0)
        store = synthetic_store({LARGE: (rows, columns), SMALL: FRAME_SIZE}, Path(folder), seed)
        explore = ExploreData(store)
        request = {"run": "synthetic", "linear": LARGE}
        started = time.perf_counter()
        layer = explore.layer(request)
        opened = time.perf_counter() - started
        draw = np.random.default_rng(seed)
        tell("tiles", 0.2)
        tiles = _milliseconds(explore.tile, [request | _view(draw, rows, columns) for _ in range(repeats)])
        tell("exact counts", 0.4)
        thresholds = [_thresholds(draw) for _ in range(repeats)]
        exact = _milliseconds(explore.exact, [request | each for each in thresholds])
        answers = [explore.exact(request | each)["counts"] for each in thresholds]
        tell("the page in a browser", 0.7)
        page = _in_browser(store, layer, thresholds, answers)
        tell("the page in a browser", 1.0)
    return {
        "bench": "ui",
        "shape": [rows, columns],
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "open_seconds": opened,
        "tile_ms": percentiles(tiles),
        "exact_ms": percentiles(exact),
        **page,
        "goals_p95": GOALS,
    }


def rerun(methods: Sequence[str] = RERUN, samples: int = 512, progress: Listener | None = None) -> dict[str, Any]:
    """Seconds of "Rerun this layer" on the embedded model, through the worker's own functions in this process: what is
    prepared while nobody waits, then one linear refitted by each method, the worst of three linears."""
    tell = progress or silent
    worker, stop = Bench(), threading.Event()
    lvlm = load()
    chosen = [list(lvlm.decoder_linears)[place] for place in (0, len(lvlm.decoder_linears) // 2, -1)]
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sab-bench-") as folder:
        tell("getting ready", 0.0)
        started = time.perf_counter()
        worker.perform(Task(None, "", Recipe(samples=samples), 0), stop, lambda name, value: None)
        prepared = time.perf_counter() - started
        for number, method in enumerate(methods):
            tell(method, number / len(methods))
            for linear in chosen:
                recipe = Recipe(method=method, samples=samples, linears=(linear,))
                recipe = replace(recipe, refine=0 if METHODS[method].refine else None)
                place = Path(folder) / f"{method}-{linear}"
                started = time.perf_counter()
                worker.perform(Task(None, str(place), recipe, 0), stop, lambda name, value: None)
                spent[method] = max(spent.get(method, 0.0), time.perf_counter() - started)
    load_now = os.getloadavg()[0]
    return {"bench": "rerun", "samples": samples, "prepare_seconds": prepared, "seconds": spent, "load": load_now}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    middle, high = np.percentile(values, [50, 95])
    return {"p50": float(middle), "p95": float(high), "max": float(max(values))}


def _milliseconds(function: Callable[[dict[str, Any]], Any], requests: Sequence[dict[str, Any]]) -> list[float]:
    spent = []
    for request in requests:
        started = time.perf_counter()
        json.dumps(function(request))
        spent.append(1000 * (time.perf_counter() - started))
    return spent


def _view(draw: np.random.Generator, rows: int, columns: int) -> dict[str, Any]:
    """A rectangle of random size and place, with one of the poolings and all maps."""
    zoom = 2.0 ** draw.uniform(0, 5)
    height, width = rows / zoom, columns / zoom
    top, left = draw.uniform(0, rows - height), draw.uniform(0, columns - width)
    pooling = ("max", "mean")[int(draw.integers(2))]
    return {"rectangle": [top, left, top + height, left + width], "pooling": pooling, "fields": ["weight"]}


def _thresholds(draw: np.random.Generator) -> dict[str, float]:
    """Thresholds of the order that people use: the presets lie inside."""
    return {
        "salient_top_p": float(np.exp(draw.uniform(math.log(0.01), math.log(0.1)))),
        "diff_quantile": float(draw.uniform(0.25, 0.75)),
        "sparsity_thr": float(np.exp(draw.uniform(math.log(0.001), math.log(0.1)))),
    }


COUNTS_SCRIPT = """([layer, thresholds]) => {
  const bins = new SabBins(layer.bins, layer.code);
  return thresholds.map((each) => {
    const start = performance.now();
    const {counts} = bins.classes(each);
    return [performance.now() - start, counts];
  });
}"""
FRAMES_SCRIPT = """async (frames) => {
  const {explore} = SabLens;
  explore.frameTimes.length = 0;
  const step = () => new Promise(requestAnimationFrame);
  for (let frame = 0; frame < frames; frame++) {
    explore.drag('salient_top_p', 0.01 * 10 ** (frame / frames));
    await step();
  }
  const times = [...explore.frameTimes];
  explore.letGo();
  return times;
}"""


def _in_browser(
    store: Store, layer: dict[str, Any], thresholds: list[dict[str, float]], answers: list[list[int]]
) -> dict[str, Any]:
    """Counts while dragging and frames, measured in the page."""
    nothing: dict[str, Any] = {"counts_ms": None, "counts_off": None, "frame_ms": None}
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return nothing | {"browser": "playwright is not installed"}
    if executable is None:
        return nothing | {"browser": "no Chromium was found"}
    from viz.pages import shell

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    blocks = shell.page(store)
    blocks.queue(api_open=False)
    _, url, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, **shell.launch_options())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(300_000)
            page.goto(f"{url}?run=synthetic&kind=input&linear={SMALL}")
            page.wait_for_function("window.SabLens && SabLens.explore && SabLens.explore.lastOpen > 0")
            needed = {name: layer[name] for name in ("bins", "code")}
            page.evaluate(COUNTS_SCRIPT, [needed, thresholds])  # once for the compiler
            counted = page.evaluate(COUNTS_SCRIPT, [needed, thresholds])
            page.evaluate(FRAMES_SCRIPT, 30)
            frames = page.evaluate(FRAMES_SCRIPT, 240)
            version = browser.version
            browser.close()
    finally:
        blocks.close(verbose=False)
    off = [
        max(abs(one - other) for one, other in zip(estimate, answer, strict=True)) / sum(answer)
        for (_, estimate), answer in zip(counted, answers, strict=True)
    ]
    return {
        "counts_ms": percentiles([spent for spent, _ in counted]),
        "counts_off": percentiles(off),
        "frame_ms": percentiles(frames),
        "browser": f"Chromium {version}, headless, without a GPU",
    }
