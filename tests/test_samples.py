"""What the Chat tab offers to begin with: pictures with questions that fit, the same for everybody."""

from viz.pages.chat import fitting
from viz.pages.samples import FURTHER, SHOWN, samples


def test_every_picture_has_its_questions_and_they_do_not_change() -> None:
    one, other = samples(), samples()
    assert len(one.pictures) == len(SHOWN)
    for mine, same in zip(one.pictures, other.pictures, strict=True):
        assert mine.suggestions == same.suggestions
        assert mine.picture.tobytes() == same.picture.tobytes()
        assert len(set(mine.suggestions.questions)) == 1 + FURTHER
    assert len({picture.picture.tobytes() for picture in one.pictures}) == len(SHOWN)


def test_questions_fit_what_lies_on_the_canvas_whatever_is_sent() -> None:
    found = samples()
    assert fitting(found, {"kind": "sample", "index": 2}) == found.pictures[2].suggestions
    assert fitting(found, {"kind": "none", "index": None}) == found.without
    forgeries = [{}, {"kind": "own"}, {"kind": [], "index": 0}, *({"kind": "sample", "index": i} for i in (99, True))]
    for forged in forgeries:
        assert fitting(found, forged) == found.about_any
    assert not found.suggested("my own words")
    assert found.suggested(found.pictures[0].suggestions.questions[0])


def test_what_may_be_asked_next_follows_a_question_that_is_offered() -> None:
    found = samples()
    every = [found.without, *(picture.suggestions for picture in found.pictures)]
    following = {after for each in every for after in each.follow_ups.values()}
    assert {question for each in every for question in each.follow_ups} <= {q for each in every for q in each.questions}
    assert len(following) > 6
    assert all(after.endswith(("?", ".")) and not found.suggested(after) for after in following)
