"""The figures of Learn are computed from the weights they name."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sab.errors import SabError
from viz.pages import learn, lessons
from viz.pages.chart import Control, Frame, chart_value
from viz.pages.selection import Selection
from viz.pages.store import Store


@pytest.fixture(scope="module")
def store() -> Store:
    return Store()


@pytest.fixture
def piece(store: Store) -> learn.Piece:
    return learn.find_piece(store, Selection(tab="learn"), 0)


@pytest.fixture
def changed_weight(store: Store, piece: learn.Piece) -> Iterator[None]:
    """One weight of the piece is twice as large while the test runs."""
    weight = store.lvlm.linears[piece.linear].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[piece.row, piece.column] = 3 * weight.abs().max()
    yield
    with torch.no_grad():
        weight.copy_(before)


def numbers(typed: Any) -> np.ndarray:
    """A plotly array, plain or in base64."""
    if isinstance(typed, dict):
        return np.frombuffer(base64.b64decode(typed["bdata"]), np.dtype(typed["dtype"]))
    return np.asarray(typed)


def test_fewer_bits_keep_fewer_levels_and_lose_more(store: Store, piece: learn.Piece) -> None:
    value = learn.bit_chart(store, piece)
    levels = [
        len(np.unique(numbers(frame["data"][2].get("y", value["light"]["data"][2]["y"])))) for frame in value["frames"]
    ]
    steps = value["controls"][0]["steps"]
    assert len(value["frames"]) == len(steps) == 1 + len(learn.FORMATS)
    assert levels[steps.index("XNOR")] == 2
    assert levels[1] > levels[3] > levels[-1]
    assert "2 different values" in value["words"]


def test_the_microscope_shows_the_weights_of_the_model(store: Store, piece: learn.Piece) -> None:
    value = learn.block_chart(store, Selection(), piece, "arb-rc", 2)
    shown = numbers(value["light"]["data"][0]["z"]).reshape(learn.PIECE, learn.PIECE)
    weight = learn.layer_weight(store, piece.linear)[: learn.PIECE, : learn.PIECE].numpy()
    assert shown == pytest.approx(weight)
    loss = numbers(value["light"]["data"][-2]["y"])
    assert len(loss) == 16
    assert np.all(np.diff(loss) <= 1e-6 * loss[0])


@pytest.mark.usefixtures("changed_weight")
def test_changing_one_weight_changes_what_is_drawn(store: Store, piece: learn.Piece) -> None:
    value = learn.block_chart(store, Selection(), piece, "arb-rc", 1)
    shown = numbers(value["light"]["data"][0]["z"]).reshape(learn.PIECE, learn.PIECE)
    assert shown[0, 0] == np.abs(shown).max()
    assert shown[0, 0] == pytest.approx(3 * np.abs(shown).ravel()[1:].max(), rel=0.6)


def test_pieces_run_through_the_layer_and_wrap(store: Store) -> None:
    first = learn.find_piece(store, Selection(), 0)
    rows, columns = learn.layer_weight(store, first.linear).shape
    count = (rows // learn.PIECE) * (columns // learn.BLOCK)
    assert learn.find_piece(store, Selection(), count) == first
    assert len({learn.find_piece(store, Selection(), number) for number in range(count)}) == count


def test_sparsity_is_that_of_the_fits_and_symmetric() -> None:
    value = learn.sparsity_chart(0.005)
    steps = len(learn.STRENGTHS)
    heights = [numbers(frame["data"][2].get("y", value["light"]["data"][2]["y"]))[0] for frame in value["frames"]]
    table = np.array(heights).reshape(steps, steps)
    assert table == pytest.approx(table.T, abs=1e-9)
    assert np.diag(table) == pytest.approx(0.0, abs=1e-9)
    assert table[0, -1] > 0.99


def test_a_layer_that_is_not_there_is_one_sentence(store: Store) -> None:
    with pytest.raises(SabError, match="no layer"):
        learn.find_piece(store, Selection(linear="nowhere"), 0)
    with pytest.raises(SabError, match="one or two signs"):
        learn.block_chart(store, Selection(), learn.find_piece(store, Selection(), 0), "arb", 3)


def test_without_a_run_the_map_figures_say_what_is_missing(store: Store) -> None:
    linear = next(iter(store.lvlm.decoder_linears))
    assert "make one in Binarize" in learn.weighting_chart(store, Selection(), linear)["empty"]
    assert "make one in Binarize" in learn.cost_chart(store, "")["empty"]


def test_sliders_need_a_frame_for_each_place() -> None:
    import plotly.graph_objects as go

    with pytest.raises(ValueError, match="2 places"):
        chart_value("x", lambda dark: go.Figure(), "", [Control("a", ("1", "2"))], [Frame((), "")])


@pytest.mark.parametrize(
    "form", [(0.0, False, False, 128, 256), (0.07, True, False, 128, 4096), (0.1, True, True, 256, 1024)]
)
def test_a_format_stores_what_its_parts_add_up_to(form: tuple[float, bool, bool, int, int]) -> None:
    """Against the formulas of METHOD 9: signs, bitmap, second signs, index, scales of rows and of columns."""
    share, bitmap, small, block, width = form
    stored, nominal = lessons.format_bits(lessons.Format(*form))
    salient = round(share * width) / width
    groups = 2 if bitmap else 1
    scales = groups + 2 * groups * (salient > 0)
    expected = 1 + bitmap + salient + 1 / width + scales * (8 if small else 16) / block + (16 / width if small else 0)
    expected += 16 * (2 + groups * salient) / width
    assert sum(stored.values()) == pytest.approx(expected, rel=1e-3)
    assert nominal == pytest.approx(1 + salient)


def test_exact_feedback_loses_least_and_none_most(store: Store, piece: learn.Piece) -> None:
    hessian = lessons.LayerHessians(store).get(piece.linear)
    assert hessian.shape[0] == store.lvlm.linears[piece.linear].in_features
    value = lessons.feedback_chart(hessian, learn.layer_weight(store, piece.linear), piece.linear)
    none, lineage, exact = numbers(value["light"]["data"][0]["x"])
    assert exact < lineage < none
    assert f"{exact:.1f} %" in value["words"]
