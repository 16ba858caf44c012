"""Two figures of Learn that a reader plays with: what a format stores, and what carrying errors on is worth.

Both are measured: bits are counted by the serialiser on codes of the chosen form, losses come from fitting a layer of
the model that is shown on its own calibration dialogues.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from viz.figures import bit_breakdown, feedback
from viz.pages.chart import Control, chart_value, stepped
from viz.pages.store import Store

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8  # of the codes that are counted; what is stored once a row grows with them, the rest is stored once
SALIENT = (0.0, 0.02, 0.05, 0.07, 0.1, 0.2, 0.38)
BITMAPS = ("none", "one bit a weight")
SCALES = ("16 bit", "8 bit")
BLOCKS = (128, 256)
WIDTHS = (256, 1024, 4096)
START = (3, 1, 0, 0, 2)
ONCE = ("salient index", "column scales")  # what does not grow with the rows
COMPENSATIONS = ("none", "lineage", "exact")
DIALOGUES = 96  # for the Hessian of one layer: about two seconds
METHOD = "arb-rc"


@dataclass(frozen=True)
class Format:
    """A way to store a linear of `width` x `width` weights."""

    salient: float
    bitmap: bool
    small_scales: bool
    block: int
    width: int


def format_bits(form: Format) -> tuple[dict[str, float], float]:
    """Stored bits per weight by what they hold, and nominal bits, of a linear [width, width] in a format."""
    import torch

    from sab.binarizers.codes import BinaryCodes
    from sab.packing import count_bits

    width, blocks = form.width, -(-form.width // form.block)
    count = round(form.salient * width)
    salient = torch.arange(width) < count
    kind = torch.int8 if form.small_scales else torch.float16
    groups = 2 if form.bitmap else 1
    residuals = groups if count else 0
    codes = BinaryCodes(
        method="arb-rc",
        shape=(ROWS, width),
        block_size=form.block,
        first=torch.zeros(ROWS, width, dtype=torch.bool),
        group=torch.zeros(ROWS, width, dtype=torch.bool) if form.bitmap else None,
        salient=salient,
        second=torch.zeros(ROWS, count, dtype=torch.bool),
        row_scale=torch.zeros(groups + residuals, blocks, ROWS, dtype=kind),
        second_row_scale=torch.zeros(residuals, blocks, ROWS, dtype=kind),
        column_scale=torch.zeros(2, width, dtype=torch.float16),
        second_column_scale=torch.zeros(residuals, count, dtype=torch.float16),
        row_step=torch.zeros(ROWS, dtype=torch.float16) if form.small_scales else None,
    )
    counted = count_bits(codes)
    stored = {
        part: bits / (width if part in ONCE else ROWS) / width for part, bits in counted.breakdown.items() if bits
    }
    return stored, counted.nominal


def integer_bits(bits: int, width: int) -> tuple[dict[str, float], float]:
    """The same of GPTQ's integers, blocks of 128."""
    import torch

    from sab.binarizers.codes import IntegerCodes
    from sab.packing import count_bits

    blocks = -(-width // 128)
    levels = torch.zeros(ROWS, width, dtype=torch.uint8)
    scale, zero = torch.zeros(blocks, ROWS, dtype=torch.float16), torch.zeros(blocks, ROWS, dtype=torch.uint8)
    counted = count_bits(IntegerCodes("gptq", (ROWS, width), 128, bits, levels, scale, zero))
    return {part: stored / ROWS / width for part, stored in counted.breakdown.items()}, counted.nominal


def format_chart() -> dict[str, Any]:
    """A stacked bar that the reader changes, beside GPTQ with two and three bits."""
    controls = (
        Control("Salient columns", tuple(f"{share:.0%}" for share in SALIENT), START[0]),
        Control("Group bitmap", BITMAPS, START[1]),
        Control("Row scales", SCALES, START[2]),
        Control("Block", tuple(f"{block} columns" for block in BLOCKS), START[3]),
        Control("Matrix", tuple(f"{width} × {width}" for width in WIDTHS), START[4]),
    )
    names = ("this format", "GPTQ 2-bit", "GPTQ 3-bit")
    infos, sentences = {}, {}
    others = {width: [integer_bits(bits, width) for bits in (2, 3)] for width in WIDTHS}
    for places in itertools.product(*(range(len(control.steps)) for control in controls)):
        salient, bitmap, scales, block, width = places
        form = Format(SALIENT[salient], bool(bitmap), bool(scales), BLOCKS[block], WIDTHS[width])
        rows = [format_bits(form), *others[form.width]]
        bits = np.array([[stored.get(part, 0.0) for part in bit_breakdown.PARTS] for stored, _ in rows])
        nominal = np.array([value for _, value in rows])
        infos[places] = bit_breakdown.BitBreakdownInfo(names, bit_breakdown.PARTS, bits, nominal)
        all_in = bits[0].sum()
        more = "more" if all_in > bits[1].sum() else "less"
        sentences[places] = (
            f"A paper would print {nominal[0]:.2f} bits; {all_in:.2f} are stored for each weight, {more} than 2-bit "
            f"GPTQ's {bits[1].sum():.2f}."
        )
    return stepped(
        "bits-of-a-format",
        controls,
        lambda places, dark: bit_breakdown.figure(infos[places], dark, most=4.6),
        lambda places: bit_breakdown.traces(infos[places]),
        lambda places: sentences[places],
    )


class LayerHessians:
    """H [m, m] of a linear on calibration dialogues, full-precision inputs, kept for a few linears."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept = store.kept(8)

    def get(self, linear: str) -> Tensor:
        """The Hessian over all tokens of DIALOGUES dialogues."""
        return self._kept.get((self._store.lvlm.fingerprint, linear), lambda: self._measured(linear))

    def _measured(self, linear: str) -> Tensor:
        from sab import calibration, capture
        from sab.hessian import HessianAccumulator

        lvlm = self._store.lvlm.copy()  # visitors chat with the model meanwhile: its layers must not be watched
        found = HessianAccumulator(lvlm.linears[linear].in_features)
        for batch in capture.capture(lvlm, calibration.embedded(DIALOGUES, 0)):
            attended = batch.language | batch.vision

            def see(names: list[str], inputs: Tensor, attended: Tensor = attended) -> None:
                found.add(inputs[attended])

            with capture.watching({linear: lvlm.linears[linear]}, see):
                capture.run_decoder(lvlm, batch)
        return found.hessian


def feedback_chart(hessian: Tensor, weight: Tensor, linear: str) -> dict[str, Any]:
    """What the outputs of a linear lose with errors dropped, carried by the lineage's formula, and by the exact one.
    `weight` [n, m], `hessian` [m, m]."""
    from sab.binarizers import METHODS
    from sab.compensate import FitSettings, fit_linear

    fits = {
        name: fit_linear(weight, hessian, METHOD, FitSettings(compensation=name, iterations=5))
        for name in COMPENSATIONS
    }
    drawn = feedback.info({name: fit.relative_loss for name, fit in fits.items()})
    none, lineage, exact = (100 * fits[name].relative_loss for name in COMPENSATIONS)
    words = (
        f"{linear}, fitted three times with {METHODS[METHOD].label} on {DIALOGUES} dialogues: its outputs lose "
        f"{none:.1f} % of their energy when errors are dropped, {lineage:.1f} % with the formula of the published "
        f"releases, {exact:.1f} % with the exact one. The stored bits are the same."
    )
    return chart_value("compensation", lambda dark: feedback.figure(drawn, dark), words)
