"""One linear ready to be drawn: its significances, their pyramid, and what each row and column adds up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from viz.downsample import Pyramid, encode
from viz.figures import density

if TYPE_CHECKING:
    from sab.significance import SignificanceMap


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
    switched_off: str

    @classmethod
    def of(cls, weight: NDArray[np.float32], found: SignificanceMap) -> Layer:
        """Prepare the map of a weight, whatever thresholds it was made with."""
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
            switched_off=found.switched_off or "",
        )


def line_classes(partition: NDArray[np.uint8], axis: int) -> NDArray[np.uint32]:
    """Weights of each class but "neither" in every row (axis 0) or column (axis 1): [3, lines]."""
    return np.stack([np.count_nonzero(partition == code, axis=1 - axis) for code in (1, 2, 3)]).astype(np.uint32)


def boundaries(found: SignificanceMap) -> density.Boundaries:
    """Where a map's thresholds cut, read off the map: the smallest salient significance of each modality and
    the smallest difference that counts. Infinite where nothing is salient."""
    language, vision = found.language.numpy().reshape(-1), found.vision.numpy().reshape(-1)
    share, sparsity = found.thresholds.salient_top_p, found.thresholds.sparsity_thr
    among = np.abs(language - vision)[found.partition.numpy().reshape(-1) > 0]
    difference = math.inf
    if among.size:
        rank = int(found.thresholds.diff_quantile * (among.size - 1))
        difference = float(np.partition(among, rank)[rank])
    return density.Boundaries(
        language=_smallest_of_top(language, share),
        vision=_smallest_of_top(vision, share),
        difference=difference,
        ratio=density.ratio_of_sparsity(sparsity),
    )


def _smallest_of_top(values: NDArray[np.float32], share: float) -> float:
    count = min(values.size, max(1, round(share * values.size))) if share > 0 else 0
    if not count:
        return math.inf
    cut = float(np.partition(values, values.size - count)[values.size - count])
    return cut if cut > 0 else float(np.min(values[values > 0], initial=math.inf))
