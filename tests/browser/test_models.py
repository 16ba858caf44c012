"""Another model in the page as a person opens it: by the name at the top, from a folder, from the hub, by a link."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Visitor
    from tests.hub_server import Hub

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
NAME = "somebody/tiny-qwen"
BOTH_DONE = """() => {
  const sides = [...document.querySelectorAll('.cv-turn:last-child .cv-answer')];
  return sides.length === 2 && sides.every((each) => each.dataset.state === 'done');
}"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, run_directory: Path) -> Path:
    """The tiny model's folder, and a run of it among the runs of the page."""
    from sab import models
    from sab.recipes import Recipe
    from sab.sequential import quantize
    from tests.tiny import tiny_folder

    folder = Path(shutil.copytree(tiny_folder(), tmp_path_factory.mktemp("models") / "tiny-qwen"))
    lvlm = models.load(str(folder))
    for _ in quantize(lvlm, Recipe(model=str(folder), samples=8, iterations=4), run_directory.parent / "tiny-run"):
        pass
    return folder


def open_dialog(visitor: Visitor, query: str = "") -> Page:
    page = visitor.open(query)
    page.wait_for_function("!!SabLens.chooseModel")
    page.click(".sab-model")
    page.wait_for_selector(".sab-models .mo-row")
    return page


def ask(page: Page, name: str) -> None:
    page.fill("#sab-models-name", name)
    page.click(".mo-form button")


def said(page: Page, words: str) -> None:
    page.wait_for_function("(words) => document.querySelector('.mo-said').textContent.includes(words)", arg=words)


def there(page: Page, name: str) -> None:
    """Wait until the page of the model is up."""
    page.wait_for_function("(name) => window.SabLens && SabLens.model === name", arg=name)


def test_a_folder_is_opened_looked_at_and_asked_and_the_back_button_returns(visitor: Visitor, tiny: Path) -> None:
    page = open_dialog(visitor, "?run=browser-run")
    assert page.inner_text(".mo-row[aria-current] strong") == "demo-model"
    page.fill("#sab-models-name", str(tiny))
    page.press("#sab-models-name", "Enter")
    page.wait_for_url("**/m/tiny-qwen-*/**")
    there(page, "tiny-qwen")
    page.wait_for_function("document.title.endsWith('tiny-qwen · SAB Lens')")
    page.wait_for_selector(".sab-grid .heatmaplayer image")
    assert page.evaluate("SabLens.runs.map((run) => run.id)") == ["tiny-run"]  # and none of the other model
    page.wait_for_function("SabLens.explore && SabLens.explore.lastOpen > 0")
    assert page.evaluate("SabLens.explore.linears.length") == 14
    page.evaluate("SabLens.update({tab: 'chat'}, {push: true})")
    page.wait_for_function("document.querySelector('#chat-right input')?.value.includes('SAB')")
    page.fill("#chat-prompt textarea", "What is here?")
    page.click("#chat-send")
    page.wait_for_function(BOTH_DONE)
    assert "What is here?" in page.inner_text("#conversation")
    page.go_back()  # to Explore
    with visitor.turning():
        page.go_back()  # to the model that was open before
        there(page, "demo-model")
    page.wait_for_selector(".sab-grid .heatmaplayer image")
    ids = page.evaluate("SabLens.runs.map((run) => run.id)")
    assert "browser-run" in ids
    assert "tiny-run" not in ids
    page.click(".sab-model")  # and it stands in the list
    page.wait_for_selector(f".mo-row[data-model='{tiny}']")
    assert not visitor.errors


def test_two_people_with_two_models_do_not_see_each_other(
    visitor: Visitor, another_visitor: Visitor, tiny: Path
) -> None:
    page = open_dialog(visitor)
    ask(page, str(tiny))
    there(page, "tiny-qwen")
    link = page.evaluate("SabLens.link()")
    other = another_visitor.open("?tab=chat")
    other.fill("#chat-prompt textarea", "canary-first")
    other.click("#chat-send")
    other.wait_for_function(BOTH_DONE)
    page.evaluate("SabLens.update({tab: 'chat'}, {push: true})")
    page.wait_for_selector("#chat-prompt textarea")
    page.fill("#chat-prompt textarea", "canary-second")
    page.click("#chat-send")
    page.wait_for_function(BOTH_DONE)
    assert "canary-first" not in page.inner_text("body")
    assert "canary-second" not in other.inner_text("body")
    other.goto(link)  # the link restores the model
    there(other, "tiny-qwen")
    assert "canary-second" not in other.inner_text("body")


def test_wrong_names_are_one_sentence_each(visitor: Visitor, tmp_path: Path) -> None:
    page = open_dialog(visitor)
    ask(page, "/nowhere/at/all")
    said(page, "There is no folder /nowhere/at/all")
    ask(page, "   ")
    said(page, "Write a Hugging Face id")
    ask(page, str(tmp_path))
    page.wait_for_function("document.querySelector('.sab-models .pg').dataset.state === 'failed'")
    assert "could not be loaded" in page.inner_text(".sab-models .pg-message")
    ask(page, "nobody/has-this")
    page.wait_for_function(
        "document.querySelector('.sab-models .pg-message').textContent.includes('There is no model nobody/has-this')"
    )
    assert page.evaluate("document.querySelector('.sab-models').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('.sab-models').open")


def test_a_download_shows_how_far_it_is_is_stopped_and_goes_on(visitor: Visitor, hub: Hub, tiny: Path) -> None:
    hub.repositories[NAME] = tiny
    hub.flowing.clear()
    page = open_dialog(visitor)
    ask(page, f"https://huggingface.co/{NAME}")
    stage = "document.querySelector('.sab-models .pg-stage').textContent"
    page.wait_for_function(f"/Downloading: .* of 2 MB/.test({stage})")
    page.wait_for_function("/ %$/.test(document.querySelector('.sab-model').dataset.opening)")
    page.reload()  # the opening goes on, and the page finds it again
    page.wait_for_function("!!document.querySelector('.sab-model')?.dataset.opening")
    page.click(".sab-model")
    page.click(".mo-actions button:has-text('Cancel')")
    said(page, "Stopped. Files that had come whole are kept")
    hub.flowing.set()
    hub.asked.clear()
    ask(page, NAME)
    page.wait_for_url("**/m/somebody--tiny-qwen/**")
    there(page, NAME)
    assert "config.json" not in hub.downloads()
    assert "model.safetensors" in hub.downloads()


def test_what_another_website_sends_opens_nothing(visitor: Visitor, tiny: Path) -> None:
    page = visitor.open()
    config = json.loads(page.evaluate("fetch('config').then((answer) => answer.text())"))
    dialog = next(each for each in config["components"] if "mountModels" in str(each["props"].get("js_on_load", "")))
    body = {"session_hash": "x", "component_id": dialog["id"], "fn_name": "open", "data": {"model": str(tiny)}}
    forged = urllib.request.Request(
        f"{visitor.url}gradio_api/component_server",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Origin": "https://evil.example"},
    )
    with urllib.request.urlopen(forged) as answer:
        assert "did not come from the page itself" in json.loads(answer.read())["error"]


def test_the_dialog_fits_a_phone_and_a_strange_link_is_one_sentence(phone: Visitor) -> None:
    page = phone.page
    page.goto(f"{phone.url}m/gone-0123abcd/?tab=chat")
    page.wait_for_selector(".sab-models[open] .mo-row")
    said(page, "opened on another machine")
    box = page.locator(".sab-models").bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click(".mo-actions button:has-text('Close')")
    page.wait_for_function("SabLens.state.tab === 'chat'")
    assert "/m/" not in page.url
