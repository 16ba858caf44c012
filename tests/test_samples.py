"""What the Chat tab offers to begin with: pictures with questions that fit, the same for everybody."""

from viz.pages.examples import fitting
from viz.pages.samples import FURTHER, SHOWN, samples


def test_every_picture_has_its_questions_and_they_do_not_change() -> None:
    one, other = samples(), samples()
    assert len(one.pictures) == len(SHOWN)
    for mine, same in zip(one.pictures, other.pictures, strict=True):
        assert mine.suggestions == same.suggestions
        assert mine.picture.tobytes() == same.picture.tobytes()
        assert len(set(mine.suggestions.questions)) == 1 + FURTHER
    assert len({picture.picture.tobytes() for picture in one.pictures}) == len(SHOWN)


def test_questions_go_to_the_browser_by_what_may_lie_on_the_canvas() -> None:
    found = samples()
    offers = fitting(found)
    for offer, picture in zip(offers["samples"], found.pictures, strict=True):
        assert tuple(offer["questions"]) == picture.suggestions.questions
    assert tuple(offers["none"]["questions"]) == found.without.questions
    assert offers["none"]["follow_ups"] == found.without.follow_ups
    assert tuple(offers["any"]["questions"]) == found.about_any.questions
    assert not found.suggested("my own words")
    assert found.suggested(found.pictures[0].suggestions.questions[0])


def test_what_may_be_asked_next_follows_a_question_that_is_offered() -> None:
    found = samples()
    every = [found.without, *(picture.suggestions for picture in found.pictures)]
    following = {after for each in every for after in each.follow_ups.values()}
    assert {question for each in every for question in each.follow_ups} <= {q for each in every for q in each.questions}
    assert len(following) > 6
    assert all(after.endswith(("?", ".")) and not found.suggested(after) for after in following)
