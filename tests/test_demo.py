"""Claims about the embedded model's world: seeded, drawn as described, and trained and held-out parts kept apart."""

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sab.demo import words
from sab.demo.asks import CATEGORIES, extract
from sab.demo.batches import Encoder, pixels, rope_positions
from sab.demo.knowledge import TEXT_INTENTS, held_out_sum, text_question
from sab.demo.phrasing import WORDINGS, wordings
from sab.demo.questions import about, caption
from sab.demo.scenes import GRID, KINDS, SLOTS, render, sample, token_labels
from sab.demo.suite import ABILITIES, SUITES, questions, samples, scene_questions
from sab.errors import SabError

seeds = st.integers(0, 2**32)


def scenes(held_out: bool, count: int = 250, kind: str | None = None) -> list:
    draw = random.Random(4)
    return [sample(draw, held_out, kind) for _ in range(count)]


def test_trained_and_held_out_words_are_disjoint():
    assert not set(words.picture_words(True)) & set(words.picture_words(False))
    assert len(words.picture_words(True)) >= 25
    seen = {line.text for scene in scenes(False, kind="word") for line in scene.lines}
    assert seen <= set(words.picture_words(False))


def test_training_never_shows_a_held_out_pair_or_layout():
    for scene in scenes(False):
        assert not any(words.held_out_pair(thing.shape, thing.colour) for thing in scene.things), scene
        if scene.kind == "shapes":
            assert not words.held_out_layout(tuple(thing.cell for thing in scene.things))


def test_held_out_scenes_show_what_training_never_does():
    for scene in scenes(True, kind="shapes"):
        assert words.held_out_layout(tuple(thing.cell for thing in scene.things))
        assert words.held_out_pair(scene.things[0].shape, scene.things[0].colour) or len(scene.things) > 1


def test_wordings_are_disjoint_and_all_intents_have_both():
    for intent, variants in WORDINGS.items():
        assert len(set(variants)) == len(variants)
        assert wordings(intent, True)
        assert len(wordings(intent, False)) >= 2
        assert not set(wordings(intent, True)) & set(wordings(intent, False))


def test_held_out_wordings_use_only_words_that_training_uses():
    def vocabulary(held_out: bool) -> set[str]:
        return {word for i in WORDINGS for w in wordings(i, held_out) for word in re.findall(r"[A-Za-z]+", w)}

    assert vocabulary(True) <= vocabulary(False)


def test_sums_asked_in_training_are_never_held_out_ones():
    draw = random.Random(0)
    for held_out in (False, True):
        for _ in range(60):
            one = text_question(draw, held_out, "add", digits=2)
            a, b = (int(n) for n in re.findall(r"\d+", one.prompt))
            assert held_out_sum(a, b) == held_out
            assert one.key == (str(a + b),)


def test_suites_use_disjoint_seeds():
    bases = sorted(base for base, _ in SUITES.values())
    assert all(after - before >= 2**44 for before, after in itertools.pairwise(bases))
    finals, tunings = ({q.prompt + q.answer for q in questions(s, 64)} for s in ("final", "tuning"))
    assert len(finals & tunings) < 20


@pytest.mark.parametrize("suite", list(SUITES))
def test_every_reference_answer_counts_as_correct_and_a_wrong_one_does_not(suite):
    for question in questions(suite, 160, seed=3):
        assert question.correct(question.answer), question
        assert not question.correct("")
        assert not question.correct("I like turtles and clouds.")
        assert question.category in CATEGORIES or suite in ABILITIES


def test_a_hedged_answer_is_not_correct():
    colour = next(q for q in questions("final", 200) if q.intent == "colour" and q.key != ("none",))
    assert not colour.correct("The circle is red or blue or green or black.")


def test_the_same_seed_gives_the_same_suite_and_pixels():
    for one, two in zip(questions("tuning", 24), questions("tuning", 24), strict=True):
        assert (one.prompt, one.answer) == (two.prompt, two.answer)
        if one.picture is not None:
            assert np.array_equal(np.asarray(one.picture), np.asarray(two.picture))
    assert [m for m, _ in samples(6, 0)] != [m for m, _ in samples(6, 1)]


