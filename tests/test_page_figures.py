"""Figures of Binarize, Benchmark and Learn: their arrays say what was given, nothing breaks on nothing."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz import theme
from viz.figures import (
    bit_breakdown,
    bits_accuracy,
    category_bars,
    difference_map,
    layer_error,
    one_bit,
    run_difference,
    sparsity_curve,
    weight_block,
    weighting,
)


def test_layers_not_done_yet_leave_room_without_a_bar() -> None:
    info = layer_error.info(["a", "b", "c"], [0, 0, 1], ["q", "k", "q"], [0.1, 0.25, None], "sab")
    drawn = layer_error.figure(info)
    assert drawn.data[0].y[:2] == pytest.approx([10.0, 25.0])
    assert np.isnan(drawn.data[0].y[2])
    assert list(drawn.layout.xaxis.ticktext) == ["block 0", "block 1"]
    unknown = layer_error.figure(layer_error.info(["a", ""], [0, None], ["q", ""], [0.1, None], "sab"))
    assert list(unknown.layout.xaxis.ticktext) == ["block 0"]
    with pytest.raises(ValueError, match="one entry per linear"):
        layer_error.info(["a"], [0, 1], ["q"], [0.1], "sab")


def test_points_stand_at_all_in_bits_and_point_back_to_nominal() -> None:
    runs = [
        bits_accuracy.Measured("SAB", "sab", 1.1, 2.8, 900, 0.7, 0.65, 0.75),
        bits_accuracy.Measured("XNOR", "xnor", 1.0, 1.25, 400, 0.4, 0.35, 0.45),
    ]
    info = bits_accuracy.info(runs, (0.8, 0.75, 0.85))
    assert info.names == ("XNOR", "SAB")
    drawn = bits_accuracy.figure(info)
    filled = [trace for trace in drawn.data if trace.mode == "markers"]
    assert [trace.x[0] for trace in filled] == [1.25, 2.8]
    assert filled[1].error_y.array[0] == pytest.approx(5.0)
    assert filled[1].marker.color == theme.method_colour("sab")
    assert {note.text for note in drawn.layout.annotations} == {"SAB", "XNOR", "full precision 80.0 %"}


def boxes(points: list[tuple[float, float]], widths: list[float], labels: list[bits_accuracy.Label | None]) -> list:
    return [label.box(*point, width) for point, width, label in zip(points, widths, labels, strict=True) if label]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(10, 150)), max_size=14),
    st.floats(1, 3),
    st.floats(0, 1),
)
def test_names_never_overlap_however_close_the_points_and_wide_the_figure(
    drawn: list[tuple[float, float, int]], growth: float, between: float
) -> None:
    frame = (220.0, 300.0)
    points = [(220 * x, 300 * y) for x, y, _ in drawn]
    widths = [float(width) for *_, width in drawn]
    labels = bits_accuracy.place_labels(points, widths, frame, growth=growth)
    for at in (1.0, 1.0 + between * (growth - 1.0), growth):
        found = boxes([(at * x, y) for x, y in points], widths, labels)
        for one, other in itertools.combinations(found, 2):
            apart = one.right <= other.left or other.right <= one.left
            assert apart or one.bottom <= other.top or other.bottom <= one.top
        assert all(box.left >= 0 and box.right <= at * frame[0] and 0 <= box.top <= box.bottom <= 300 for box in found)


def test_close_points_keep_their_names_one_under_the_other() -> None:
    points = [(100.0, 100.0), (101.0, 104.0), (102.0, 108.0)]
    labels = bits_accuracy.place_labels(points, [60.0] * 3, (200.0, 300.0))
    assert None not in labels
    assert labels[0] == bits_accuracy.Label(1, 0.0)
    tops = [box.top for box in boxes(points, [60.0] * 3, labels)]
    assert tops == sorted(tops)


def test_a_name_keeps_off_what_is_taken_and_gives_up_where_nothing_is_free() -> None:
    wall = bits_accuracy.Box(50, 0, 200, 0, 300)
    assert bits_accuracy.place_labels([(50.0, 150.0)], [40.0], (200.0, 300.0), [wall]) == [None]
    shelf = bits_accuracy.Box(50, 0, 200, 100, 300)
    label = bits_accuracy.place_labels([(50.0, 150.0)], [40.0], (200.0, 300.0), [shelf])[0]
    assert label is not None
    assert label.box(50.0, 150.0, 40.0).bottom <= 100


@pytest.mark.parametrize("count", [1, 4, 9])
def test_every_run_of_a_crowd_is_named_on_a_desktop_and_on_a_phone(count: int) -> None:
    runs = [
        bits_accuracy.Measured(f"Method {index}", "sab", 1.1, 3.0 + 0.01 * index, 900, 0.6 + 0.01 * index, 0.55, 0.7)
        for index in range(count)
    ]
    drawn = bits_accuracy.figure(bits_accuracy.info(runs, (0.72, 0.67, 0.76)))
    for notes in (drawn.layout.annotations, drawn.layout.meta["narrow"]["annotations"]):
        assert len(notes) == count + 1


def test_a_long_name_is_cut_and_never_read_as_a_tag() -> None:
    run = bits_accuracy.Measured("<b>" + 40 * "x", "sab", 1.1, 2.0, 900, 0.5, 0.4, 0.6)
    note = bits_accuracy.figure(bits_accuracy.info([run])).layout.annotations[0]
    assert note.text.startswith("&lt;b>x")
    assert note.text.endswith("…")


def test_a_category_nobody_was_asked_about_has_no_bar() -> None:
    scores = [category_bars.Scores("SAB", "sab", {"counting": (0.5, 0.4, 0.6)})]
    info = category_bars.info(scores, ["counting", "logic"])
    assert info.shares[0, 0] == pytest.approx([0.5, 0.4, 0.6])
    assert np.isnan(info.shares[0, 1]).all()


def test_two_runs_of_one_method_differ_in_pattern() -> None:
    scores = [category_bars.Scores(name, "sab", {"logic": (0.5, 0.4, 0.6)}) for name in ("one", "two")]
    shapes = [trace.marker.pattern.shape for trace in category_bars.figure(category_bars.info(scores, ["logic"])).data]
    assert shapes[0] != shapes[1]


def test_stacked_parts_add_up_to_all_in_bits() -> None:
    info = bit_breakdown.info(["run"], [{"signs": 100, "row scales": 30, "nothing": 0}], [100], [1.1])
    assert info.parts == ("signs", "row scales")
    assert info.bits.sum(1) == pytest.approx([1.3])


def test_no_two_parts_of_the_bits_share_a_colour() -> None:
    parts = ("signs", "group bitmap", "row scales", "row means", "residual signs", "column scales", "levels", "zeros")
    for dark in (False, True):
        assert len(set(bit_breakdown.part_tones(parts, dark).values())) == len(parts)


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_to_show_is_still_a_figure(dark: bool) -> None:
    layer_error.figure(layer_error.info([], [], [], [], "sab"), dark)
    bits_accuracy.figure(bits_accuracy.info([]), dark)
    category_bars.figure(category_bars.info([], []), dark)
    bit_breakdown.figure(bit_breakdown.info([], [], [], []), dark)
    weighting.figure(weighting.info(0.5, [0, 1], [0.5, 0.5], []), dark)


def test_lost_energy_is_that_of_the_error() -> None:
    info = one_bit.info([3.0, -1.0], [2.0, -2.0])
    assert info.lost == pytest.approx(2 / 10)
    assert info.levels == 2
    assert info.weight.tolist() == [-1.0, 3.0]
    assert one_bit.info([0.0, 0.0], [0.0, 0.0]).lost == 0.0


def test_the_weight_lies_on_the_sparsity_curve() -> None:
    ratio = np.linspace(-3, 3, 7)
    info = sparsity_curve.info(1.0, 4.0, 0.6, ratio, np.abs(ratio) / 3, 0.005)
    dot = sparsity_curve.figure(info).data[2]
    assert (dot.x[0], dot.y[0]) == (2.0, 0.6)
    with pytest.raises(ValueError, match="above 0"):
        sparsity_curve.info(0.0, 1.0, 1.0, ratio, ratio, 0.005)


def test_shares_of_a_layer_add_up_to_one() -> None:
    info = weighting.info(0.7, [0, 1], [0.3, 0.7], np.array([[0.5, 1.5], [0.5, 99.0]]))
    assert info.shares.sum() == pytest.approx(1.0)
    assert info.shares[-1] == pytest.approx(0.25)


@pytest.mark.parametrize(("split", "stacked"), [((0.3, 0.4), (0.45, 0.6)), ((0.5, 0.5), (0.2, 0.3))])
def test_two_panels_stand_side_by_side_and_on_a_phone_one_above_the_other(
    split: tuple[float, float], stacked: tuple[float, float]
) -> None:
    drawn = go.Figure([go.Bar(x=[1], y=[2]), go.Bar(x=[1], y=[2], xaxis="x2", yaxis="y2")])
    theme.two_panels(drawn, False, 300, split, stacked)
    layout = drawn.layout
    assert (layout.xaxis.domain, layout.xaxis2.domain) == ((0, split[0]), (split[1], 1))
    assert (layout.yaxis.domain, layout.yaxis2.domain) == (None, None)
    narrow = layout.meta["narrow"]
    assert layout.meta["height"] < narrow["height"]
    assert narrow["xaxis.domain"] == narrow["xaxis2.domain"] == [0, 1]
    assert (narrow["yaxis2.domain"], narrow["yaxis.domain"]) == ([0, stacked[0]], [stacked[1], 1])


def test_the_microscope_rebuilds_weights_from_signs_and_scales() -> None:
    signs = np.array([[[[1, -1], [1, 1]]], [[[1, -1], [-1, 1]]]])
    row, column = [[[2.0, 3.0]], [[2.0, 3.0]]], [[[1.0, 0.5]], [[1.0, 0.5]]]
    info = weight_block.info([[2.0, -1.0], [-3.0, 1.5]], [[1.0]], signs, row, column, None, [9.0, 0.0])
    assert info.binarized[1].tolist() == [[2.0, -1.0], [-3.0, 1.5]]
    assert info.flips.tolist() == [0, 1]
    error = weight_block.figure(info, 1).data[4]
    assert not np.any(error.z)


def test_two_signs_are_shown_as_four_places() -> None:
    signs = np.array([[[[1, 1, -1, -1]], [[1, -1, 1, -1]]]])
    info = weight_block.info([[3.0, 1.0, -1.0, -3.0]], [[1.0]], signs, [[[2.0], [1.0]]], None, [[0.0]], [0.0])
    assert info.codes[0, 0] == pytest.approx([1, 1 / 3, -1 / 3, -1])
    assert info.binarized[0, 0] == pytest.approx([3, 1, -1, -3])


def test_a_method_at_several_budgets_is_a_line_with_one_name() -> None:
    runs = [
        bits_accuracy.Measured(f"SAB-H {bits}", "sab-h", bits, bits, 900, value, value, value, "SAB-H at a budget")
        for bits, value in ((1.5, 0.5), (2.0, 0.7), (2.5, 0.8))
    ]
    info = bits_accuracy.info([*runs, bits_accuracy.Measured("XNOR", "xnor", 1.0, 1.25, 400, 0.4, 0.35, 0.45)])
    drawn = bits_accuracy.figure(info)
    line = next(trace for trace in drawn.data if trace.mode == "lines")
    assert list(line.y) == pytest.approx([50, 70, 80])
    notes = {note.text: note.x for note in drawn.layout.annotations}
    assert notes == {"SAB-H at a budget": 2.5, "XNOR": 1.25}


def test_distances_stand_on_a_logarithmic_axis() -> None:
    runs = [bits_accuracy.Measured("SAB", "sab", 1.1, 2.8, 900, 0.1, 0.01, 1.0)]
    drawn = bits_accuracy.figure(bits_accuracy.info(runs, quantity=bits_accuracy.DISTANCE))
    point = next(trace for trace in drawn.data if trace.mode == "markers")
    assert (point.y[0], point.error_y.array[0], point.error_y.arrayminus[0]) == pytest.approx((-1, 1, 1))
    marks = dict(zip(drawn.layout.yaxis.ticktext, drawn.layout.yaxis.tickvals, strict=True))
    assert marks["0.1"] == pytest.approx(-1)
    none = bits_accuracy.figure(bits_accuracy.info(runs[:0], quantity=bits_accuracy.DISTANCE))
    assert none.layout.yaxis.range[0] < none.layout.yaxis.range[1]


def test_two_runs_stand_side_by_side_layer_by_layer() -> None:
    info = run_difference.info(["a", "b"], [0, 1], ["q", "k"], ([0.1, 0.2], [0.05, 0.3]), [0.5, 0.0])
    drawn = run_difference.figure(info)
    assert [list(trace.y) for trace in drawn.data] == [pytest.approx([10, 20]), pytest.approx([5, 30]), [50.0, 0.0]]
    assert list(drawn.layout.xaxis.ticktext) == ["block 0", "block 1"]
    assert len(set(run_difference.pair_colours(True) + run_difference.pair_colours(False))) == 4
    run_difference.figure(run_difference.info([], [], [], ([], []), []))
    with pytest.raises(ValueError, match="one entry per linear"):
        run_difference.info(["a"], [0], ["q"], ([0.1], []), [0.5])


@given(st.integers(1, 40), st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_a_pooled_cell_shows_its_largest_difference_with_its_sign(rows: int, columns: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(2, rows, columns)).astype(np.float32)
    info = difference_map.info(first, second)
    assert max(info.values.shape) <= difference_map.MOST_CELLS
    factor, difference = info.factor, first - second
    for row, column in itertools.product(range(info.values.shape[0]), range(0, info.values.shape[1], 7)):
        square = difference[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert abs(info.values[row, column]) == np.abs(square).max()
        assert info.values[row, column] in square


def test_runs_of_different_layers_have_no_difference() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        difference_map.info(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    drawn = difference_map.figure(difference_map.info(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)))
    assert drawn.data[0].zmin < 0 < drawn.data[0].zmax
