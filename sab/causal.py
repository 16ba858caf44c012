"""The causal check of the labels: zero weights of one label and see which answers fall.

A label is read off sensitivities; whether the weights do what it says is another question, and this is the
experiment that asks it. Four sets of weights over the whole decoder, vision-only, language-only, cross-modal and
random ones, are set to zero in turn, and accuracy by category and KL to full precision are measured, questions
with a picture apart from those without.

Matching. Zeroing large weights hurts more whatever they serve, and so does zeroing in a delicate layer. All
sets therefore take the same number of weights from every stratum; a stratum is one linear and one band of |W|,
bands being a factor BAND wide. A stratum offers what its scarcest label has; the wanted number is shared out in
proportion to the offers, and the weights are drawn at random within the stratum. Random ones are drawn from all
weights of the stratum, whatever their label. So count and count per linear are equal exactly, and the sets'
ΣW² differ by less than BAND² - 1 (10 %); the difference found is reported as `tolerance`.

What it can mean: the labels predict. If they do, vision-only weights hurt questions with pictures more, against
questions without, than language-only ones do (`selectivity` > 0); equal falls would refute the map. Compare
sets with each other, never one set's two falls: a question with a picture is read and answered in words as well,
so it needs language weights too, and the two kinds differ in difficulty and in length.

What it cannot mean: that a weight serves nothing else (zeroing shows what is lost when the others stay as they
are; redundant weights cover for each other, and means are removed along with signals); that the labels are the best
there are; or anything about another model, or about questions unlike these. With sensitivity "fisher" the map is
itself an estimate, of second order and for one weight at a time, of what removing costs by tokens of a modality:
that it predicts removal is then expected, and only failing would be news. Strong sets (several percent) leave
the model answering at chance; then read the KL of the smaller shares.

Cost: two passes over the questions (answers, KL) for each set and share; the weights are put back after each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sab.errors import SabError
from sab.evaluate import (
    MAX_NEW_TOKENS,
    Z_95,
    AnswerDistance,
    Divergence,
    Evaluation,
    Question,
    Reference,
    evaluate,
    summed,
    wilson,
)
from sab.models import LVLM
from sab.progress import Listener, silent
from sab.significance import PARTITION_NAMES, Thresholds, significance_map

LABELS = ("vision-only", "language-only", "cross-modal")
RANDOM = "random"
BAND = 1.05  # width of a band of |W|, as a factor
BANDS = 200  # below the largest |W| of a linear; smaller weights (by 17,000) are left alone
PICTURE, TEXT = "with a picture", "without a picture"


@dataclass(frozen=True)
class WeightSet:
    """Weights to be zeroed: `label` is one of LABELS or "random", `draw` tells repeated draws apart; `places`
    maps a linear to flat indices, int64, into its [n, m] weight; `count` and `energy` (ΣW²) are sums over all."""

    label: str
    draw: int
    places: dict[str, Tensor]
    count: int
    energy: float


@dataclass(frozen=True)
class Knockout:
    """What is left with a set zeroed. `accuracy`, `counts` and `interval` (Wilson 95 %) by category, and under
    "overall", "with a picture" and "without a picture"; `divergence` from full precision under the last two,
    `distances` that of each question under the same."""

    label: str
    draw: int
    share: float
    count: int
    energy: float
    accuracy: dict[str, float]
    counts: dict[str, int]
    interval: dict[str, tuple[float, float]]
    perplexity: float
    divergence: dict[str, Divergence]
    distances: dict[str, list[AnswerDistance]]

    def summary(self) -> dict[str, Any]:
        """Figures for JSON, without the single questions."""
        values = asdict(self)
        del values["distances"]
        return values


@dataclass(frozen=True)
class Selectivity:
    """log2 of (KL of `first` over KL of `second`, with a picture) over (the same without a picture), each KL
    averaged over draws: above 0, `first` is the more visual set. 95 % interval over questions, both sets
    answering the same ones (first order in the relative errors); it does not hold what other draws of weights
    would change."""

    share: float
    first: str
    second: str
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class CausalCheck:
    """`full` is the untouched model; `knockouts` by share, then set; `tolerance` maps a share to the largest
    relative difference of a set's ΣW² from the mean over sets; `largest_share` is what could be matched, and
    `left_out` holds the shares that were asked for beyond it. Shares are of all decoder weights, in [0, 1]."""

    full: Knockout
    knockouts: list[Knockout]
    selectivity: list[Selectivity]
    tolerance: dict[float, float]
    largest_share: float
    left_out: list[float]

    def summary(self) -> dict[str, Any]:
        """Figures for JSON; `tolerance` becomes a list of pairs."""
        return {
            "full": self.full.summary(),
            "knockouts": [knockout.summary() for knockout in self.knockouts],
            "selectivity": [asdict(selectivity) for selectivity in self.selectivity],
            "tolerance": [{"share": share, "tolerance": value} for share, value in self.tolerance.items()],
            "largest_share": self.largest_share,
            "left_out": self.left_out,
        }


def causal(
    lvlm: LVLM,
    sensitivities: Mapping[str, tuple[Tensor, Tensor]],
    questions: Sequence[Question],
    shares: Sequence[float],
    thresholds: Thresholds | None = None,
    random_draws: int = 3,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Listener | None = None,
) -> CausalCheck:
    """Run the check on `lvlm`, which stays as it is, with the maps that `sensitivities` (of `sensitivities.maps`)
    make. `shares` of all decoder weights, in (0, 1]; those that cannot be matched are left out.

    Raises SabError for no questions, shares out of range, and when no share can be matched.
    """
    check_shares(shares)
    tell = progress or silent
    weights = {name: linear.weight.detach() for name, linear in lvlm.decoder_linears.items()}
    partitions = {
        name: significance_map(weight, *sensitivities[name], thresholds).partition for name, weight in weights.items()
    }
    largest = largest_share(weights, partitions)
    possible = sorted({share for share in shares if share <= largest})
    if not possible:
        raise SabError(
            f"At most {100 * largest:.2g} % of the weights can be matched between the labels; "
            "ask for smaller shares, or raise salient_top_p."
        )
    other, reference = lvlm.copy(), Reference(lvlm)
    nothing = WeightSet("none", 0, {}, 0, 0.0)
    tasks = len(possible) * (len(LABELS) + random_draws) + 1
    knockouts: list[Knockout] = []
    tolerances = {}
    for share in (0.0, *possible):
        sets = matched_sets(weights, partitions, share, random_draws, seed) if share else [nothing]
        if share:
            tolerances[share] = tolerance(sets)
        for one in sets:
            tell(f"without {one.label} weights", len(knockouts) / tasks)
            with zeroed(other.decoder_linears, one.places):
                found = evaluate(
                    other, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, reference=reference
                )
            knockouts.append(_knockout(one, share, questions, found))
    tell("causal check", 1.0)
    full, *knockouts = knockouts
    pairs = [("vision-only", "language-only"), ("vision-only", RANDOM), ("language-only", RANDOM)]
    contrasts = [
        selectivity([entry for entry in knockouts if entry.share == share], first, second)
        for share in possible
        for first, second in pairs
        if {PICTURE, TEXT} <= full.divergence.keys() and (random_draws or second != RANDOM)
    ]
    left_out = sorted(set(shares) - set(possible))
    return CausalCheck(full, knockouts, contrasts, tolerances, largest, left_out)


def check_shares(shares: Sequence[float]) -> None:
    """SabError unless there are shares in (0, 1]."""
    if not shares or not all(0.0 < share <= 1.0 for share in shares):  # NaN is none of these
        raise SabError("Give at least one share of the weights, above 0 and at most 1.")


def largest_share(weights: Mapping[str, Tensor], partitions: Mapping[str, Tensor]) -> float:
    """Largest share of all weights that can be drawn from each label with matching."""
    offered = sum(int(_offer(weights[name], partitions[name]).sum()) for name in weights)
    return offered / sum(weight.numel() for weight in weights.values())


def matched_sets(
    weights: Mapping[str, Tensor],
    partitions: Mapping[str, Tensor],
    share: float,
    random_draws: int = 3,
    seed: int = 0,
) -> list[WeightSet]:
    """One set of each label and `random_draws` random ones, of `share` of all weights each, matched within
    strata of linear and |W|. Weights are [n, m], partitions uint8 [n, m] by linear (`significance_map`).

    Raises SabError when a label cannot fill the share (see `largest_share`).
    """
    offers = {name: _offer(weights[name], partitions[name]) for name in weights}
    count = max(1, round(share * sum(weight.numel() for weight in weights.values())))
    quotas = dict(zip(offers, _apportion(torch.stack(list(offers.values())), count), strict=True))
    wanted = [(label, 0) for label in LABELS] + [(RANDOM, draw) for draw in range(random_draws)]
    sets = []
    for position, (label, draw) in enumerate(wanted):
        generator = torch.Generator().manual_seed(1000 * seed + position)
        places = {}
        energy = 0.0
        for name, quota in quotas.items():
            places[name] = _draw(_band(weights[name]), _pool(partitions[name], label), quota, generator)
            chosen = weights[name].reshape(-1)[places[name].to(weights[name].device)]
            energy += float(chosen.double().square().sum())
        sets.append(WeightSet(label, draw, places, count, energy))
    return sets


def tolerance(sets: Sequence[WeightSet]) -> float:
    """Largest relative difference of a set's ΣW² from the mean over the sets."""
    mean = sum(one.energy for one in sets) / len(sets)
    return max(abs(one.energy / mean - 1.0) for one in sets)


