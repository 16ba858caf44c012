"""Chat as a person uses it: draw, ask, watch two streams, stop, go on; nobody reads another's words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from viz.pages.samples import samples

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
    """The page with all that it offers to begin with."""
    page = visitor.open("?tab=chat&run=browser-run")
    page.wait_for_selector("#sketch canvas")
    page.wait_for_function("document.querySelector('#chat-right input').value.includes('SAB')")
    page.wait_for_selector("#sketch .sk-samples button[aria-pressed=true]")
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value !== ''")
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
    # the whole answers come once more at the end; between their two halves there is nothing to compare
    page.wait_for_function("document.querySelector('.cv-turn:last-child .cv-verdict').textContent !== ''")
    assert "tokens" in page.inner_text(f"{LAST} .cv-verdict") or "token" in page.inner_text(f"{LAST} .cv-verdict")
    how = "packed kernel" if shutil.which("cc") else "simulated"  # compiled when the app started
    page.wait_for_selector(f".cv-head.right .tag:last-child:text-is('{how}')")  # told when both have ended
    assert page.locator(".cv-head.left .tag").count() == 0
    facts = page.inner_text(f"{LAST} .cv-answer.right .cv-foot")
    assert "first token" in facts
    page.locator(f"{LAST} .cv-answer.left .tok").first.focus()
    assert page.locator(".cv-tip.open .cv-top").count() == 2
    assert visitor.errors == []


def test_a_wide_picture_is_put_on_a_square_for_the_model_of_the_drawn_world(visitor: Visitor, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (200, 100), "red").save(wide)
    page = open_chat(visitor)
    page.set_input_files("#sketch input[type=file]", wide)
    page.wait_for_function("document.querySelector('#sketch canvas').width === 200")
    corners = page.evaluate(
        """() => {
          const canvas = document.querySelector('#sketch canvas'), pen = canvas.getContext('2d');
          const at = (x, y) => [...pen.getImageData(x, y, 1, 1).data].slice(0, 3);
          return [canvas.width, canvas.height, at(100, 100), at(100, 10), at(100, 190)];
        }"""
    )
    assert corners == [200, 200, [255, 0, 0], [255, 255, 255], [255, 255, 255]]


def test_one_press_shows_two_streams_to_somebody_who_has_just_come(visitor: Visitor) -> None:
    page = open_chat(visitor)
    asked = page.input_value("#chat-prompt textarea")
    assert len(asked) > 5
    page.click("#chat-send")
    finished(page, 1)
    assert page.inner_text(f"{LAST} .cv-question") == asked
    assert page.locator(f"{LAST} .cv-question img").count() == 1
    assert min(page.locator(f"{LAST} .cv-answer.{side} .tok").count() for side in ("left", "right")) > 0
    assert visitor.errors == []


def test_after_an_example_its_follow_up_stands_in_its_place(visitor: Visitor) -> None:
    found = samples().pictures[0].suggestions
    question, after = next(iter(found.follow_ups.items()))
    page = open_chat(visitor)
    page.click(f"#chat-examples button:text-is('{question}')")
    finished(page, 1)
    page.wait_for_selector(f"#chat-examples .ex-next:text-is('{after}')")
    page.click("#chat-edit:enabled")  # the question is in the box, to be replaced; what follows it does not do that
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value !== ''")
    page.locator("#chat-examples .ex-next").press("Enter")
    finished(page, 2)
    assert [page.inner_text(f".cv-turn:nth-child({turn}) .cv-question") for turn in (1, 2)] == [question, after]
    assert page.evaluate("document.activeElement.closest('#chat-examples') !== null")
    page.click(f"#chat-examples button:text-is('{question}')")
    finished(page, 3)
    page.wait_for_selector("#chat-examples .ex-next")
    page.click("#chat-clear")
    page.wait_for_selector(".cv-turn", state="detached")
    page.wait_for_selector("#chat-examples .ex-next", state="detached")
    assert visitor.errors == []


def test_an_example_is_asked_by_one_click_and_what_was_begun_stays(visitor: Visitor) -> None:
    page = open_chat(visitor)
    page.wait_for_selector("#chat-examples .ex button")
    page.fill("#chat-prompt textarea", "my own words")
    page.wait_for_selector("#chat-examples .ex button:not(.ex-shown) >> nth=1")
    example = page.locator("#chat-examples .ex button:not(.ex-shown)").nth(1)
    question = example.inner_text()
    example.click()
    finished(page, 1)
    assert page.inner_text(f"{LAST} .cv-question") == question
    assert page.input_value("#chat-prompt textarea") == "my own words"


def test_examples_follow_what_lies_on_the_canvas(visitor: Visitor) -> None:
    page = open_chat(visitor)
    shown = "[...document.querySelectorAll('#chat-examples button')].map((button) => button.textContent).join()"
    before = page.evaluate(shown)
    page.click("#sketch [data-do=clear]")
    page.wait_for_function(f"({shown}) !== {before!r}")
    assert "picture" not in page.input_value("#chat-prompt textarea")
    page.click("#sketch .sk-samples button >> nth=1")
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value.includes('picture')")


def test_what_is_typed_while_the_server_is_at_work_stays(visitor: Visitor) -> None:
    page = open_chat(visitor)
    with visitor.slow() as under_way:  # suggestions do not wait for the server
        page.click("#sketch [data-do=clear]")
        assert "picture" not in page.input_value("#chat-prompt textarea")
        page.click("#sketch .sk-samples button >> nth=1")
        assert "picture" in page.input_value("#chat-prompt textarea")
        page.fill("#chat-prompt textarea", "my own words")
        page.click("#sketch [data-do=clear]")
        assert page.input_value("#chat-prompt textarea") == "my own words"
        page.click("#chat-send")
        under_way("my own words")
        page.fill("#chat-prompt textarea", "my next words")
    finished(page, 1)
    assert page.inner_text(f"{LAST} .cv-question") == "my own words"
    assert page.input_value("#chat-prompt textarea") == "my next words"
    assert visitor.errors == []


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(visitor: Visitor) -> None:
    page = open_chat(visitor)
    send(page, "What is this?")
    finished(page, 1)
    page.click("#chat-settings > button")
    longest(page, 256)
    send(page, "Describe everything.")
    page.wait_for_function("document.querySelectorAll('.cv-turn')[1]?.querySelectorAll('.tok').length > 2")
    with visitor.turning():
        page.reload()
        finished(page, 2)
    assert page.inner_text(".cv-turn:first-child .cv-question").strip() == "What is this?"
    page.wait_for_function("document.querySelector('.sk-note').textContent.includes('goes with the question')")
    send(page, "Are you sure?")
    finished(page, 3)  # the picture is still the same one, so the conversation goes on
    assert "new conversation" not in page.inner_text("#chat-notice p")
    assert visitor.errors == []


def test_an_answer_that_a_reload_kept_from_beginning_is_begun_after_it(visitor: Visitor) -> None:
    page = open_chat(visitor)
    page.route("**/queue/join*", lambda route: route.abort())
    send(page, "What is this?")
    page.wait_for_function("document.querySelectorAll('.cv-answer[data-state=waiting]').length === 2")
    page.unroute("**/queue/join*")
    page.reload()
    finished(page, 1)
    assert page.locator(f"{LAST} .cv-answer[data-state=done]").count() == 2


def test_an_empty_question_and_a_broken_picture_get_one_sentence_each(visitor: Visitor, tmp_path: Path) -> None:
    page = open_chat(visitor)
    page.fill("#chat-prompt textarea", " ")
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
    assert page.locator(".cv img[src=x]").count() == 0
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
    page.click("#chat-settings > button")
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
    page.tap("#sketch .sk-samples button >> nth=1")
    page.wait_for_function("document.querySelector('#chat-prompt textarea').value.length > 3")
    assert "goes with the question" in page.inner_text(".sk-note")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.tap("#sketch [data-do=clear]")
    assert "the question goes alone" in page.inner_text(".sk-note")
    page.tap("#sketch [data-do=undo]")
    assert "goes with the question" in page.inner_text(".sk-note")
