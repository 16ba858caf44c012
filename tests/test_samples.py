"""What the Chat tab offers to begin with: pictures with questions that fit, the same for everybody."""

from viz.pages.chat import fitting
from viz.pages.samples import FURTHER, SHOWN, samples


def test_every_picture_has_its_questions_and_they_do_not_change() -> None:
    one, other = samples(), samples()
    assert len(one.pictures) == len(SHOWN)
    for mine, same in zip(one.pictures, other.pictures, strict=True):
        assert mine.questions == same.questions
        assert mine.picture.tobytes() == same.picture.tobytes()
        assert len(set(mine.questions)) == 1 + FURTHER
    assert len({picture.picture.tobytes() for picture in one.pictures}) == len(SHOWN)


def test_questions_fit_what_lies_on_the_canvas_whatever_is_sent() -> None:
    found = samples()
    assert fitting(found, {"kind": "sample", "index": 2}) == found.pictures[2].questions
    assert fitting(found, {"kind": "none", "index": None}) == found.without
    forgeries = [{}, {"kind": "own"}, {"kind": [], "index": 0}, *({"kind": "sample", "index": i} for i in (99, True))]
    for forged in forgeries:
        assert fitting(found, forged) == found.about_any
    assert not found.suggested("my own words")
    assert found.suggested(found.pictures[0].questions[0])
