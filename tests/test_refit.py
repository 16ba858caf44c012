"""Another method for one layer: what may be asked for, and how its run is laid over a side."""

from types import SimpleNamespace
from typing import Any

import pytest

from sab.errors import SabError
from sab.recipes import Recipe
from sab.significance import Thresholds
from viz.pages import conversation as talk
from viz.pages import refit
from viz.pages.conversation import Conversation, Finding, Settings
from viz.pages.gate import Gate
from viz.pages.jobs import Job
from viz.pages.sides import side_names
from viz.pages.worker import Task

LINEAR, OTHER = "layers.0.q_proj", "layers.1.q_proj"


class Shelf:
    """A store with three runs: a whole one, and one of each of two linears."""

    model = place = None

    def __init__(self, tmp_path: Any) -> None:
        self.new_runs = tmp_path
        self.submitted: list[Task] = []
        self.lvlm = SimpleNamespace(info={LINEAR: SimpleNamespace(part="decoder")})
        whole = Recipe(method="xnor", samples=64, seed=3, sensitivity="fisher", thresholds=Thresholds(0.1, 0.4, 0.01))
        report = SimpleNamespace(block=0, kind="q_proj", weights=4)
        self._runs = [
            SimpleNamespace(id="whole", name="XNOR", names=(LINEAR, OTHER), recipe=whole, reports={}),
            SimpleNamespace(id="one", name="SAB (64 samples)", names=(LINEAR,), recipe=whole, reports={LINEAR: report}),
            SimpleNamespace(id="two", name="SAB", names=(OTHER,), recipe=whole, reports={OTHER: report}),
        ]
        self.jobs = SimpleNamespace(submit=lambda task, label: self.submitted.append(task) or Job(task, label))

    def runs(self) -> list[Any]:
        return self._runs

    def run(self, name: str) -> Any:
        return next(run for run in self._runs if run.id == name)


@pytest.fixture
def searched(tmp_path) -> tuple[Shelf, Conversation]:
    conversation = Conversation()
    conversation.ask("What?", None, {"left": "", "right": "whole"}, Settings(), Gate())
    for reply in conversation.turns[0].replies.values():
        reply.state = talk.DONE
    conversation.finding = Finding(conversation.turns[0], "right", None)
    return Shelf(tmp_path), conversation


def test_one_linear_is_fitted_with_the_samples_of_its_own_run(searched) -> None:
    store, conversation = searched
    refit.submit(store, conversation, {"name": LINEAR, "method": "sab", "top": 0.2})
    recipe = store.submitted[0].recipe
    assert (recipe.method, recipe.linears, recipe.thresholds) == ("sab", (LINEAR,), Thresholds(0.2, 0.4, 0.01))
    assert (recipe.samples, recipe.seed, recipe.sensitivity) == (64, 3, "fisher")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "layers.9"}, "Choose a layer"),
        ({"name": None}, "Choose a layer"),
        ({"method": "magic"}, "Choose a method"),
        ({"method": ["sab"]}, "Choose a method"),
        ({"top": 0.0}, "salient share"),
        ({"top": float("nan")}, "salient share"),
        ({"top": True}, "salient share"),
        ({"top": "5"}, "salient share"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_sentence(searched, change: dict, sentence: str) -> None:
    store, conversation = searched
    with pytest.raises(SabError, match=sentence):
        refit.submit(store, conversation, {"name": LINEAR, "method": "sab", "top": 0.2, **change})
    assert store.submitted == []


def test_without_a_map_of_the_last_answer_nothing_is_fitted(searched) -> None:
    store, conversation = searched
    conversation.again({"left": "", "right": "whole"}, Settings(), Gate())
    with pytest.raises(SabError, match="Search the layers"):
        refit.submit(store, conversation, {"name": LINEAR, "method": "sab", "top": 0.2})


def test_a_layer_is_laid_over_a_side_once(searched) -> None:
    store, _ = searched
    one, two = (Job(Task(None, f"/runs/{name}", None, 0), "") for name in ("one", "two"))
    assert refit.laid_over(store, "whole", one, LINEAR) == "whole~one"
    assert refit.laid_over(store, "whole~one", two, OTHER) == "whole~one~two"
    assert refit.laid_over(store, "whole~two~one", one, LINEAR) == "whole~two~one"
    names = dict(side_names(store, "whole~one", ""))
    assert names["XNOR, block 0 q_proj by SAB"] == "whole~one"
