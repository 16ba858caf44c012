"""Figures show the numbers they are given; colours stay apart for every eye."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from viz import theme
from viz.downsample import encode
from viz.figures import density, depth, overview


@dataclass(frozen=True)
class Report:
    """What the figures read of a linear's report."""

    name: str
    block: int
    kind: str
    relative_loss: float = 0.1
    bits_all_in: float = 2.5
    unimodal_ratio: float = 0.4
    counts: dict[str, int] = field(default_factory=dict)
    part: str = "decoder"


def counts(neither: int, language: int, vision: int, cross: int) -> dict[str, int]:
    return dict(zip(overview.CLASS_NAMES, (neither, language, vision, cross), strict=True))


REPORTS = [
    Report("m.0.q", 0, "q_proj", 0.1, 2.5, 0.2, counts(80, 10, 5, 5)),
    Report("m.0.up", 0, "up_proj", 0.2, 2.6, 0.4, counts(60, 10, 20, 10)),
    Report("m.1.q", 1, "q_proj", 0.3, 2.7, 0.6, counts(90, 0, 0, 10)),
]


def test_overview_puts_each_linear_in_its_cell() -> None:
    info = overview.info(REPORTS, "vision")
    assert info.kinds == ["q_proj", "up_proj"]
    assert [column.label for column in info.columns] == ["0", "1"]
    assert info.values[0].tolist() == [0.25, 0.0]
    assert info.values[1, 0] == 0.5
    assert math.isnan(info.values[1, 1])
    assert info.names == [["m.0.q", "m.1.q"], ["m.0.up", ""]]


@pytest.mark.parametrize(
    ("quantity", "expected"), [("language", 0.5), ("cross", 0.25), ("ratio", 0.2), ("error", 0.1), ("bits", 2.5)]
)
def test_overview_shows_the_quantity_asked_for(quantity: str, expected: float) -> None:
    assert overview.info(REPORTS, quantity).values[0, 0] == expected


def test_overview_of_nothing_and_of_a_layer_without_classes() -> None:
    empty = overview.info([], "cross")
    assert empty.values.size == 0
    overview.figure(empty)
    plain = overview.info([Report("a", 0, "q_proj", counts=counts(50, 0, 0, 0))], "cross")
    assert math.isnan(plain.values[0, 0])
    overview.figure(plain, dark=True)


TOWER = counts(100, 0, 0, 0)
PARTS = [
    Report("v.0.qkv", 0, "qkv", counts=TOWER, part="vision"),
    Report("p.first.0", -1, "0", counts=TOWER, part="projector"),
    Report("p.first.2", -1, "2", counts=TOWER, part="projector"),
    Report("p.second.fc", -1, "fc", counts=TOWER, part="projector"),
    Report("p.third.fc", -1, "fc", counts=TOWER, part="projector"),
    *REPORTS,
]


def test_every_linear_of_every_part_has_a_cell_of_its_own() -> None:
    info = overview.info(PARTS, "vision")
    shown = [name for row in info.names for name in row if name]
    assert sorted(shown) == sorted(report.name for report in PARTS)
    assert [(column.part, column.block) for column in info.columns] == [
        ("vision", 0), ("projector", -1), ("projector", -1), ("decoder", 0), ("decoder", 1),
    ]  # fmt: skip
    assert info.kinds[:3] == ["qkv", "first.0", "first.2"]
    assert info.values[info.kinds.index("q_proj"), 3] == 0.25
    drawn = overview.figure(info)
    assert drawn.data[1].customdata[0][0] == "v.0.qkv"  # without classes, but there to be opened
    assert "vision tower" in "".join(drawn.layout.xaxis.ticktext)


def test_depth_keeps_the_parts_apart() -> None:
    info = depth.info(PARTS, {"m.0.q": 0.1, "m.0.up": 0.3, "m.1.q": 0.5})
    assert [column.part for column in info.columns] == ["vision", "projector", "decoder", "decoder"]
    assert np.isnan(info.ratio[:2]).all()
    assert info.ratio[2:].tolist() == pytest.approx([0.3, 0.6])
    assert info.sparsity[2:].tolist() == pytest.approx([0.2, 0.5])
    assert len(depth.figure(info).data) == 5


def test_a_model_of_many_blocks_keeps_its_labels_apart() -> None:
    columns = overview.forward_order([overview.Column("decoder", block) for block in range(80)])
    assert len(overview.column_axis(columns)["tickvals"]) <= 24  # type: ignore[arg-type]


