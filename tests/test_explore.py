"""What the Explore tab sends to the browser is true of the weights, and nothing a client sends breaks it."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sab import runs
from sab.binarizers.codes import BinaryCodes, KeptCodes
from sab.control_files import StoredControls
from sab.errors import SabError
from sab.models import Units
from sab.recipes import Recipe
from sab.significance import PARTITION_NAMES, Thresholds, significance_map
from tests.test_packing import codes_of
from viz.downsample import decode, encode
from viz.pages.bounded import Bounded
from viz.pages.explore import ExploreData, answer
from viz.pages.selection import Selection
from viz.pages.store import Store
from viz.pages.stored import stored_form

NAME = "model.layers.0.q_proj"


class Bench:
    """A stand-in for the store: one run of one linear of 96 × 80 with made-up input sensitivities."""

    kept = Bounded

    def __init__(self, seed: int = 0, shape: tuple[int, int] = (96, 80)) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tensor = torch.randn(shape, generator=draw)
        self.sensitivities = torch.rand(shape[1], generator=draw) + 0.2, torch.rand(shape[1], generator=draw) + 0.2
        rows, columns = shape
        codes = BinaryCodes(
            method="xnor", shape=shape, block_size=128, first=self.tensor > 0, group=None,
            salient=torch.arange(columns) < 3, second=torch.ones(rows, 3, dtype=torch.bool),
            row_scale=torch.full((2, -(-columns // 128), rows), 0.75, dtype=torch.float16),
            second_row_scale=torch.full((1, -(-columns // 128), rows), 0.25, dtype=torch.float16),
        )  # fmt: skip
        counts = {"neither": 7000, "language-only": 200, "vision-only": 200, "cross-modal": 280}
        report = SimpleNamespace(name=NAME, block=0, kind="q_proj", part="decoder", shape=shape, counts=counts)
        vars(report).update(relative_loss=0.1, bits_nominal=1.1, bits_all_in=2.9, salient_fraction=0.03)
        vars(report).update(unimodal_ratio=0.4, tokens_language=99, tokens_vision=88)
        self.only = SimpleNamespace(
            id="r", name="R", fingerprint="f", names=(NAME,), reports={NAME: report}, codes=lambda name: codes,
            recipe=Recipe(samples=8), sensitivities=lambda kind: {},
        )  # fmt: skip
        units = Units("rows", "head", 32)
        self.lvlm = SimpleNamespace(fingerprint="f", units=lambda name: units)
        self.fisher_work = SimpleNamespace(state="none", share=0.0, message="")

    def run(self, run_id: str) -> Any:
        if run_id != "r":
            raise SabError("There is no such run.")
        return self.only

    def weight(self, run: Any, linear: str) -> torch.Tensor:
        return self.tensor

    def significance(self, run_id: str, linear: str, thresholds: Thresholds, kind: str) -> Any:
        if kind == "fisher":
            raise SabError("The fisher sensitivity of this model has not been computed yet.")
        return significance_map(self.tensor, *self.sensitivities, thresholds)

    def without_language(self, linear: str) -> bool:
        return False

    def sensitivity(self, run: Any, linear: str, kind: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if kind == "fisher" else self.sensitivities

    def compute_fisher(self) -> None:
        self.fisher_work.state = "running"


ASK = {"run": "r", "linear": NAME}


def data(bench: Bench | None = None) -> ExploreData:
    return ExploreData(bench or Bench())  # type: ignore[arg-type]


def array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def test_a_tile_of_single_weights_is_the_significance_itself() -> None:
    bench = Bench()
    tile = data(bench).tile({**ASK, "fields": ["weight", "binarized"]})
    found = bench.significance("r", NAME, Thresholds(), "input")
    assert (tile["factor"], tile["rows"], tile["columns"]) == (1, 96, 80)
    drawn = decode(array(tile["vision"], "<u2")).reshape(96, 80)
    assert np.allclose(drawn, found.vision.numpy(), rtol=1e-3, atol=1e-9)
    assert np.array_equal(array(tile["weight"], "<f4").reshape(96, 80), bench.tensor.numpy())
    assert set(np.unique(np.abs(array(tile["binarized"], "<f4"))).tolist()) == {0.5, 0.75, 1.0}


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_a_pooled_tile_says_its_factor_and_which_weight_it_shows(pooling: str) -> None:
    bench = Bench(shape=(700, 600))
    tile = data(bench).tile({**ASK, "pooling": pooling})
    assert tile["factor"] == 4
    assert tile["rows"] * tile["columns"] <= 256 * 256
    found = bench.significance("r", NAME, Thresholds(), "input")
    codes = array(tile["language"], "<u2")
    if pooling == "max":
        chosen = array(tile["representative"], "<u4")
        assert np.array_equal(codes, encode(found.language.numpy().reshape(-1)[chosen]))
    else:
        assert "representative" not in tile
        assert decode(codes)[0] == pytest.approx(float(found.language[:4, :4].mean()), rel=1e-3)


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("thresholds", [Thresholds(), Thresholds(0.2, 0.9, 0.05)])
def test_exported_cells_are_the_map_to_the_last_digit(thresholds: Thresholds) -> None:
    bench = Bench()
    found = bench.significance("r", NAME, thresholds, "input")
    lines = lines_of(data(bench).cells({**ASK, **vars(thresholds)})["csv"])
    assert len(lines) == 96 * 80
    assert Counter(line["class"] for line in lines) == Counter({k: v for k, v in found.counts().items() if v})
    for name in ("language", "vision"):
        read = np.array([line[f"significance_{name}"] for line in lines], dtype=np.float32)
        assert np.array_equal(read.reshape(96, 80), getattr(found, name).numpy())
    assert (lines[81]["row"], lines[81]["column"], lines[81]["pooled"]) == ("1", "1", "1")


def test_exported_cells_are_those_in_view() -> None:
    lines = lines_of(data().cells({**ASK, "rectangle": [0, 0, 96, 80], "view": [10.2, 5, 12, 7.5]})["csv"])
    assert {(line["row"], line["column"]) for line in lines} == {(r, c) for r in ("10", "11") for c in ("5", "6", "7")}


def test_exported_pooled_cells_name_their_strongest_weight_or_count_all() -> None:
    bench = Bench(shape=(700, 601))
    found = bench.significance("r", NAME, Thresholds(), "input")
    strongest = lines_of(data(bench).cells({**ASK, "pooling": "max"})["csv"])
    assert len(strongest) == 175 * 151
    for line in strongest[:: len(strongest) // 50]:
        place = int(line["row"]), int(line["column"])
        assert line["pooled"] == "4"
        assert line["class"] == PARTITION_NAMES[found.partition[place]]
        assert np.float32(line["significance_vision"]) == found.vision[place]
    counted = lines_of(data(bench).cells({**ASK, "pooling": "mean"})["csv"])
    assert {name: sum(int(line[name]) for line in counted) for name in PARTITION_NAMES} == found.counts()


def test_changing_one_weight_or_the_seed_changes_the_picture_and_its_readout() -> None:
    bench, changed, reseeded = Bench(), Bench(), Bench()
    changed.tensor[11, 7] *= 3
    reseeded.sensitivities = Bench(seed=1).sensitivities
    tiles = [data(one).tile(ASK)["language"] for one in (bench, changed, reseeded)]
    assert len(set(tiles)) == 3
    readouts = [data(one).weight({**ASK, "row": 11, "column": 7})["weight"] for one in (bench, changed)]
    assert readouts[1] == pytest.approx(3 * readouts[0])


def test_the_readout_of_a_weight_adds_up() -> None:
    found = data().weight({**ASK, "row": 3, "column": 2})
    assert found["weight"] == pytest.approx(found["binarized"] + found["lost"])
    stored = dict(found["stored"])
    assert stored["sign bits"] in ("+1 +1", "−1 +1")
    assert (stored["scale"], stored["second scale"]) == (0.75, pytest.approx(0.25))
    single = dict(data().weight({**ASK, "row": 3, "column": 70})["stored"])
    assert single == {"sign bit": single["sign bit"], "scale": 0.75}


def rebuilt(terms: dict[str, str | float]) -> float:
    """The stored weight, by the formulas of `sab.binarizers.codes`, from what the page names."""
    scale = terms["scale"]
    assert isinstance(scale, float)
    for name in ("code", "kept"):
        if name in terms:
            level = int(str(terms[name]).removeprefix("8-bit value ").split()[0])
            return scale * (level - int(terms["zero at"]))
    mean = terms.get("row mean", 0.0)
    assert isinstance(mean, float)
    first, *second = str(terms.get("sign bit") or terms["sign bits"]).replace("−", "-").split()
    rest = int(second[0]) * float(terms["second scale"]) if second else 0.0
    return mean + int(first) * scale + rest


@pytest.mark.parametrize(
    "method", ["pb-llm", "billm", "arb", "arb-rc", "arb-rc-cgb", "sab", "sab-h", "gptq2", "rtn3", "xnor"]
)
def test_a_stored_weight_follows_from_what_is_said_of_it(method: str) -> None:
    codes = codes_of(method, 12, 20)
    dense = codes.dense()
    assert bool(dense.abs().max() > 0)
    for row, column in ((0, 0), (3, 7), (11, 19), (5, 12)):
        said = rebuilt(dict(stored_form(codes, row, column)))
        assert said == pytest.approx(float(dense[row, column]), abs=1e-5)


def test_a_kept_weight_is_told_from_a_sign() -> None:
    codes = codes_of("pb-llm", 12, 20)
    assert isinstance(codes, KeptCodes)
    for kept in (True, False):
        row, column = (codes.kept == kept).nonzero()[0].tolist()
        assert ("kept" in dict(stored_form(codes, row, column))) == kept


def test_lines_are_the_means_of_their_weights_and_count_their_classes() -> None:
    bench = Bench()
    layer, lines = data(bench).layer(ASK), data(bench).lines(ASK)
    found = bench.significance("r", NAME, Thresholds(), "input")
    columns = array(layer["columns"], "<f4").reshape(2, 80)
    assert np.allclose(columns[1], found.vision.mean(0), rtol=1e-5)
    assert np.allclose(array(layer["rows"], "<f4").reshape(2, 96)[0], found.language.mean(1), rtol=1e-5)
    assert layer["units"] == {"axis": "rows", "name": "head", "size": 32}
    assert layer["exact"]["counts"] == list(found.counts().values())
    for axis, name in ((1, "rows"), (0, "columns")):
        counted = array(lines[name], "<u4").reshape(3, -1)
        for code in (1, 2, 3):
            assert np.array_equal(counted[code - 1], (found.partition == code).sum(axis).numpy())


def test_a_profile_counts_again_under_the_thresholds_sent() -> None:
    bench = Bench()
    strict = {**ASK, "salient_top_p": 0.01, "diff_quantile": 0.75, "sparsity_thr": 0.1, "colour": "cross"}
    found = bench.significance("r", NAME, Thresholds(0.01, 0.75, 0.1), "input")
    counts = found.counts()
    salient = sum(counts.values()) - counts["neither"]
    grid = data(bench).profile(strict)["grid"]["data"][0]["z"]
    value = np.frombuffer(base64.b64decode(grid["bdata"]), dtype=grid["dtype"])[0]
    assert value == pytest.approx(100 * counts["cross-modal"] / salient)
    assert data(bench).profile({**strict, "kind": "fisher"}) == {}


def stored_controls(bench: Bench, halves: bool = True) -> StoredControls:
    recipe = bench.only.recipe
    share = {"unimodal_share": 0.4, "ratio": {}}
    figures = {
        **recipe.map_conditions("f"), "seeds": 3, "tokens_half": [50, 40],
        "linears": {NAME: {**dict.fromkeys(("full", "matched", "null_language", "null_vision"), share),
                           "signal": 0.9, "stability": {"same_class": 0.8}}},
    }  # fmt: skip
    language, vision = bench.sensitivities
    four = (language, language * 1.2, vision, vision.flip(0))
    return StoredControls(figures, {NAME: four} if halves else {})


def test_the_null_is_drawn_from_two_halves_of_one_modality() -> None:
    bench = Bench()
    explore = data(bench)
    explore._nulls._shipped = [stored_controls(bench)]
    found = explore.null(ASK)
    json.dumps(found, allow_nan=False)
    assert found["figures"]["linear"]["matched"] == 0.4
    assert found["figures"]["tokens_half"] == 40
    assert found["nulls"]["language"]["unimodal"] == 0  # a factor is no difference
    assert found["nulls"]["vision"]["unimodal"] > 0.3
    assert array(found["bins"]["counts"], "<u4").sum() == 2 * 96 * 80
    strict = explore.null({**ASK, "salient_top_p": 0.01})
    assert strict["nulls"]["vision"]["salient"] < found["nulls"]["vision"]["salient"]


def test_a_null_without_halves_or_of_other_samples_is_not_drawn() -> None:
    bench = Bench()
    explore = data(bench)
    explore._nulls._shipped = [stored_controls(bench, halves=False)]
    assert set(explore.null(ASK)) == {"state", "share", "message", "figures"}
    bench.only.recipe = replace(bench.only.recipe, seed=1)
    assert set(explore.null(ASK)) == {"state", "share", "message"}


def test_a_layer_and_an_overview_are_plain_json() -> None:
    for name in ("overview", "profile", "layer", "exact", "lines", "tile", "cells", "weight", "fisher"):
        json.dumps(getattr(data(), name)({**ASK, "row": 0, "column": 0}), allow_nan=False)


FORGED: list[Any] = [
    None, 7, [], "run", {}, {"run": "../../etc"}, {"run": "r"}, {"run": "r", "linear": "nothing"},
    {"run": ["r"], "linear": {"a": 1}},
    {**ASK, "kind": "fisher"},
]  # fmt: skip


@pytest.mark.parametrize("request_", FORGED)
@pytest.mark.parametrize("name", ["layer", "exact", "lines", "tile", "cells", "weight"])
def test_whatever_is_sent_comes_back_as_one_sentence(request_: Any, name: str) -> None:
    found = answer(getattr(data(), name))(request_)
    assert set(found) == {"error"}
    assert found["error"].endswith((".", "."))
    assert "Traceback" not in found["error"]
    assert len(found["error"]) < 200


BAD_NUMBERS: list[Any] = [math.nan, math.inf, -1, 1e300, True, "much", None, [1]]


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_numbers_are_clamped_or_ignored(value: Any) -> None:
    request = {**ASK, "salient_top_p": value, "diff_quantile": value, "sparsity_thr": value}
    request["rectangle"] = [value, 0, 10, 10]
    explore = data()
    assert sum(explore.exact(request)["counts"]) == 96 * 80
    assert explore.tile(request)["rows"] >= 1
    place = answer(explore.weight)({**request, "row": value, "column": 3})
    assert "error" in place or 0 <= place["row"] < 96


def test_an_unexpected_fault_shows_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Any) -> dict[str, Any]:
        raise KeyError("secret detail")

    found = answer(broken)({})
    assert "secret" not in found["error"]
    assert "secret" in caplog.text


def test_fisher_starts_when_asked_and_tells_how_far_it_is() -> None:
    explore = data()
    assert explore.fisher({"run": "r"})["state"] == "none"
    assert explore.fisher({"run": "r", "start": "yes"})["state"] == "none"
    assert explore.fisher({"run": "r", "start": True})["state"] == "running"


def test_a_selection_survives_its_link() -> None:
    chosen = Selection(
        "chat", "run-7", "a.b", 0.0123, 0.75, 0.25, "fisher", "bits", "mean", "a", "b", "weight", "1.5,2,30,400", "7,9"
    )  # fmt: skip
    assert Selection.from_query({name: str(value) for name, value in asdict(chosen).items()}) == chosen
    assert Selection.from_query({"tab": "root", "kind": "x", "salient_top_p": "nan", "pooling": 3}) == Selection()
    forged = {"views": "a,b;drop", "window": "1,2,3", "pinned": "-1,2"}
    assert Selection.from_query(forged) == Selection()
    assert Selection.from_query({"salient_top_p": "7", "diff_quantile": "-1"}) == Selection(
        salient_top_p=0.5, diff_quantile=0.0
    )


def test_the_first_run_shown_is_of_the_model_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(run_id: str, model: str | None, method: str, finished: bool = True) -> Any:
        recipe = SimpleNamespace(model=model, method=method)
        return SimpleNamespace(id=run_id, name=run_id, names=(NAME,), reports={}, recipe=recipe, finished=finished)

    listed = [run("a", None, "sab"), run("b", "/m", "billm"), run("c", "/m", "sab", False), run("d", "/m", "sab")]
    monkeypatch.setattr(Store, "runs", lambda self: listed)
    assert Store("/m").resolve(Selection())[0].run == "d"
    assert Store(None).resolve(Selection())[0].run == "a"
    chosen, sentence = Store("/m").resolve(Selection(run="gone", linear="gone"))
    assert (chosen.run, chosen.linear) == ("d", NAME)
    assert "gone" in sentence


def test_shipped_runs_of_another_model_are_not_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(directory: Path, model: str | None) -> Any:
        return SimpleNamespace(id=directory.name, directory=directory, recipe=SimpleNamespace(model=model))

    listed = [run(runs.ASSET_RUNS / "shipped", None), run(tmp_path / "own", "/m"), run(tmp_path / "other", "/n")]
    monkeypatch.setattr(runs, "list_runs", lambda *directories: listed)
    assert [each.id for each in Store(None, [tmp_path]).runs()] == ["shipped", "own", "other"]
    assert [each.id for each in Store("/m", [tmp_path]).runs()] == ["own", "other"]


def test_the_cache_is_bounded_by_cost_and_builds_once() -> None:
    built: list[int] = []

    def make(value: int) -> int:
        built.append(value)
        return value

    cache = Bounded(10, cost=lambda value: value)
    for value in (4, 5, 4, 6, 4):
        assert cache.get(value, lambda value=value: make(value)) == value  # type: ignore[misc]
    assert built == [4, 5, 6]  # 5 went when 6 came, 4 had been used since
    cache.get(99, lambda: make(99))
    assert cache.get(99, lambda: make(-1)) == 99
