"""Single questions of an evaluation: the picture, the truth, and what each model answered.

The list is one component. Its script (assets/js/questions.js) asks `QuestionData.page` for a page of it, outside
gradio's queue; whatever it sends is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from viz.pages.conversation import data_url
from viz.pages.explore import answer
from viz.pages.results import FULL, current_fingerprint, full_directory, results
from viz.pages.shared import script_tags
from viz.pages.store import Bounded, Store

if TYPE_CHECKING:
    from sab.demo.questions import Ask
    from sab.demo.scenes import Scene

SUITE = "final"
PAGE = 9  # questions shown at a time
FULL_ID = "full"


@dataclass(frozen=True)
class Answered:
    """One model's answers to the first questions of the suite, and which of them are right."""

    id: str
    name: str
    answers: list[str]
    correct: list[bool]

    def judged(self, place: int) -> bool | None:
        """Whether question `place` was answered rightly; None where it was not asked."""
        return self.correct[place] if place < len(self.correct) else None


def question_browser(store: Store) -> gr.HTML:
    """The list with its filters; clicking a question sends it to Chat."""
    return gr.HTML(
        value="",
        html_template='<div class="qb"></div>',
        js_on_load="SabLens.mountQuestions({element, server});",
        head=script_tags("questions.js"),
        server_functions=[answer(QuestionData(store).questions)],
        apply_default_css=False,
        elem_id="benchmark-question-list",
    )


class QuestionData:
    """What the server function reads; the suite is drawn once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._suite = Bounded(2)

    def questions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The page `page` of the questions that `right` answered rightly and `wrong` wrongly (ids of models, "" for
        any), of a `category` ("" for all); and what there is to choose from."""
        models = self.answered()
        if not models:
            return {"models": [], "total": 0, "items": [], "categories": [], "page": 0, "pages": 0}
        suite = self._asked(max(len(each.answers) for each in models))
        right, wrong = (self._chosen(models, request.get(name)) for name in ("right", "wrong"))
        category = request.get("category")
        fitting = [
            place
            for place, (_, ask) in enumerate(suite)
            if (right is None or right.judged(place) is True)
            and (wrong is None or wrong.judged(place) is False)
            and category in (None, "", ask.category)
        ]
        pages = max(1, -(-len(fitting) // PAGE))
        sent = request.get("page")
        page = min(sent, pages - 1) if type(sent) is int and sent >= 0 else 0
        return {
            "models": [{"id": each.id, "name": each.name} for each in models],
            "categories": list(dict.fromkeys(ask.category for _, ask in suite)),
            "asked": len(suite),
            "total": len(fitting),
            "page": page,
            "pages": pages,
            "items": [self._item(models, suite, place) for place in fitting[page * PAGE : (page + 1) * PAGE]],
        }

    def answered(self) -> list[Answered]:
        """Every model whose answers to the suite's first questions are stored, full precision first."""
        found: list[Answered] = []
        places = [(FULL_ID, FULL, full_directory(self._store, self._fingerprint()))]
        places += [(each.id, each.name, each.run.directory) for each in results(self._store) if each.run is not None]
        for identifier, name, directory in places:
            identity, one = _stored(identifier, name, directory)
            if one is not None and one.answers and identity == self._identity(len(one.answers)):
                found.append(one)
        return found

    def _fingerprint(self) -> str:
        return current_fingerprint(self._store, self._store.runs())

    def _asked(self, count: int) -> list[tuple[Scene | None, Ask]]:
        from sab.demo.suite import scene_questions

        return self._suite.get(count, lambda: scene_questions(SUITE, count))

    def _identity(self, count: int) -> str:
        from sab.compare import identity_of

        return identity_of((ask.prompt, ask.answer) for _, ask in self._asked(count))

    @staticmethod
    def _chosen(models: list[Answered], sent: object) -> Answered | None:
        return next((each for each in models if each.id == sent), None)

    @staticmethod
    def _item(models: list[Answered], suite: list[tuple[Scene | None, Ask]], place: int) -> dict[str, Any]:
        """One question; models that gave the same answer stand together, the right answers first."""
        from sab.demo.scenes import render

        scene, ask = suite[place]
        said: dict[tuple[bool, str], list[str]] = {}
        for each in models:
            if (correct := each.judged(place)) is not None:
                said.setdefault((correct, each.answers[place].strip()), []).append(each.name)
        return {
            "number": place + 1,
            "category": ask.category,
            "prompt": ask.prompt,
            "truth": ask.answer,
            "picture": None if scene is None else data_url(render(scene)),
            "answers": [
                {"text": text, "correct": correct, "models": names}
                for (correct, text), names in sorted(said.items(), key=lambda pair: (not pair[0][0], -len(pair[1])))
            ],
        }


def _stored(identifier: str, name: str, directory: Path) -> tuple[str, Answered | None]:
    """The stored answers of one model and the hash of what was asked; None when there are none that can be read."""
    try:
        stored = json.loads((directory / "answers.json").read_text(encoding="utf-8"))
        answers, correct = stored["answers"], stored["correct"]
        if len(answers) != len(correct):
            return "", None
        return stored["questions"], Answered(identifier, name, answers, correct)
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
