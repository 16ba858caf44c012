"""What a model can do: accuracy by category with intervals, perplexity, speed, and distance to full precision.

Accuracy: greedy answers, short-answer match as the question itself defines it, with Wilson 95 % intervals.
The blank-picture control asks the same questions over a grey picture: what stays right needed no picture.
Perplexity: exp of the mean negative log-likelihood of the reference answers' tokens (end token included) given
picture and prompt. Divergence: mean KL(full ‖ other) of the next-token distributions at those same positions,
with a 95 % interval over questions, and how often both prefer the same token.

Questions are padded on the left into batches of similar length; cost is one prompt pass and one pass per
generated token for each batch, and one pass for the likelihoods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from sab.capture import next_tokens
from sab.chat import Decoding
from sab.errors import SabError
from sab.models import LVLM, Inputs, length_buckets
from sab.progress import Listener, silent
from sab.templates import Message

Z_95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
BLANK = (127, 127, 127)
MAX_NEW_TOKENS = 48
KEPT_BYTES = 256 * 2**20  # of full-precision log-probabilities, while several models are compared with them


class Question(Protocol):
    """What a suite has to offer (see sab.demo.suite.Question)."""

    @property
    def picture(self) -> Image.Image | None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def answer(self) -> str: ...
    @property
    def category(self) -> str: ...
    def correct(self, reply: str) -> bool: ...


@dataclass(frozen=True)
class Evaluation:
    """`accuracy`, `counts` and `interval` (Wilson 95 %) by category, and under "overall"; `correct`, `answers` and
    `distances` (empty without a reference) in the order of the questions. `tokens_per_second` counts generated
    tokens of all rows of a batch, prompt reading included.
    """

    accuracy: dict[str, float]
    counts: dict[str, int]
    interval: dict[str, tuple[float, float]]
    perplexity: float
    tokens_per_second: float
    seconds: float
    correct: list[bool]
    answers: list[str]
    distances: list[AnswerDistance]

    def summary(self) -> dict[str, Any]:
        """The figures without the single answers, for JSON."""
        values = asdict(self)
        return {key: values[key] for key in values if key not in ("correct", "answers", "distances")}


@dataclass(frozen=True)
class Divergence:
    """Distance of a model to the full-precision one over the tokens of the reference answers: mean KL in nats
    with its 95 % interval (over questions), share of equal likeliest tokens, number of tokens."""

    kl: float
    interval: tuple[float, float]
    top_agreement: float
    tokens: int


@dataclass(frozen=True)
class AnswerDistance:
    """One question's part of a divergence: mean KL in nats over the reference answer's tokens, on how many of
    them both models like the same token best, and how many there are."""

    kl: float
    agreed: int
    tokens: int


def evaluate(
    lvlm: LVLM,
    questions: Sequence[Question],
    blank: bool = False,
    batch_size: int = 32,
    progress: Listener | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    reference: Reference | None = None,
) -> Evaluation:
    """Answer all questions greedily; `blank` greys their pictures, `reference` measures the distance to full precision
    on the reference answers. SabError when there are no questions."""
    assert not (blank and reference), "a reference is kept for one set of pictures"
    tell = progress or silent
    prepared = _prepared(lvlm, questions, blank)
    answers = [""] * len(questions)
    generated = done = 0
    started = time.perf_counter()
    for indices in length_buckets(prepared, batch_size):
        rows = greedy(lvlm, lvlm.collate([prepared[index] for index in indices]), max_new_tokens)
        for index, row in zip(indices, rows, strict=True):
            answers[index] = lvlm.tokenizer.decode(row, skip_special_tokens=True).strip()
        generated += sum(map(len, rows))
        done += len(indices)
        tell("answers", done / len(questions))
    seconds = time.perf_counter() - started
    losses: list[Tensor] = []
    distances: dict[int, AnswerDistance] = {}
    done = 0
    for number, (indices, inputs, targets) in enumerate(_with_answers(lvlm, prepared, questions, batch_size)):
        logprobs, kept = _answer_logprobs(lvlm, inputs, targets)
        losses.append(-logprobs.gather(1, kept[:, None]))
        if reference is not None:
            distances |= zip(indices, reference.distances(number, inputs, targets, logprobs), strict=True)
        done += len(indices)
        tell("likelihoods", done / len(questions))
    correct = [question.correct(answer) for question, answer in zip(questions, answers, strict=True)]
    groups: dict[str, list[bool]] = {"overall": correct}
    for question, right in zip(questions, correct, strict=True):
        groups.setdefault(question.category, []).append(right)
    return Evaluation(
        accuracy={name: sum(group) / len(group) for name, group in groups.items()},
        counts={name: len(group) for name, group in groups.items()},
        interval={name: wilson(sum(group), len(group)) for name, group in groups.items()},
        perplexity=math.exp(min(700.0, float(torch.cat(losses).mean()))),
        tokens_per_second=generated / max(seconds, 1e-9),
        seconds=time.perf_counter() - started,
        correct=correct,
        answers=answers,
        distances=[distances[index] for index in range(len(distances))],
    )


class Reference:
    """The full-precision model of a divergence, on the reference answers of questions that several models are asked.

    Its log-probabilities are kept, up to KEPT_BYTES of them, so that only the first model waits for them.
    """

    def __init__(self, full: LVLM) -> None:
        self._full = full
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by batch: its inputs, its targets, what was found
        self._room = KEPT_BYTES

    def distances(self, batch: int, inputs: Inputs, targets: Tensor, compared: Tensor) -> list[AnswerDistance]:
        """Of each row of batch number `batch` ([B, S]), whose log-probabilities [tokens, V] by another model are given.
        Both models share one tokenizer."""
        wanted = self._logprobs(batch, inputs, targets)
        compared = compared.to(wanted.device)
        kl = token_kl(wanted, compared).double().cpu()  # [tokens]
        agreed = (wanted.argmax(-1) == compared.argmax(-1)).cpu()  # [tokens]
        lengths = (targets != -100).sum(-1).tolist()
        return [
            AnswerDistance(float(part.mean()), int(same.sum()), len(part))
            for part, same in zip(kl.split(lengths), agreed.split(lengths), strict=True)
        ]

    def _logprobs(self, batch: int, inputs: Inputs, targets: Tensor) -> Tensor:
        identifiers, targets = inputs["input_ids"].cpu(), targets.cpu()
        if batch in self._kept:
            ids, known, found = self._kept[batch]
            if torch.equal(ids, identifiers) and torch.equal(known, targets):
                return found
        found, _ = _answer_logprobs(self._full, self._full.place(inputs), targets.to(self._full.device))
        if batch not in self._kept and found.nbytes <= self._room:
            self._room -= found.nbytes
            self._kept[batch] = identifiers, targets, found
        return found


def token_kl(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted ‖ found) in nats by row, for log-probabilities [T, V]: [T], float32, never below 0."""
    found = found.to(wanted.device)
    return (wanted.exp() * (wanted - found)).sum(-1).clamp_min(0.0)


