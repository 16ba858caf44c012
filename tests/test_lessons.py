"""Claims about talk, strokes, photographs and lessons: what is asked can be told, and nothing held out is taught."""

import random

import numpy as np
import pytest

from sab.demo import doodles, photographs, words
from sab.demo.asks import extract
from sab.demo.knowledge import unlisted_town
from sab.demo.lessons import items, lesson, lesson_scene, respelt
from sab.demo.questions import about, description
from sab.demo.scenes import DRAWING, SLOTS, render, sample, token_labels
from sab.demo.suite import ABILITIES, scene_questions
from sab.demo.talk import follow_up, unknown
from sab.demo.things import UNRECOGNISED


def lessons(count: int) -> list:
    return items(random.Random(8), count, 5, 0.7, 6)


def test_the_suites_that_shipped_figures_refer_to_never_change():
    asked = "".join(
        repr((q.prompt, q.answer, q.key, q.category, q.intent))
        for suite in ("final", "trained")
        for _, q in scene_questions(suite, 400)
    )
    assert words.checksum(asked) == 839074866


def test_lessons_never_teach_what_is_held_out():
    kinds = set()
    for _, scene in lessons(700):
        if scene is None:
            continue
        kinds.add(scene.style or scene.kind)
        assert not any(words.held_out_pair(thing.shape, thing.colour) for thing in scene.things), scene
        assert not {line.text for line in scene.lines} & set(words.picture_words(True))
        if scene.kind == "shapes" and len(scene.things) > 1:
            assert not words.held_out_layout(tuple(thing.cell for thing in scene.things))
        if scene.kind in UNRECOGNISED:
            assert scene.style in photographs.TRAINED | doodles.TRAINED
    assert kinds >= {"shapes", "word", "number", "chart", "receipt", "form", "grid", "strokes", "landscape", "zigzag"}


def test_old_abilities_keep_most_of_the_lessons():
    made = [scene for _, scene in lessons(600) if scene is not None]
    new = sum(scene.style != "" for scene in made)
    assert 0.1 < new / len(made) < 0.3


def test_filled_and_empty_are_taught_equally_often():
    """Three shapes in four are filled; a model that always said so would be right too often to learn to look."""
    draw, answers = random.Random(2), []
    while len(answers) < 200:
        scene = lesson_scene(draw, 5)
        answers += [one.key[0] for one in lesson(draw, scene, 6, 5) if one.intent == "filled"]
    assert 0.3 < answers.count("empty") / len(answers) < 0.6


def test_respelt_words_are_new_letters_in_the_same_place_and_in_the_answer():
    draw = random.Random(5)
    for kind in ("word", "form"):
        for _ in range(40):
            scene = sample(draw, False, kind)
            new = respelt(draw, scene)
            assert [len(line.text) for line in new.lines] == [len(line.text) for line in scene.lines]
            shown = {line.text for line in new.lines}
            for one in about(new, draw, False):
                if one.intent in ("word", "field"):
                    assert one.key[0] in shown


def test_a_follow_up_is_answered_by_the_scene_and_not_understood_alone():
    draw = random.Random(3)
    found = 0
    for _ in range(150):
        scene = sample(draw, False)
        asks = about(scene, draw, False)
        first = draw.choice(asks)
        then = follow_up(asks, first, draw, False)
        if then is None:
            continue
        found += 1
        assert then.history[-1].prompt == first.prompt
        assert any((one.answer, one.key) == (then.answer, then.key) for one in asks)
        named = set(then.prompt.lower().rstrip("?.").split())
        assert then.prompt.startswith(("And", "What about")) or not named & {*words.SHAPES, *words.COLOURS}
        assert [turn["role"] for turn in then.messages] == ["user", "assistant", "user"]
    assert found > 60


def test_what_is_called_absent_is_absent():
    draw = random.Random(6)
    seen = set()
    for _ in range(600):
        scene = sample(draw, False)
        one = unknown(scene, draw, False)
        if one.intent == "absent":
            what = one.answer.rstrip(".").split()[-1]
            seen.add(what)
            assert what.upper() not in {text for row in scene.rows for text in row}
            assert what not in ("word", "number") or scene.kind in ("shapes", "word", "chart", "grid")
            assert what != "word" or scene.kind != "word"
            assert what != "bars" or scene.kind != "chart"
            assert what != "bar" or one.answer.split()[-2] not in {bar.colour for bar in scene.bars}
    assert seen >= {"word", "number", "bars", "bar", "tea", "city"}


def test_no_listed_town_is_called_unlisted():
    draw = random.Random(0)
    listed = {town.name for town in words.almanac()}
    trained, kept = ({unlisted_town(draw, held_out) for _ in range(200)} for held_out in (False, True))
    assert not (trained | kept) & listed
    assert not trained & kept


def test_a_description_names_every_shape_once():
    draw = random.Random(4)
    for kind in ("shapes", DRAWING):
        for _ in range(40):
            scene = sample(draw, True, kind)
            assert list(extract("things", description(scene))) == sorted(f"{t.colour} {t.shape}" for t in scene.things)


def test_families_of_photographs_and_doodles_are_held_out():
    for module in (photographs, doodles):
        assert not set(module.TRAINED) & set(module.HELD_OUT)
        assert len(module.HELD_OUT) >= 4
    for suite in ABILITIES:
        for scene, _ in scene_questions(suite, 60):
            if scene is not None and scene.kind in UNRECOGNISED:
                assert scene.style in photographs.HELD_OUT | doodles.HELD_OUT


@pytest.mark.parametrize("family", [*photographs.TRAINED, *photographs.HELD_OUT])
def test_a_photograph_has_no_flat_ground_as_the_worlds_pictures_have(family):
    picture = photographs.photograph(family, 7)
    assert picture.size == (112, 112)
    assert np.array_equal(np.asarray(picture), np.asarray(photographs.photograph(family, 7)))
    colours = len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0))
    assert colours > 1500


@pytest.mark.parametrize("family", [*doodles.TRAINED, *doodles.HELD_OUT])
def test_a_doodle_is_ink_on_white(family):
    for seed in range(3):
        light = np.asarray(doodles.doodle(family, seed).convert("L"))
        assert 0.5 < (light > 245).mean() < 0.995


def test_strokes_leave_shapes_empty_and_stay_on_the_canvas():
    draw = random.Random(9)
    names = list(SLOTS)
    for _ in range(40):
        scene = sample(draw, False, DRAWING)
        ink = np.asarray(render(scene).convert("L")) < 245
        assert ink.any()
        labels = token_labels(scene)
        assert (labels[:, names.index("shape")] > 0).sum() == len({t.cell for t in scene.things})
        for thing in scene.things:
            if thing.vast:
                assert labels[5, names.index("middle")] == 1
                assert {q.key for q in about(scene, draw, False) if q.intent == "where"} == {("middle",)}
            if thing.vast and not thing.filled and thing.shape in ("circle", "square", "heart"):
                x, y = int(thing.x), int(thing.y)
                assert not ink[y - 3 : y + 3, x - 3 : x + 3].any()


def test_saying_nothing_is_known_is_wrong_where_something_is():
    for suite in ("talk", "strokes"):
        asked = [one for _, one in scene_questions(suite, 120)]
        assert not any(q.correct("I do not know.") for q in asked)
    for suite in ("unknown", "unrecognised"):
        assert not any(one.correct("The circle is red.") for _, one in scene_questions(suite, 60))
