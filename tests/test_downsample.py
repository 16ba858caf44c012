"""Pooling shows real weights, loses no rare one, and says what it averages."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viz.downsample import CODES, LOG2_STEP, MAX_CELLS, Pyramid, Window, decode, encode, mean_pool, window


def maps(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((rows, columns)).astype(np.float32) ** 2
    language = weight * draw.lognormal(0, 1, columns).astype(np.float32)
    vision = weight * draw.lognormal(0, 1, columns).astype(np.float32)
    return language / language.mean(), vision / vision.mean()


def brute_representative(language: np.ndarray, vision: np.ndarray, factor: int) -> np.ndarray:
    key = np.maximum(encode(language), encode(vision)).astype(np.int64)
    rows, columns = key.shape
    chosen = np.empty((-(-rows // factor), -(-columns // factor)), dtype=np.int64)
    for row, column in np.ndindex(chosen.shape):
        square = [
            (-key[i, j], i * columns + j)
            for i in range(row * factor, min((row + 1) * factor, rows))
            for j in range(column * factor, min((column + 1) * factor, columns))
        ]
        chosen[row, column] = min(square)[1]
    return chosen


@pytest.mark.parametrize(("rows", "columns", "factor"), [(8, 8, 2), (7, 13, 4), (5, 3, 8), (16, 9, 16)])
def test_a_cell_shows_the_strongest_weight_of_its_square(rows: int, columns: int, factor: int) -> None:
    language, vision = maps(rows, columns)
    view = Window(factor, 0, -(-rows // factor), 0, -(-columns // factor))
    pyramid = Pyramid(language, vision)
    expected = brute_representative(language, vision, factor)
    assert np.array_equal(pyramid.representative(view), expected)
    assert np.array_equal(pyramid.tile("vision", view, "max"), vision.reshape(-1)[expected])


def test_one_salient_weight_in_a_large_matrix_survives_every_zoom() -> None:
    language, vision = maps(300, 500)
    language[217, 341] = 1e5
    pyramid = Pyramid(language, vision)
    for factor in (2, 4, 8, 16, 32, 64):
        view = Window(factor, 0, -(-300 // factor), 0, -(-500 // factor))
        tile = pyramid.tile("language", view, "max")
        assert tile[217 // factor, 341 // factor] == np.float32(1e5)


def test_mean_pooling_is_the_mean_of_what_the_square_holds() -> None:
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    pooled = mean_pool(values, 2)
    assert pooled.shape == (2, 3)
    assert pooled[0, 0] == pytest.approx(np.mean([0, 1, 5, 6]))
    assert pooled[1, 2] == 14  # the far corner holds one weight


@given(
    rows=st.integers(1, 400),
    columns=st.integers(1, 400),
    edges=st.lists(st.floats(-50, 500, allow_nan=False), min_size=4, max_size=4),
    cells=st.integers(1, 5000),
)
@settings(max_examples=150, deadline=None)
def test_a_window_covers_what_was_asked_and_stays_small(
    rows: int, columns: int, edges: list[float], cells: int
) -> None:
    top, left, bottom, right = edges
    view = window((rows, columns), top, left, bottom, right, cells)
    height, width = view.shape
    assert height >= 1
    assert width >= 1
    assert height * width <= cells
    assert view.row0 * view.factor <= min(max(top, 0), rows - 1)
    assert view.row1 * view.factor >= min(max(bottom, 1), rows)
    assert view.column0 * view.factor <= min(max(left, 0), columns - 1)
    assert (view.row1 - 1) * view.factor < rows
    assert (view.column1 - 1) * view.factor < columns


def test_a_small_view_is_not_pooled() -> None:
    view = window((4096, 11008), 100, 200, 228, 328)
    assert view.factor == 1
    assert view.shape == (128, 128)
    whole = window((4096, 11008), 0, 0, 4096, 11008)
    assert whole.shape[0] * whole.shape[1] <= MAX_CELLS


def test_codes_keep_zero_order_and_a_thousandth() -> None:
    values = np.array([0.0, 1e-11, 3e-4, 1.0, 7.3, 1e6], dtype=np.float32)
    codes = encode(values)
    assert codes[0] == 0
    assert (np.diff(codes.astype(int)) > 0).all()
    assert np.allclose(decode(codes), values, rtol=2 ** (LOG2_STEP / 2) - 1 + 1e-5, atol=0)
    assert encode(np.array([1e30, 1e-30], dtype=np.float32)).tolist() == [CODES, 1]


def test_maps_of_two_linears_do_not_mix() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        Pyramid(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="max"):
        Pyramid(*maps(4, 4)).tile("vision", Window(1, 0, 1, 0, 1), "median")


def test_tiles_of_a_large_layer_are_quick() -> None:
    pyramid = Pyramid(*maps(1024, 2752))  # a sixteenth of the largest layer that the page promises
    views = [window(pyramid.shape, top, 2 * top, top + 700, 2 * top + 1300) for top in range(0, 300, 30)]
    start = time.perf_counter()
    for view in views:
        pyramid.tile("language", view, "max")
    assert (time.perf_counter() - start) / len(views) < 0.1
