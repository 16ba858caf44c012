"""Second moments of a linear layer's inputs, per modality, and their inverse.

    H_q = (2 / N_q) sum_{tokens t of modality q} x_t x_t^T          [m, m] float32      (METHOD 1)

Compensation mixes the modalities, `H = (1 - beta) H_language + beta H_vision`. Everything that needs the
inverse goes through one factorisation: with J the reversal of both axes, `J H J = L L^T` gives the upper
factor of the inverse as `U = J L^-1 J`, so that `H^-1 = U^T U`, without ever forming `H^-1` or factoring
twice: `dampen` hands on the L that has shown its strength to be enough. Cost: half an m x m x tokens product per
batch, then m^3 / 3 for Cholesky and 2 m^3 / 3 for the triangular inverse, per linear.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sab.errors import SabError

PANELS = 8  # in which a sum is computed: the product's upper half, which mirrors the lower, is left out but for 1/16
LEAST_PANEL = 128
LEAST_TRIANGLE = 256  # solved at once
RAMP = 10.0  # factor between two tries of the dampening
LARGEST_STRENGTH = 100.0


class HessianAccumulator:
    """Sums `x x^T` over batches; one per linear input and modality.

    Splitting a batch differently changes the result by float32 rounding only. Of the symmetric product only the
    lower half is computed, in panels of rows: little more than half the work, and no second matrix of its size.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.tokens = 0
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)

    @torch.no_grad()
    def add(self, inputs: Tensor) -> None:
        """Adds tokens, `[..., m]` of any floating type. SabError if the width differs."""
        if inputs.shape[-1] != self.width:
            raise SabError(f"the Hessian takes inputs of width {self.width}, not {inputs.shape[-1]}")
        rows = inputs.detach().reshape(-1, self.width).to(self._sum.device)  # [tokens, m]
        if not rows.shape[0]:
            return
        half = rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16)
        if not half:
            rows = rows.float()  # on CPU a bf16 product would round its output to 8 bits
        for start, stop in self._panels():
            panel = self._sum[start:stop, :stop]
            if half:  # half-precision operands, float32 sums and output: full tensor-core speed, no rounded H
                panel += torch.mm(rows[:, start:stop].T, rows[:, :stop], out_dtype=torch.float32)
            else:
                panel.addmm_(rows[:, start:stop].T, rows[:, :stop])
        self.tokens += rows.shape[0]

    def to(self, device: torch.device) -> "HessianAccumulator":
        """The same sums on a device."""
        if self._sum.device == device:
            return self
        moved = HessianAccumulator(0, device)
        moved.width, moved.tokens, moved._sum = self.width, self.tokens, self._sum.to(device)
        return moved

    def pool(self, total: Callable[[Tensor], Tensor]) -> None:
        """Take in what accumulators elsewhere have summed: `total` adds up a tensor over all of them."""
        self._sum = total(self._sum)
        self.tokens = int(total(torch.tensor(self.tokens)))

    @property
    def finite(self) -> bool:
        """Whether no token held NaN or infinity and no sum left float32."""
        return bool(torch.isfinite(self._sum).all())

    @property
    def hessian(self) -> Tensor:
        """`(2/N) sum x x^T`, `[m, m]` float32; zeros while no token was seen."""
        full = self._sum * (2.0 / self.tokens) if self.tokens else torch.zeros_like(self._sum)
        for start, stop in self._panels():
            full[:start, start:stop] = full[start:stop, :start].T
        return full

    def _panels(self) -> Iterator[tuple[int, int]]:
        size = max(LEAST_PANEL, -(-self.width // PANELS))
        for start in range(0, self.width, size):
            yield start, min(start + size, self.width)


def combine(
    language: Tensor, vision: Tensor, tokens_language: int, tokens_vision: int, beta: float | None = None
) -> Tensor:
    """`(1 - beta) H_language + beta H_vision`, `[m, m]`; by default beta is the share of vision tokens.

    `beta=0` is the reference's text-only compensation. SabError for a beta outside [0, 1].
    """
    if beta is None:
        tokens = tokens_language + tokens_vision
        beta = tokens_vision / tokens if tokens else 0.0
    if not (math.isfinite(beta) and 0.0 <= beta <= 1.0):
        raise SabError(f"beta must lie between 0 and 1, not {beta}")
    if language.shape != vision.shape:
        raise SabError(f"the two Hessians differ in shape: {tuple(language.shape)}, {tuple(vision.shape)}")
    return (1.0 - beta) * language + beta * vision


@dataclass(frozen=True)
class Damped:
    """A Hessian that Cholesky accepts.

    `hessian` [m, m]: H + strength_used * mean(diag H over live inputs) * I, dead inputs with H_jj = 1;
    `strength_used`: the strength that worked (the wanted one, or that times 10, 100, ...);
    `dead` bool [m]: inputs that were never active; their weights are set to 0 before fitting;
    `lower` [m, m]: Cholesky factor L of the Hessian with both axes reversed.
    """

    hessian: Tensor
    strength_used: float
    dead: Tensor
    lower: Tensor


def dampen(hessian: Tensor, strength: float = 0.01) -> Damped:
    """Adds `strength * mean(diag H)` to the diagonal, in steps of 10 until H is positive definite.

    SabError for NaN, infinity (also when the sums leave float32), a matrix that is not square, or one that no
    strength up to 100 repairs. The mean runs over live inputs, so that dead ones do not weaken the dampening.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise SabError(f"a Hessian must be square, not {tuple(hessian.shape)}")
    if not (math.isfinite(strength) and strength >= 0.0):
        raise SabError(f"damping must be a number of at least 0, not {strength}")
    # checked here because Cholesky on CPU reads one triangle only and lets NaN in the other pass
    if not bool(torch.isfinite(hessian).all()):
        raise SabError("the Hessian holds NaN or infinity: the calibration activations are not finite or too large")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    base = hessian.float().clone()
    base.diagonal()[dead] = 1.0
    mean = float(diagonal[~dead].mean(dtype=torch.float64)) if bool((~dead).any()) else 1.0
    tried = strength
    while True:
        damped = base.clone()
        damped.diagonal().add_(tried * mean)
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info) == 0 and bool(torch.isfinite(lower).all()):
            return Damped(damped, tried, dead, lower)
        tried = tried * RAMP if tried else 1e-4
        if tried > LARGEST_STRENGTH:
            raise SabError("the Hessian is not positive semi-definite: check the calibration activations")


def inverse_factor(damped: Damped) -> Tensor:
    """Upper triangular `U` [m, m] with `H^-1 = U^T U` of the damped H. SabError if U leaves float32."""
    inverse = torch.zeros_like(damped.lower)
    _invert_triangle(damped.lower, inverse)
    factor = inverse.flip(0, 1)
    if not bool(torch.isfinite(factor).all()):
        raise SabError("the inverse of the Hessian leaves float32: raise the damping")
    return factor


def _invert_triangle(lower: Tensor, inverse: Tensor) -> None:
    """Write the inverse of `lower` [m, m] into the zeros of `inverse` by halves: with [[A, 0], [B, C]] the corner is
    -C^-1 B A^-1. Two thirds of the work of solving for the identity, and all of it in large products."""
    size = lower.shape[0]
    if size <= LEAST_TRIANGLE:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        inverse.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    _invert_triangle(lower[:half, :half], inverse[:half, :half])
    _invert_triangle(lower[half:, half:], inverse[half:, half:])
    torch.mm(inverse[half:, half:], lower[half:, :half] @ inverse[:half, :half], out=inverse[half:, :half]).neg_()


def input_sensitivity(hessian: Tensor, strength: float = 0.01) -> Tensor:
    """`1 / [(H + lambda I)^-1]_jj`, `[m]`: what removing a weight of input j costs, per unit of weight².

    0 for inputs that are dead in this modality, hence all zeros for a modality without tokens.
    """
    damped = dampen(hessian, strength)
    inverse_diagonal = inverse_factor(damped).square().sum(0)  # columns of U: diag(U^T U)
    return torch.where(damped.dead, 0.0, 1.0 / inverse_diagonal)
