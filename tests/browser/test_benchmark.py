"""Benchmark as a person uses it: evaluate, read the table and the charts, export."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser


def evaluate(page: Page) -> None:
    page.fill("#benchmark-questions input[type=number]", "50")
    page.press("#benchmark-questions input[type=number]", "Tab")
    # gradio hands the value on when it next draws; a click before that would send the old one
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.click("#benchmark-run")
    page.wait_for_function("document.querySelector('#benchmark-progress .pg').dataset.state === 'done'")


@pytest.fixture
def twin(run_directory: Path) -> Iterator[None]:
    """A second run of one's own, with a name."""
    made = run_directory.parent / "twin"
    shutil.copytree(run_directory, made)
    (made / "label.txt").write_text("Twin")
    yield
    shutil.rmtree(made)


def test_an_evaluation_of_two_runs_reaches_the_table_the_charts_and_the_files(visitor: Visitor, twin: None) -> None:
    page = visitor.open("?tab=benchmark&run=browser-run")
    page.wait_for_selector("#benchmark-models .token")  # the run of the page is chosen
    page.click("#benchmark-models input")
    page.locator("#benchmark-models li", has_text="Twin").click()
    page.press("#benchmark-models input", "Escape")
    evaluate(page)
    page.wait_for_function("document.querySelector('#benchmark-table tr.on')?.textContent.includes('n = 50')")
    assert "n = 50" in page.locator("#benchmark-table tr", has_text="Twin").inner_text()
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


def test_the_shipped_comparison_is_shown_for_the_embedded_model(visitor: Visitor) -> None:
    shipped = json.loads((Path(__file__).parents[2] / "assets" / "comparison.json").read_text())
    page = visitor.open("?tab=benchmark")
    page.wait_for_selector("#comparison-bits .scatterlayer .trace", state="attached")
    page.wait_for_selector("#comparison-distance .scatterlayer .trace", state="attached")
    assert page.locator("#comparison-table tbody tr").count() == len(shipped["rows"])
    assert f"{shipped['questions']:,} questions" in page.inner_text("#comparison-heading")
    assert "SAB against ARB-RC + CGB" in page.inner_text("#comparison-findings")
    with page.expect_download() as waiting:
        page.click("#comparison-json")
    rows = json.loads(waiting.value.path().read_text())["rows"]
    assert {each["entry"]: each["accuracy"] for each in rows} == {
        each["entry"]: each["accuracy"] for each in shipped["rows"]
    }
    assert visitor.errors == []


def test_a_question_that_a_run_gets_wrong_goes_to_chat_with_its_picture(visitor: Visitor) -> None:
    page = visitor.open("?tab=benchmark&run=sab")
    page.wait_for_selector(".qb-card")
    page.select_option(".qb-choice select[data-name=category]", "counting")
    page.wait_for_function(
        "[...document.querySelectorAll('.qb-head')].every((each) => each.textContent.includes('counting'))"
    )
    card = page.locator(".qb-card").first
    assert any("SAB" in text for text in card.locator(".qb-answers li.wrong").all_inner_texts())
    assert "Full precision" in card.locator(".qb-answers li.right").first.inner_text()
    prompt = card.locator(".qb-prompt").inner_text()
    card.locator(".qb-send").click()
    page.wait_for_function("(text) => document.querySelector('#chat-prompt textarea')?.value === text", arg=prompt)
    page.wait_for_function("!document.querySelector('#sketch .sk-stage').classList.contains('blank')")
    assert visitor.errors == []


def test_figures_that_came_with_the_program_stay_as_they_are(visitor: Visitor) -> None:
    shipped = Path(__file__).parents[2] / "assets" / "runs"
    before = {path: path.read_bytes() for path in shipped.glob("*/accuracy.json")}
    page = visitor.open("?tab=benchmark")
    page.wait_for_selector("#benchmark-table tbody tr")
    page.click("#benchmark-models input")
    page.wait_for_selector("#benchmark-models li")
    offered = page.locator("#benchmark-models li").all_inner_texts()
    assert not {"Full precision", "XNOR", "BiLLM"} & {name.strip() for name in offered}
    assert {path: path.read_bytes() for path in shipped.glob("*/accuracy.json")} == before


@pytest.fixture
def crowd(run_directory: Path) -> Iterator[int]:
    """Runs that lie close: the same codes, accuracies a fraction of a point apart."""
    made = [run_directory.parent / f"crowd-{number}" for number in range(4)]
    for number, directory in enumerate(made):
        shutil.copytree(run_directory, directory)
        value = 0.64 + 0.004 * number
        stored = {"accuracy": {"overall": value}, "interval": {"overall": [value - 0.04, value + 0.04]}}
        (directory / "accuracy.json").write_text(json.dumps({**stored, "counts": {"overall": 400}}))
    yield len(made)
    for directory in made:
        shutil.rmtree(directory)


@pytest.mark.parametrize("screen", ["visitor", "phone"])
def test_names_of_close_runs_do_not_overlap(request: pytest.FixtureRequest, crowd: int, screen: str) -> None:
    page = request.getfixturevalue(screen).open("?tab=benchmark&run=browser-run")
    page.wait_for_function(
        "(least) => document.querySelectorAll('#benchmark-bits .annotation-text-g').length >= least", arg=crowd
    )
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('#benchmark-bits .annotation-text-g')].map((each) => {
          const {left, right, top, bottom} = each.getBoundingClientRect();
          return [left, right, top, bottom];
        })"""
    )
    for one, other in itertools.combinations(boxes, 2):
        beside = one[1] <= other[0] + 1 or other[1] <= one[0] + 1
        assert beside or one[3] <= other[2] + 1 or other[3] <= one[2] + 1, (one, other)


def test_the_table_fits_a_phone_by_scrolling_inside(phone: Visitor) -> None:
    page = phone.open("?tab=benchmark&run=browser-run")
    page.wait_for_selector("#benchmark-table .tb")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
