"""ARB-X: ARB's means and scales refined under the inputs' own metric, signs fixed (METHOD 7). Li et al. 2025.

A row of a block is `F θ` with one column of F per parameter: the members of a group for its mean, their signs
for a scale. With S = mean x xᵀ of the block's inputs the row's output error is

    L(θ) = (w - F θ)ᵀ S (w - F θ),    normal matrix N = Fᵀ S F,    target b = Fᵀ S w

Each round solves for the means of all groups of a row at once, then for all its scales:

    θ_p += N_pp⁻¹ (b - N θ)_p         p: the means, then the scales

N does not change while the signs stay, so a round costs two solves of 3 and 4 unknowns per row, whatever the
width. A ridge far below N_pp keeps empty groups and dead inputs solvable; it shortens the step, and a shorter
step lowers the loss as well. Cost: seven products of n k², once.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sab.binarizers import arb
from sab.binarizers.block import BlockContext
from sab.binarizers.codes import BinaryCodes
from sab.binarizers.signs import as_float, to_half
from sab.stack import Stack

JITTER = 1e-5  # of S, relative to its largest entry: above what float32 sums leave below zero
RIDGE = 1e-12


def fit_stack(weight: Tensor, context: BlockContext) -> list[BinaryCodes]:
    """Codes of the block of each linear in `weight` [n, k]: those of `arb`, with means and scales refined in
    `context.gram`."""
    starts = arb.fit_stack(weight, context)
    stack = context.stack or Stack((len(weight),))
    parts = zip(stack.split(weight), starts, strict=True)
    equations = [normal_equations(part, start, context.gram) for part, start in parts]
    normal, target = (torch.cat(each) for each in zip(*equations, strict=True))
    parameters = torch.cat([torch.cat(_parameters(start))[:, 0].T for start in starts]).double()  # [n, p]
    means, scales, seconds = (len(part) for part in _parameters(starts[0]))
    *_, refined = rounds(normal, target, parameters, means, context.iterations)
    stored = to_half(refined).double()
    # rounding to the stored precision may cost more than the last rounds gained
    better = (loss(normal, target, stored) < loss(normal, target, parameters))[:, None]
    kept = to_half(torch.where(better, stored, parameters)).T[:, None]  # [p, 1, n]
    codes = []
    for start, here in zip(starts, stack.places, strict=True):
        row_mean, row_scale, second = kept[..., here].split((means, scales, seconds))
        codes.append(
            replace(
                start,
                method="arb-x",
                row_mean=row_mean.contiguous(),
                row_scale=row_scale.contiguous(),
                second_row_scale=second.contiguous(),
            )
        )
    return codes


def _parameters(codes: BinaryCodes) -> tuple[Tensor, Tensor, Tensor]:
    """Means, scales and second scales of a block, [slots, 1, n] and [residuals, 1, n]."""
    assert codes.row_mean is not None
    return codes.row_mean, codes.row_scale, codes.second_row_scale


def normal_equations(weight: Tensor, codes: BinaryCodes, gram: Tensor) -> tuple[Tensor, Tensor]:
    """N [n, p, p] and b [n, p], float64, of a block `weight` [n, k] in the metric `gram` S [k, k].

    Parameters: the mean of each slot, the scale of each slot, the second scale of the salient columns. S may
    have any scale; where few tokens leave it singular, a trace of the identity keeps parameters that no input
    tells apart from running off.
    """
    slot = codes.slots()
    members = torch.stack([slot == number for number in range(len(codes.row_scale))]).double()  # [s, n, k]
    second = torch.zeros_like(weight, dtype=torch.float64)
    second[:, codes.salient] = as_float(codes.second).double()
    features = torch.cat([members, members * as_float(codes.first).double(), second[None]])  # [p, n, k]
    largest = gram.diagonal().max()
    if largest > 0:
        metric = gram.double() / largest + JITTER * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    else:
        metric = torch.zeros_like(gram, dtype=torch.float64)
    weighed = features @ metric
    return torch.einsum("pnk,qnk->npq", features, weighed), torch.einsum("pnk,nk->np", weighed, weight.double())


def rounds(normal: Tensor, target: Tensor, start: Tensor, means: int, iterations: int) -> Iterator[Tensor]:
    """Yields `start` [n, p], then the parameters after each round; the first `means` of them are means."""
    parameters = start
    parts = [slice(0, means), slice(means, start.shape[1])]
    factors = [_factor(normal[:, part, part]) for part in parts]
    yield parameters
    for _ in range(iterations):
        parameters = parameters.clone()
        for part, factor in zip(parts, factors, strict=True):
            slope = target - (normal @ parameters[..., None])[..., 0]
            parameters[:, part] += torch.cholesky_solve(slope[:, part, None], factor)[..., 0]
        yield parameters


def loss(normal: Tensor, target: Tensor, parameters: Tensor) -> Tensor:
    """L(θ) of each row [n], but for the constant wᵀ S w."""
    return ((normal @ parameters[..., None])[..., 0] * parameters).sum(1) - 2 * (target * parameters).sum(1)


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factors of `matrix` [n, p, p] plus a ridge, which grows where an S that is not positive asks for
    it; in a row that no input reaches the ridge is all there is, and nothing moves."""
    size = matrix.diagonal(dim1=1, dim2=2).abs().sum(1)
    ridge = torch.where(size > 0, RIDGE * size, 1.0)
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    while True:
        factor, info = torch.linalg.cholesky_ex(matrix + ridge[:, None, None] * identity)
        if not bool(info.any()):
            return factor
        ridge = torch.where(info > 0, 10 * ridge, ridge)
