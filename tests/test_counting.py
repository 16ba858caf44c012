"""Counting the salient weights alone gives exactly what partitioning the whole map gives."""

import math

import numpy as np
import pytest
import torch

from sab.significance import SignificanceMap, Thresholds, significance_map
from viz.pages.counting import Classes, Counter

THRESHOLDS = [
    Thresholds(),
    Thresholds(0.01, 0.75, 0.1),
    Thresholds(0.1, 0.25, 0.001),
    Thresholds(0.5, 0.0, 0.0),
    Thresholds(0.3, 1.0, 0.9),
    Thresholds(1.0, 0.5, 0.01),
    Thresholds(0.0, 0.5, 0.01),
]
CASES = ["plain", "ties and dead columns", "spiky"]


def drawn(case: str, shape: tuple[int, int], thresholds: Thresholds) -> SignificanceMap:
    generator = torch.Generator().manual_seed(len(case) + shape[0])
    weight = torch.randn(shape, generator=generator)
    language, vision = torch.rand(2, shape[1], generator=generator) + 0.1
    if case.startswith("ties"):
        weight = weight.round()
        weight[:, 0] = 0
        language[1] = 0
    if case == "spiky":
        language, vision = torch.rand(2, *shape, generator=generator) ** 6
    return significance_map(weight, language, vision, thresholds)


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (64, 48), (300, 200)])
@pytest.mark.parametrize("case", CASES)
def test_classes_are_those_of_the_map(case: str, shape: tuple[int, int], thresholds: Thresholds) -> None:
    found = drawn(case, shape, thresholds)
    partition = found.partition.numpy()
    counted = Counter(found.language.numpy(), found.vision.numpy()).classes(thresholds)
    assert counted.counts == tuple(found.counts().values())
    assert counted.unimodal_ratio == pytest.approx(found.unimodal_ratio, abs=1e-9)
    rebuilt = np.zeros(partition.size, dtype=np.uint8)
    rebuilt[counted.places] = counted.classes
    assert np.array_equal(rebuilt.reshape(shape), partition)
    for axis in (0, 1):
        expected = [np.count_nonzero(partition == code, axis=1 - axis) for code in (1, 2, 3)]
        assert np.array_equal(counted.lines(shape, axis), np.stack(expected))


@pytest.mark.parametrize("thresholds", [Thresholds(), Thresholds(0.2, 0.9, 0.05), Thresholds(0.003, 0.0, 0.0)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_boundaries_are_where_the_partition_cuts(case: str, thresholds: Thresholds) -> None:
    found = drawn(case, (96, 80), thresholds)
    language, vision = found.language.numpy(), found.vision.numpy()
    cut = Counter(language, vision).classes(thresholds).boundaries
    salient = (language >= cut.language) | (vision >= cut.vision)
    larger, smaller = np.maximum(language, vision), np.minimum(language, vision)
    unimodal = salient & (larger > cut.ratio * smaller * (1 + 1e-6)) & (larger - smaller >= cut.difference)
    assert np.array_equal(salient, found.partition.numpy() > 0)
    assert np.mean(unimodal == np.isin(found.partition.numpy(), (1, 2))) > 0.9999


def test_nothing_salient_cuts_nowhere() -> None:
    nothing = Classes.none(12)
    assert nothing.counts == (12, 0, 0, 0)
    assert all(math.isinf(cut) for cut in nothing.boundaries)
    assert nothing.lines((3, 4), 1).tolist() == [[0] * 4] * 3
