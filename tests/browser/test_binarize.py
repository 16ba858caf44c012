"""Binarize as a person uses it: run one layer, watch it, find it everywhere, stop, resume, take it home."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser


def open_form(visitor: Visitor, query: str = "") -> Page:
    page = visitor.open("?tab=binarize&run=browser-run" + query)
    page.wait_for_function("document.querySelector('#binarize-method input').value === 'SAB'")
    page.wait_for_selector("#binarize-runs tbody tr")
    return page


def number(page: Page, place: str, value: str) -> None:
    page.fill(f"{place} input[type=number]", value)
    page.press(f"{place} input[type=number]", "Tab")


def until(page: Page, *states: str) -> str:
    """Wait until the job is in one of the states; returns the state."""
    page.wait_for_function(
        "(states) => states.includes(document.querySelector('#binarize-progress .pg').dataset.state)", arg=list(states)
    )
    return str(page.evaluate("document.querySelector('#binarize-progress .pg').dataset.state"))


def quick(page: Page) -> None:
    """Few samples, no questions."""
    page.click("#binarize-more > button")
    number(page, "#binarize-samples", "16")
    number(page, "#binarize-questions", "0")


def test_the_layer_in_explore_is_run_again_and_chosen(visitor: Visitor, another_visitor: Visitor) -> None:
    page = open_form(visitor)
    quick(page)
    page.check("#binarize-scope input[value='The layer in Explore']")
    page.wait_for_function("document.querySelector('#binarize-notice p').textContent.includes('Explore shows')")
    before = page.locator("#binarize-runs tbody tr").count()
    page.click("#binarize-run")
    assert until(page, "done", "failed") == "done"
    page.wait_for_function(
        "(before) => document.querySelectorAll('#binarize-runs tbody tr').length > before", arg=before
    )
    page.wait_for_function("SabLens.state.run !== 'browser-run'")
    page.wait_for_selector("#binarize-errors .barlayer .point", state="attached")
    facts = page.inner_text("#binarize-progress .pg-facts")
    assert "all-in" in facts
    assert "nominal" in facts
    made = page.evaluate("SabLens.state.run")
    other = open_form(another_visitor)
    assert made in other.inner_text("#binarize-runs")
    assert other.evaluate("SabLens.state.run") == "browser-run"
    assert visitor.errors == []


def test_a_stopped_run_keeps_its_layers_and_is_resumed_after_a_reload(visitor: Visitor) -> None:
    page = open_form(visitor)
    quick(page)
    number(page, "#binarize-samples", "512")  # long enough to be stopped after a reload, on a fast machine too
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
        page.click("#binarize-resume")
        page.wait_for_function("document.querySelector('#binarize-progress .pg').dataset.state === 'running'")
        assert until(page, "done", "failed") == "done"


def test_a_run_is_taken_home_as_a_zip(visitor: Visitor) -> None:
    page = open_form(visitor)
    with page.expect_download() as waiting:
        page.click("#binarize-download")
    assert waiting.value.suggested_filename == "browser-run.zip"
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        assert "browser-run/manifest.json" in archive.namelist()


def test_a_block_that_is_not_there_is_one_sentence(visitor: Visitor) -> None:
    page = open_form(visitor)
    page.check("#binarize-scope input[value='One block']")
    page.wait_for_selector("#binarize-block input")
    number(page, "#binarize-block", "99")
    page.click("#binarize-run")
    page.wait_for_function("document.querySelector('#binarize-notice p').textContent.includes('no block 99')")
    assert page.locator(".toast-wrap .error").count() == 0


def test_thresholds_of_explore_come_along_and_own_ones_stay(visitor: Visitor) -> None:
    page = open_form(visitor, "&salient_top_p=0.2")
    value = "Number(document.querySelector('#binarize-salient_top_p input[type=number]').value)"
    page.wait_for_function(f"{value} === 0.2")
    number(page, "#binarize-salient_top_p", "0.3")
    page.evaluate("SabLens.update({diff_quantile: 0.7})")
    page.wait_for_function(
        "Number(document.querySelector('#binarize-diff_quantile input[type=number]').value) === 0.7"
    )
    assert page.evaluate(value) == 0.3
