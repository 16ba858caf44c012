"""Speed, measured beside a plain reference in the same run: `python -m sab bench pipeline`.

pipeline: the published search and the fit of `sab` against plain.py, which fits every candidate in turn, on the
first blocks of a square weight. Blocks of one weight cost the same, so a few of them say how long all would
take. The two must agree, or there is nothing to compare.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sab.binarizers import METHODS, BlockContext, plain
from sab.errors import SabError
from sab.hessian import HessianAccumulator, dampen, inverse_factor
from sab.progress import Listener, silent
from sab.significance import significance_map

BLOCK = 128
TOKENS_PER_INPUT = 8
AGREEMENT = 1e-4  # largest difference of relative losses
CONTENDERS: dict[str, Callable[[Tensor, BlockContext], Tensor]] = {
    "batched": lambda weight, context: METHODS["sab"].fit_block(weight, context).dense(),
    "plain": plain.fit_block,
}


@torch.no_grad()
def pipeline(size: int = 4096, blocks: int = 2, seed: int = 0, progress: Listener | None = None) -> dict[str, Any]:
    """Seconds per block and relative losses of both, for `blocks` blocks of a weight of `size` by `size`.

    The loss is tr(E G Eᵀ) / tr(W G Wᵀ) with G = U_bb⁻¹ U_bb⁻ᵀ (METHOD 8), over all blocks. SabError for sizes
    that make no sense, and where the two losses differ by more than 1e-4.
    """
    if size < BLOCK or size % BLOCK:
        raise SabError(f"--size is {size}; give a multiple of {BLOCK}")
    if not 1 <= blocks <= size // BLOCK:
        raise SabError(f"--blocks is {blocks}; give 1 to {size // BLOCK} for this size")
    tell = progress or silent
    cases = _cases(size, blocks, seed)
    for fit in CONTENDERS.values():  # first calls load libraries
        fit(*_cases(BLOCK, 1, seed)[0])
    seconds = dict.fromkeys(CONTENDERS, 0.0)
    lost = dict.fromkeys(CONTENDERS, 0.0)
    energy = 0.0
    for number, (weight, context) in enumerate(cases):
        energy += _loss(weight, context)
        for name, fit in CONTENDERS.items():
            tell(f"{name}, block {number + 1} of {blocks}", number / blocks)
            started = time.perf_counter()
            dense = fit(weight, context)
            seconds[name] += time.perf_counter() - started
            lost[name] += _loss(weight - dense, context)
    losses = {name: value / energy for name, value in lost.items()}
    if abs(losses["batched"] - losses["plain"]) > AGREEMENT:
        raise SabError(f"the batched fit lost {losses['batched']:.6f}, the plain one {losses['plain']:.6f}: a defect")
    return {
        "bench": "pipeline",
        "shape": [size, size],
        "blocks": blocks,
        "threads": torch.get_num_threads(),
        "seconds_per_block": {name: value / blocks for name, value in seconds.items()},
        "seconds_per_weight": {name: value / blocks * (size // BLOCK) for name, value in seconds.items()},
        "ratio": seconds["plain"] / seconds["batched"],
        "losses": losses,
    }


def _cases(size: int, blocks: int, seed: int) -> list[tuple[Tensor, BlockContext]]:
    """Blocks [size, 128] of a random weight with their contexts: correlated inputs, a Fisher-like map."""
    generator = torch.Generator().manual_seed(seed)
    width = blocks * BLOCK
    mix = torch.randn(width, width, generator=generator) / torch.arange(1, width + 1)[:, None]
    accumulator = HessianAccumulator(width)
    accumulator.add(torch.randn(TOKENS_PER_INPUT * width, width, generator=generator) @ mix)
    factor = inverse_factor(dampen(accumulator.hessian))
    weight = torch.randn(size, width, generator=generator) * (0.3 + torch.rand(width, generator=generator))
    language, vision = torch.rand(2, size, width, generator=generator) ** 3
    weighting = significance_map(weight, language, vision).weighting
    cases = []
    for start in range(0, width, BLOCK):
        here = slice(start, start + BLOCK)
        gram = accumulator.hessian[here, here] / 2
        cases.append((weight[:, here], BlockContext(factor[here, here], gram, weighting[:, here], BLOCK)))
    return cases


def _loss(error: Tensor, context: BlockContext) -> float:
    """tr(E G Eᵀ) of a block, [n, k]."""
    exact = torch.linalg.solve_triangular(context.inverse_factor, error, upper=True, left=False)
    return float(exact.square().sum(dtype=torch.float64))