def test_of_two_possible_answers_neither_is_the_usual_one():
    """Else guessing is right most of the time, and the blank-picture control measures the guess."""
    asked = [q for scene, q in scene_questions("final", 5000, seed=3) if scene is not None]
    for vocabulary, answer in (("filled", "filled"), ("size", "big"), ("yes", "yes")):
        keys = [q.key == (answer,) for q in asked if q.vocabulary == vocabulary]
        assert len(keys) > 60
        assert abs(sum(keys) / len(keys) - 0.5) < 3.3 * 0.5 / len(keys) ** 0.5  # one chance in a thousand


def test_unknown_suite_is_refused_with_a_sentence():
    with pytest.raises(SabError, match="choose one of"):
        questions("nope", 3)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, kind=st.sampled_from(KINDS), held_out=st.booleans())
def test_any_scene_can_be_drawn_labelled_asked_about_and_captioned(seed, kind, held_out):
    draw = random.Random(seed)
    scene = sample(draw, held_out, kind)
    picture = render(scene)
    assert picture.size == (112, 112)
    assert picture.mode == "RGB"
    labels = token_labels(scene)
    assert labels.shape == (GRID * GRID, len(SLOTS))
    names = list(SLOTS)
    assert (labels[:, names.index("shape")] > 0).sum() == len({thing.cell for thing in scene.things})
    for line in scene.lines:
        drawn = (labels[:, names.index("left character")] > 0).sum() + (
            labels[:, names.index("right character")] > 0
        ).sum()
        assert drawn >= len(line.text) or len(scene.lines) > 1
    for one in about(scene, draw, held_out):
        assert one.correct(one.answer), one
    assert caption(scene).endswith(".")


@settings(max_examples=60, deadline=None)
@given(seed=seeds, intent=st.sampled_from(TEXT_INTENTS), held_out=st.booleans())
def test_any_text_question_is_answered_by_its_own_answer(seed, intent, held_out):
    one = text_question(random.Random(seed), held_out, intent)
    assert one.correct(one.answer), one


def test_a_shape_is_drawn_where_its_label_says():
    for scene in scenes(False, 60, "shapes"):
        plain = np.asarray(render(replace(scene, things=()))).astype(int)
        changed = np.abs(np.asarray(render(scene)).astype(int) - plain).sum(2) > 60
        for thing in scene.things:
            column, row = thing.cell
            assert changed[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28].any()


@pytest.mark.parametrize(
    ("vocabulary", "reply", "found"),
    [
        ("colour", "The circle is red.", ("red",)),
        ("colour", "There is no star.", ("none",)),
        ("number", "There are no stars.", ("0",)),
        ("number", "It is 42.", ("42",)),
        ("numbers", "3 5 5.", ("3", "5", "5")),
        ("shape", "There are more crosses.", ("cross",)),
        ("letters", "The word is CAT.", ("CAT",)),
        ("yes", "Yes, it is.", ("yes",)),
        ("position", "It is at the top left.", ("top left",)),
        ("kind", "It is a bar chart.", ("chart",)),
    ],
)
def test_extract(vocabulary, reply, found):
    assert extract(vocabulary, reply) == found


def test_the_almanac_holds_thousands_of_facts_and_never_changes():
    towns = words.almanac()
    assert sum(len(town.facts) for town in towns) == 3200
    assert len({town.name for town in towns}) == 640
    assert words.checksum(repr(towns)) == 3882772264


def test_training_pixels_are_the_processors_pixels():
    from sab.demo.model import build_image_processor

    pictures = [render(scene) for scene in scenes(False, 3)]
    ours = pixels([np.asarray(p) for p in pictures])
    theirs = build_image_processor()(images=pictures, return_tensors="pt")
    assert theirs["image_grid_thw"].tolist() == [[1, 8, 8]] * 3
    torch.testing.assert_close(ours, theirs["pixel_values"], atol=1e-5, rtol=0)


def test_training_positions_and_tokens_are_the_models_own():
    from sab.models import load

    lvlm = load()
    encoder = Encoder(lvlm.processor.tokenizer)
    messages = [{"role": "user", "content": "What colour is the circle?"}]
    ids, _ = encoder.encode([*messages, {"role": "assistant", "content": "Red."}], picture=True)
    inputs = lvlm.prepare(messages, Image.new("RGB", (112, 112)))
    prompt = inputs["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    kinds = (inputs["input_ids"] == lvlm.image_token_id).long()
    theirs, _ = lvlm.model.model.get_rope_index(inputs["input_ids"], kinds, inputs["image_grid_thw"])
    assert torch.equal(rope_positions(prompt, lvlm.image_token_id, len(prompt)), theirs[:, 0])
