"""What the Explore tab sends to the browser is true of the weights, and nothing a client sends breaks it."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sab import runs
from sab.errors import SabError
from sab.significance import PARTITION_NAMES, Thresholds, significance_map
from viz.downsample import decode, encode
from viz.pages.explore import ExploreData, answer, boundaries
from viz.pages.store import Bounded, Selection, Store

NAME = "model.layers.0.q_proj"


class Bench:
    """A stand-in for the store: one run of one linear of 96 × 80 with made-up input sensitivities."""

    def __init__(self, seed: int = 0, shape: tuple[int, int] = (96, 80)) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tensor = torch.randn(shape, generator=draw)
        self.sensitivities = tuple(torch.rand(shape[1], generator=draw) + 0.2 for _ in range(2))
        dense = self.tensor.sign() * 0.8
        codes = SimpleNamespace(
            dense=lambda: dense,
            signs=lambda: dense.sign().to(torch.int8),
            salient=torch.arange(shape[1]) < 3,
        )
        report = SimpleNamespace(
            name=NAME, block=0, kind="q_proj", shape=shape, relative_loss=0.1, bits_nominal=1.1, bits_all_in=2.9,
            salient_fraction=0.03, unimodal_ratio=0.4, tokens_language=99, tokens_vision=88,
            counts={"neither": 7000, "language-only": 200, "vision-only": 200, "cross-modal": 280},
        )  # fmt: skip
        self.only = SimpleNamespace(
            id="r", name="R", fingerprint="f", names=(NAME,), reports={NAME: report}, codes=lambda name: codes,
            recipe=SimpleNamespace(sensitivity="input", samples=8, seed=0, thresholds=Thresholds()),
            sensitivity=lambda name, kind: None,
        )  # fmt: skip
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
    assert set(np.unique(np.abs(array(tile["binarized"], "<f4")))) == {np.float32(0.8)}


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
    assert found["code"] in (-1, 1)
    assert found["two_bits"] is True
    assert data().weight({**ASK, "row": 3, "column": 70})["two_bits"] is False


@pytest.mark.parametrize("thresholds", [Thresholds(), Thresholds(0.2, 0.9, 0.05), Thresholds(0.003, 0.0, 0.0)])
def test_boundaries_are_where_the_partition_cuts(thresholds: Thresholds) -> None:
    found = Bench().significance("r", NAME, thresholds, "input")
    cut = boundaries(found)
    language, vision = found.language.numpy(), found.vision.numpy()
    salient = (language >= cut.language) | (vision >= cut.vision)
    larger, smaller = np.maximum(language, vision), np.minimum(language, vision)
    unimodal = salient & (larger > cut.ratio * smaller * (1 + 1e-6)) & (larger - smaller >= cut.difference)
    assert np.array_equal(salient, found.partition.numpy() > 0)
    assert np.mean(unimodal == np.isin(found.partition.numpy(), (1, 2))) > 0.9999


def test_causes_are_the_ratio_of_what_the_column_carries() -> None:
    bench = Bench()
    layer = data(bench).layer(ASK)
    found = bench.significance("r", NAME, Thresholds(), "input")
    ratio = array(layer["column_ratio"], "<f4")
    assert ratio[5] == pytest.approx(math.log2(float(found.vision[0, 5] / found.language[0, 5])), abs=1e-4)
    assert layer["exact"]["counts"] == list(found.counts().values())


def test_a_layer_and_an_overview_are_plain_json() -> None:
    for name in ("overview", "layer", "exact", "tile", "cells", "fisher"):
        json.dumps(getattr(data(), name)(ASK), allow_nan=False)


FORGED: list[Any] = [
    None, 7, [], "run", {}, {"run": "../../etc"}, {"run": "r"}, {"run": "r", "linear": "nothing"},
    {"run": ["r"], "linear": {"a": 1}},
    {**ASK, "kind": "fisher"},
]  # fmt: skip


@pytest.mark.parametrize("request_", FORGED)
@pytest.mark.parametrize("name", ["layer", "exact", "tile", "cells", "weight"])
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
    chosen = Selection("chat", "run-7", "a.b", 0.0123, 0.75, 0.25, "fisher", "bits", "mean")
    assert Selection.from_query(chosen.to_query()) == chosen
    assert Selection().to_query() == {}
    assert Selection.from_query({"tab": "root", "kind": "x", "salient_top_p": "nan", "pooling": 3}) == Selection()
    assert Selection.from_query({"salient_top_p": "7", "diff_quantile": "-1"}) == Selection(
        salient_top_p=0.5, diff_quantile=0.0
    )


def test_the_first_run_shown_is_of_the_model_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(run_id: str, model: str | None, method: str, finished: bool = True) -> Any:
        recipe = SimpleNamespace(model=model, method=method)
        return SimpleNamespace(id=run_id, name=run_id, names=(NAME,), recipe=recipe, finished=finished)

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
