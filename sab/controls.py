"""The two controls of a map: what it shows where there is nothing to see, and what other samples would show.

Null (METHOD 3): rho > 0.005 is an 11 % difference, and two samples of one distribution differ by that much when
tokens are few. The samples of a calibration set are dealt into two halves, A and B, and each modality's half is
cut at random to the same number of tokens, that of the smallest of the four. At this one count

    matched         language A against vision A, and language B against vision B: the real comparison
    null, language  language A against language B
    null, vision    vision A against vision B

and `full`, on all tokens, is the map that is shown. Half the tokens make more noise than all of them, so a
null overstates what chance does to the full map, and the matched figures are the ones to set beside it. Halves
are split over samples because tokens of one sample resemble each other. The unimodal share alone can mislead: the
difference quantile caps it (at one half by default), and noise fills the cap as well as signal does. So the
spread of the S̄ ratio is reported too, and `signal`, the share of its variance that is not the null's.

Stability: the map from several calibration seeds; how often a weight keeps its class, against chance, and how
far the log ratio of the modalities correlates. The null asks whether a difference exceeds sampling noise,
stability whether it is the same difference every time; neither asks whether a label has consequences (see
sab.causal).

Cost: one pass over the blocks per seed (for "fisher" one more, backward), whatever the number of halves, with
six sums in place of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sab.calibration import Sample
from sab.capture import Batch, capture
from sab.errors import SabError
from sab.models import LVLM
from sab.progress import Listener, silent
from sab.sensitivities import group_sensitivities
from sab.significance import PARTITION_NAMES, SignificanceMap, Thresholds, significance_map, threshold_ratio

SPAN = 4.0  # decades of the S̄ ratio that are told apart, on either side of 1
STEPS = 1000  # of the log ratio per decade: 0.2 % in the ratio
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Contrast:
    """How two sensitivities divide the weights of one linear or, added up, of several.

    `weights`, `salient`, `unimodal`: numbers of weights (METHOD 3). `ratios` int64 [2 SPAN STEPS + 1]: salient
    weights by log10(S̄_vision / S̄_language), or S̄ of half B over half A, from -SPAN to SPAN, clamped.
    """

    weights: int
    salient: int
    unimodal: int
    ratios: Tensor

    @staticmethod
    def of(significance: SignificanceMap) -> Contrast:
        """The contrast that a map shows."""
        salient = significance.partition > 0
        steps = ((_log_ratio(significance)[salient] + SPAN) * STEPS).round().long().cpu()
        counts = significance.counts()
        return Contrast(
            weights=salient.numel(),
            salient=int(salient.sum()),
            unimodal=counts["language-only"] + counts["vision-only"],
            ratios=torch.bincount(steps, minlength=int(2 * SPAN * STEPS) + 1),
        )

    def __add__(self, other: Contrast) -> Contrast:
        return Contrast(
            self.weights + other.weights,
            self.salient + other.salient,
            self.unimodal + other.unimodal,
            self.ratios + other.ratios,
        )

    @property
    def unimodal_share(self) -> float:
        """Share of the salient weights that are unimodal; NaN without salient weights."""
        return self.unimodal / self.salient if self.salient else math.nan

    def ratio(self, quantile: float) -> float:
        """Quantile of the S̄ ratio over the salient weights, to 0.2 %; NaN without salient weights."""
        if not self.salient:
            return math.nan
        wanted = quantile * (self.salient - 1) + 1
        step = int(torch.searchsorted(self.ratios.cumsum(0).double(), wanted))
        return float(10.0 ** (step / STEPS - SPAN))

    @property
    def log_variance(self) -> float:
        """Variance of the log10 ratio over the salient weights; NaN without salient weights."""
        values = torch.arange(len(self.ratios), dtype=torch.float64) / STEPS - SPAN
        if not self.salient:
            return math.nan
        mean = float((values * self.ratios).sum()) / self.salient
        return float((values.square() * self.ratios).sum()) / self.salient - mean**2

    def summary(self) -> dict[str, Any]:
        """Figures for JSON; quantiles of the S̄ ratio by percent."""
        return {
            "salient": self.salient,
            "unimodal": self.unimodal,
            "unimodal_share": self.unimodal_share,
            "log_ratio_variance": self.log_variance,
            "ratio": {f"{100 * quantile:g}%": self.ratio(quantile) for quantile in QUANTILES},
        }


@dataclass(frozen=True)
class Agreement:
    """How far two maps of the same weights agree; for one linear or, added up, for several and more pairs.

    `classes` int64 [4, 4]: number of weights by their class in the first and in the second map. `products`
    float64 [3]: over weights that are salient in either map, sums of squares of the first and of the second
    map's log10(S̄_v / S̄_l), and of their product, about the means within each linear.
    """

    classes: Tensor
    products: Tensor

    @staticmethod
    def of(first: SignificanceMap, second: SignificanceMap) -> Agreement:
        """Agreement of two maps of one linear. SabError when their shapes differ."""
        if first.partition.shape != second.partition.shape:
            raise SabError("Maps of different linears cannot be compared.")
        kinds = len(PARTITION_NAMES)
        pairs = first.partition.reshape(-1).long() * kinds + second.partition.reshape(-1).long()
        salient = (first.partition > 0) | (second.partition > 0)
        x, y = (_log_ratio(entry)[salient].double() for entry in (first, second))
        x, y = (values - values.mean() for values in (x, y))
        return Agreement(
            classes=torch.bincount(pairs, minlength=kinds * kinds).reshape(kinds, kinds).cpu(),
            products=torch.stack([x.square().sum(), y.square().sum(), (x * y).sum()]).cpu(),
        )

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.classes + other.classes, self.products + other.products)

    @property
    def same_class(self) -> float:
        """Share of equal classes among the weights that are salient in either map."""
        same = int(self.classes.diagonal()[1:].sum())
        return _share(same, int(self.classes.sum()) - int(self.classes[0, 0]))

    @property
    def kappa(self) -> float:
        """Cohen's kappa of the four classes over all weights: 0 by chance, 1 for equal maps."""
        total = int(self.classes.sum())
        observed = _share(int(self.classes.diagonal().sum()), total)
        chance = _share(float((self.classes.sum(0).double() * self.classes.sum(1)).sum()), total**2)
        return (observed - chance) / (1.0 - chance) if chance < 1.0 else math.nan

    def jaccard(self, name: str) -> float:
        """Weights that both maps give the class, over those that either gives it; NaN if none has it."""
        index = PARTITION_NAMES.index(name)
        both = int(self.classes[index, index])
        return _share(both, int(self.classes[index].sum()) + int(self.classes[:, index].sum()) - both)

    @property
    def correlation(self) -> float:
        """Pearson correlation of log10(S̄_v / S̄_l) within linears, over weights salient in either map."""
        first, second, product = self.products.tolist()
        return product / math.sqrt(first * second) if first * second > 0 else math.nan

    def summary(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {
            "same_class": self.same_class,
            "kappa": self.kappa,
            "jaccard": {name: self.jaccard(name) for name in PARTITION_NAMES[1:]},
            "log_ratio_correlation": self.correlation,
        }


@dataclass(frozen=True)
class LinearControls:
    """Both controls of one linear or, added up, of several; contrasts over all seeds, `agreement` over all
    pairs of seeds (None with one seed)."""

    full: Contrast
    matched: Contrast
    null_language: Contrast
    null_vision: Contrast
    agreement: Agreement | None

    def __add__(self, other: LinearControls) -> LinearControls:
        agreements = [entry.agreement for entry in (self, other) if entry.agreement is not None]
        return LinearControls(
            self.full + other.full,
            self.matched + other.matched,
            self.null_language + other.null_language,
            self.null_vision + other.null_vision,
            sum(agreements[1:], start=agreements[0]) if agreements else None,
        )

    @property
    def signal(self) -> float:
        """Share of the variance of the matched log ratio that sampling does not explain, an estimate: the noise
        of a language half and of a vision half is half of what either null shows. NaN without salient weights."""
        noise = (self.null_language.log_variance + self.null_vision.log_variance) / 2
        return 1.0 - noise / self.matched.log_variance if self.matched.log_variance > 0 else math.nan

    def summary(self) -> dict[str, Any]:
        """Figures for JSON."""
        contrasts = {name: getattr(self, name) for name in ("full", "matched", "null_language", "null_vision")}
        found: dict[str, Any] = {name: contrast.summary() for name, contrast in contrasts.items()}
        found["signal"] = self.signal
        return found | {"stability": self.agreement.summary() if self.agreement is not None else None}


@dataclass(frozen=True)
class Controls:
    """Controls of every decoder linear, in forward order.

    Tokens by seed: `tokens_language` and `tokens_vision` made the full maps, `tokens_half` each side of the
    matched and the null comparisons. `halves`: sensitivities of the first seed's language A, language B, vision A
    and vision B, from which the nulls can be drawn under any thresholds.
    """

    linears: dict[str, LinearControls]
    halves: dict[str, tuple[Tensor, ...]]
    sensitivity: str
    thresholds: Thresholds
    tokens_language: list[int]
    tokens_vision: list[int]
    tokens_half: list[int]

    def overall(self, names: Iterable[str] | None = None) -> LinearControls:
        """The named linears together; all when left out."""
        first, *rest = [self.linears[name] for name in (self.linears if names is None else names)]
        return sum(rest, start=first)

    def summary(self) -> dict[str, Any]:
        """Figures for JSON: overall and by linear."""
        return {
            "sensitivity": self.sensitivity,
            "thresholds": asdict(self.thresholds),
            "threshold_ratio": threshold_ratio(self.thresholds.sparsity_thr),
            "seeds": len(self.tokens_half),
            "tokens_language": self.tokens_language,
            "tokens_vision": self.tokens_vision,
            "tokens_half": self.tokens_half,
            "overall": self.overall().summary(),
            "linears": {name: controls.summary() for name, controls in self.linears.items()},
        }


def controls(
    lvlm: LVLM,
    calibrations: Sequence[Sequence[Sample]],
    sensitivity: str = "input",
    split: str = "token",
    thresholds: Thresholds | None = None,
    damping: float = 0.01,
    progress: Listener | None = None,
) -> Controls:
    """Null and stability of the maps of `lvlm`; `calibrations` holds the samples of each calibration seed.

    Raises SabError for no calibration samples, too few to halve, and an unknown sensitivity or split.
    """
    if not calibrations:
        raise SabError("There are no calibration samples; give those of one seed at least.")
    thresholds = (thresholds or Thresholds()).validate()
    tell = progress or silent
    weights = {name: linear.weight.detach() for name, linear in lvlm.decoder_linears.items()}
    full: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in weights}
    contrasts: dict[str, list[list[Contrast]]] = {name: [] for name in weights}
    halved: dict[str, tuple[Tensor, ...]] = {}
    tokens: list[tuple[int, int, int]] = []
    for seed, samples in enumerate(calibrations):

        def heard(stage: str, share: float, seed: int = seed) -> None:
            tell(stage, (seed + share) / len(calibrations))

        batches = capture(lvlm, samples, split)
        parts, half = halves(batches, seed)
        groups = [(batch.language, batch.vision, *masks) for batch, masks in zip(batches, parts, strict=True)]
        found = group_sensitivities(lvlm, batches, groups, sensitivity, heard, damping)
        for name, weight in weights.items():
            language, vision, language_a, language_b, vision_a, vision_b = found[name]
            full[name].append((language, vision))
            halved.setdefault(name, found[name][2:])
            pairs = [
                (language, vision),
                (language_a, vision_a),
                (language_b, vision_b),
                (language_a, language_b),
                (vision_a, vision_b),
            ]
            contrasts[name].append([Contrast.of(significance_map(weight, *pair, thresholds)) for pair in pairs])
        language_tokens, vision_tokens = (
            sum(int(getattr(batch, modality).sum()) for batch in batches) for modality in ("language", "vision")
        )
        tokens.append((language_tokens, vision_tokens, half))
    linears = {}
    for name, weight in weights.items():
        whole, first, second, null_language, null_vision = (
            sum(rest, start=one) for one, *rest in zip(*contrasts[name], strict=True)
        )
        maps = [significance_map(weight, *pair, thresholds) for pair in full[name]]
        agreements = [Agreement.of(*pair) for pair in combinations(maps, 2)]
        linears[name] = LinearControls(
            full=whole,
            matched=first + second,
            null_language=null_language,
            null_vision=null_vision,
            agreement=sum(agreements[1:], start=agreements[0]) if agreements else None,
        )
    tell("controls", 1.0)
    language_counts, vision_counts, half_counts = (list(counts) for counts in zip(*tokens, strict=True))
    return Controls(linears, halved, sensitivity, thresholds, language_counts, vision_counts, half_counts)