def test_overview_refuses_an_unknown_quantity() -> None:
    with pytest.raises(ValueError, match="Colour by one of"):
        overview.info(REPORTS, "taste")


def test_the_grid_draws_the_names_it_opens() -> None:
    drawn = overview.figure(overview.info(REPORTS, "error"))
    assert drawn.data[0].customdata[0][0] == "m.0.q"
    assert np.nanmax(drawn.data[0].z) == pytest.approx(30.0)


def test_depth_adds_up_the_linears_of_a_block() -> None:
    info = depth.info(REPORTS)
    assert info.shares[:, 0].tolist() == [20 / 60, 25 / 60, 15 / 60]
    assert info.shares[:, 1].tolist() == [0.0, 0.0, 1.0]
    assert info.ratio.tolist() == pytest.approx([0.3, 0.6])
    assert len(depth.figure(info).data) == 4


def test_density_loses_no_weight_and_bins_it_right() -> None:
    draw = np.random.default_rng(3)
    language = draw.lognormal(0, 2, (50, 40)).astype(np.float32)
    vision = draw.lognormal(0, 2, (50, 40)).astype(np.float32)
    language[0, 0] = 0.0
    info = density.info(language, vision, density.Boundaries(1.0, 1.0, 0.5, 1.1))
    assert info.counts.sum() == 2000
    edges = info.edges()
    place = np.unravel_index(int(np.argmax(language)), language.shape)
    column = int(np.searchsorted(edges, np.log10(language[place]), side="right")) - 1
    row = int(np.searchsorted(edges, np.log10(max(vision[place], 10 ** edges[0])), side="right")) - 1
    assert info.counts[row, column] >= 1
    assert encode(language).max() < info.first_code + density.BINS * density.CODES_PER_BIN


@pytest.mark.parametrize("sparsity", [0.001, 0.005, 0.1, 0.5, 0.9])
def test_the_ratio_is_where_sparsity_reaches_its_threshold(sparsity: float) -> None:
    ratio = density.ratio_of_sparsity(sparsity)
    reached = (math.sqrt(2) - (1 + ratio) / math.hypot(1, ratio)) / (math.sqrt(2) - 1)
    assert reached == pytest.approx(sparsity, rel=1e-6)


def test_the_paper_threshold_is_a_difference_of_a_ninth() -> None:
    assert density.ratio_of_sparsity(0.005) == pytest.approx(1.11, abs=0.01)
    assert density.ratio_of_sparsity(0.0) == pytest.approx(1.0)
    assert density.ratio_of_sparsity(1.0) == math.inf


def test_density_draws_its_six_named_lines_even_where_nothing_is_salient() -> None:
    ones = np.ones((4, 4), np.float32)
    for boundaries in (density.Boundaries(3.8, 3.9, 0.5, 1.1), density.Boundaries(*[math.inf] * 4)):
        drawn = density.figure(density.info(ones, ones, boundaries))
        assert len({shape.name for shape in drawn.layout.shapes}) == 6


def linear_rgb(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
VISION = {
    "trichromat": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("eye", VISION)
def test_classes_stay_apart_for_every_eye(eye: str, dark: bool) -> None:
    colours = theme.palette(dark)
    classes = colours.neither, colours.language, colours.vision, colours.cross
    seen = [lab(np.array(VISION[eye]) @ linear_rgb(colour)) for colour in classes]
    for one in range(4):
        for other in range(one):
            assert np.linalg.norm(seen[one] - seen[other]) > 25, (eye, one, other)


def contrast(one: str, other: str) -> float:
    """Of two colours as WCAG 2 counts it, 1 to 21."""
    luminance = [float(linear_rgb(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)]
    return (max(luminance) + 0.05) / (min(luminance) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_methods_are_seen_on_their_ground(dark: bool) -> None:
    for name in (*theme.METHOD_COLOURS, "unknown"):
        assert contrast(theme.method_colour(name, dark), theme.palette(dark).surface) > (3.5 if dark else 2), name


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK])
def test_text_is_readable(palette: theme.Palette) -> None:
    for background in (palette.page, palette.surface, palette.raised):
        assert contrast(palette.text, background) > 7
        assert contrast(palette.muted, background) > 4.5
    assert contrast(palette.accent_text, palette.accent) > 4.5
    assert contrast(palette.bad, palette.surface) > 4.5


def test_the_page_gets_every_colour_in_both_modes() -> None:
    written = theme.css_variables()
    for colours in (theme.LIGHT, theme.DARK):
        for value in (colours.language, colours.vision, colours.cross, colours.ramp[0]):
            assert value in written
