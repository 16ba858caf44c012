import math
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from sab import evaluate
from sab.errors import SabError
from sab.models import LVLM
from tests.tiny import picture, tiny


@dataclass(frozen=True)
class Toy:
    """A question whose answer is right when it holds a letter."""

    picture: Image.Image | None
    prompt: str
    answer: str
    category: str
    letter: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]

    def correct(self, reply: str) -> bool:
        return self.letter in reply


QUESTIONS = [
    Toy(picture(1), "What is it?", "A disc.", "shape"),
    Toy(None, "Two and two?", "Four.", "sums", "#never#"),
    Toy(picture(2), "Which colour does it have, roughly?", "Red, I think.", "shape"),
    Toy(None, "And three and three, if you please?", "6", "sums"),
    Toy(picture(3), "Where?", "Left.", "place", "#never#"),
]


def test_accuracy_counts_and_intervals_by_category() -> None:
    found = evaluate.evaluate(tiny(), QUESTIONS, max_new_tokens=3)
    assert found.accuracy == {"overall": 0.6, "shape": 1.0, "sums": 0.5, "place": 0.0}
    assert found.counts == {"overall": 5, "shape": 2, "sums": 2, "place": 1}
    assert found.interval["sums"] == evaluate.wilson(1, 2)
    assert found.correct == [True, False, True, True, False]
    assert found.tokens_per_second > 0
    assert set(found.summary()) >= {"accuracy", "interval", "perplexity"}
    assert "answers" not in found.summary()


def test_batches_do_not_change_answers_or_perplexity() -> None:
    lvlm = tiny()
    one, many = (evaluate.evaluate(lvlm, QUESTIONS, batch_size=size, max_new_tokens=8) for size in (1, 8))
    assert one.answers == many.answers
    assert one.perplexity == pytest.approx(many.perplexity, rel=1e-4)
    assert evaluate.agreement(one.answers, many.answers) == 1


def test_perplexity_is_that_of_the_reference_answers_token_by_token() -> None:
    lvlm = tiny()
    losses = []
    for question in QUESTIONS:
        inputs = lvlm.prepare(question.prompt, question.picture)
        start = inputs["input_ids"].shape[1]
        answer = [*lvlm.tokenizer(question.answer)["input_ids"], lvlm.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = lvlm.model(**lvlm.forward_arguments(lvlm.extend(inputs, answer))).logits[0]
        logprobs = torch.log_softmax(logits[start - 1 : -1], -1)
        losses += [-float(row[token]) for row, token in zip(logprobs, answer, strict=True)]
    found = evaluate.evaluate(tiny(), QUESTIONS, max_new_tokens=1)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_greedy_rows_end_at_their_own_end_token() -> None:
    lvlm = tiny()
    inputs = lvlm.collate([lvlm.prepare("Hi."), lvlm.prepare("Hello there.")])
    rows = evaluate.greedy(lvlm, inputs, 6)
    assert [len(row) for row in rows] == [6, 6]
    lvlm.model.generation_config.eos_token_id = rows[0][2]
    cut = evaluate.greedy(lvlm, inputs, 6)
    assert cut[0] == rows[0][: rows[0].index(rows[0][2]) + 1]
    stop = rows[1].index(rows[0][2]) + 1 if rows[0][2] in rows[1] else 6
    assert cut[1] == rows[1][:stop]


def test_blank_pictures_change_nothing_for_text() -> None:
    lvlm = tiny()
    seen = evaluate.evaluate(lvlm, QUESTIONS, max_new_tokens=6)
    blank = evaluate.evaluate(lvlm, QUESTIONS, blank=True, max_new_tokens=6)
    for index, question in enumerate(QUESTIONS):
        if question.picture is None:
            assert seen.answers[index] == blank.answers[index]
    assert seen.answers != blank.answers


def distance(other: LVLM, reference: evaluate.Reference, batch_size: int) -> evaluate.Divergence:
    found = evaluate.evaluate(other, QUESTIONS, batch_size=batch_size, max_new_tokens=1, reference=reference)
    assert len(found.distances) == len(QUESTIONS)
    return evaluate.summed(found.distances)


@pytest.mark.parametrize("room", [0, 2**20])
def test_a_model_does_not_diverge_from_itself_and_a_damaged_one_does(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "KEPT_BYTES", room)
    full, other = tiny(), tiny()
    reference = evaluate.Reference(full)
    same = distance(other, reference, 32)
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert same.top_agreement == 1
    expected = sum(len(full.tokenizer(question.answer)["input_ids"]) + 1 for question in QUESTIONS)
    assert same.tokens == expected
    next(iter(other.decoder_linears.values())).weight.data.mul_(-1)
    far = distance(other, reference, 2)  # in other batches than those that are kept
    assert far.kl > 0.01
    assert far.interval[0] < far.kl < far.interval[1]
    for batch_size in (2, 8, 32):
        assert distance(other, evaluate.Reference(full), batch_size).kl == pytest.approx(far.kl, rel=1e-3)
        assert distance(other, reference, batch_size).kl == pytest.approx(far.kl, rel=1e-3)


def test_what_is_kept_of_full_precision_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    full, other = tiny(), tiny()
    reference, asked = evaluate.Reference(full), []
    inner = evaluate._answer_logprobs
    monkeypatch.setattr(evaluate, "_answer_logprobs", lambda lvlm, *rest: asked.append(lvlm) or inner(lvlm, *rest))
    for _ in range(3):
        distance(other, reference, 2)
    assert asked.count(full) == asked.count(other) / 3


def test_wilson_intervals() -> None:
    low, high = evaluate.wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert evaluate.wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert evaluate.wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    with pytest.raises(SabError):
        evaluate.wilson(0, 0)


def test_progress_reaches_the_end_of_each_stage() -> None:
    heard: dict[str, list[float]] = {}
    evaluate.evaluate(
        tiny(),
        QUESTIONS,
        batch_size=2,
        max_new_tokens=1,
        progress=lambda stage, share: heard.setdefault(stage, []).append(share),
    )
    assert set(heard) == {"answers", "likelihoods"}
    for shares in heard.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_no_questions_are_refused() -> None:
    with pytest.raises(SabError, match="no questions"):
        evaluate.evaluate(tiny(), [])
