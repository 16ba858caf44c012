"""Explore as a person uses it: look, click a layer, drag a threshold, zoom to one weight, share the link."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sab.significance import PARTITION_NAMES

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
STATE = "SabLens.state"
COUNTS = "SabLens.explore.classRows.map(({count}) => Number(count.textContent.replaceAll(',', '')))"
PIXELS = """(name) => {
  const {canvas, context} = SabLens.explore.maps.panels.get(name);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  let hash = 0;
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) {
    const colour = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
    hash = (hash * 31 + colour) | 0;
    if (colours.size < 200) colours.add(colour);
  }
  return {hash, colours: colours.size};
}"""


def settled(page: Page) -> None:
    """Wait until maps and counts are those of the layer and the thresholds that are chosen."""
    page.wait_for_function("!document.querySelector('.sab-map[aria-busy=true]')")
    page.wait_for_function("document.querySelector('.sab-exactness').textContent === 'exact'")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drag(page: Page, name: str, place: float, let_go: bool = True) -> None:
    """Move a slider's thumb to a place between 0 and 1 with the mouse."""
    slider = page.locator(f"#sab-{name}")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    now = float(slider.input_value())
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8 + now * (box["width"] - 16), middle)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(box["x"] + 8 + (now + (place - now) * step / 8) * (box["width"] - 16), middle)
    if let_go:
        page.mouse.up()


def click_cell(page: Page, kind: int, block: int) -> None:
    """Click a cell of the overview grid, by its place."""
    page.wait_for_selector(".sab-grid .heatmaplayer image")
    point = page.evaluate(
        """([kind, block]) => {
          const plot = document.querySelector('.sab-grid'), {xaxis, yaxis} = plot._fullLayout;
          const box = plot.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.l2p(block), box.y + yaxis._offset + yaxis.l2p(kind)];
        }""",
        [kind, block],
    )
    page.mouse.move(*point)
    page.mouse.click(*point)


def test_the_first_view_shows_a_run_its_bits_and_maps(visitor: Visitor, run_directory: Path) -> None:
    page = visitor.open_layer("?run=browser-run")
    assert page.evaluate("SabLens.run().id") == run_directory.name
    header = page.inner_text("#sab-header")
    assert "Nominal" in header
    assert "All-in" in header
    assert "On disk" in header
    for name in ("language", "vision", "cross", "partition"):
        assert page.evaluate(PIXELS, name)["colours"] > 3, name
    page.wait_for_selector(".sab-density .heatmaplayer image")
    assert visitor.errors == []


