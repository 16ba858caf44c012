"""Two sides that answer at once, in turn with other visitors: order, stops, readings, and whose words are whose."""

import json
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from sab.errors import SabError
from sab.models import LVLM
from tests.test_attribution import damaged
from tests.tiny import picture, tiny
from viz.pages import conversation as talk
from viz.pages import differ
from viz.pages.answering import answering
from viz.pages.conversation import Conversation, Conversations, Settings
from viz.pages.gate import Gate
from viz.pages.transcript import as_json, as_markdown

RUNS = {"left": "", "right": "noisy"}


class TwoModels:
    """What the chat needs of the store: the tiny model, and one run of it with noise in its weights."""

    loaded = True
    model_name = "tiny"

    def __init__(self) -> None:
        self.lvlm = tiny()
        self.lvlm.model.generation_config.eos_token_id = 10**6  # nothing ends an answer early
        pictures = torch.tensor([self.lvlm.image_token_id])  # which a random model would say now and then
        self.lvlm.model.lm_head.register_forward_hook(lambda *call: call[-1].index_fill(-1, pictures, -1e4))
        self.noisy = damaged(self.lvlm, list(self.lvlm.decoder_linears), 0.2)

    def run(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(id=name, name="Noisy", reports={}, bytes=1)

    def binarized(self, *names: str) -> LVLM:
        return self.noisy

    def packed(self, name: str) -> None:
        """No kernel here: the run is simulated."""


@pytest.fixture(scope="module")
def store() -> TwoModels:
    return TwoModels()


def ask(conversation: Conversation, gate: Gate, prompt: str, most: int = 6, **settings: object) -> None:
    conversation.ask(prompt, picture(), RUNS, Settings(max_new_tokens=most, **settings), gate)


def answer(store: TwoModels, kept: Conversations, gate: Gate, identifier: str) -> list[threading.Thread]:
    """Both sides of a visitor's question, as the page runs them: each in a thread of its own."""

    def run(side: str) -> None:
        for _ in answering(store, kept, gate, side)(identifier):
            pass

    threads = [threading.Thread(target=run, args=(side,)) for side in talk.SIDES]
    for thread in threads:
        thread.start()
    return threads


def whole(store: TwoModels, prompt: str = "What is here?", **settings: object) -> Conversation:
    kept, gate = Conversations(), Gate()
    conversation = kept.get(None)
    ask(conversation, gate, prompt, **settings)
    for thread in answer(store, kept, gate, conversation.id):
        thread.join()
    return conversation


def test_both_sides_start_at_once_and_their_tokens_interleave(store: TwoModels) -> None:
    conversation = whole(store, most=40)
    left, right = (conversation.turns[0].replies[side] for side in talk.SIDES)
    assert len(left.events) == len(right.events) == 40
    assert left.events[0].at < right.events[-1].at
    assert right.events[0].at < left.events[-1].at
    saved = json.loads(as_json(store, conversation))["turns"][0]
    order = sorted((token["at"], side) for side in talk.SIDES for token in saved[side]["tokens"])
    changes = sum(one[1] != other[1] for one, other in pairwise(order))
    assert changes > 2  # not one side after the other


def test_each_token_has_been_read_by_the_other_model_when_both_have_ended(store: TwoModels) -> None:
    conversation = whole(store)
    for side in talk.SIDES:
        reply = conversation.turns[0].replies[side]
        assert len(reply.readings) == len(reply.events)
        models = {"left": store.lvlm, "right": store.noisy}
        inputs = store.lvlm.extend(
            store.lvlm.prepare(conversation.messages(side, conversation.turns[0]), conversation.picture),
            reply.tokens[:-1],
        )
        with torch.no_grad():
            full, noisy = (
                torch.log_softmax(models[each].model(**models[each].forward_arguments(inputs)).logits[0], -1)[
                    -len(reply.events) :
                ]
                for each in talk.SIDES
            )
        expected = (full.exp() * (full - noisy)).sum(-1)
        assert [reading.kl for reading in reply.readings] == pytest.approx(expected.tolist(), abs=1e-4)
        other = noisy if side == "left" else full
        assert [reading.other.top_ids[0] for reading in reply.readings] == other.argmax(-1).tolist()
    assert "kl" in conversation.answers("left")[0]["tokens"][0]


def test_a_stop_ends_both_sides_within_a_second(store: TwoModels) -> None:
    kept, gate = Conversations(), Gate()
    conversation = kept.get(None)
    ask(conversation, gate, "What is here?", most=250)
    threads = answer(store, kept, gate, conversation.id)
    replies = conversation.turns[0].replies
    end = time.monotonic() + 60
    while not all(len(reply.events) > 2 for reply in replies.values()) and time.monotonic() < end:
        time.sleep(0.005)
    stopped = time.time()
    conversation.stop.set()
    for thread in threads:
        thread.join()
    assert all(reply.state == talk.STOPPED for reply in replies.values())
    assert max(reply.events[-1].at for reply in replies.values()) < stopped + 1.0
    assert all(2 < len(reply.events) < 250 for reply in replies.values())


def test_twenty_visitors_are_served_in_order_hear_their_place_and_read_their_own_words(store: TwoModels) -> None:
    kept, gate = Conversations(), Gate()
    visitors = [kept.get(None) for _ in range(20)]
    for number, conversation in enumerate(visitors):
        ask(conversation, gate, f"canary-{number:02d}", most=3)
    places: dict[int, list[str]] = {number: [] for number in range(20)}

    def run(number: int, side: str) -> None:
        for _ in answering(store, kept, gate, side)(visitors[number].id):
            reply = visitors[number].turns[0].replies[side]
            if reply.state == talk.WAITING:
                places[number].append(reply.message)

    threads = [threading.Thread(target=run, args=(number, side)) for number in range(20) for side in talk.SIDES]
    for thread in reversed(threads):  # the last to come asks first: the line does not care
        thread.start()
    for thread in threads:
        thread.join()
    begun = [
        min(reply.events[0].at for reply in conversation.turns[0].replies.values()) for conversation in visitors
    ]
    ended = [
        max(reply.events[-1].at for reply in conversation.turns[0].replies.values()) for conversation in visitors
    ]
    assert begun == sorted(begun)
    assert all(end <= start for end, start in zip(ended, begun[1:], strict=False))
    assert "Waiting: 19 questions before yours." in places[19]
    for number, conversation in enumerate(visitors):
        shown = json.dumps([conversation.questions(), *(conversation.answers(side) for side in talk.SIDES)])
        shown += as_json(store, conversation) + as_markdown(store, conversation)
        assert f"canary-{number:02d}" in shown
        assert not any(f"canary-{other:02d}" in shown for other in range(20) if other != number)
        assert all(reply.state == talk.DONE for reply in conversation.turns[0].replies.values())


def test_a_branch_continues_one_side_with_the_chosen_token(store: TwoModels) -> None:
    kept, gate = Conversations(), Gate()
    conversation = kept.get(None)
    ask(conversation, gate, "What is here?", most=6)
    for thread in answer(store, kept, gate, conversation.id):
        thread.join()
    before = conversation.turns[0].replies
    kept_right = before["right"].tokens
    place = 1
    event = before["left"].events[place]
    token = next(each for each in event.top_ids if each != event.token_id)
    conversation.branch("left", place, token, gate)
    for thread in answer(store, kept, gate, conversation.id):
        thread.join()
    after = conversation.turns[0].replies
    assert after["left"].tokens[: place + 1] == [*before["left"].tokens[:place], token]
    assert after["left"].state == talk.DONE
    assert len(after["left"].events) == 6
    assert after["right"].tokens == kept_right
    assert gate.ahead(gate.join()) == 0  # nobody is left in the line


def test_the_search_for_the_layers_fills_a_map_and_can_be_stopped(store: TwoModels) -> None:
    conversation = whole(store)
    gate = Gate()
    finding = differ.begin(conversation, None)
    with pytest.raises(SabError, match="searched already"):
        differ.begin(conversation, None)
    list(differ.search(store, conversation, finding, gate))
    assert finding.state == talk.DONE
    shown = differ.view(store, conversation)
    singles = [cell for cell in shown["cells"] if len(cell["names"]) == 1]
    assert {cell["names"][0] for cell in singles} == set(store.lvlm.decoder_linears)
    assert all(cell["repair"] and cell["damage"] for cell in shown["cells"])
    assert shown["rows"] == ["block 0", "block 1"]
    json.dumps(shown)
    again = differ.begin(conversation, "right")
    for _ in differ.search(store, conversation, again, gate):
        if again.swaps:
            again.stop.set()
    assert again.state == talk.STOPPED
    assert 0 < len(again.swaps) < again.total
    assert differ.view(store, conversation)["message"].startswith("Stopped")
    assert gate.ahead(gate.join()) == 0


def test_a_search_without_a_difference_to_explain_says_so(store: TwoModels) -> None:
    conversation = whole(store)
    assert differ.view(store, Conversation()) == {"state": "hidden"}
    for reply in conversation.turns[0].replies.values():
        reply.run = ""
    with pytest.raises(SabError, match="Both sides are full precision"):
        differ.begin(conversation, None)
    assert "nothing to attribute" in differ.view(store, conversation)["message"]
    conversation.turns[0].replies["right"].run = "noisy"
    conversation.turns[0].replies["right"].events = list(conversation.turns[0].replies["left"].events)
    assert "No token differs" in differ.view(store, conversation)["message"]
    assert differ.begin(conversation, None).place is None
    with pytest.raises(SabError, match="full precision"):
        differ.begin(whole(store), "left")
