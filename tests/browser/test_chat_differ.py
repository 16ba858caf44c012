"""Chat beyond the answers: why they differ, another token, another question, and the conversation as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_chat import LAST, finished, open_chat, send

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser


def search(page: Page) -> None:
    """Press the button and wait for the whole map."""
    page.click(".df .sab-button.primary")
    page.wait_for_function("document.querySelector('.df-head').textContent.includes('Search again')")


def test_the_layer_that_made_the_difference_is_three_clicks_away_and_opens_in_explore(visitor: Visitor) -> None:
    page = open_chat(visitor)
    page.click("#chat-send")
    finished(page, 1)
    page.wait_for_selector(f"{LAST} .cv-answer.left .cv-bar")  # each side is read through by itself
    bars = page.locator(f"{LAST} .cv-answer.left .cv-bar").count()
    assert bars == page.locator(f"{LAST} .cv-answer.left .tok").count()
    search(page)
    assert page.locator(".df-map button.df-cell").count() == 48  # 6 blocks of 7 linears, and each block whole
    assert page.locator(".df-map button.df-cell.empty").count() == 0
    shares = [int(text.split()[0].replace("−", "-")) for text in page.locator(".df-rank b").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    page.click(".df-tools button >> text=Swap in")
    assert page.locator(".df-tools button[aria-pressed=true] >> text=Swap in").count() == 1
    page.click(".df-rank button >> nth=0")
    page.wait_for_selector(".df-picture img")
    assert page.locator(".df-net span").count() == 16
    named = page.inner_text(".df-layer h3 >> nth=0")
    page.click(".df-layer button >> text=Open in Explore")
    page.wait_for_function("SabLens.state.tab === 'explore'")
    block, kind = named.replace("block ", "").split(" · ")
    assert f"layers.{block}." in page.evaluate("SabLens.state.linear")
    assert page.evaluate("SabLens.state.linear").endswith(kind)
    assert visitor.errors == []


def test_a_side_goes_on_from_the_token_that_was_pressed(phone: Visitor) -> None:
    page = open_chat(phone)
    page.tap("#chat-send")
    finished(page, 1)
    page.wait_for_selector(f"{LAST} .cv-answer.left .cv-bar")  # each side is read through by itself
    right = page.inner_text(f"{LAST} .cv-answer.right .cv-text")
    page.locator(f"{LAST} .cv-answer.left .tok").first.tap()
    page.wait_for_selector(".cv-tip.pinned button.row:not([disabled])")
    candidate = page.locator(".cv-tip.pinned .cv-top.left button.row:not([disabled])").first
    word = candidate.locator("code").inner_text()
    candidate.tap()
    page.wait_for_selector(f"{LAST} .cv-answer.left .tok.forced")
    finished(page, 1)
    assert page.inner_text(f"{LAST} .cv-answer.left .tok.forced").strip() == word.strip("␣")
    assert page.inner_text(f"{LAST} .cv-answer.right .cv-text") == right
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def test_the_last_question_is_edited_and_the_conversation_saved(visitor: Visitor, tmp_path: Path) -> None:
    page = open_chat(visitor)
    page.click("#sketch [data-do=clear]")
    send(page, "How much is 2 plus 3?")
    finished(page, 1)
    page.click("#chat-edit")
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value.startsWith('How much')")
    page.wait_for_function("document.querySelector('#chat-send').textContent.includes('edited')")
    send(page, "How much is 3 plus 3?")
    page.wait_for_function("document.querySelector('.cv-question').textContent.includes('3 plus 3')")
    finished(page, 1)
    with page.expect_download() as saving:
        page.click("#chat-json")
    saving.value.save_as(tmp_path / "chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert [turn["question"] for turn in saved["turns"]] == ["How much is 3 plus 3?"]
    times = [token["at"] for side in ("left", "right") for token in saved["turns"][0][side]["tokens"]]
    assert min(times) > 1.7e9
    with page.expect_download() as saving:
        page.click("#chat-markdown")
    saving.value.save_as(tmp_path / "chat.md")
    assert "## 1. How much is 3 plus 3?" in (tmp_path / "chat.md").read_text(encoding="utf-8")
    assert visitor.errors == []


def test_a_question_from_another_page_is_asked_with_its_picture_and_run(visitor: Visitor) -> None:
    page = visitor.open("?tab=explore&run=browser-run")
    page.evaluate(
        """() => {
          SabLens.update({ tab: 'chat' }, { push: true });
          const canvas = document.createElement('canvas');
          canvas.width = canvas.height = 112;
          canvas.getContext('2d').fillRect(10, 10, 40, 40);
          const detail = { text: 'What is this?', picture: canvas.toDataURL(), right: '' };
          document.dispatchEvent(new CustomEvent('sab:ask', { detail }));
        }"""
    )
    finished(page, 1)
    assert page.inner_text(f"{LAST} .cv-question") == "What is this?"
    assert page.locator(f"{LAST} .cv-question img").count() == 1
    assert page.inner_text(".cv-head.right h3") == "Full precision"
    assert "nothing to attribute" in page.inner_text(".df")
