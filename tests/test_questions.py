"""The list of single questions: who is compared, what the filters leave, and what is asked in nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sab.compare import identity_of
from sab.demo.suite import scene_questions
from viz.pages import asked, questions
from viz.pages.results import Result
from viz.pages.store import Store

COUNT = 24
SUITE = scene_questions(asked.SUITE, COUNT)
IDENTITY = identity_of(ask for _, ask in SUITE)


class FakeRun:
    """What the list reads of a run: its id and its directory."""

    def __init__(self, directory: Path) -> None:
        self.id, self.directory = directory.name, directory


def stored(directory: Path, correct: list[bool], identity: str = IDENTITY) -> Path:
    directory.mkdir()
    answers = [ask.answer if right else "No." for (_, ask), right in zip(SUITE, correct, strict=True)]
    (directory / "answers.json").write_text(
        json.dumps({"questions": identity, "answers": answers, "correct": correct, "kl": []})
    )
    return directory


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> questions.QuestionData:
    """Full precision is right everywhere, one run on the even questions; one was asked something else, one is
    damaged."""
    full = stored(tmp_path / "full", [True] * COUNT)
    even = stored(tmp_path / "even", [place % 2 == 0 for place in range(COUNT)])
    other = stored(tmp_path / "other", [True] * COUNT, "0" * 64)
    damaged = stored(tmp_path / "damaged", [True] * COUNT)
    (damaged / "answers.json").write_text("{")
    found = [Result(run.name, "sab", FakeRun(run), {}) for run in (even, other, damaged)]  # type: ignore[arg-type]
    monkeypatch.setattr(questions, "results", lambda store: found)
    monkeypatch.setattr(questions, "full_directory", lambda store, fingerprint: full)
    monkeypatch.setattr(questions.QuestionData, "_fingerprint", lambda self: "f")
    return questions.QuestionData(Store())


def test_a_model_that_was_asked_less_is_shown_where_it_was(
    data: questions.QuestionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short"
    short.mkdir()
    identity = identity_of(ask for _, ask in SUITE[:4])
    stored_answers = {"questions": identity, "answers": ["No."] * 4, "correct": [False] * 4}
    (short / "answers.json").write_text(json.dumps(stored_answers))
    more = Result("short", "sab", FakeRun(short), {})  # type: ignore[arg-type]
    before = questions.results(Store())
    monkeypatch.setattr(questions, "results", lambda store: [*before, more])
    found = data.questions({"wrong": "short"})
    assert (found["asked"], found["total"]) == (COUNT, 4)
    assert any("short" in each["models"] for each in found["items"][0]["answers"])
    later = data.questions({"page": 1})["items"][-1]
    assert not any("short" in each["models"] for each in later["answers"])


def test_only_models_that_were_asked_the_same_are_compared(data: questions.QuestionData) -> None:
    assert [each.id for each in data.answered()] == ["full", "even"]


def test_the_filters_leave_what_one_has_right_and_the_other_wrong(data: questions.QuestionData) -> None:
    found = data.questions({"right": "full", "wrong": "even", "category": "", "page": 0})
    assert (found["asked"], found["total"], found["pages"]) == (COUNT, COUNT // 2, 2)
    assert [item["number"] for item in found["items"]] == [2 * place + 2 for place in range(questions.PAGE)]
    item = found["items"][0]
    assert item["truth"] == SUITE[1][1].answer
    assert item["answers"] == [
        {"text": SUITE[1][1].answer, "correct": True, "models": ["Full precision"]},
        {"text": "No.", "correct": False, "models": ["even"]},
    ]
    assert data.questions({"right": "even", "wrong": "full"})["total"] == 0


def test_a_category_and_the_last_page(data: questions.QuestionData) -> None:
    category = SUITE[0][1].category
    found = data.questions({"category": category})
    assert found["total"] == sum(ask.category == category for _, ask in SUITE)
    assert {item["category"] for item in found["items"]} == {category}
    last = data.questions({"page": 10**9})
    assert last["page"] == last["pages"] - 1
    assert last["items"]


@pytest.mark.parametrize("request_", [{}, {"right": 3, "wrong": ["x"], "category": {}, "page": "1"}, {"page": -1}])
def test_nonsense_is_no_filter(data: questions.QuestionData, request_: dict[str, Any]) -> None:
    found = data.questions(request_)
    assert found["page"] == 0
    assert found["total"] in (0, COUNT)


def test_text_only_questions_have_no_picture(data: questions.QuestionData) -> None:
    found = data.questions({"category": "text-only"})["items"] + data.questions({"category": "counting"})["items"]
    for item in found:
        assert (item["picture"] is None) == (item["category"] == "text-only")
