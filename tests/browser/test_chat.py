"""Chat as a person uses it: draw, ask, watch two streams, stop, go on; nobody reads another's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor

pytestmark = pytest.mark.browser
LAST = ".cv-turn:last-child"


def send(page: Page, question: str) -> None:
    page.fill("#chat-prompt textarea", question)
    page.click("#chat-send")


def finished(page: Page, turns: int) -> None:
    """Wait until both sides of question number `turns` have ended."""
    page.wait_for_function(
        """(turns) => {
          const all = document.querySelectorAll('.cv-turn');
          const sides = all.length === turns ? [...all[turns - 1].querySelectorAll('.cv-answer')] : [];
          return sides.length === 2 && sides.every((side) => /done|stopped|failed/.test(side.dataset.state));
        }""",
        arg=turns,
    )


def longest(page: Page, tokens: int) -> None:
    page.fill("#chat-length input[type=number]", str(tokens))
    page.press("#chat-length input[type=number]", "Tab")


def open_chat(visitor: Visitor) -> Page:
    page = visitor.open("?tab=chat&run=browser-run")
    page.wait_for_selector("#sketch canvas")
    page.wait_for_function("document.querySelector('#chat-right input').value.includes('SAB')")
    return page


def test_both_models_answer_about_a_drawing_side_by_side(visitor: Visitor) -> None:
    page = open_chat(visitor)
    box = page.locator("#sketch canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 160, steps=8)
    page.mouse.up()
    assert "goes with the question" in page.inner_text(".sk-note")
    send(page, "What colour is the line?")
    finished(page, 1)
    assert page.locator(f"{LAST} .cv-question img").count() == 1
    sides = page.evaluate(
        """() => ['left', 'right'].map((side) => [...document.querySelectorAll(`.cv-answer.${side} .tok`)].length)"""
    )
    assert min(sides) > 0
    assert "tokens" in page.inner_text(f"{LAST} .cv-verdict") or "token" in page.inner_text(f"{LAST} .cv-verdict")
    assert page.locator(".cv-head.right .tag.warn").inner_text() == "simulated"
    assert page.locator(".cv-head.left .tag.warn").count() == 0
    facts = page.inner_text(f"{LAST} .cv-answer.right .cv-foot")
    assert "first token" in facts
    page.locator(f"{LAST} .cv-answer.left .tok").first.focus()
    assert page.locator(".cv-tip.open .cv-top").count() == 2
    assert visitor.errors == []


def test_an_empty_question_and_a_broken_picture_get_one_sentence_each(visitor: Visitor, tmp_path: Path) -> None:
    page = open_chat(visitor)
    page.click("#chat-send")
    page.wait_for_function("document.querySelector('#chat-notice p').textContent.includes('Write a question first')")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense" * 20)
    page.set_input_files("#sketch input[type=file]", str(broken))
    page.wait_for_function("document.querySelector('.sk-note').textContent.includes('could not be read')")
    text = tmp_path / "words.txt"
    text.write_text("not a picture")
    page.set_input_files("#sketch input[type=file]", str(text))
    page.wait_for_function("document.querySelector('.sk-note').textContent.includes('Only PNG')")
    assert page.locator(".cv-turn").count() == 0
    assert page.locator(".toast-wrap .error").count() == 0


def test_words_of_a_visitor_are_text_and_never_run(visitor: Visitor) -> None:
    page = open_chat(visitor)
    send(page, "<img src=x onerror='window.owned = true'> {{constructor}} ${1+1}")
    finished(page, 1)
    assert "<img src=x" in page.inner_text(f"{LAST} .cv-question")
    assert page.locator(f"{LAST} .cv-question img").count() == 0
    assert page.evaluate("window.owned") is None


def test_turns_follow_each_other_until_cleared(visitor: Visitor) -> None:
    page = open_chat(visitor)
    send(page, "How much is 2 plus 3?")
    finished(page, 1)
    send(page, "Are you sure?")
    finished(page, 2)
    page.click("#chat-clear")
    page.wait_for_function("document.querySelectorAll('.cv-turn').length === 0")


def test_escape_stops_both_sides_and_the_conversation_goes_on(visitor: Visitor) -> None:
    page = open_chat(visitor)
    page.click("#chat-settings button")
    page.wait_for_selector("#chat-length input[type=number]")
    longest(page, 256)
    send(page, "Describe everything.")
    page.wait_for_function("document.querySelectorAll('.cv-answer .tok').length > 4")
    page.keyboard.press("Escape")
    finished(page, 1)
    before = page.locator(".cv-answer.left .tok").count()
    assert before < 256
    page.wait_for_timeout(700)
    assert page.locator(".cv-answer.left .tok").count() == before
    longest(page, 16)
    page.click("#chat-again")
    page.wait_for_function("document.querySelectorAll('.cv-turn').length === 1")
    finished(page, 1)


def test_nobody_reads_another_visitors_words(visitor: Visitor, another_visitor: Visitor) -> None:
    one, other = open_chat(visitor), open_chat(another_visitor)
    send(one, "canary-one-7193")
    send(other, "canary-two-4482")
    finished(one, 1)
    finished(other, 1)
    assert "canary-two" not in one.content()
    assert "canary-one" not in other.content()


def test_a_sample_goes_to_the_canvas_with_its_question(phone: Visitor) -> None:
    page = open_chat(phone)
    page.wait_for_selector("#sketch .sk-samples button img")
    page.tap("#sketch .sk-samples button >> nth=0")
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value.length > 3")
    assert "goes with the question" in page.inner_text(".sk-note")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.tap("#sketch [data-do=clear]")
    assert "the question goes alone" in page.inner_text(".sk-note")
    page.tap("#sketch [data-do=undo]")
    assert "goes with the question" in page.inner_text(".sk-note")
