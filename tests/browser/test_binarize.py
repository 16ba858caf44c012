"""Binarize as a person uses it: run layers, watch, stop, resume, compare, name, delete, take a recipe home and back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sab.runs import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser
KEY = "model.language_model.layers.0.self_attn.k_proj"


def open_form(visitor: Visitor, query: str = "") -> Page:
    page = visitor.open("?tab=binarize&run=browser-run" + query)
    page.wait_for_function("document.querySelector('#binarize-method input').value === 'SAB'")
    page.wait_for_selector("#binarize-runs tbody tr")
    return page


FRAMES = """async (count) => {
  for (let frame = 0; frame < count; frame++) await new Promise(requestAnimationFrame);
}"""


def number(page: Page, place: str, value: str) -> None:
    # A field that has just been unfolded gets its first value written once more, some frames after it appears: what was
    # typed faster than a person can is typed again until it stays.
    for _ in range(20):
        page.fill(f"{place} input[type=number]", value)
        page.press(f"{place} input[type=number]", "Tab")
        page.evaluate(FRAMES, 8)
        if float(page.input_value(f"{place} input[type=number]")) == float(value):
            return
    raise AssertionError(f"{place} does not keep {value}")


def until(page: Page, *states: str) -> str:
    """Wait until the job is in one of the states; returns the state."""
    page.wait_for_function(
        "(states) => states.includes(document.querySelector('#binarize-progress .pg')?.dataset.state)", arg=list(states)
    )
    return str(page.evaluate("document.querySelector('#binarize-progress .pg').dataset.state"))


def said(page: Page, words: str, place: str = "#binarize-notice") -> None:
    page.wait_for_function(
        "([place, words]) => document.querySelector(place + ' p')?.textContent.includes(words)", arg=[place, words]
    )


def choose(page: Page, label: str) -> None:
    """A method by its label."""
    page.click("#binarize-method input")
    page.click(f".options [role=listbox] li[aria-label='{label}']")
    page.wait_for_function("(label) => document.querySelector('#binarize-method input').value === label", arg=label)


def quick(page: Page) -> None:
    """Few samples, no questions."""
    page.click("#binarize-more > button")
    number(page, "#binarize-samples", "16")
    number(page, "#binarize-questions", "0")


def tick(page: Page, *names: str) -> None:
    """Only these layers."""
    page.check("#binarize-scope input[value='Chosen layers']")
    for name in names:
        page.click(f"#binarize-layers [data-name='{name}']")


def upload(page: Page, file: Path) -> None:
    """Choose a file as a person does: the button forgets the file before only when it is pressed."""
    with page.expect_file_chooser() as chooser:
        page.click("#binarize-load")
    chooser.value.set_files(file)


def run_one(page: Page, *names: str) -> str:
    """Press Binarize and wait for the end; returns the id of the run, which the page has chosen."""
    before = page.evaluate("SabLens.state.run")
    page.click("#binarize-run")
    page.wait_for_function("(before) => SabLens.state.run !== before", arg=before)
    assert until(page, "done", "failed") == "done"
    return str(page.evaluate("SabLens.state.run"))


def test_the_layer_in_explore_is_run_again_and_stands_beside_its_run(
    visitor: Visitor, another_visitor: Visitor
) -> None:
    page = open_form(visitor, f"&linear={KEY}")
    page.wait_for_selector("#binarize-rerun:has-text('block 0, k_proj'):enabled")
    quick(page)
    page.click("#binarize-rerun")
    page.wait_for_function("SabLens.state.run !== 'browser-run'")
    assert until(page, "done", "failed") == "done"
    page.wait_for_selector("#binarize-errors .barlayer .point", state="attached")
    facts = page.inner_text("#binarize-progress .pg-facts")
    assert "all-in" in facts
    assert "nominal" in facts
    made = page.evaluate("SabLens.state.run")
    assert page.evaluate("[SabLens.state.pin_a, SabLens.state.pin_b]") == ["browser-run", made]
    page.wait_for_selector("#binarize-numbers th:has-text('Bits, all-in')")
    page.wait_for_selector("#binarize-map .ch.filled")
    link = page.evaluate("SabLens.link()")
    other = another_visitor.page
    other.goto(link)  # one link restores the comparison in another browser
    other.wait_for_selector("#binarize-numbers th:has-text('Bits, all-in')")
    assert made in other.inner_text("#binarize-runs")
    assert visitor.errors == []


def test_explore_asks_for_its_layer_with_its_thresholds(visitor: Visitor, run_directory: Path) -> None:
    page = visitor.open_layer(f"?tab=explore&run=browser-run&linear={KEY}&salient_top_p=0.2")
    page.evaluate("SabLens.rerunLayer()")
    page.wait_for_selector("#binarize-progress .pg:not([hidden])")
    page.wait_for_function("SabLens.state.run !== 'browser-run'")
    assert until(page, "done", "failed") == "done"
    recipe = Run.open(run_directory.parent / page.evaluate("SabLens.state.run")).recipe
    assert (recipe.linears, recipe.thresholds.salient_top_p, recipe.samples) == ((KEY,), 0.2, 8)
    assert page.evaluate("SabLens.state.tab") == "binarize"
    page.go_back()
    page.wait_for_function("SabLens.state.tab === 'explore'")


def test_a_stopped_run_keeps_its_layers_and_is_resumed_after_a_reload(visitor: Visitor) -> None:
    page = open_form(visitor)
    quick(page)
    number(page, "#binarize-samples", "256")  # long enough to be stopped after a reload, on a fast machine too
    page.click("#binarize-run")
    page.wait_for_selector("#binarize-progress .pg-facts strong")
    page.reload()
    page.wait_for_function("document.querySelector('#binarize-progress .pg-title')?.textContent.includes('SAB')")
    page.click("#binarize-stop", timeout=20_000)
    state = until(page, "stopped", "done")
    page.wait_for_function("SabLens.state.run !== 'browser-run'")
    if state == "stopped":
        assert "are finished and kept" in page.inner_text("#binarize-progress .pg-message")
        page.wait_for_function("document.querySelector('#binarize-runs tr.on .tag')?.textContent === 'unfinished'")
        page.click("#binarize-resume:enabled")
        page.wait_for_function("document.querySelector('#binarize-progress .pg').dataset.state === 'running'")
        assert until(page, "done", "failed") == "done"


def test_two_visitors_at_once_each_get_their_own_run(visitor: Visitor, another_visitor: Visitor) -> None:
    pages = [open_form(visitor), open_form(another_visitor)]
    for page, label in zip(pages, ("XNOR", "RTN 2-bit"), strict=True):
        quick(page)
        choose(page, label)
        tick(page, KEY)
    for page in pages:
        page.click("#binarize-run")
    for page, label in zip(pages, ("XNOR", "RTN 2-bit"), strict=True):
        page.wait_for_function("SabLens.state.run !== 'browser-run'")
        assert until(page, "done", "failed") == "done"
        assert label in page.inner_text("#binarize-progress .pg-title")
        assert label in page.inner_text("#binarize-runs tr.on")
    assert pages[0].evaluate("SabLens.state.run") != pages[1].evaluate("SabLens.state.run")


def test_a_run_is_named_pinned_and_deleted_and_the_link_stays_whole(visitor: Visitor, run_directory: Path) -> None:
    page = open_form(visitor)
    quick(page)
    choose(page, "XNOR")
    tick(page, KEY)
    made = run_one(page)
    page.click("#binarize-rename:enabled")
    # The box is there a moment before what the server writes into it, which would take the place of what is typed.
    page.wait_for_selector("#binarize-name :is(input, textarea)[placeholder^='XNOR']")
    page.fill("#binarize-name :is(input, textarea)", "my first <b>run</b>")
    page.click("#binarize-name-save")
    page.wait_for_selector("#binarize-runs tr.on th:has-text('my first <b>run</b>')")
    assert Run.open(run_directory.parent / made).label == "my first <b>run</b>"
    with visitor.slow() as under_way:
        page.click("#binarize-runs tr.on .tb-pin >> nth=0")
        under_way("pin_a")  # the server knows of this pin alone when the next is set
        page.click("#binarize-runs tr:has-text('browser-run') .tb-pin >> nth=1")
        page.wait_for_timeout(1000)
    page.wait_for_selector("#binarize-numbers thead:has-text('A: my first <b>run</b>')")
    page.go_back()  # a pin is a step
    page.wait_for_function("SabLens.state.pin_b === ''")
    said(page, "Pin one run", "#binarize-compare-notice")
    page.click("#binarize-delete:enabled")
    said(page, "cannot be undone", "#binarize-question")
    page.click("#binarize-delete-cancel")
    assert (run_directory.parent / made).exists()
    page.click("#binarize-delete:enabled")
    page.click("#binarize-delete-confirm")
    page.wait_for_function("(made) => SabLens.state.run !== made && SabLens.state.pin_a === ''", arg=made)
    page.wait_for_function("(made) => !SabLens.runs.some((run) => run.id === made)", arg=made)
    assert not (run_directory.parent / made).exists()
    assert visitor.errors == []


def test_a_recipe_goes_home_and_comes_back(visitor: Visitor, tmp_path: Path) -> None:
    page = open_form(visitor)
    quick(page)
    choose(page, "SAB-H")
    page.check("#binarize-budget input")
    page.wait_for_selector("#binarize-bits")
    number(page, "#binarize-bits", "1.75")
    tick(page, KEY)
    number(page, "#binarize-refine", "0")
    run_one(page)
    with page.expect_download() as waiting:
        page.click("#binarize-recipe-file")
    home = tmp_path / "recipe.json"
    waiting.value.save_as(home)
    recipe = json.loads(home.read_text())["recipe"]
    assert (recipe["method"], recipe["bits"], recipe["linears"], recipe["refine"]) == ("sab-h", 1.75, [KEY], 0)
    assert (recipe["block_size"], recipe["samples"]) == (256, 16)
    choose(page, "XNOR")
    home.write_text("{}")
    upload(page, home)
    said(page, "holds no recipe")
    home.write_text(json.dumps({"recipe": recipe}))
    upload(page, home)
    said(page, "recipe is in the form")
    page.wait_for_function("document.querySelector('#binarize-method input').value === 'SAB-H'")
    page.wait_for_selector("#binarize-layers .ly-cell[aria-pressed=true]")
    assert page.input_value("#binarize-bits input[type=number]") == "1.75"


def test_a_run_is_taken_home_as_a_zip(visitor: Visitor) -> None:
    page = open_form(visitor)
    with page.expect_download() as waiting:
        page.click("#binarize-download")
    assert waiting.value.suggested_filename == "browser-run.zip"
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        assert "browser-run/manifest.json" in archive.namelist()


def test_nothing_ticked_is_one_sentence(visitor: Visitor) -> None:
    page = open_form(visitor)
    page.check("#binarize-scope input[value='Chosen layers']")
    page.wait_for_selector("#binarize-layers details[open] .ly-cell")
    page.click("#binarize-run")
    said(page, "Tick at least one layer")
    page.click("#binarize-layers details[open] th[scope=row] button >> nth=0")
    assert page.inner_text("#binarize-layers .ly-count") == "7 layers ticked"
    assert page.locator(".toast-wrap .error").count() == 0


def test_nonsense_is_one_sentence(visitor: Visitor) -> None:
    page = open_form(visitor)
    tick(page, KEY)
    page.click("#binarize-more > button")
    number(page, "#binarize-damping", "-3")
    page.click("#binarize-run")
    said(page, "damping is -3")
    assert page.locator(".toast-wrap .error").count() == 0


def test_a_killed_worker_takes_one_job_down_and_not_the_page(visitor: Visitor) -> None:
    page = open_form(visitor)
    quick(page)
    number(page, "#binarize-samples", "64")
    page.click("#binarize-run")
    page.wait_for_selector("#binarize-progress .pg-facts strong")
    workers = workers_of(page.url)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert until(page, "failed", "done") == "failed"
    assert "the layers finished before are kept" in page.inner_text("#binarize-progress .pg-message")
    page.wait_for_function("document.querySelector('#binarize-runs tr.on .tag')?.textContent === 'unfinished'")
    number(page, "#binarize-samples", "16")
    choose(page, "XNOR")
    tick(page, KEY)
    run_one(page)


def workers_of(url: str) -> list[int]:
    """Process ids of the worker of the app that answers at `url`."""
    port = url.split(":")[2].split("/")[0]
    app = subprocess.run(["pgrep", "-f", f"app.py --port {port}"], capture_output=True, text=True, check=True)
    found = subprocess.run(["pgrep", "-P", app.stdout.split()[0], "-f", "spawn_main"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_thresholds_of_explore_come_along_and_own_ones_stay(visitor: Visitor) -> None:
    page = open_form(visitor, "&salient_top_p=0.2")
    value = "Number(document.querySelector('#binarize-salient_top_p input[type=number]').value)"
    page.wait_for_function(f"{value} === 0.2")
    number(page, "#binarize-salient_top_p", "0.3")
    page.evaluate("SabLens.update({diff_quantile: 0.7})")
    page.wait_for_function("Number(document.querySelector('#binarize-diff_quantile input[type=number]').value) === 0.7")
    assert page.evaluate(value) == 0.3
