"""The one-click examples: chosen by measurement, offered only for the weights they were measured on."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from viz import showcase
from viz.pages.examples import shown
from viz.pages.samples import samples
from viz.pages.store import Store
from viz.showcase import KINDS, Pair, chosen, read


@pytest.fixture(scope="module")
def store() -> Store:
    return Store()


def pair(run: str, one: str, two: str, kl: float = 0.1) -> Pair:
    left, right = one.split(), two.split()
    words = sum(a != b for a, b in zip(left, right, strict=True)) if len(left) == len(right) else None
    return Pair(run, f"{run}@1", 0, "What?", one, two, one == two, words, float(len({*left} & {*right}) > 1), kl, 9)


def test_each_kind_is_shown_by_the_pair_that_shows_it_best() -> None:
    found = chosen(
        [
            pair("a", "a red square", "a red square", 0.02),
            pair("b", "a red square", "a red square", 0.01),
            pair("c", "a red square", "a blue square"),
            pair("d", "a red square", "nothing"),
            pair("d", "a red square", "a red square and more"),
        ]
    )
    assert {kind: each.run for kind, each in found.items()} == {"agreement": "b", "subtle": "c", "gross": "d"}
    assert list(found) == list(KINDS)


def test_a_kind_that_nothing_shows_is_left_out() -> None:
    assert list(chosen([pair("a", "a red square", "a red square")])) == ["agreement"]
    assert chosen([]) == {}


def test_examples_of_other_weights_runs_or_samples_are_not_offered(store: Store, tmp_path: Path) -> None:
    run = next(run for run in store.runs() if store.made_from(run) and run.finished)
    found = samples()
    question = found.pictures[1].suggestions.questions[0]
    good = replace(pair(run.id, "a", "a"), version=showcase.version(run), picture=1, question=question)
    path = tmp_path / "examples.json"

    def offered(pair: Pair, fingerprint: str = run.fingerprint) -> int:
        path.write_text(json.dumps({"fingerprint": fingerprint, "examples": {"agreement": asdict(pair)}}))
        return len(read(store, found, path))

    assert offered(good) == 1
    assert offered(good, "other weights") == 0
    assert offered(replace(good, version="older")) == 0
    assert offered(replace(good, question="Who?")) == 0
    assert offered(replace(good, run="gone")) == 0
    path.write_text("{")
    assert read(store, found, path) == read(store, found, tmp_path / "none.json") == []


def test_what_is_offered_is_true_of_the_weights_that_are_here(store: Store) -> None:
    from sab.evaluate import greedy

    found = samples()
    offered = read(store, found)
    assert offered, "the shipped examples are of other weights: run python -m viz.showcase"
    assert [each["kind"] for each in shown(offered)] == [each["kind"] for each in offered]
    for each in offered:
        picture = None if each["picture"] is None else found.pictures[each["picture"]].picture
        inputs = store.lvlm.prepare(each["question"], picture)
        answers = [
            lvlm.tokenizer.decode(greedy(lvlm, inputs, showcase.MOST_TOKENS)[0], skip_special_tokens=True).strip()
            for lvlm in (store.lvlm, store.binarized(each["run"]))
        ]
        assert answers == [each["full"], each["binarized"]]
        assert (answers[0] == answers[1]) == (each["kind"] == "agreement")
