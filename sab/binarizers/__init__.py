"""The methods, by the name a recipe gives them.

Each is a file of plain functions; METHODS says what the driver, the tables and the page need to know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sab.binarizers import arb, arb_rc, arb_rc_cgb, arb_x, billm, gptq, pb_llm, rtn, sab, sab_h, xnor
from sab.binarizers.block import BlockContext, by_rows
from sab.binarizers.codes import BinaryCodes, GroupCodes, IntegerCodes, KeptCodes, LinearCodes, Round
from sab.errors import SabError

__all__ = [
    "METHODS",
    "BinaryCodes",
    "BlockContext",
    "GroupCodes",
    "IntegerCodes",
    "KeptCodes",
    "LinearCodes",
    "Method",
    "Round",
]


def _no_fit(*_: object, **__: object) -> GroupCodes:
    raise SabError("this method has no single-group fit: use fit_block")


def _no_trace(*_: object, **__: object) -> list[Round]:
    raise SabError("only the alternating methods (arb, arb-rc, arb-rc-cgb, sab) have rounds to trace")


@dataclass(frozen=True)
class Method:
    """`fit(weight, mask, order, *, significance=None, iterations=15)`: one group [n, k]; `significance` is Λ
    [n, k]. `fit_stack(weight, context)`: one block of each linear of `context.stack`. `trace(weight, *,
    significance=None, order=1, iterations=15)`: the rounds of an alternating fit. `fit` and `trace` raise SabError
    where a method has none. `plan(weight, inverse_factor, **settings)`: what the method fixes over the whole linear
    before the first block, those of a stack handed on as `context.plan`; None for most. `bits`: bits per code plane;
    `feedback`: errors are carried inside the block, column by column; `compensated`: errors are carried into later
    blocks; `judged`: rounds are kept by their loss on held-out samples; `settings`: fields of
    `compensate.FitSettings` that change its codes beside block size, damping and compensation; `refine`: epochs over
    which the codes of a block are refined together unless the recipe says otherwise, None where they are not those of
    `BinaryCodes`.
    """

    label: str
    description: str
    fit_stack: Callable[[Tensor, BlockContext], Sequence[LinearCodes]]
    fit: Callable[..., GroupCodes] = _no_fit
    trace: Callable[..., list[Round]] = _no_trace
    plan: Callable[..., Any] | None = None
    bits: int = 1
    uses_significance: bool = False
    feedback: bool = False
    compensated: bool = True
    judged: bool = False
    settings: tuple[str, ...] = ()
    refine: int | None = 0

    def fit_block(self, weight: Tensor, context: BlockContext) -> LinearCodes:
        """One block of one linear."""
        return self.fit_stack(weight, context)[0]


METHODS: dict[str, Method] = {
    "xnor": Method(
        label="XNOR",
        description="One sign per weight, with a mean and a scale per row of each block.",
        fit_stack=by_rows(xnor.fit_block),
        fit=xnor.fit,
    ),
    "pb-llm": Method(
        label="PB-LLM",
        description="The largest tenth of the weights kept at 8 bits, a sign for each of the others.",
        fit_stack=by_rows(pb_llm.fit_block),
        plan=pb_llm.plan,
        feedback=True,
        refine=None,
        settings=("keep",),
    ),
    "billm": Method(
        label="BiLLM",
        description="Salient columns get a second sign; the others are split by magnitude into two groups.",
        fit_stack=billm.fit_stack,
        fit=billm.fit,
        settings=("max_salient",),
    ),
    "arb": Method(
        label="ARB",
        description="BiLLM with mean, scale and signs refined in alternating rounds.",
        fit_stack=arb.fit_stack,
        fit=arb.fit,
        trace=arb.trace,
        settings=("iterations", "max_salient"),
    ),
    "arb-x": Method(
        label="ARB-X",
        description="ARB with means and scales refined once more for the inputs that calibration has seen.",
        fit_stack=arb_x.fit_stack,
        settings=("iterations", "max_salient"),
    ),
    "arb-rc": Method(
        label="ARB-RC",
        description="BiLLM's groups with row and column scales, refined in alternating rounds.",
        fit_stack=arb_rc.fit_stack,
        fit=arb_rc.fit,
        trace=arb_rc.trace,
        settings=("iterations", "max_salient"),
    ),
    "arb-rc-cgb": Method(
        label="ARB-RC + CGB",
        description="ARB-RC with the salient columns split by magnitude as well: SAB without its map.",
        fit_stack=arb_rc_cgb.fit_stack,
        fit=arb_rc_cgb.fit,
        trace=arb_rc_cgb.trace,
        settings=("iterations", "max_salient"),
    ),
    "sab": Method(
        label="SAB",
        description="ARB-RC + CGB fitted under the modality map: what language and vision need counts more.",
        fit_stack=sab.fit_stack,
        fit=sab.fit,
        trace=sab.trace,
        uses_significance=True,
        settings=("iterations", "max_salient", "emphasis"),
    ),
    "sab-h": Method(
        label="SAB-H",
        description="SAB's format fitted to the inputs: nearest levels by column, then whole blocks by gradients.",
        fit_stack=sab_h.fit_stack,
        plan=sab_h.plan,
        feedback=True,
        judged=True,
        refine=4,
        settings=("iterations", "max_salient", "bits"),
    ),
    **{
        f"rtn{bits}": Method(
            label=f"RTN {bits}-bit",
            description=f"Each weight rounded to the nearest of {2**bits} levels, nothing carried over.",
            fit_stack=by_rows(partial(rtn.fit_block, f"rtn{bits}", bits=bits)),
            bits=bits,
            compensated=False,
            refine=None,
        )
        for bits in (2, 3, 4)
    },
    **{
        f"gptq{bits}": Method(
            label=f"GPTQ {bits}-bit",
            description=f"{2**bits} levels per weight; each rounding error is carried into later columns.",
            fit_stack=by_rows(partial(gptq.fit_block, f"gptq{bits}", bits=bits)),
            bits=bits,
            feedback=True,
            refine=None,
        )
        for bits in (2, 3, 4)
    },
}
