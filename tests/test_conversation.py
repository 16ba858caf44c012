"""Conversations stay with their visitor, take nothing forged, and wait their turn."""

import base64
import io

import pytest
from PIL import Image

from sab.chat import TokenEvent
from sab.errors import SabError
from viz.pages import conversation as talk
from viz.pages import pictures
from viz.pages.conversation import Conversation, Conversations, Settings
from viz.pages.gate import Gate

RUNS = {"left": "", "right": "a-run"}
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def event(text: str, token: int, seconds: float = 0.1) -> TokenEvent:
    return TokenEvent(text, token, -0.5, [(text, 0.6), ("other", 0.1)], seconds, (token, 90 + token))


def ask(conversation: Conversation, prompt: object, picture: Image.Image | None = None) -> bool:
    return conversation.ask(prompt, picture, RUNS, Settings(), Gate())


def answered(prompt: str, picture: Image.Image | None = None) -> Conversation:
    conversation = Conversation()
    ask(conversation, prompt, picture)
    for side, word, token in (("left", "red", 1), ("right", "blue", 2)):
        reply = conversation.turns[0].replies[side]
        reply.events += [event("It is ", 7, 0.2), event(word, token, 0.3)]
        reply.state = talk.DONE
    return conversation


def test_the_last_question_can_be_written_anew_in_its_own_place() -> None:
    conversation = answered("Which colour?", RED)
    conversation.editing = True
    with pytest.raises(SabError, match="Write a question first"):
        ask(conversation, " ", RED)
    assert conversation.editing
    assert not ask(conversation, "Which shape?", RED.copy())
    assert [turn.prompt for turn in conversation.turns] == ["Which shape?"]
    assert not conversation.editing


def test_a_system_prompt_stands_before_the_conversation_of_its_question() -> None:
    conversation = answered("Which colour?")
    conversation.ask("Sure?", None, RUNS, Settings(system="Be brief."), Gate())
    read = conversation.messages("left", conversation.turns[1])
    assert read[0] == {"role": "system", "content": "Be brief."}
    assert [turn["role"] for turn in read] == ["system", "user", "assistant", "user"]
    assert conversation.messages("left", conversation.turns[0])[0]["role"] == "user"


def test_a_side_goes_on_from_a_candidate_and_the_other_keeps_its_answer() -> None:
    conversation = answered("Which colour?")
    conversation.branch("left", 1, 2, Gate())  # the other side's token at the first difference
    left, right = (conversation.turns[0].replies[side] for side in talk.SIDES)
    assert (left.begun, left.tokens, left.state) == ((7, 2), [7], talk.WAITING)
    assert (right.text, right.state) == ("It is blue", talk.DONE)
    assert conversation.claim("right") is None
    assert conversation.claim("left") is conversation.turns[0]
    with pytest.raises(SabError, match="still being answered"):
        conversation.branch("right", 0, 7, Gate())
    left.state = talk.DONE
    assert conversation.answers("left")[0]["forced"] == 1


@pytest.mark.parametrize(
    ("side", "place", "token"),
    [("left", 1, 5), ("left", 9, 1), ("left", -1, 1), ("left", True, 1), ("left", 0, "7"), ("middle", 0, 7)],
)
def test_a_forged_candidate_is_refused(side: object, place: object, token: object) -> None:
    conversation = answered("Which colour?")
    with pytest.raises(SabError, match="Choose"):
        conversation.branch(side, place, token, Gate())
    assert conversation.turns[0].replies["left"].text == "It is red"


def test_a_branch_before_any_answer_is_refused() -> None:
    with pytest.raises(SabError, match="Choose a token"):
        Conversation().branch("left", 0, 1, Gate())


@pytest.mark.parametrize("prompt", ["", "   \n", None, 3, ["x"]])
def test_an_empty_question_is_refused_in_one_sentence(prompt: object) -> None:
    conversation = Conversation()
    with pytest.raises(SabError, match="Write a question first"):
        ask(conversation, prompt)
    assert conversation.turns == []


def test_nothing_is_lost_when_a_question_comes_too_early() -> None:
    conversation = Conversation()
    ask(conversation, "one")
    with pytest.raises(SabError, match="still being answered"):
        ask(conversation, "two")
    assert [turn.prompt for turn in conversation.turns] == ["one"]


def test_each_side_reads_its_own_answers() -> None:
    conversation = answered("Which colour?")
    ask(conversation, "Sure?")
    turn = conversation.turns[1]
    assert conversation.messages("left", turn)[1]["content"] == "It is red"
    assert conversation.messages("right", turn)[1]["content"] == "It is blue"
    assert conversation.messages("left", turn)[-1] == {"role": "user", "content": "Sure?"}


