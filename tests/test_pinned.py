"""Two pinned runs: what differs is read off their codes, and what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sab import sequential
from sab.errors import SabError
from sab.recipes import Recipe
from sab.runs import Run
from tests.tiny import dialogues, tiny, tiny_folder
from viz.pages import asked, pinned
from viz.pages.selection import Selection
from viz.pages.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
FIRST, SECOND = "model.language_model.layers.0.self_attn.k_proj", "model.language_model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three runs: of both layers by two methods, and of the second layer alone."""
    directory = tmp_path_factory.mktemp("runs")
    model = str(tiny_folder())
    for name, method, linears in (
        ("signs", "xnor", (FIRST, SECOND)),
        ("integers", "gptq2", (FIRST, SECOND)),
        ("one", "xnor", (SECOND,)),
        ("other", "xnor", (FIRST,)),
    ):
        recipe = Recipe(model=model, method=method, linears=linears)
        list(sequential.quantize(tiny(), recipe, directory / name, samples=dialogues(4)))
    return Store(model, [directory])


def panel(store: Store) -> pinned.PinnedRuns:
    import gradio as gr

    with gr.Blocks():
        return pinned.PinnedRuns(store)


def test_flips_are_the_share_of_signs_that_differ(store: Store) -> None:
    pair = panel(store).pair(Selection(pin_a="signs", pin_b="integers"))
    assert pair is not None
    assert pair.names == (FIRST, SECOND)
    for name, share in zip(pair.names, pair.flips, strict=True):
        a, b = (store.run(run).codes(name).dense() for run in ("signs", "integers"))
        assert share == pytest.approx(float(((a < 0) ^ (b < 0)).float().mean()))
        assert 0 < share < 1
    same = panel(store).pair(Selection(pin_a="signs", pin_b="signs"))
    assert same is not None
    assert same.flips == (0.0, 0.0)


def test_what_matters_stands_on_top_over_the_layers_that_both_have(store: Store) -> None:
    pair = panel(store).pair(Selection(pin_a="integers", pin_b="one"))
    assert pair is not None
    assert pair.names == (SECOND,)
    rows = {row["cells"][0]: row["cells"][1:] for row in pinned.numbers_table(pair)["rows"]}
    integers, one = (store.run(run).reports[SECOND] for run in ("integers", "one"))
    assert rows["Bits, all-in"][:2] == [f"{integers.bits_all_in:.2f}", f"{one.bits_all_in:.2f}"]
    assert rows["Accuracy"][:2] == ["not asked yet"] * 2
    assert rows["Signs that differ"][2] == f"{100 * pair.flips[0]:.1f} %"
    assert "full-precision inputs" in pinned.layers_chart(pair)["words"]


def test_accuracy_is_paired_where_the_questions_are_the_same(store: Store, tmp_path: Path) -> None:
    def answered(name: str, questions: str, correct: list[bool]) -> Run:
        source = store.run("signs").directory
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_bytes((source / "recipe.json").read_bytes())
        stored = {"questions": questions, "answers": ["" for _ in correct], "correct": correct}
        (tmp_path / name / "answers.json").write_text(json.dumps(stored))
        return Run.open(tmp_path / name)

    a, b = answered("a", "q", [True, True, False, True]), answered("b", "q", [True, False, False, False])
    found = pinned.paired_difference(a, b)
    assert found is not None
    assert found[0] == 0.5
    assert 0 < found[1] < 1
    assert pinned.paired_difference(a, answered("c", "other", [True])) is None
    assert pinned.paired_difference(a, store.run("signs")) is None
    short = answered("short", asked.first_identity(2), [False, True])
    long = answered("long", asked.first_identity(4), [True, True, False, False])
    assert pinned.paired_difference(short, long) == (-0.5, pytest.approx(1.96 * 0.5))


def test_what_cannot_be_compared_is_one_sentence(store: Store) -> None:
    shown = panel(store)
    with pytest.raises(SabError, match="no finished layer in common"):
        shown.pair(Selection(pin_a="one", pin_b="other"))
    with pytest.raises(SabError, match="no run"):
        shown.pair(Selection(pin_a="one", pin_b="gone"))
    assert shown.pair(Selection(pin_a="one")) is None


def test_a_difference_has_a_sign_unless_it_rounds_to_nothing() -> None:
    said = pinned.signed("{:+.2f} points")
    assert [said(value) for value in (0.5, -0.5, -0.001, 0.0)] == [
        "+0.50 points",
        "−0.50 points",
        "0.00 points",
        "0.00 points",
    ]
