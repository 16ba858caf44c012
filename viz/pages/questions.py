"""Single questions of an evaluation: the picture, the truth, and what each model answered.

The list is one component. Its script (assets/js/questions.js) asks `QuestionData.page` for a page of it, outside
gradio's queue; whatever it sends is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from viz.pages.asked import first_questions, read_answers
from viz.pages.explore import answer
from viz.pages.pictures import data_url
from viz.pages.results import FULL, current_fingerprint, full_directory, results
from viz.pages.shared import script_tags
from viz.pages.store import Store

if TYPE_CHECKING:
    from sab.demo.asks import Ask
    from sab.demo.scenes import Scene

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
    """What the server function reads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def questions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The page `page` of the questions that `right` answered rightly and `wrong` wrongly (ids of models, "" for
        any), of a `category` ("" for all); and what there is to choose from."""
        models = self.answered()
        if not models:
            return {"models": [], "total": 0, "items": [], "categories": [], "page": 0, "pages": 0}
        suite = first_questions(max(len(each.answers) for each in models))
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
        places = [(FULL_ID, FULL, full_directory(self._store, self._fingerprint()))]
        places += [(each.id, each.name, each.run.directory) for each in results(self._store) if each.run is not None]
        read = [(identifier, name, read_answers(directory)) for identifier, name, directory in places]
        return [
            Answered(identifier, name, found.answers, found.correct)
            for identifier, name, found in read
            if found is not None and found.of_the_suite
        ]

    def _fingerprint(self) -> str:
        return current_fingerprint(self._store, self._store.runs())

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