def test_a_cell_of_the_grid_opens_its_layer(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    before = page.evaluate(PIXELS, "partition")
    title = page.inner_text(".sab-layer-title")
    click_cell(page, 4, 3)
    page.wait_for_function("(title) => document.querySelector('.sab-layer-title').textContent !== title", arg=title)
    name = page.evaluate(f"{STATE}.linear")
    assert ".3." in name
    assert name in page.url
    page.wait_for_function("(name) => SabLens.explore.layer?.shape[0] === 768", arg=name)
    settled(page)
    assert page.evaluate(PIXELS, "partition") != before
    page.go_back()
    page.wait_for_function("(title) => document.querySelector('.sab-layer-title').textContent === title", arg=title)
    page.go_forward()
    page.wait_for_function("(name) => SabLens.state.linear === name", arg=name)


def test_thresholds_recolour_while_dragged_and_end_exact(
    visitor: Visitor, model_directory: Path, run_directory: Path
) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    before, counts = page.evaluate(PIXELS, "partition"), page.evaluate(COUNTS)
    drag(page, "salient_top_p", 0.85, let_go=False)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.inner_text(".sab-exactness") == "estimate"
    estimate = page.evaluate(COUNTS)
    assert page.evaluate(PIXELS, "partition") != before
    assert estimate[0] < counts[0]
    page.mouse.up()
    settled(page)
    exact = page.evaluate(COUNTS)
    total = sum(exact)
    assert max(abs(one - other) for one, other in zip(estimate, exact, strict=True)) < 0.005 * total
    assert exact == true_counts(page.evaluate(STATE), model_directory, run_directory)


def true_counts(state: dict[str, Any], model_directory: Path, run_directory: Path) -> list[int]:
    """What the pipeline says about the layer and thresholds that the page shows."""
    from sab import models
    from sab.runs import Run
    from sab.significance import Thresholds, significance_map

    sensitivity = Run.open(run_directory).sensitivity(state["linear"], "input")
    assert sensitivity
    thresholds = Thresholds(state["salient_top_p"], state["diff_quantile"], state["sparsity_thr"])
    weight = models.load(str(model_directory)).linears[state["linear"]].weight
    return list(significance_map(weight, *sensitivity, thresholds).counts().values())


def test_estimates_hold_for_every_preset_and_layer_kind(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    worst = page.evaluate(
        """async () => {
          const {explore} = SabLens;
          let worst = 0;
          for (const {name} of explore.linears.slice(0, 7)) {
            const answer = await explore.ask('layer', {linear: name});
            const bins = new explore.bins.constructor(answer.bins, answer.code);
            for (const [p, q, s] of [[0.05, 0.5, 0.005], [0.01, 0.75, 0.1], [0.1, 0.25, 0.001], [0.3, 0.9, 0.02]]) {
              const thresholds = {salient_top_p: p, diff_quantile: q, sparsity_thr: s};
              const exact = await explore.ask('exact', {linear: name, ...thresholds});
              const {counts} = bins.classes(thresholds);
              const total = counts.reduce((sum, count) => sum + count, 0);
              worst = Math.max(worst, ...counts.map((count, i) => Math.abs(count - exact.counts[i]) / total));
            }
          }
          return worst;
        }"""
    )
    assert worst < 0.005


def test_charts_keep_their_colours_when_the_address_changes(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    page.wait_for_selector(".sab-grid .cbfill")
    page.keyboard.press("]")
    page.wait_for_function("SabLens.state.linear.includes('k_proj')")
    references = page.evaluate(
        "[...document.querySelectorAll('.sab-grid [style*=\"url(\"], .sab-grid [clip-path]')]"
        ".map((part) => part.getAttribute('clip-path') || part.style.fill)"
    )
    assert references
    assert all("http" not in reference for reference in references)


def test_presets_and_reset(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    paper = page.evaluate(COUNTS)
    page.click("[data-preset=Strict]")
    page.wait_for_function("SabLens.state.salient_top_p === 0.01")
    page.wait_for_function(f"({COUNTS})[0] > {paper[0]}")
    page.click("text=Reset")
    page.wait_for_function(f"({COUNTS})[0] === {paper[0]}")
    assert page.get_attribute("[data-preset=Paper]", "aria-pressed") == "true"


def test_the_link_restores_everything_in_another_browser(visitor: Visitor, another_visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    page.keyboard.press("]")
    page.wait_for_function("SabLens.state.linear.endsWith('k_proj')")
    settled(page)
    page.click("[data-preset=Strict]")
    page.click(".sab-chip[data-view=error]")
    page.evaluate("SabLens.explore.maps.look({top: 16, left: 32, bottom: 64, right: 80})")
    page.locator(".sab-map[data-view=partition] .sab-map-stage").click(position={"x": 150, "y": 120})
    page.wait_for_function("SabLens.state.window === '16,32,64,80' && SabLens.state.pinned")
    page.click("button[data-value=mean]")
    settled(page)
    link = page.input_value("#sab-link")
    page.get_by_role("tab", name="Learn").click()
    page.wait_for_function("document.getElementById('sab-link').value.includes('tab=learn')")
    on_learn = page.input_value("#sab-link")

    assert link.startswith(visitor.url)
    other = another_visitor.open_layer(link.removeprefix(visitor.url))
    settled(other)
    assert other.evaluate(STATE) == {**page.evaluate(STATE), "tab": "explore"}
    assert other.evaluate(COUNTS) == page.evaluate(COUNTS)
    assert other.evaluate("SabLens.explore.maps.view") == page.evaluate("SabLens.explore.maps.view")
    assert other.evaluate("SabLens.explore.views") == page.evaluate("SabLens.explore.views")
    pinned = [window.evaluate("SabLens.explore.maps.pinned.weightRow") for window in (page, other)]
    assert pinned[0] == pinned[1] == int(page.evaluate(f"{STATE}.pinned").split(",")[0])
    other.goto(on_learn)
    other.wait_for_selector("#sab-tab-learn-button[aria-selected=true]")
    assert another_visitor.errors == []


@pytest.mark.parametrize(("query", "chosen"), [("", "chat"), ("?tab=learn", "chat"), ("?tab=learn", None)])
def test_a_tab_that_is_opened_before_the_server_has_answered_stays_open(
    visitor: Visitor, query: str, chosen: str | None
) -> None:
    page = visitor.page
    with visitor.slow():
        page.goto(visitor.url + query)
        page.wait_for_function("window.SabLens")
        page.wait_for_selector("#sab-tabs [role=tab]")
        page.wait_for_timeout(500)
        if chosen:
            page.get_by_role("tab", name=chosen.title()).click()
        assert page.evaluate("SabLens.state.tab") is None
    shown = chosen or "learn"
    page.wait_for_function("(tab) => SabLens.state.tab === tab", arg=shown)
    page.wait_for_selector(f"#sab-tab-{shown}-button[aria-selected=true]")
    assert f"tab={shown}" in page.url
    assert visitor.errors == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?run=nobody", "names a run that is not here"),
        ("?run=browser-run&linear=model.nothing", "no layer"),
        ("?run=browser-run&salient_top_p=nan&diff_quantile=&kind=x&tab=zzz", ""),
        ("?run=browser-run&salient_top_p=-5&sparsity_thr=1e999", ""),
    ],
)
def test_a_bad_link_gives_one_sentence_and_a_working_page(visitor: Visitor, query: str, sentence: str) -> None:
    page = visitor.open_layer(query)
    message = page.locator(".sab-message")
    if sentence:
        assert sentence in message.inner_text()
    else:
        assert not message.is_visible()
    settled(page)
    assert "Traceback" not in page.inner_text("body")
    assert visitor.errors == []


def test_forged_requests_are_answered_with_a_sentence(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    for request in ("{}", "{linear: '../x'}", "{linear: 7}", "{run: 'zzz'}"):
        found = page.evaluate(f"SabLens.explore.ask('tile', {{...{request}, run: ({request}).run || 'zzz'}})")
        assert set(found) == {"error"}
    clamped = page.evaluate("SabLens.explore.ask('tile', {rectangle: [-1e9, 'x', null, 5], fields: 'weight'})")
    assert clamped["rows"] == page.evaluate("SabLens.explore.layer.shape[0]")
    settled(page)


def test_zoom_to_single_weights_and_read_one(visitor: Visitor, model_directory: Path) -> None:
    page = visitor.open_layer("?run=browser-run")
    click_cell(page, 4, 0)
    page.wait_for_function("SabLens.explore.layer?.shape[0] === 768")
    settled(page)
    assert "pooled" in page.inner_text(".sab-pool")
    stage = page.locator(".sab-map[data-view=vision] .sab-map-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(6):
        page.mouse.wheel(0, -240)
    page.wait_for_function("document.querySelector('.sab-pool').textContent.includes('single weights')")
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    page.wait_for_function("document.querySelector('.sab-tip').textContent.includes('Ŵ')")
    cell = page.evaluate("SabLens.explore.maps.hovered")
    assert cell["factor"] == 1
    tip = page.inner_text(".sab-tip")
    assert f"row {cell['weightRow']}, column {cell['weightColumn']}" in tip
    assert "Why: in column" in tip
    from sab import models

    weight = models.load(str(model_directory)).linears[page.evaluate(f"{STATE}.linear")].weight
    shown = page.evaluate(f"SabLens.explore.details.get('{cell['weightRow']}|{cell['weightColumn']}').weight")
    assert shown == pytest.approx(float(weight[cell["weightRow"], cell["weightColumn"]]))
    page.dblclick(".sab-map[data-view=vision] .sab-map-stage")
    page.wait_for_function("SabLens.explore.maps.whole()")


def test_three_clicks_from_the_model_to_a_single_weight(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    click_cell(page, 4, 1)
    page.wait_for_function("SabLens.explore.layer?.shape[0] === 768 && SabLens.state.linear.includes('.1.')")
    settled(page)
    page.locator(".sab-map[data-view=partition] .sab-map-stage").click(position={"x": 150, "y": 120})
    page.wait_for_function("SabLens.state.pinned !== ''")
    page.get_by_role("button", name="Zoom to this weight").last.click()
    page.wait_for_function("document.querySelector('.sab-pool').textContent.includes('single weights')")
    row, column = page.evaluate(f"{STATE}.pinned").split(",")
    page.wait_for_function("document.querySelector('.sab-weight').textContent.includes('Ŵ')")
    assert f"row {row}, column {column}" in page.inner_text(".sab-weight")
    assert "scale" in page.inner_text(".sab-weight")
    page.wait_for_function("SabLens.state.window !== ''")
    page.keyboard.press("Escape")
    page.wait_for_function("SabLens.state.pinned === ''")
    assert visitor.errors == []


def test_views_are_chosen_and_linked(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    page.click(".sab-chip[data-view=error]")
    page.wait_for_function("SabLens.explore.maps.panels.get('error')?.keyText && SabLens.explore.maps.base?.error")
    page.click(".sab-chip[data-view=sparsity]")
    page.wait_for_function("SabLens.state.views.includes('error') && !SabLens.state.views.includes('sparsity')")
    assert page.locator(".sab-map").count() == 6
    page.evaluate("SabLens.explore.maps.zoom(0.5)")
    settled(page)
    assert page.evaluate(PIXELS, "error")["colours"] > 20
    page.locator(".sab-map[data-view=language] .sab-map-stage").hover(position={"x": 120, "y": 100})
    cross = """(name) => {
      const {overlay} = SabLens.explore.maps.panels.get(name);
      return overlay.getContext('2d').getImageData(0, 0, overlay.width, overlay.height).data.some((value) => value > 0);
    }"""
    assert all(page.evaluate(cross, name) for name in ("language", "partition", "error"))


def test_undo_and_redo_go_through_what_was_chosen(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    assert page.get_by_role("button", name="Undo").is_disabled()
    drag(page, "salient_top_p", 0.9)
    dragged = page.evaluate(f"{STATE}.salient_top_p")
    assert dragged > 0.1
    page.click("[data-preset=Strict]")
    page.wait_for_function("SabLens.state.salient_top_p === 0.01")
    page.click(".sab-chip[data-view=sparsity]")
    page.wait_for_function("SabLens.explore.views.length === 5")
    page.keyboard.press("Control+z")
    page.wait_for_function("SabLens.explore.views.length === 6")
    page.keyboard.press("Control+z")
    page.wait_for_function("(dragged) => SabLens.state.salient_top_p === dragged", arg=dragged)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("SabLens.state.salient_top_p === 0.05")
    assert page.get_by_role("button", name="Undo").is_disabled()
    page.keyboard.press("Control+Shift+Z")
    page.wait_for_function("(dragged) => SabLens.state.salient_top_p === dragged", arg=dragged)
    page.click("[data-preset=Loose]")
    page.wait_for_function("SabLens.state.salient_top_p === 0.1")
    assert page.get_by_role("button", name="Redo").is_disabled()
    settled(page)


def drag_line(page: Page, name: str, right: float, up: float) -> None:
    """Take a line of the density at a quarter of its length, and move it by pixels."""
    point = page.evaluate(
        """(name) => {
          const {density} = SabLens.explore, path = density.paths[name][1];
          density.plot.scrollIntoView({block: 'center'});
          const middle = path.getPointAtLength(path.getTotalLength() * 0.25);
          const box = density.plot.getBoundingClientRect();
          return [box.x + middle.x, box.y + middle.y];
        }""",
        name,
    )
    page.mouse.move(*point)
    page.mouse.down()
    for step in range(1, 7):
        page.mouse.move(point[0] + right * step / 6, point[1] - up * step / 6)
    page.mouse.up()


def test_lines_of_the_density_are_dragged(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    page.wait_for_selector(".sab-density .heatmaplayer image")
    page.wait_for_function("SabLens.explore.density.paths['ratio-above'][0].getAttribute('d')")
    first = page.evaluate(COUNTS)
    drag_line(page, "salient-language", -30, 0)
    page.wait_for_function("SabLens.state.salient_top_p > 0.06")
    settled(page)
    assert page.evaluate(COUNTS)[0] < first[0]
    drag_line(page, "ratio-above", -12, 12)
    page.wait_for_function("SabLens.state.sparsity_thr > 0.01")
    before = page.evaluate(f"{STATE}.diff_quantile")
    drag_line(page, "difference-above", 0, 25)
    page.wait_for_function("(before) => SabLens.state.diff_quantile !== before", arg=before)
    settled(page)
    assert visitor.errors == []


def test_rows_and_columns_lead_to_places_in_the_maps(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    page.wait_for_function("SabLens.explore.marginals.strips[1].classes")
    strip = page.locator(".sab-strip[data-axis=rows] canvas")
    strip.scroll_into_view_if_needed()
    strip.hover(position={"x": 300, "y": 40})
    readout = page.inner_text(".sab-strip[data-axis=rows] .sab-strip-readout")
    assert "head" in readout
    assert "language-only" in readout
    strip.click(position={"x": 300, "y": 40})
    page.wait_for_function("SabLens.state.window !== ''")
    top, _, bottom, _ = (float(edge) for edge in page.evaluate(f"{STATE}.window").split(","))
    assert top <= int(readout.split()[1]) < bottom
    counted = page.evaluate("SabLens.explore.marginals.strips[1].classes.map((part) => part.reduce((a, b) => a + b))")
    assert counted == page.evaluate(COUNTS)[1:]
    name, content = exported(page, "CSV", ".sab-strip-card")
    assert name.endswith(".csv")
    lines = list(csv.DictReader(io.StringIO(content.decode())))
    assert sum(int(line["vision_only"]) for line in lines if line["line"] == "column") == counted[1]


def test_a_null_is_computed_when_asked_for(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    page.click(".sab-null-panel button")
    page.wait_for_selector(".sab-null-facts", timeout=240_000)
    page.wait_for_selector(".sab-density-pair figure:last-child .heatmaplayer image")
    assert "labels stay" in page.inner_text(".sab-null-text")
    exact = page.inner_text(".sab-chance")
    assert "between two halves of one modality" in exact
    drag(page, "sparsity_thr", 0.8)
    settled(page)
    page.wait_for_function("(text) => document.querySelector('.sab-chance').textContent !== text", arg=exact)
    assert visitor.errors == []


def test_keys(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    first = page.evaluate(f"{STATE}.linear")
    page.keyboard.press("]")
    page.wait_for_function("(first) => SabLens.state.linear !== first", arg=first)
    page.keyboard.press("[")
    page.wait_for_function("(first) => SabLens.state.linear === first", arg=first)
    page.keyboard.press("ArrowRight")
    page.wait_for_function("SabLens.state.linear.includes('.1.')")
    page.keyboard.press("?")
    assert page.locator("dialog.sab-help[open]").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.sab-help[open]", state="detached")


def test_light_and_dark_draw_in_their_own_colours(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run&__theme=light")
    settled(page)
    light = page.evaluate(PIXELS, "partition")
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function("SabLens.dark")
    page.wait_for_function("(hash) => (" + PIXELS + ")('partition').hash !== hash", arg=light["hash"])
    assert visitor.errors == []


def test_a_phone_shows_everything_without_sideways_scrolling(phone: Visitor) -> None:
    page = phone.open_layer("?run=browser-run")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Explore", "Binarize", "Chat", "Benchmark", "Learn"):
        box = page.get_by_role("tab", name=name, exact=True).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    stage = page.locator(".sab-map-stage").first
    stage.scroll_into_view_if_needed()
    stage.tap()
    page.wait_for_function("!document.querySelector('.sab-tip').hidden")
    assert phone.errors == []


def test_a_dragged_frame_takes_little_script(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    page.evaluate("SabLens.explore.frameTimes.length = 0")
    drag(page, "sparsity_thr", 0.9)
    settled(page)
    times = sorted(page.evaluate("SabLens.explore.frameTimes"))
    assert times
    # 8 ms is the goal on a quiet machine, measured by `bench ui`; this guards against a redraw of everything.
    assert times[len(times) // 2] < 60


def exported(page: Page, label: str, where: str = ".sab-map-tools") -> tuple[str, bytes]:
    """Name and content of a download from an Export menu."""
    page.click(f"{where} .sab-export summary")
    with page.expect_download() as download:
        page.click(f"{where} .sab-export button:text-is('{label}')")
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_downloads_hold_exactly_what_the_pipeline_says(
    visitor: Visitor, model_directory: Path, run_directory: Path
) -> None:
    page = visitor.open_layer("?run=browser-run&kind=input&salient_top_p=0.0731&diff_quantile=0.37&sparsity_thr=0.0123")
    settled(page)
    counts = true_counts(page.evaluate(STATE), model_directory, run_directory)
    assert page.evaluate(COUNTS) == counts
    name, picture = exported(page, "PNG")
    assert name.endswith(".png")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    name, drawing = exported(page, "SVG")
    assert name.endswith(".svg")
    assert drawing.decode().count("<image") == 6
    name, chart = exported(page, "SVG", ".sab-densities")
    assert chart.startswith(b"<svg")
    assert b"shapelayer" in chart
    name, cells = exported(page, "CSV (cells shown)")
    assert name.endswith(".csv")
    classes = Counter(line["class"] for line in csv.DictReader(io.StringIO(cells.decode())))
    assert [classes[each] for each in PARTITION_NAMES] == counts
    name, layer = exported(page, "JSON (this layer)")
    assert name.endswith(".json")
    written = json.loads(layer)
    assert written["counts"] == dict(zip(PARTITION_NAMES, counts, strict=True))
    assert written["thresholds"] == {"salient_top_p": 0.0731, "diff_quantile": 0.37, "sparsity_thr": 0.0123}


def test_a_zoomed_map_exports_the_cells_in_view(visitor: Visitor) -> None:
    page = visitor.open_layer("?run=browser-run")
    settled(page)
    page.evaluate("SabLens.explore.maps.look({top: 16, left: 32, bottom: 24, right: 44})")
    _, cells = exported(page, "CSV (cells shown)")
    lines = list(csv.DictReader(io.StringIO(cells.decode())))
    assert {int(line["row"]) for line in lines} == set(range(16, 24))
    assert {int(line["column"]) for line in lines} == set(range(32, 44))