@contextmanager
def zeroed(linears: Mapping[str, nn.Linear], places: Mapping[str, Tensor]) -> Iterator[None]:
    """Set weights, flat indices by linear, to zero while the context is open; afterwards all bits are back."""
    kept: dict[str, Tensor] = {}
    try:
        for name, indices in places.items():
            flat = linears[name].weight.data.view(-1)
            kept[name] = flat[indices.to(flat.device)].clone()
            flat[indices.to(flat.device)] = 0
        yield
    finally:
        for name, values in kept.items():
            flat = linears[name].weight.data.view(-1)
            flat[places[name].to(flat.device)] = values


def selectivity(knockouts: Sequence[Knockout], first: str, second: str) -> Selectivity:
    """How much more visual the set `first` is than `second`, among knockouts of one share; NaN where a set
    moved nothing."""
    value = variance = 0.0
    for kind, direction in ((PICTURE, 1.0), (TEXT, -1.0)):
        a, b = (_kl(knockouts, label, kind) for label in (first, second))  # [questions]
        if not (a.mean() > 0 and b.mean() > 0):
            return Selectivity(knockouts[0].share, first, second, math.nan, (math.nan, math.nan))
        value += direction * math.log2(float(a.mean() / b.mean()))
        spread = (a / a.mean() - b / b.mean()) / math.log(2.0)  # of log2 of the ratio, to first order
        variance += float(spread.var()) / len(spread) if len(spread) > 1 else math.inf
    margin = Z_95 * math.sqrt(variance)
    return Selectivity(knockouts[0].share, first, second, value, (value - margin, value + margin))


