"""One linear ready to be drawn: its significances, their pyramid, and what each row and column adds up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from viz.downsample import Pyramid, encode
from viz.pages.counting import Classes, Counter

if TYPE_CHECKING:
    from sab.significance import SignificanceMap, Thresholds

ONLY_VISION = (
    "only vision tokens pass through this part of the model, so there are no classes; "
    "vision significance is the square of the weight alone here"
)


@dataclass(frozen=True)
class Layer:
    """What the tab draws of one linear [n, m] of one run, whatever the thresholds.

    rows [2, n], columns [2, m]: mean significance of each line for language and for vision. `code_range`: codes between
    which colours run, the lowest hundredth of the stronger significances and the largest.
    """

    pyramid: Pyramid
    weight: NDArray[np.float32]
    language: NDArray[np.float32]
    vision: NDArray[np.float32]
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    code_range: tuple[int, int]
    mean_sparsity: float
    counter: Counter | None  # None where the map is switched off
    switched_off: str

    @classmethod
    def of(cls, weight: NDArray[np.float32], found: SignificanceMap, without_language: bool = False) -> Layer:
        """Prepare the map of a weight, whatever thresholds it was made with. `without_language`: no language token
        can reach the linear, wherever samples come from."""
        language, vision = found.language.numpy(), found.vision.numpy()
        stronger = encode(np.maximum(language, vision)).reshape(-1)
        place = stronger.size // 100
        return cls(
            pyramid=Pyramid(language, vision),
            weight=weight,
            language=language,
            vision=vision,
            rows=np.stack([language.mean(axis=1), vision.mean(axis=1)]),
            columns=np.stack([language.mean(axis=0), vision.mean(axis=0)]),
            code_range=(int(np.partition(stronger, place)[place]), int(stronger.max())),
            mean_sparsity=float(found.sparsity.mean()),
            counter=None if found.switched_off else Counter(language, vision),
            switched_off=ONLY_VISION if without_language else found.switched_off or "",
        )

    def classes(self, thresholds: Thresholds) -> Classes:
        """The salient weights by class, exactly; none where the map is switched off."""
        if self.counter is not None:
            return self.counter.classes(thresholds)
        return Classes.none(self.weight.size)
