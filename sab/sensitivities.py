"""Sensitivities of the full-precision model per modality (METHOD 2): what removing a weight of an input costs.

"input": 1 / [(H_q + λI)⁻¹]_jj, one number per input; one pass over the blocks. "fisher": the mean of squared
gradients, one number per weight; a pass forward that keeps the hidden states at every block boundary, then one back,
a block at a time. Both for any groups of tokens; `maps` is the case of language and vision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sab import distributed
from sab.calibrated import Calibrated, Groups, Maps, Moments, by_modality, through_block
from sab.calibration import Sample
from sab.capture import Batch, answer_gradient, block_gradient, rows_of
from sab.errors import SabError
from sab.hessian import input_sensitivity
from sab.memory import Fallback, warn_of_host, with_host
from sab.models import LVLM
from sab.progress import Listener, silent


def maps(
    lvlm: LVLM,
    samples: Sequence[Sample],
    sensitivity: str = "input",
    split: str = "token",
    progress: Listener | None = None,
    damping: float = 0.01,
) -> Maps:
    """Sensitivities (language, vision) of every decoder linear, on full-precision activations.

    "input": [m], 1 / [(H_q + λI)⁻¹]_jj. "fisher": [n, m], (1/N_q) Σ_t (g_t∘g_t)(x_t∘x_t)ᵀ with g the gradient
    of the answers' log-likelihood at the linear's output. Both in METHOD 2. Raises SabError for other names.
    """
    if sensitivity not in MAPS:
        raise SabError(f"The sensitivity {sensitivity!r} is not known; choose {' or '.join(MAPS)}.")
    tell = progress or silent
    known = Calibrated(lvlm, samples, split, progress=tell)
    return known_maps(known, list(lvlm.decoder_linears), sensitivity, damping, tell)


def group_sensitivities(
    lvlm: LVLM,
    batches: Sequence[Batch],
    groups: Groups,
    sensitivity: str = "input",
    progress: Listener | None = None,
    damping: float = 0.01,
) -> dict[str, tuple[Tensor, ...]]:
    """As `maps`, for any groups of tokens, which may overlap, in one pass over the captured batches."""
    if sensitivity not in MAPS:
        raise SabError(f"The sensitivity {sensitivity!r} is not known; choose {' or '.join(MAPS)}.")
    names = list(lvlm.decoder_linears)
    tell = progress or silent
    return MAPS[sensitivity](lvlm, batches, groups, names, damping, tell, warn_of_host)


def known_maps(known: Calibrated, names: Sequence[str], kind: str, damping: float, tell: Listener) -> Maps:
    """Sensitivities of the full-precision model; of all decoder linears where other runs may want them too."""
    lvlm = known.lvlm
    key = kind, damping if kind == "input" else 0.0  # Fisher sensitivities take no damping
    if key in known.maps:
        return known.maps[key]
    if not known.keeps:
        groups = by_modality(known.batches)
        found = MAPS[kind](lvlm, known.batches, groups, names, damping, tell, known.fallback)
        return {name: (language, vision) for name, (language, vision) in found.items()}
    every = list(lvlm.decoder_linears)
    if kind == "input":
        found = {}
        for index in range(len(lvlm.blocks)):
            tell("input sensitivities", index / len(lvlm.blocks))
            inside = [name for name in every if lvlm.info[name].block == index]
            found |= _input_sensitivities(lvlm, known.moments(index, inside), inside, damping, known.fallback)
    else:
        groups = by_modality(known.batches)
        found = MAPS[kind](lvlm, known.batches, groups, every, damping, tell, known.fallback)
    kept = {name: (language, vision) for name, (language, vision) in found.items()}
    known.maps = {other: maps for other, maps in known.maps.items() if other[0] != kind} | {key: kept}
    return kept


def _input_maps(
    lvlm: LVLM,
    batches: Sequence[Batch],
    groups: Groups,
    names: Sequence[str],
    damping: float,
    tell: Listener,
    fallback: Fallback,
) -> dict[str, tuple[Tensor, ...]]:
    found: dict[str, tuple[Tensor, ...]] = {}
    for index in range(len(lvlm.blocks)):
        inside = [name for name in names if lvlm.info[name].block == index]
        tell("input sensitivities", index / len(lvlm.blocks))
        more = index + 1 < len(lvlm.blocks)
        moments, batches = through_block(lvlm, index, batches, inside, groups, fallback=fallback, to_the_end=more)
        found |= _input_sensitivities(lvlm, moments, inside, damping, fallback)
    return found


def _input_sensitivities(
    lvlm: LVLM, moments: Mapping[str, Moments], inside: Sequence[str], damping: float, fallback: Fallback
) -> dict[str, tuple[Tensor, ...]]:
    """Sensitivities [m] of the linears of one block, one per group of tokens."""
    found: dict[str, tuple[Tensor, ...]] = {}
    computed: dict[int, tuple[Tensor, ...]] = {}  # q, k and v share their moments: invert once
    for name in inside:
        shared = moments[name]
        if id(shared) not in computed:

            def invert(device: torch.device, shared: Moments = shared) -> tuple[Tensor, ...]:
                return tuple(input_sensitivity(group.to(device).hessian, damping).to(lvlm.rests_on) for group in shared)

            try:
                computed[id(shared)] = with_host(f"{name}, its sensitivities", invert, lvlm.device, fallback)
            except SabError as refusal:
                raise SabError(f"{name}: {refusal}") from refusal
        found[name] = computed[id(shared)]
    return found


def _fisher_maps(
    lvlm: LVLM,
    batches: Sequence[Batch],
    groups: Groups,
    names: Sequence[str],
    damping: float,
    tell: Listener,
    fallback: Fallback,
) -> dict[str, tuple[Tensor, ...]]:
    """Forward once, keeping the hidden states at block boundaries; then back, one block at a time."""
    boundaries = [list(batches)]
    steps = 2 * len(lvlm.blocks)
    for index in range(len(lvlm.blocks)):
        tell("Fisher information, forward", index / steps)
        boundaries.append(through_block(lvlm, index, boundaries[-1], [])[1])
    with lvlm.holding_head():
        gradients = [answer_gradient(lvlm, batch) for batch in boundaries[-1]]
    tokens = [
        distributed.total_count(sum(int(mask.sum()) for mask in masks)) for masks in zip(*groups, strict=True)
    ]
    found: dict[str, tuple[Tensor, ...]] = {}
    for index in reversed(range(len(lvlm.blocks))):
        tell("Fisher information, backward", 1 - (index + 1) / steps)
        inside = {name: lvlm.linears[name] for name in names if lvlm.info[name].block == index}
        sums = {
            name: [torch.zeros(linear.weight.shape, device=lvlm.device) for _ in tokens]
            for name, linear in inside.items()
        }

        with lvlm.holding_block(index):
            for position, (batch, masks) in enumerate(zip(boundaries[index], groups, strict=True)):

                def add(name: str, inputs: Tensor, gradient: Tensor, masks: Any = masks, totals: Any = sums) -> None:
                    for total, mask in zip(totals[name], masks, strict=True):
                        rows = rows_of(inputs, mask, name).float().square()
                        total.addmm_(rows_of(gradient, mask, name).float().square().T, rows)

                gradients[position] = block_gradient(lvlm, index, batch, gradients[position], inside, add)
        for name, own in sums.items():
            totals = [distributed.total(values) for values in own]
            if not all(bool(torch.isfinite(total).all()) for total in totals):
                raise SabError(f"{name}: its Fisher information holds NaN or infinity.")
            found[name] = tuple(
                (total / max(1, count)).to(lvlm.rests_on) for total, count in zip(totals, tokens, strict=True)
            )
        boundaries.pop()
    return {name: found[name] for name in names}


MAPS: dict[str, Callable[..., dict[str, tuple[Tensor, ...]]]] = {
    "input": _input_maps,
    "fisher": _fisher_maps,
}