def halves(batches: Sequence[Batch], seed: int = 0) -> tuple[list[tuple[Tensor, Tensor, Tensor, Tensor]], int]:
    """Two disjoint halves of each modality, all four with the same number of tokens, and that number.

    Per batch the positions, bool [B, S], of language A, language B, vision A and vision B. Samples are dealt
    out at random, those with vision tokens and those without apart; of the larger halves tokens are left out
    at random. Raises SabError when a half would be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    in_a = [torch.zeros(len(batch.vision), dtype=torch.bool) for batch in batches]
    seeing = [batch.vision.any(1).cpu() for batch in batches]
    for kind in (True, False):
        rows = [(batch, row) for batch, sees in enumerate(seeing) for row in (sees == kind).nonzero()[:, 0].tolist()]
        for index in torch.randperm(len(rows), generator=generator)[::2].tolist():
            batch, row = rows[index]
            in_a[batch][row] = True
    masks = [
        [getattr(batch, modality).cpu() & (dealt == side)[:, None] for batch, dealt in zip(batches, in_a, strict=True)]
        for modality in ("language", "vision")
        for side in (True, False)
    ]
    tokens = min(sum(int(mask.sum()) for mask in group) for group in masks)
    if not tokens:
        raise SabError("The null needs two samples of each modality at least; raise the number of samples.")
    thinned = [_thinned(group, tokens, generator) for group in masks]
    placed = [[mask.to(batch.vision.device) for mask, batch in zip(group, batches, strict=True)] for group in thinned]
    return list(zip(*placed, strict=True)), tokens


def _thinned(masks: Sequence[Tensor], tokens: int, generator: torch.Generator) -> list[Tensor]:
    """The masks with `tokens` of their positions left, chosen at random over all of them."""
    whole = torch.cat([mask.reshape(-1) for mask in masks])
    places = whole.nonzero()[:, 0]
    kept = torch.zeros_like(whole)
    kept[places[torch.randperm(len(places), generator=generator)[:tokens]]] = True
    parts = kept.split([mask.numel() for mask in masks])
    return [part.reshape(mask.shape) for part, mask in zip(parts, masks, strict=True)]


def _log_ratio(significance: SignificanceMap) -> Tensor:
    """log10(S̄_vision / S̄_language) [n, m] within ±SPAN; 0 where both are 0."""
    found = significance.vision.log10() - significance.language.log10()
    return found.nan_to_num(nan=0.0, posinf=SPAN, neginf=-SPAN).clamp(-SPAN, SPAN)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
