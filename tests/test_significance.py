"""Significance maps: normalisation, sparsity, partition, weighting, and the histogram that previews them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.errors import SabError
from sab.significance import (
    PARTITION_NAMES,
    Thresholds,
    hoyer,
    integrate,
    significance_map,
)


def case(rows: int, width: int, seed: int, fisher: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (rows, width) if fisher else (width,)
    weight = torch.randn(rows, width, generator=generator)
    return weight, torch.rand(size, generator=generator) ** 3, torch.rand(size, generator=generator) ** 3


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 7),
    st.integers(1, 30),
    st.integers(0, 999),
    st.booleans(),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_every_weight_has_the_class_the_definition_gives_it(
    rows: int, width: int, seed: int, fisher: bool, limits: tuple[float, float, float]
) -> None:
    thresholds = Thresholds(*limits)
    found = significance_map(*case(rows, width, seed, fisher), thresholds)
    language, vision = found.language.double().numpy(), found.vision.double().numpy()
    count = max(1, round(limits[0] * language.size)) if limits[0] > 0 else 0
    salient = np.zeros(language.shape, dtype=bool)
    for part in (language, vision):
        if count:
            salient |= part >= np.sort(part, axis=None)[-count]
    gap = (found.language - found.vision).abs().double().numpy()
    floor = np.quantile(gap[salient], limits[1], method="lower") if salient.any() else 0.0
    unimodal_mass = 0.0
    for index in np.ndindex(language.shape):
        l1, l2 = language[index] + vision[index], math.hypot(language[index], vision[index])
        sparsity = (math.sqrt(2) - l1 / l2) / (math.sqrt(2) - 1) if l2 else 0.0
        assert found.sparsity[index].item() == pytest.approx(sparsity, abs=2e-6)
        name = "neither"
        if salient[index]:
            name = "cross-modal"
            one_sided = language[index] != vision[index] and gap[index] >= floor
            if one_sided and found.sparsity[index].item() > limits[2]:
                name = "language-only" if language[index] > vision[index] else "vision-only"
                unimodal_mass += l1
        assert PARTITION_NAMES[int(found.partition[index])] == name
    assert found.unimodal_ratio == pytest.approx(unimodal_mass / (language.sum() + vision.sum()), abs=1e-5)
    assert sum(found.counts().values()) == language.size


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 999), st.booleans())
def test_maps_are_normalised_and_weighting_is_clamped(rows: int, width: int, seed: int, fisher: bool) -> None:
    found = significance_map(*case(rows, width, seed, fisher))
    for part in (found.language, found.vision):
        assert part.mean().item() == pytest.approx(1.0, abs=1e-4)
    assert found.weighting.min() >= 0.01
    free = integrate(found.sparsity, found.unimodal_ratio)
    assert torch.equal(free, found.weighting)
    assert free.mean().item() == pytest.approx(1.0, abs=0.011)  # the clamp may lift it by 0.01


def test_input_side_sparsity_and_weighting_are_constant_down_each_column() -> None:
    found = significance_map(*case(50, 20, 0))
    for values in (found.sparsity, found.weighting):
        spread = values.amax(0) - values.amin(0)
        assert spread.max() < 1e-5
        assert values.std() > 0.01


def test_weighting_follows_the_formula_and_is_constant_at_one_half() -> None:
    sparsity = torch.tensor([[0.0, 0.25, 1.0]])
    assert torch.equal(integrate(sparsity, 0.5), torch.ones(1, 3))
    plain = 0.8 * sparsity + 0.2 * (1 - sparsity)
    torch.testing.assert_close(integrate(sparsity, 0.8), plain / plain.mean())
    # ruled by shared weights, a wholly unimodal weight would weigh 0 and is held at 0.01
    assert integrate(sparsity, 0.0).min() == pytest.approx(0.01)
    assert torch.equal(integrate(torch.ones(1, 3), 0.0), torch.ones(1, 3))


def test_sparsity_has_its_ends() -> None:
    assert hoyer(torch.tensor([1.0, 0.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 3.0, 0.0])).tolist() == [
        pytest.approx(1.0),
        pytest.approx(1.0),
        pytest.approx(0.0, abs=1e-6),
        0.0,
    ]


@pytest.mark.parametrize("fisher", [False, True])
def test_swapping_the_modalities_swaps_their_classes(fisher: bool) -> None:
    weight, language, vision = case(20, 30, 3, fisher)
    one, two = significance_map(weight, language, vision), significance_map(weight, vision, language)
    swap = torch.tensor([0, 2, 1, 3], dtype=torch.uint8)
    assert torch.equal(swap[one.partition.int()], two.partition)
    assert one.counts()["language-only"] > 0
    assert one.counts()["vision-only"] > 0
    torch.testing.assert_close(one.weighting, two.weighting)


def test_scale_of_weights_and_sensitivities_does_not_matter() -> None:
    weight, language, vision = case(20, 30, 4)
    one = significance_map(weight, language, vision)
    for scale in (1e-25, 4096.0, 1e18):  # squares and products alone would leave float32
        two = significance_map(weight * scale, language * scale, vision / scale)
        assert torch.equal(one.partition, two.partition)
        torch.testing.assert_close(one.weighting, two.weighting, rtol=1e-4, atol=1e-4)


def test_dead_inputs_have_no_significance() -> None:
    weight, language, vision = case(5, 6, 5)
    language[0] = 0.0
    vision[:2] = 0.0
    found = significance_map(weight, language, vision, Thresholds(1.0, 0.0, 0.0))
    assert not found.language[:, 0].any()
    assert not found.sparsity[:, 0].any()  # dead in both: nothing to tell apart
    assert torch.allclose(found.sparsity[:, 1], torch.ones(5))
    assert (found.partition[:, 0] == 0).all()
    assert (found.partition[:, 1] == 1).all()


@pytest.mark.parametrize("absent", ["language", "vision", "weight"])
def test_a_modality_without_tokens_switches_the_map_off(absent: str) -> None:
    weight, language, vision = case(4, 5, 6)
    parts = {"weight": weight, "language": language, "vision": vision}
    parts[absent] = torch.zeros_like(parts[absent])
    found = significance_map(parts["weight"], parts["language"], parts["vision"])
    assert found.switched_off
    assert absent in found.switched_off or absent == "weight"
    assert torch.equal(found.weighting, torch.ones(4, 5))
    assert found.counts()["neither"] == 20
    assert significance_map(weight, language, vision).switched_off is None


@pytest.mark.parametrize("name", ["salient_top_p", "diff_quantile", "sparsity_thr"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01, True, "0.5", None])
def test_bad_thresholds_are_refused_by_name(name: str, value: object) -> None:
    thresholds = dataclasses.replace(Thresholds(), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(SabError, match=name):
        thresholds.validate()
    with pytest.raises(SabError, match=name):
        significance_map(*case(2, 2, 0), thresholds)


def test_bad_sensitivities_are_refused() -> None:
    weight, language, vision = case(3, 4, 7)
    for bad in (torch.rand(3), -vision, vision * float("nan")):
        with pytest.raises(SabError, match="vision sensitivity"):
            significance_map(weight, language, bad)
    with pytest.raises(SabError, match="weight"):
        significance_map(weight / 0, language, vision)


@pytest.mark.slow  # seconds and a gigabyte
def test_more_weights_than_torch_quantile_takes() -> None:
    width = 2**24 + 8
    found = significance_map(torch.linspace(-1, 1, width)[None], torch.ones(1, width), torch.ones(width))
    assert found.counts()["cross-modal"] == pytest.approx(0.05 * width, abs=4)
