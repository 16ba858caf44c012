"""Twenty people press Send at once: each waits in line, hears the place, and sees nothing of anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.conftest import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]
PEOPLE = 20
BOTH_DONE = """() => {
  const sides = [...document.querySelectorAll('.cv-turn:last-child .cv-answer')];
  return sides.length === 2 && sides.every((each) => each.dataset.state === 'done');
}"""


def colour(number: int) -> tuple[int, int, int]:
    return 10 * number, 255 - 10 * number, 60


@pytest.fixture
def crowd(browser: Browser, app_url: str, tmp_path: Path) -> Iterator[list[Page]]:
    """People with a browser of their own, a picture of their own on the canvas and a question written."""
    contexts, pages = [], []
    for number in range(PEOPLE):
        context = browser.new_context(viewport={"width": 1000, "height": 800})
        contexts.append(context)
        page = Visitor(context, app_url).open("?tab=chat&run=browser-run")
        page.set_default_timeout(600_000)
        page.wait_for_selector("#sketch canvas")
        page.wait_for_function("document.querySelector('#chat-right input').value.includes('SAB')")
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (90 + number, 90 + number), colour(number)).save(path)
        page.set_input_files("#sketch input[type=file]", path)
        page.wait_for_function(f"document.querySelector('#sketch canvas').width === {90 + number}")
        page.fill("#chat-prompt textarea", f"canary-{number:02d} What is this?")
        page.evaluate(
            """() => {
              window.places = new Set();
              const said = document.querySelector('#conversation');
              new MutationObserver(() => {
                const found = said.textContent.match(/Waiting: (\\d+) question/);
                if (found) window.places.add(Number(found[1]));
              }).observe(said, {subtree: true, childList: true, characterData: true});
            }"""
        )
        pages.append(page)
    yield pages
    for context in contexts:
        context.close()


def test_twenty_people_wait_in_line_and_see_only_their_own(crowd: list[Page]) -> None:
    for page in crowd:
        page.evaluate("document.querySelector('#chat-send').click()")
    waited = []
    for number, page in enumerate(crowd):
        page.wait_for_function(BOTH_DONE)
        text = page.inner_text("#conversation")
        assert f"canary-{number:02d}" in text
        assert not any(f"canary-{other:02d}" in text for other in range(PEOPLE) if other != number)
        shown = page.evaluate(
            """async () => {
              const picture = document.querySelector('.cv-question img');
              await picture.decode();
              const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
              canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
              pen.drawImage(picture, 0, 0);
              return [...pen.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
            }"""
        )
        assert max(abs(one - other) for one, other in zip(shown, colour(number), strict=True)) < 10
        waited.append(max(page.evaluate("[...window.places]"), default=0))
    assert max(waited) > 1  # short answers go fast, but some stood behind others, and were told so