def summed(distances: Sequence[AnswerDistance]) -> Divergence:
    """The divergence over several questions, one at least; each counts alike in the KL."""
    means = torch.tensor([distance.kl for distance in distances], dtype=torch.float64)
    tokens = sum(distance.tokens for distance in distances)
    agreed = sum(distance.agreed for distance in distances)
    mean = float(means.mean())
    margin = Z_95 * float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return Divergence(mean, (mean - margin, mean + margin), agreed / tokens, tokens)


def agreement(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of questions that two models answer with the same words."""
    pairs = list(zip(a, b, strict=True))
    return sum(left == right for left, right in pairs) / len(pairs)


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `right / count` (`right` may be a mean over runs); SabError for count 0."""
    if count < 1 or not 0 <= right <= count:
        raise SabError(f"{right} of {count} is not a share; count at least one question.")
    share = right / count
    spread = Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    margin = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (centre - margin if right else 0.0), (centre + margin if right < count else 1.0)


def greedy(lvlm: LVLM, inputs: Inputs, max_new_tokens: int = MAX_NEW_TOKENS) -> list[list[int]]:
    """Likeliest continuation of each row ([B, S], padded on the left), up to and including its end token."""
    decoding = Decoding(lvlm, inputs)
    ends = torch.tensor(sorted(lvlm.end_tokens), device=lvlm.device, dtype=torch.long)
    open_rows = torch.ones(len(inputs["input_ids"]), dtype=torch.bool, device=lvlm.device)
    steps: list[Tensor] = []  # [B] each; -1 once a row has ended
    chosen: Tensor | None = None
    for _ in range(max_new_tokens):
        chosen = decoding.step(chosen).argmax(-1)
        steps.append(torch.where(open_rows, chosen, -1))
        open_rows &= ~torch.isin(chosen, ends)
        if not bool(open_rows.any()):
            break
    return [[token for token in row if token >= 0] for row in torch.stack(steps, 1).tolist()]


def _prepared(lvlm: LVLM, questions: Sequence[Question], blank: bool) -> list[Inputs]:
    if not questions:
        raise SabError("There are no questions to evaluate on; raise the limit.")
    rows = []
    for question in questions:
        picture = question.picture
        if blank and picture is not None:
            picture = Image.new("RGB", picture.size, BLANK)
        rows.append(lvlm.prepare(question.messages, picture))
    return rows


def _with_answers(
    lvlm: LVLM, prepared: Sequence[Inputs], questions: Sequence[Question], batch_size: int
) -> Iterator[tuple[list[int], Inputs, Tensor]]:
    """Batches of prompts with reference answers: indices, inputs [B, S], targets [B, S] (−100 elsewhere)."""
    end = lvlm.tokenizer.eos_token_id
    rows = []
    for row, question in zip(prepared, questions, strict=True):
        tokens = lvlm.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
        tokens = [*tokens, *([end] if end is not None else [])]
        extended = lvlm.extend(row, tokens)
        answers = torch.zeros_like(extended["input_ids"], dtype=torch.bool)
        answers[:, row["input_ids"].shape[1] :] = True
        extended["targets"] = next_tokens(extended["input_ids"], answers)
        rows.append(extended)
    for indices in length_buckets(rows, batch_size):
        inputs = lvlm.collate([rows[index] for index in indices])
        targets = inputs.pop("targets").masked_fill(inputs["attention_mask"] == 0, -100)
        yield indices, inputs, targets


@torch.inference_mode()
def _answer_logprobs(lvlm: LVLM, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [tokens, V] at the positions with a target, row by row, and the targets [tokens]."""
    wanted = targets != -100
    keep = int(targets.shape[1] - wanted.any(0).float().argmax())  # positions from the first target on
    logits = lvlm.model(**lvlm.forward_arguments(inputs), **lvlm.keeping(keep)).logits[:, -keep:]
    wanted = wanted[:, -keep:]
    return torch.log_softmax(logits[wanted].float(), -1), targets[:, -keep:][wanted]
