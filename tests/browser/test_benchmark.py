"""Benchmark as a person uses it: evaluate, read the table and the charts, export."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser


def evaluate(page: Page, button: str) -> None:
    page.fill("#benchmark-questions input[type=number]", "50")
    page.press("#benchmark-questions input[type=number]", "Tab")
    page.click(button)
    page.wait_for_function("document.querySelector('#benchmark-progress .pg').dataset.state === 'done'")


def test_an_evaluation_reaches_the_table_the_charts_and_the_files(visitor: Visitor) -> None:
    page = visitor.open("?tab=benchmark&run=browser-run")
    page.wait_for_selector("#benchmark-run")
    evaluate(page, "#benchmark-run")
    page.wait_for_function("document.querySelector('#benchmark-table tr.on')?.textContent.includes('n = 50')")
    assert "SAB" in page.inner_text("#benchmark-table tr.on th")
    page.wait_for_selector("#benchmark-bits .scatterlayer .trace", state="attached")
    page.wait_for_selector("#benchmark-categories .barlayer .point", state="attached")
    page.wait_for_selector("#benchmark-parts .barlayer .point", state="attached")
    assert "do not predict" in page.inner_text("#benchmark-note")
    with page.expect_download() as waiting:
        page.click("#benchmark-json")
    rows = json.loads(waiting.value.path().read_text())["rows"]
    found = next(each for each in rows if each["run"] == "browser-run")
    assert found["counts"]["overall"] == 50
    assert found["blank_picture"]["counts"]["overall"] == 50
    with page.expect_download() as waiting:
        page.click("#benchmark-csv")
    with waiting.value.path().open() as text:
        line = next(each for each in csv.DictReader(text) if each["run"] == "browser-run")
    assert float(line["accuracy.overall"]) == found["accuracy"]["overall"]
    assert float(line["interval.overall.low"]) == found["interval"]["overall"][0]
    assert visitor.errors == []


def test_the_table_fits_a_phone_by_scrolling_inside(phone: Visitor) -> None:
    page = phone.open("?tab=benchmark&run=browser-run")
    page.wait_for_selector("#benchmark-table .tb")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
