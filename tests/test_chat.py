import io
import math
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from sab import chat
from sab.errors import SabError
from tests.tiny import picture, tiny

PROMPT = "What is here?"


def _generate(lvlm, inputs, count: int) -> list[int]:
    """transformers' own greedy generation; kept apart because it leaves positions in the model."""
    output = lvlm.model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("shown", [picture(3), None])
def test_the_stream_is_what_generate_says(shown) -> None:
    lvlm, reference = tiny(), tiny()
    lvlm.model.generation_config.eos_token_id = lvlm.model.config.vocab_size = 10**6  # nothing ends it
    events = list(chat.stream(lvlm, PROMPT, shown, max_new_tokens=12))
    assert [event.token_id for event in events] == _generate(reference, reference.prepare(PROMPT, shown), 12)


def test_a_text_after_a_picture_is_answered_as_by_a_fresh_model() -> None:
    used, fresh = tiny(), tiny()
    list(chat.stream(used, PROMPT, picture(), max_new_tokens=3))
    after = [event.token_id for event in chat.stream(used, PROMPT, max_new_tokens=6)]
    assert after == [event.token_id for event in chat.stream(fresh, PROMPT, max_new_tokens=6)]


def test_probabilities_are_those_of_a_pass_without_a_cache() -> None:
    lvlm = tiny()
    events = list(chat.stream(lvlm, PROMPT, max_new_tokens=5))
    inputs = lvlm.prepare(PROMPT)
    length = inputs["input_ids"].shape[1]
    inputs = lvlm.extend(inputs, [event.token_id for event in events])
    with torch.no_grad():
        logits = lvlm.model(**lvlm.forward_arguments(inputs)).logits[0, length - 1 : -1]
    expected = torch.log_softmax(logits, -1)
    for event, row in zip(events, expected, strict=True):
        assert event.logprob == pytest.approx(float(row[event.token_id]), abs=1e-3)
        assert len(event.top) == 5
        assert event.top[0][1] == pytest.approx(math.exp(event.logprob), rel=1e-5)
        assert [p for _, p in event.top] == sorted((p for _, p in event.top), reverse=True)
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)


def test_an_answer_goes_on_from_what_it_has_to_begin_with() -> None:
    lvlm = tiny()
    whole = list(chat.stream(lvlm, PROMPT, picture(), max_new_tokens=9))
    ids = [event.token_id for event in whole]
    again = list(chat.stream(lvlm, PROMPT, picture(), max_new_tokens=9, begun=ids[:4]))
    assert [event.token_id for event in again] == ids[3:]
    assert [event.logprob for event in again] == pytest.approx([event.logprob for event in whole[3:]], abs=1e-3)
    assert whole[0].top_ids[0] == ids[0]
    other = next(each for each in whole[2].top_ids if each not in (ids[2], lvlm.image_token_id))
    turned = list(chat.stream(lvlm, PROMPT, picture(), max_new_tokens=9, begun=[*ids[:2], other]))
    assert turned[0].token_id == other
    assert turned[0].logprob == pytest.approx(math.log(whole[2].top[whole[2].top_ids.index(other)][1]), abs=1e-3)
    read = chat.answer_logprobs(lvlm, PROMPT, picture(), [*ids[:2], other])
    assert float(read[-1, other]) == pytest.approx(turned[0].logprob, abs=1e-3)


def test_each_token_carries_the_time_it_came() -> None:
    before = time.time()
    events = list(chat.stream(tiny(), PROMPT, max_new_tokens=4))
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert before <= events[0].at <= events[-1].at <= time.time()


def test_an_answer_without_tokens_cannot_be_read() -> None:
    with pytest.raises(SabError, match="no answer yet"):
        chat.answer_logprobs(tiny(), PROMPT, None, [])
    with pytest.raises(SabError, match="stands for a picture"):
        chat.answer_logprobs(tiny(), PROMPT, None, [70, tiny().image_token_id, 71])


def test_texts_add_up_to_the_answer() -> None:
    lvlm = tiny()
    events = list(chat.stream(lvlm, PROMPT, picture(2), max_new_tokens=30, temperature=1.0, seed=4))
    shown = "".join(event.text for event in events)
    assert lvlm.tokenizer.decode([event.token_id for event in events], skip_special_tokens=True).startswith(shown)
    assert shown


def test_sampling_follows_the_seed() -> None:
    lvlm = tiny()

    def draw(seed: int, temperature: float = 1.5) -> list[int]:
        events = chat.stream(lvlm, PROMPT, max_new_tokens=8, temperature=temperature, seed=seed)
        return [event.token_id for event in events]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1, 0.0) == draw(2, 0.0)


def test_a_stop_takes_effect_before_the_next_token() -> None:
    stop = threading.Event()
    seen = 0
    for _ in chat.stream(tiny(), PROMPT, max_new_tokens=20, stop=stop):
        seen += 1
        if seen == 3:
            stop.set()
    assert seen == 3
    assert list(chat.stream(tiny(), PROMPT, stop=stop)) == []


def test_the_end_token_ends_the_answer_without_text() -> None:
    lvlm = tiny()
    second = list(chat.stream(lvlm, PROMPT, max_new_tokens=2))[1].token_id
    lvlm.model.generation_config.eos_token_id = [second]
    events = list(chat.stream(lvlm, PROMPT, max_new_tokens=20))
    assert events[-1].token_id == second
    assert events[-1].text == ""
    assert len(events) <= 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_new_tokens": 0}, "new tokens"),
        ({"max_new_tokens": True}, "new tokens"),
        ({"max_new_tokens": 500}, "context"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(SabError, match=sentence):
        next(chat.stream(tiny(), PROMPT, **options))


@pytest.mark.parametrize(
    "messages",
    [
        "  ",
        [],
        [{"role": "user", "content": ""}],
        [{"role": "robot", "content": "hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    ],
)
def test_messages_that_ask_nothing_are_refused(messages) -> None:
    with pytest.raises(SabError):
        next(chat.stream(tiny(), messages))


def test_first_divergence() -> None:
    def answer(*tokens: int) -> list[chat.TokenEvent]:
        return [chat.TokenEvent("", token, 0.0, [], 0.0) for token in tokens]

    assert chat.first_divergence(answer(1, 2, 3), answer(1, 2, 3)) is None
    assert chat.first_divergence(answer(1, 2, 3), answer(1, 5, 3)) == 1
    assert chat.first_divergence(answer(1, 2), answer(1, 2, 3)) is None
    assert chat.first_divergence([], answer(1)) is None


def _bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_pictures_open_from_paths_bytes_and_memory(tmp_path: Path, kind: str) -> None:
    data = _bytes(picture(), kind)
    (tmp_path / "p").write_bytes(data)
    for source in (data, tmp_path / "p", str(tmp_path / "p"), picture()):
        opened = chat.open_picture(source)
        assert (opened.mode, opened.size) == ("RGB", (56, 56))


def test_pictures_are_upright_and_transparent_parts_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert chat.open_picture(_bytes(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert chat.open_picture(_bytes(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "source",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\nrest", _bytes(picture(), "GIF"), _bytes(picture(), "PNG")[:200], "no/file.png"],
)
def test_unreadable_pictures_are_one_sentence(source) -> None:
    with pytest.raises(SabError, match="cannot be read; use a PNG, JPEG or WebP file"):
        chat.open_picture(source)


def test_a_picture_too_large_is_refused_before_it_is_decoded(monkeypatch) -> None:
    monkeypatch.setattr(chat, "MAX_PICTURE_PIXELS", 100)
    with pytest.raises(SabError, match="smaller"):
        chat.open_picture(_bytes(picture(), "PNG"))
