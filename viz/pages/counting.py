"""Exact class counts, r and cuts of one linear under any thresholds, without partitioning the whole map again.

Whatever the thresholds, only salient weights are divided into classes, and weights become salient in an order that can
be prepared: that of the smaller of their two ranks. The weights are sorted into buckets by it once; a query then reads
the first buckets alone. For a 4096 × 11008 matrix that is some seconds once, then about a tenth of one a query, where a
map takes several. The results are those of `sab.significance.significance_map`, which a test holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from viz.downsample import CODES, encode
from viz.figures.density import Boundaries, ratio_of_sparsity

if TYPE_CHECKING:
    from sab.significance import Thresholds

BUCKETS_PER_OCTAVE = 16
OCTAVES = 15  # of the share of weights that are at least as significant; the rest shares the first bucket


@dataclass(frozen=True)
class Classes:
    """counts by class code; r; where the thresholds cut; and the salient weights: flat indices and their classes."""

    counts: tuple[int, int, int, int]
    unimodal_ratio: float
    boundaries: Boundaries
    places: NDArray[np.uint32]
    classes: NDArray[np.uint8]

    @classmethod
    def none(cls, size: int) -> Classes:
        """Of `size` weights none is salient."""
        nothing = np.zeros(0, dtype=np.uint32)
        cuts = Boundaries(math.inf, math.inf, math.inf, math.inf)
        return cls((size, 0, 0, 0), 0.0, cuts, nothing, nothing.astype(np.uint8))

    def lines(self, shape: tuple[int, int], axis: int) -> NDArray[np.uint32]:
        """Weights of each class but "neither" in every row (axis 0) or column (axis 1): [3, lines]."""
        line = self.places // np.uint32(shape[1]) if axis == 0 else self.places % np.uint32(shape[1])
        counted = np.bincount(line + shape[axis] * (self.classes.astype(np.int64) - 1), minlength=3 * shape[axis])
        return counted.reshape(3, shape[axis]).astype(np.uint32)


class Counter:
    """language, vision: significances [n, m], float32, mean 1. `size`: number of weights."""

    def __init__(self, language: NDArray[np.float32], vision: NDArray[np.float32]) -> None:
        flat = language.reshape(-1), vision.reshape(-1)
        codes = encode(flat[0]), encode(flat[1])
        self.size = flat[0].size
        # tails[q][c]: weights of a code of at least c
        self._tails = [np.bincount(code, minlength=CODES + 3)[::-1].cumsum()[::-1] for code in codes]
        self._bucket_of_code = [self._buckets(tail) for tail in self._tails]
        bucket = np.minimum(self._bucket_of_code[0][codes[0]], self._bucket_of_code[1][codes[1]])
        order = np.argsort(bucket, kind="stable")
        self._ends = np.bincount(bucket, minlength=OCTAVES * BUCKETS_PER_OCTAVE + 1).cumsum()
        self._places = order.astype(np.uint32)
        self._values = [values[order] for values in flat]
        self._codes = [code[order] for code in codes]
        self._mass = float(np.add(*flat).sum(dtype=np.float64))

    def _buckets(self, tail: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Bucket of each code, the most significant first."""
        with np.errstate(divide="ignore"):
            octaves = OCTAVES + np.log2(tail / self.size)
        return np.ceil(np.clip(octaves, 0, OCTAVES) * BUCKETS_PER_OCTAVE).astype(np.uint8)

    def classes(self, thresholds: Thresholds) -> Classes:
        """Divide the salient weights; see METHOD 3."""
        import torch

        from sab.significance import hoyer

        share = thresholds.salient_top_p
        wanted = min(self.size, max(1, round(share * self.size))) if share > 0 else 0
        if not wanted:
            return Classes.none(self.size)
        found = [self._floor(modality, wanted) for modality in (0, 1)]
        end = int(self._ends[max(bucket for _, bucket in found)])
        first, second = (values[:end] for values in self._values)
        floors = [floor for floor, _ in found]
        salient = ((first >= floors[0]) & (first > 0)) | ((second >= floors[1]) & (second > 0))
        language, vision = first[salient], second[salient]
        difference = np.abs(language - vision)
        rank = int(thresholds.diff_quantile * (difference.size - 1))
        least = float(np.partition(difference, rank)[rank]) if difference.size else math.inf
        sparsity = hoyer(torch.from_numpy(language), torch.from_numpy(vision)).numpy()
        # As torch compares them: a float32 with the threshold in double precision.
        unimodal = (sparsity.astype(np.float64) > thresholds.sparsity_thr) & (difference >= np.float32(least))
        classes = np.full(language.size, 3, dtype=np.uint8)
        classes[unimodal & (language > vision)] = 1
        classes[unimodal & (vision > language)] = 2
        counts = np.bincount(classes, minlength=4)
        cuts = self._cuts(floors)
        carried = float((language + vision)[classes < 3].sum(dtype=np.float64))
        return Classes(
            counts=(self.size - language.size, int(counts[1]), int(counts[2]), int(counts[3])),
            unimodal_ratio=carried / self._mass if self._mass > 0 else 0.0,
            boundaries=Boundaries(cuts[0], cuts[1], least, ratio_of_sparsity(thresholds.sparsity_thr)),
            places=self._places[:end][salient],
            classes=classes,
        )

    def _floor(self, modality: int, wanted: int) -> tuple[float, int]:
        """The `wanted`-th largest significance of a modality, and the last bucket that holds as much."""
        tail, bucket_of_code = self._tails[modality], self._bucket_of_code[modality]
        code = int(np.searchsorted(-tail, -wanted, side="right")) - 1  # the largest with a tail of `wanted`
        low = max(code - 1, 0)  # a code to either side, for logarithms may round across an edge
        bucket = int(bucket_of_code[low])
        end = int(self._ends[bucket])
        codes = self._codes[modality][:end]
        within = self._values[modality][:end][(codes >= low) & (codes <= code + 1)]
        left = wanted - int(tail[code + 2])
        return float(np.partition(within, within.size - left)[within.size - left]), bucket

    def _cuts(self, floors: list[float]) -> list[float]:
        """The floors; where one is zero, the smallest significance above it, for zero is never salient."""
        return [
            floor if floor > 0 else float(np.min(values[values > 0], initial=math.inf))
            for floor, values in zip(floors, self._values, strict=True)
        ]
