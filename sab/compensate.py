"""Fit a linear block by block, carrying each block's error into the columns to its right (METHOD 6).

    E = W_b - W_hat_b,   W_b as it entered (after earlier compensation)
    exact    W_{>b} -= (E U_bb^-1) U_{b,>b}          the minimiser of tr(D H D^T) over later columns
    lineage  W_{>b} -= (E / diag U_bb) U_{b,>b}      as in the releases of BiLLM, ARB-LLM and SAB

With exact compensation tr(D H D^T) of the damped H is the sum of |E U_bb^-1|² over the blocks. Cost beside
the fits: one product of n * k * (m - b k) per block.

Linears that share an input (q, k and v; gate and up) share U, the costly part, and are fitted as one stack
(stack.py).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sab.binarizers import METHODS, BlockContext, LinearCodes
from sab.binarizers.alternate import EMPHASES
from sab.binarizers.codes import join
from sab.binarizers.pb_llm import KEEP
from sab.binarizers.signs import LARGEST_HALF
from sab.errors import SabError
from sab.hessian import dampen, inverse_factor
from sab.significance import SignificanceMap
from sab.stack import Stack

COMPENSATIONS = ("exact", "lineage", "none")
SEARCHES = ("published", "budget")
MODERATE = 40  # Hessians whose largest entry lies within 2^-40 ... 2^40 are fitted as they are


@dataclass(frozen=True)
class FitSettings:
    """`iterations`: alternating rounds; `block_size`: columns per block, a multiple of 8; `damping`: λ of
    METHOD 1; `search`: how structure is found, as published or within a "budget" of `bits` a weight, everything
    counted (sab-h); `max_salient`: most salient columns per block; `emphasis`: "constant" or "ramp";
    `compensation`: "exact", "lineage" or "none" (feedback inside blocks stays); `keep`: by which measure pb-llm
    keeps weights, "magnitude" or "hessian".
    """

    iterations: int = 15
    block_size: int = 128
    damping: float = 0.01
    search: str = "published"
    max_salient: int = 49
    emphasis: str = "constant"
    compensation: str = "exact"
    keep: str = "magnitude"
    bits: float | None = None

    def validate(self) -> "FitSettings":
        """Returns itself. SabError that names the setting and what it may be."""
        for name, least in (("iterations", 0), ("block_size", 8), ("max_salient", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SabError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.block_size % 8:
            raise SabError(f"block_size must be a multiple of 8, not {self.block_size}")
        number = isinstance(self.damping, (int, float)) and not isinstance(self.damping, bool)
        if not number or not (math.isfinite(self.damping) and self.damping >= 0):
            raise SabError(f"damping must be a number of at least 0, not {self.damping!r}")
        for name, allowed in (
            ("search", SEARCHES),
            ("emphasis", EMPHASES),
            ("compensation", COMPENSATIONS),
            ("keep", KEEP),
        ):
            if getattr(self, name) not in allowed:
                raise SabError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if (self.search == "budget") != (self.bits is not None):
            raise SabError("a budget search takes bits, the stored bits a weight, and no other search does")
        return self


@dataclass(frozen=True)
class LinearFit:
    """`codes`; `weight` [n, m] float32 == codes.dense(); `relative_loss` tr(D H D^T) / tr(W H W^T) with the
    H that was given; `salient_fraction` c/m; `damping_used`: the strength that made H positive definite;
    `seconds`.
    """

    codes: LinearCodes
    weight: Tensor
    relative_loss: float
    salient_fraction: float
    damping_used: float
    seconds: float


@dataclass(frozen=True)
class FactoredHessian:
    """A compensation Hessian with the factor that every linear of its input needs.

    `hessian` [m, m] float32, up to a power of 4; `factor` U [m, m] with H⁻¹ = UᵀU of the damped H; `dead` bool [m];
    `damping_used`: the strength that made H positive definite.
    """

    hessian: Tensor
    factor: Tensor
    dead: Tensor
    damping_used: float


@torch.no_grad()
def factor_hessian(hessian: Tensor, damping: float = 0.01) -> FactoredHessian:
    """Dampens and factors H [m, m]; cost 2 m³ / 3. SabError for what `hessian.dampen` and `inverse_factor` refuse."""
    moderate = _moderate(hessian.detach().float())
    damped = dampen(moderate, damping)
    return FactoredHessian(moderate, inverse_factor(damped), damped.dead, damped.strength_used)


@torch.no_grad()
def fit_linear(
    weight: Tensor,
    hessian: Tensor | FactoredHessian,
    method: str,
    settings: FitSettings | None = None,
    significance: SignificanceMap | None = None,
    name: str = "",
    held_out: Tensor | None = None,
) -> LinearFit:
    """Fits `weight` [n, m] by `method` with the compensation Hessian `hessian` [m, m], factored before or not (then by
    the damping of the settings); `held_out` [m, m]: the same of other samples, for methods that judge their rounds by
    it.

    SabError, naming `name`, for NaN or infinity in the weight, in H or in anything computed from them, wrong
    shapes, weights beyond float16, an unknown method, a linear without calibration tokens, or a method that
    needs a significance map and has none.
    """
    return fit_linears([weight], hessian, method, settings, [significance], [name], held_out)[0]


@torch.no_grad()
def fit_linears(
    weights: Sequence[Tensor],
    hessian: Tensor | FactoredHessian,
    method: str,
    settings: FitSettings | None = None,
    significances: Sequence[SignificanceMap | None] | None = None,
    names: Sequence[str] | None = None,
    held_out: Tensor | None = None,
) -> list[LinearFit]:
    """`fit_linear` of several `weights` [n_s, m] that have one input, in one go.

    The codes of a linear do not depend on the others, but for rounding; its `seconds` are its rows' share.
    """
    settings = (settings or FitSettings()).validate()
    maps = significances or [None] * len(weights)
    labels = [name or "this linear" for name in names or [""] * len(weights)]
    given = hessian.hessian if isinstance(hessian, FactoredHessian) else hessian
    each = zip(weights, maps, labels, strict=True)
    weightings = [_check(weight, given, method, found, label) for weight, found, label in each]
    if not isinstance(hessian, FactoredHessian):
        try:
            hessian = factor_hessian(hessian.to(weights[0].device), settings.damping)
        except SabError as refusal:
            raise SabError(f"{labels[0]}: {refusal}") from refusal
    return _fit_stack(weights, hessian, method, settings, weightings, labels, held_out)


def _fit_stack(
    weights: Sequence[Tensor],
    factored: FactoredHessian,
    method: str,
    settings: FitSettings,
    weightings: Sequence[Tensor | None],
    labels: Sequence[str],
    held_out: Tensor | None,
) -> list[LinearFit]:
    """The fits of a stack; everything has been checked."""
    started = time.perf_counter()
    stack = Stack(tuple(len(weight) for weight in weights))
    original = torch.cat([weight.detach().float() for weight in weights])
    known = [weighting for weighting in weightings if weighting is not None]
    weighting = torch.cat(known) if known else None
    factor, hessian = factored.factor, factored.hessian
    remaining = original.clone()
    remaining[:, factored.dead] = 0.0
    chosen = METHODS[method]
    plan = None
    if chosen.plan is not None:
        options = {"keep": settings.keep, "block_size": settings.block_size, "bits": settings.bits}
        plans = [chosen.plan(part, factor, **options) for part in stack.split(remaining)]
        plan = plans[0].stacked(plans)
    # column-wise feedback is by itself the exact form, so methods that have it know no other
    lineage = settings.compensation == "lineage" and not chosen.feedback
    compensated = chosen.compensated and settings.compensation != "none"
    blocks: list[Sequence[LinearCodes]] = []
    for start in range(0, original.shape[1], settings.block_size):
        stop = min(start + settings.block_size, original.shape[1])
        entered = remaining[:, start:stop]
        here = slice(start, stop)
        carry = None  # [k, m - stop]: what an error of this block takes off the columns after it
        if compensated and stop < original.shape[1]:
            carry = factor[here, stop:]
            if lineage:
                carry = carry / factor[here, here].diagonal()[:, None]
            else:
                carry = torch.linalg.solve_triangular(factor[here, here], carry, upper=True)
        judge = None
        if held_out is not None and chosen.judged:
            so_far = original - torch.cat([*(_dense(block) for block in blocks), remaining[:, start:]], 1)
            judge = _judge(so_far, held_out.to(original.device, torch.float32), carry, here, stack)
        context = BlockContext(
            inverse_factor=factor[here, here],
            gram=hessian[here, here] / 2,
            weighting=None if weighting is None else weighting[:, here],
            block_size=settings.block_size,
            iterations=settings.iterations,
            max_salient=settings.max_salient,
            emphasis=settings.emphasis,
            plan=None if plan is None else plan.columns(here),
            judge=judge,
            stack=stack,
        )
        blocks.append(chosen.fit_stack(entered, context))
        error = entered - _dense(blocks[-1])
        exact = torch.linalg.solve_triangular(context.inverse_factor, error, upper=True, left=False)
        losses = stack.sums(exact.square().sum(1, dtype=torch.float64))  # [s]; of all blocks, tr(D H D^T) if exact
        for label, finite in zip(labels, torch.isfinite(losses).tolist(), strict=True):
            if not finite:
                raise SabError(f"{label}: the fit of columns {start} to {stop - 1} is not finite; raise the damping")
        if carry is not None:
            remaining[:, stop:] -= error @ carry
    fitted = [join(parts) for parts in zip(*blocks, strict=True)]
    dense = [codes.dense() for codes in fitted]
    energies = [quadratic(part, hessian) for part in stack.split(original)]
    ends = [quadratic(part - made, hessian) for part, made in zip(stack.split(original), dense, strict=True)]
    seconds = time.perf_counter() - started
    return [
        LinearFit(
            codes=codes,
            weight=made,
            relative_loss=end / energy if energy > 0 else 0.0,
            salient_fraction=codes.salient_fraction,
            damping_used=factored.damping_used,
            seconds=seconds * len(made) / len(original),
        )
        for codes, made, end, energy in zip(fitted, dense, ends, energies, strict=True)
    ]


def _dense(codes: Sequence[LinearCodes]) -> Tensor:
    """The linears of a stack, dense, one under the other."""
    return torch.cat([each.dense() for each in codes])


def _moderate(hessian: Tensor) -> Tensor:
    """H [m, m] by a power of 4 where its squares would leave float32; no method depends on the factor.

    U then changes by an exact power of 2, and the codes not at all.
    """
    largest = float(hessian.abs().max())
    if not math.isfinite(largest) or 2.0**-MODERATE < largest < 2.0**MODERATE:
        return hessian
    return hessian * 4.0 ** max(-60, min(60, -round(math.log2(largest) / 2)))


def _judge(
    so_far: Tensor, hessian: Tensor, carry: Tensor | None, here: slice, stack: Stack
) -> Callable[[Tensor], Tensor]:
    """tr(D H D^T) of each whole linear [s] as a function of the error E [n, k] of the block `here`, less a constant.

    `so_far` [n, m]: what the linears have changed before this block's codes. E adds itself in the block and
    `E carry` behind it, so with S = [I, carry] the loss moves by tr(E (S H S^T) E^T) + 2 tr(E (so_far H S^T)^T).
    Cost once: 2 m² k + n m k; then two products of n k².
    """
    weighed = hessian[:, here] if carry is None else hessian[:, here] + hessian[:, here.stop :] @ carry.T  # H S^T
    metric = weighed[here] if carry is None else weighed[here] + carry @ weighed[here.stop :]
    slope = so_far @ weighed

    def loss(error: Tensor) -> Tensor:
        return stack.sums((error * (error @ metric + 2.0 * slope)).sum(1, dtype=torch.float64))

    return loss


def quadratic(difference: Tensor, hessian: Tensor) -> float:
    """`tr(D H D^T)` for `difference` [n, m]: twice the mean squared output error, summed over outputs."""
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def _check(
    weight: Tensor, hessian: Tensor, method: str, significance: SignificanceMap | None, label: str
) -> Tensor | None:
    """Refuses what cannot be fitted; returns Λ [n, m] if the method uses it."""
    if method not in METHODS:
        raise SabError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if weight.ndim != 2 or not weight.numel():
        raise SabError(f"{label}: a weight must be a matrix with entries, not {tuple(weight.shape)}")
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise SabError(
            f"{label}: the Hessian is {tuple(hessian.shape)}, the weight {tuple(weight.shape)} needs "
            f"({weight.shape[1]}, {weight.shape[1]})"
        )
    if not bool(torch.isfinite(weight).all()):
        raise SabError(f"{label}: the weight holds NaN or infinity")
    if bool(weight.abs().max() > LARGEST_HALF):
        raise SabError(f"{label}: weights beyond {LARGEST_HALF:.0f} do not fit the stored float16 scales")
    if not bool(hessian.any()):
        raise SabError(f"{label}: no calibration token reached it, so there is nothing to fit to")
    if not METHODS[method].uses_significance:
        return None
    if significance is None:
        raise SabError(f"{label}: {method} needs a significance map; pass one or choose arb-rc-cgb")
    if significance.weighting.shape != weight.shape:
        raise SabError(
            f"{label}: the significance map is {tuple(significance.weighting.shape)}, the weight {tuple(weight.shape)}"
        )
    return significance.weighting.to(weight.device)