def test_another_picture_is_another_conversation() -> None:
    conversation = answered("Which colour?", RED)
    assert not ask(conversation, "Sure?", RED.copy())
    for reply in conversation.turns[-1].replies.values():
        reply.state = talk.DONE
    assert ask(conversation, "And now?", BLUE)
    assert [turn.prompt for turn in conversation.turns] == ["And now?"]


def test_the_first_token_that_differs_is_marked_on_both_sides() -> None:
    conversation = answered("Which colour?")
    assert [conversation.answers(side)[0]["diverged"] for side in talk.SIDES] == [1, 1]
    facts = dict(conversation.answers("left")[0]["facts"])
    assert facts["first token"] == "0.20 s"
    assert facts["speed"] == "10 tokens/s"


def test_news_carry_the_end_of_an_answer_however_long_it_is() -> None:
    conversation = answered("Which colour?")
    reply = conversation.turns[0].replies["left"]
    reply.events += [event(str(place), place) for place in range(2 * talk.PIECE)]
    news = conversation.news("left")
    assert len(news["tokens"]) == talk.PIECE
    assert news["from"] == len(reply.events) - talk.PIECE
    assert news["turn"] == 0
    assert news["tokens"] == conversation.answers("left")[0]["tokens"][news["from"] :]


def test_a_side_is_written_by_one_generator_only() -> None:
    conversation = Conversation()
    ask(conversation, "one")
    assert conversation.claim("left") is conversation.turns[0]
    assert conversation.claim("left") is None


def test_words_are_plain_text() -> None:
    conversation = Conversation()
    ask(conversation, "<img src=x onerror=alert(1)>")
    assert conversation.questions()[0]["text"] == "<img src=x onerror=alert(1)>"


def test_an_unknown_id_gets_a_conversation_of_its_own() -> None:
    kept = Conversations(most=2)
    one = kept.get("guess")
    assert one.id != "guess"
    assert kept.get(one.id) is one
    others = [kept.get("x"), kept.get("y")]
    assert kept.get(one.id) not in [one, *others]  # forgotten: only the last two are kept


def test_a_drawing_arrives_pixel_for_pixel() -> None:
    picture = pictures.picture_from_url(pictures.data_url(RED))
    assert picture is not None
    assert pictures.same_picture(picture, RED)
    assert pictures.picture_from_url(None) is None


@pytest.mark.parametrize(
    "sent",
    [
        "data:image/png;base64,????",
        "data:text/html;base64,AAAA",
        "/etc/passwd",
        {"path": "/etc/passwd"},
        "data:image/png;base64," + base64.b64encode(b"not a picture").decode(),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(sent: object) -> None:
    with pytest.raises(SabError):
        pictures.picture_from_url(sent)


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    with pytest.raises(SabError):
        pictures.picture_from_url("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())


def test_the_line_is_served_in_order_and_forgets_who_left() -> None:
    gate = Gate(places=1, patience=0.0)
    first, second = gate.join(), gate.join()
    patient = Gate(places=1, patience=60.0)
    one, two, three = patient.join(), patient.join(), patient.join()
    assert patient.ahead(one) == 0
    assert patient.ahead(one) == 0  # the other side of the same question
    assert [patient.ahead(two), patient.ahead(three)] == [1, 2]
    patient.leave(one)
    assert patient.ahead(two) == 1
    patient.leave(one)
    assert [patient.ahead(two), patient.ahead(three)] == [0, 1]
    assert gate.ahead(second) == 0  # `first` never came back
    assert first.users == 0


def test_a_picture_put_back_after_a_reload_is_the_same_one() -> None:
    kept = answered("Which colour?", RED).picture
    assert kept is not None
    assert pictures.same_picture(pictures.picture_from_url(pictures.data_url(kept)), RED)


@pytest.mark.parametrize("forged", [None, 3, ["x"], {"a": 1}, "unknown"])
def test_a_forged_identifier_opens_an_empty_conversation(forged: object) -> None:
    kept = Conversations()
    mine = kept.get(None)
    assert kept.get(mine.id) is mine
    assert kept.get(forged) is not mine


def test_looking_pushes_no_conversation_out() -> None:
    kept = Conversations(most=1)
    mine = kept.get(None)
    for identifier in (None, "nobody's", 3):
        assert not kept.find(identifier).turns
    assert kept.find(mine.id) is mine
    assert kept.get("another") is not mine
    assert kept.find(mine.id) is not mine  # forgotten: one is kept, and another was begun


def test_an_enormous_picture_is_kept_small() -> None:
    url = pictures.data_url(Image.new("RGB", (3000, 1500)))
    kept = pictures.picture_from_url(url)
    assert kept is not None
    assert kept.size == (1024, 512)
