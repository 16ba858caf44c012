"""The bench of the chat measures two streams that really run at once."""

from types import SimpleNamespace

import pytest

from sab import bench_chat
from sab.errors import SabError
from tests.tiny import picture, tiny


def questions(count: int) -> list:
    return [SimpleNamespace(prompt="What is here?", picture=picture(number)) for number in range(count)]


def test_both_sides_are_measured_while_both_run() -> None:
    one, other = tiny(), tiny()
    for lvlm in (one, other):
        lvlm.model.generation_config.eos_token_id = 10**6
    answers = bench_chat.both(one, other, questions(1)[0])
    left, right = answers["left"], answers["right"]
    assert left[0].at < right[-1].at
    assert right[0].at < left[-1].at
    found = bench_chat.chat(one, other, questions(2))
    assert found["questions"] == 2
    for side in bench_chat.SIDES:
        assert found["first_token_seconds"][side] > 0
        assert found["tokens_per_second"][side] > 0


def test_answers_too_short_for_a_speed_are_refused() -> None:
    lvlm = tiny()
    first = bench_chat.both(lvlm, lvlm, questions(1)[0])["left"][0].token_id
    lvlm.model.generation_config.eos_token_id = [first]
    with pytest.raises(SabError, match="ask more questions"):
        bench_chat.chat(lvlm, lvlm, questions(1))
