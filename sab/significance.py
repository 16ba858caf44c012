"""Which modality drives each weight: significance, sparsity, partition and the weighting of the fit.

    S_q   = W² * sensitivity_q            sensitivity [m] (input side) or [n, m] (Fisher)     (METHOD 2)
    S̄_q   = S_q / mean(S_q)
    rho   = (sqrt 2 - |S̄|_1 / |S̄|_2) / (sqrt 2 - 1)    Hoyer sparsity over the two modalities
    r     = share of sum(S̄_l + S̄_v) that unimodal weights carry                               (METHOD 4)
    Λ     = r rho + (1 - r)(1 - rho), scaled to mean 1, at least 0.01

The partition (METHOD 3) is for the eye; of it only r enters the fit. Cost: O(n m), two selections.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sab.errors import SabError

PARTITION_NAMES = ("neither", "language-only", "vision-only", "cross-modal")
SMALLEST_WEIGHTING = 0.01
ROOT_TWO = math.sqrt(2.0)


@dataclass(frozen=True)
class Thresholds:
    """The three thresholds of the partition, each a share or a value in [0, 1].

    `salient_top_p`: share of weights that are salient for a modality; `diff_quantile`: quantile of
    |S̄_l - S̄_v| over the salient weights from which one is unimodal; `sparsity_thr`: rho above which.
    """

    salient_top_p: float = 0.05
    diff_quantile: float = 0.5
    sparsity_thr: float = 0.005

    def validate(self) -> "Thresholds":
        """Returns itself. SabError for a value that is not a number between 0 and 1."""
        for name in ("salient_top_p", "diff_quantile", "sparsity_thr"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise SabError(f"{name} must be a number between 0 and 1, not {value!r}")
        return self


@dataclass(frozen=True)
class SignificanceMap:
    """All per-weight maps of one linear, `[n, m]`.

    `language`, `vision`: S̄ (mean 1); `sparsity`: rho in [0, 1]; `partition`: uint8, index into
    PARTITION_NAMES; `unimodal_ratio`: r; `weighting`: Λ; `switched_off`: None, or the reason why the map
    carries no information (then Λ is 1 and every weight is "neither").
    """

    language: Tensor
    vision: Tensor
    sparsity: Tensor
    partition: Tensor
    unimodal_ratio: float
    weighting: Tensor
    thresholds: Thresholds
    switched_off: str | None = None

    def counts(self) -> dict[str, int]:
        """Number of weights in each class, by name."""
        found = torch.bincount(self.partition.reshape(-1).int(), minlength=len(PARTITION_NAMES))
        return dict(zip(PARTITION_NAMES, found.tolist(), strict=True))


def hoyer(language: Tensor, vision: Tensor) -> Tensor:
    """Sparsity rho in [0, 1] of the pair (S̄_l, S̄_v) >= 0: 1 if one modality has it all, 0 if equal."""
    total, length = language + vision, torch.hypot(language, vision)
    ratio = torch.where(length > 0, total / length, ROOT_TWO)
    return ((ROOT_TWO - ratio) / (ROOT_TWO - 1.0)).clamp(0.0, 1.0)


def threshold_ratio(sparsity_thr: float) -> float:
    """The ratio max(S̄_l, S̄_v) / min(S̄_l, S̄_v), at least 1, that a pair has where its rho is `sparsity_thr`.

    With c = sqrt 2 - rho (sqrt 2 - 1) = (1 + t) / sqrt(1 + t²) for a ratio t, t is the larger root of
    (c² - 1) t² - 2 t + (c² - 1) = 0. Infinite at rho = 1. SabError outside [0, 1].
    """
    if not (math.isfinite(sparsity_thr) and 0.0 <= sparsity_thr <= 1.0):
        raise SabError(f"sparsity_thr must be a number between 0 and 1, not {sparsity_thr!r}")
    reach = ROOT_TWO - sparsity_thr * (ROOT_TWO - 1.0)  # c
    middle = (ROOT_TWO - 1.0) * (1.0 - sparsity_thr) * (reach + 1.0)  # c² - 1, without cancellation near rho = 1
    spread = sparsity_thr * (ROOT_TWO - 1.0) * (ROOT_TWO + reach)  # 2 - c², without cancellation near rho = 0
    return max(1.0, (1.0 + reach * math.sqrt(spread)) / middle) if middle > 0 else math.inf


def significance_map(
    weight: Tensor,
    sensitivity_language: Tensor,
    sensitivity_vision: Tensor,
    thresholds: Thresholds | None = None,
) -> SignificanceMap:
    """Maps of a linear with `weight` [n, m]; each sensitivity is `[m]` or `[n, m]`, finite and >= 0.

    A modality without any sensitivity (no tokens) switches the map off. SabError on NaN or wrong shapes.
    """
    thresholds = (thresholds or Thresholds()).validate()
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise SabError("the weight holds NaN or infinity")
    language = _normalised(weight, sensitivity_language, "language")
    vision = _normalised(weight, sensitivity_vision, "vision")
    absent = [name for name, part in (("language", language), ("vision", vision)) if not bool(part.any())]
    if absent:
        return SignificanceMap(
            language=language,
            vision=vision,
            sparsity=torch.zeros_like(language),
            partition=torch.zeros_like(language, dtype=torch.uint8),
            unimodal_ratio=0.0,
            weighting=torch.ones_like(language),
            thresholds=thresholds,
            switched_off=f"no {' and no '.join(absent)} signal reached this linear: weighting is off",
        )
    sparsity = hoyer(language, vision)
    partition = _partition(language, vision, sparsity, thresholds)
    unimodal = (partition == 1) | (partition == 2)
    total = language + vision
    ratio = float(total[unimodal].sum(dtype=torch.float64) / total.sum(dtype=torch.float64))
    return SignificanceMap(language, vision, sparsity, partition, ratio, integrate(sparsity, ratio), thresholds)


def integrate(sparsity: Tensor, unimodal_ratio: float) -> Tensor:
    """Weighting Λ [n, m] from rho and r; exactly constant at r = 0.5."""
    weighting = (1.0 - unimodal_ratio) + (2.0 * unimodal_ratio - 1.0) * sparsity
    mean = weighting.mean(dtype=torch.float64)
    # at r = 0 (r = 1) a map that is wholly unimodal (shared) has Λ = 0: nothing to tell apart
    if not mean > 0:
        return torch.ones_like(weighting)
    return (weighting / mean.float()).clamp_min(SMALLEST_WEIGHTING)


def _normalised(weight: Tensor, sensitivity: Tensor, name: str) -> Tensor:
    """S̄ [n, m]: W² * sensitivity over its mean; zeros where there is nothing to normalise."""
    sensitivity = sensitivity.detach().to(weight.device, torch.float32)
    if sensitivity.shape not in (weight.shape, weight.shape[1:]):
        raise SabError(f"the {name} sensitivity is {tuple(sensitivity.shape)}, the weight {tuple(weight.shape)}")
    if not bool((torch.isfinite(sensitivity) & (sensitivity >= 0)).all()):
        raise SabError(f"the {name} sensitivity must be finite and not negative")
    largest, steepest = weight.abs().max(), sensitivity.max()
    if not (bool(largest > 0) and bool(steepest > 0)):
        return torch.zeros_like(weight)
    # scaled first, so that neither squares nor products leave the range of float32
    significance = (weight / largest).square() * (sensitivity / steepest)
    mean = significance.mean(dtype=torch.float64).float()
    return significance / mean if mean > 0 else significance


def _partition(language: Tensor, vision: Tensor, sparsity: Tensor, thresholds: Thresholds) -> Tensor:
    """Class of each weight, uint8 [n, m]."""
    salient = _top(language, thresholds.salient_top_p) | _top(vision, thresholds.salient_top_p)
    partition = torch.zeros_like(salient, dtype=torch.uint8)
    if not bool(salient.any()):
        return partition
    difference = (language - vision).abs()
    among = difference[salient]
    rank = 1 + int(thresholds.diff_quantile * (among.numel() - 1))
    floor = torch.kthvalue(among, rank).values
    unimodal = salient & (sparsity > thresholds.sparsity_thr) & (difference >= floor)
    partition[salient] = 3
    partition[unimodal & (language > vision)] = 1
    partition[unimodal & (vision > language)] = 2
    return partition


def _top(values: Tensor, share: float) -> Tensor:
    """Mask of the largest `share` of the values (ties included, zeros never)."""
    count = min(values.numel(), max(1, round(share * values.numel()))) if share > 0 else 0
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    floor = torch.kthvalue(values.reshape(-1), values.numel() - count + 1).values
    return (values >= floor) & (values > 0)
