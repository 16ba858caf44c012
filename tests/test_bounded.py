"""What a checkpoint's template may take: it is stopped past a limit, and nothing else is disturbed."""

import threading
import time

import pytest

from sab.bounded import Halted, bounded
from sab.errors import SabError
from tests.tiny import tiny


def forever() -> None:
    while True:
        pass


def test_what_goes_on_for_ever_is_stopped() -> None:
    started = time.monotonic()
    with pytest.raises(Halted):
        bounded(forever, seconds=0.2)
    assert time.monotonic() - started < 5
    time.sleep(0.1)  # nothing comes afterwards
    assert bounded(lambda: 7, seconds=0.2) == 7


def test_what_fills_the_memory_is_stopped() -> None:
    def grow() -> None:
        kept = []
        while True:
            kept.append(bytes(1 << 20))

    with pytest.raises(Halted):
        bounded(grow, seconds=60, most_bytes=100 << 20)


def test_another_thread_is_left_alone() -> None:
    ended = threading.Event()

    def patient() -> None:
        for _ in range(50):
            time.sleep(0.01)
        ended.set()

    thread = threading.Thread(target=patient)
    thread.start()
    with pytest.raises(Halted):
        bounded(forever, seconds=0.1)
    thread.join()
    assert ended.is_set()


def test_an_error_of_the_call_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("{{ raise_exception('no system turns') }}", "refuses this conversation .no system turns"),
        ("{{ 1 // 0 }}", "refuses this conversation"),
        ("{{ messages[7].content }}", "refuses this conversation"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(
    template: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvlm = tiny()
    monkeypatch.setattr(bounded, "__defaults__", (0.3, 1 << 30))
    monkeypatch.setattr(lvlm.processor, "chat_template", template)
    with pytest.raises(SabError, match=sentence):
        lvlm.prepare("What is this?")


def test_a_checkpoint_without_a_template_gets_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = tiny()
    monkeypatch.setattr(lvlm.processor, "chat_template", None)
    monkeypatch.setattr(lvlm.tokenizer, "chat_template", None)
    said = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "red"}]
    inputs = lvlm.prepare(said)
    text = lvlm.tokenizer.decode(inputs["input_ids"][0])
    assert "What is this?" in text
    assert "red" in text
    answers = lvlm.template.answer_mask(said, None, inputs)
    assert "red" in lvlm.tokenizer.decode(inputs["input_ids"][0][answers])