def _kl(knockouts: Sequence[Knockout], label: str, kind: str) -> Tensor:
    """KL of each question of a kind, averaged over the draws of a set, float64 [questions]."""
    draws = [[one.kl for one in entry.distances[kind]] for entry in knockouts if entry.label == label]
    return torch.tensor(draws, dtype=torch.float64).mean(0)


def _band(weight: Tensor) -> Tensor:
    """Band of each weight by |W|, int64 [n m]: 0 holds the largest; BANDS and above are left alone."""
    magnitude = weight.reshape(-1).cpu().double().abs()
    steps = torch.log(magnitude.max() / magnitude) / math.log(BAND)
    return steps.nan_to_num(nan=BANDS).clamp_max(BANDS).long()  # 0 / 0 where no weight is left


def _pool(partition: Tensor, label: str) -> Tensor:
    """The weights that a label may draw from, bool [n m]."""
    flat = partition.reshape(-1).cpu()
    return torch.ones_like(flat, dtype=torch.bool) if label == RANDOM else flat == PARTITION_NAMES.index(label)


def _offer(weight: Tensor, partition: Tensor) -> Tensor:
    """How many weights of each band every label can give, int64 [BANDS]."""
    band = _band(weight)
    counts = [torch.bincount(band[_pool(partition, label)], minlength=BANDS + 1)[:BANDS] for label in LABELS]
    return torch.stack(counts).amin(0)


def _apportion(offers: Tensor, count: int) -> Tensor:
    """Split `count` over the strata in proportion to what they offer, largest remainders first; int64, as
    offers. SabError when they offer less."""
    offered = int(offers.sum())
    if count > offered:
        raise SabError(
            f"The labels can be matched in {offered} weights and {count} are wanted; "
            "ask for a smaller share, or raise salient_top_p."
        )
    exact = offers.double().reshape(-1) * (count / offered)
    quotas = exact.floor()
    left = count - int(quotas.sum())
    quotas[(exact - quotas).argsort(descending=True, stable=True)[:left]] += 1
    return quotas.long().reshape(offers.shape)


def _draw(band: Tensor, pool: Tensor, quota: Tensor, generator: torch.Generator) -> Tensor:
    """Random flat indices, rising, of `quota[b]` weights of the pool in each band b."""
    candidates = (pool & (band < BANDS)).nonzero()[:, 0]
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    candidates = candidates[band[candidates].argsort(stable=True)]  # by band, at random within
    sizes = torch.bincount(band[candidates], minlength=BANDS)
    rank = torch.arange(len(candidates)) - (sizes.cumsum(0) - sizes)[band[candidates]]
    return candidates[rank < quota[band[candidates]]].sort().values


def _knockout(
    one: WeightSet,
    share: float,
    questions: Sequence[Question],
    found: Evaluation,
) -> Knockout:
    """Figures of one set, the two kinds of questions added to the categories."""
    accuracy, counts, interval = dict(found.accuracy), dict(found.counts), dict(found.interval)
    by_kind: dict[str, list[AnswerDistance]] = {}
    for kind in (PICTURE, TEXT):
        chosen = [index for index, question in enumerate(questions) if (question.picture is None) == (kind == TEXT)]
        if not chosen:
            continue
        right = sum(found.correct[index] for index in chosen)
        accuracy[kind], counts[kind] = right / len(chosen), len(chosen)
        interval[kind] = wilson(right, len(chosen))
        by_kind[kind] = [found.distances[index] for index in chosen]
    return Knockout(
        label=one.label,
        draw=one.draw,
        share=share,
        count=one.count,
        energy=one.energy,
        accuracy=accuracy,
        counts=counts,
        interval=interval,
        perplexity=found.perplexity,
        divergence={kind: summed(part) for kind, part in by_kind.items()},
        distances=by_kind,
    )
