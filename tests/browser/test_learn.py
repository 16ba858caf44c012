"""Learn as a person uses it: move the sliders, watch the figures and their sentences follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser


def slide(page: Page, chart: str, place: int, which: int = 0) -> str:
    """Move a slider of a chart with the keyboard's event; returns the sentence under the figure."""
    page.evaluate(
        """([chart, place, which]) => {
          const range = document.querySelectorAll(`${chart} input[type=range]`)[which];
          range.value = place;
          range.dispatchEvent(new Event('input', {bubbles: true}));
        }""",
        [chart, place, which],
    )
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.inner_text(f"{chart} .ch-words")


def open_learn(visitor: Visitor) -> Page:
    page = visitor.open("?tab=learn&run=browser-run")
    page.wait_for_selector("#learn-block .heatmaplayer image")
    return page


def test_the_microscope_goes_round_by_round(visitor: Visitor) -> None:
    page = open_learn(visitor)
    before = page.evaluate("document.querySelector('#learn-block .ch-plot').data[3].z")
    sentence = slide(page, "#learn-block", 5)
    assert sentence.startswith("Round 5:")
    assert "below the start" in sentence
    page.wait_for_function(
        "(before) => document.querySelector('#learn-block .ch-plot').data[3].z !== before", arg=before
    )
    page.click("#learn-other")
    page.wait_for_function("document.querySelector('#learn-bit .ch-words').textContent.includes('Row 32')")
    assert visitor.errors == []


def test_equal_significance_is_shared_and_unequal_is_not(visitor: Visitor) -> None:
    page = open_learn(visitor)
    page.wait_for_selector("#learn-sparsity .scatterlayer .trace", state="attached")
    slide(page, "#learn-sparsity", 2, 0)
    assert "ρ = 0.000" in slide(page, "#learn-sparsity", 2, 1)
    assert "vision needs this weight" in slide(page, "#learn-sparsity", 8, 1)


def test_a_ratio_of_one_half_switches_the_map_off(visitor: Visitor) -> None:
    page = open_learn(visitor)
    page.wait_for_selector("#learn-weighting .barlayer .point", state="attached")
    assert "changes nothing" in slide(page, "#learn-weighting", 10)
    assert "count more" in slide(page, "#learn-weighting", 20)


def test_each_step_leads_to_its_tab_and_fits_a_phone(phone: Visitor) -> None:
    page = open_learn(phone)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.click(".ln-step button[data-tab=binarize] >> nth=0")
    page.wait_for_function("SabLens.state.tab === 'binarize'")
    page.wait_for_selector("#binarize-run", state="visible")


def test_paper_gets_the_light_page_at_its_own_width(visitor: Visitor) -> None:
    page = visitor.open("?tab=learn&__theme=dark")
    page.wait_for_selector("#learn-bit .main-svg")
    width = "document.querySelector('#learn-bit .main-svg').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"{width} === 640")
    assert not page.evaluate("SabLens.dark")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"{width} === {before}")
    assert page.evaluate("SabLens.dark")
