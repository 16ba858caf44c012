"""The null of a map and its stability over calibration seeds."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sab import cli, control_files, sensitivities
from sab.capture import capture
from sab.control_files import StoredControls
from sab.controls import STEPS, Agreement, Contrast, LinearControls, controls, halves
from sab.errors import SabError
from sab.hessian import HessianAccumulator, input_sensitivity
from sab.significance import PARTITION_NAMES, Thresholds, hoyer, significance_map, threshold_ratio
from tests.tiny import dialogues, tiny, tiny_folder

WIDTH = 256


def sampled(tokens: int, generator: torch.Generator, mix: Tensor) -> Tensor:
    """Input sensitivity of `tokens` correlated tokens of one distribution."""
    moments = HessianAccumulator(WIDTH)
    moments.add(torch.randn(tokens, WIDTH, generator=generator) @ mix)
    return input_sensitivity(moments.hessian)


def null(tokens_per_column: int) -> Contrast:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, WIDTH, generator=generator)
    mix = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    parts = [sampled(tokens_per_column * WIDTH, generator, mix) for _ in range(2)]
    return Contrast.of(significance_map(weight, *parts))


def test_two_samples_of_one_distribution_look_unimodal_when_tokens_are_few() -> None:
    one, four, eight = (null(tokens) for tokens in (1, 4, 8))
    assert one.unimodal_share > 0.25
    assert four.unimodal_share < 0.05
    assert eight.unimodal_share < 0.01
    assert one.log_variance > four.log_variance > eight.log_variance


def test_equal_inputs_have_ratio_one_everywhere() -> None:
    weight = torch.randn(20, 30)
    for sensitivity in (torch.rand(30), torch.rand(20, 30)):
        found = significance_map(weight, sensitivity, sensitivity)
        contrast = Contrast.of(found)
        assert contrast.salient > 0
        assert contrast.unimodal == 0
        assert contrast.unimodal_share == 0
        assert [contrast.ratio(quantile) for quantile in (0.0, 0.05, 0.5, 1.0)] == [1.0] * 4
        assert contrast.log_variance == pytest.approx(0, abs=1e-12)
        same = Agreement.of(found, found)
        assert (same.same_class, same.kappa) == (1.0, 1.0)
        assert same.jaccard("cross-modal") == 1.0


def test_ratio_quantiles_are_those_of_the_salient_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, language, vision = (torch.rand(40, 50, generator=generator) for _ in range(3))
    found = significance_map(weight, language, vision, Thresholds(0.2, 0.5, 0.1))
    contrast = Contrast.of(found)
    ratios = (found.vision / found.language)[found.partition > 0].double()
    assert contrast.salient == len(ratios)
    assert contrast.unimodal_share == int(((found.partition == 1) | (found.partition == 2)).sum()) / len(ratios)
    for quantile in (0.05, 0.5, 0.95):
        wanted = torch.quantile(ratios, quantile, interpolation="higher")
        assert contrast.ratio(quantile) == pytest.approx(float(wanted), rel=10 ** (1 / STEPS) - 1)
    assert contrast.log_variance == pytest.approx(float(ratios.log10().var(correction=0)), rel=0.01)


def test_a_modality_that_is_absent_somewhere_leaves_finite_figures() -> None:
    language = torch.tensor([1.0, 0.0, 2.0, 0.0])
    contrast = Contrast.of(significance_map(torch.ones(3, 4), language, language.flip(0), Thresholds(1.0, 0.0, 0.0)))
    assert contrast.ratio(0.0) == pytest.approx(1e-4)
    assert contrast.ratio(1.0) == pytest.approx(1e4)
    empty = Contrast.of(significance_map(torch.ones(3, 4), language, torch.zeros(4)))
    assert math.isnan(empty.unimodal_share)
    assert math.isnan(empty.ratio(0.5))


def test_agreement_counts_classes_weight_by_weight() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(30, 40, generator=generator)
    maps = [
        significance_map(weight, *torch.rand(2, 30, 40, generator=generator), Thresholds(0.3, 0.3, 0.01))
        for _ in range(2)
    ]
    a, b = (entry.partition.flatten().tolist() for entry in maps)
    found = Agreement.of(*maps)
    either = [(x, y) for x, y in zip(a, b, strict=True) if x or y]
    assert found.same_class == sum(x == y for x, y in either) / len(either)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    chance = sum(a.count(kind) * b.count(kind) for kind in range(4)) / len(a) ** 2
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance))
    for kind, name in enumerate(PARTITION_NAMES):
        both = sum(x == y == kind for x, y in zip(a, b, strict=True))
        assert found.jaccard(name) == both / (a.count(kind) + b.count(kind) - both)
    logs = [(entry.vision / entry.language).log10()[(maps[0].partition + maps[1].partition) > 0] for entry in maps]
    assert found.correlation == pytest.approx(float(torch.corrcoef(torch.stack(logs))[0, 1]), abs=1e-5)


def test_a_stable_signal_agrees_and_correlates_where_noise_does_not() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, signal = torch.randn(50, 60, generator=generator), torch.randn(50, 60, generator=generator)

    def drawn(strength: float) -> Agreement:
        def one() -> Tensor:
            return (strength * signal + (1 - strength) * torch.randn(50, 60, generator=generator)).exp()

        return Agreement.of(*(significance_map(weight, torch.ones(60), one()) for _ in range(2)))

    stable, noise = drawn(0.9), drawn(0.0)
    assert stable.correlation > 0.9 > 0.2 > abs(noise.correlation)
    assert stable.kappa > noise.kappa
    assert stable.same_class > noise.same_class


def test_signal_is_the_variance_that_sampling_does_not_explain() -> None:
    """log10 ratio of true variance 0.04, and noise of variance 0.01 in language and 0.02 in vision."""
    generator = torch.Generator().manual_seed(4)

    def drawn(variance: float) -> Tensor:
        return variance**0.5 * torch.randn(200, 300, generator=generator)

    def contrast(log_ratio: Tensor) -> Contrast:
        return Contrast.of(significance_map(torch.ones(200, 300), torch.ones(300), 10**log_ratio, everything))

    everything = Thresholds(1.0, 0.5, 0.005)
    matched = contrast(drawn(0.04) + drawn(0.01) + drawn(0.02))
    null_language, null_vision = contrast(drawn(0.01) + drawn(0.01)), contrast(drawn(0.02) + drawn(0.02))
    found = LinearControls(matched, matched, null_language, null_vision, None)
    assert found.signal == pytest.approx(0.04 / 0.07, abs=0.01)


@pytest.mark.parametrize("sparsity", [0.0, 1e-7, 0.005, 0.1, 0.5, 0.99, 1 - 1e-9])
def test_the_threshold_ratio_is_where_rho_crosses_the_threshold(sparsity: float) -> None:
    low, high = 0.0, 30.0  # log of the ratio
    for _ in range(200):
        middle = (low + high) / 2
        pair = torch.tensor([1.0, math.exp(middle)], dtype=torch.float64)
        low, high = (middle, high) if float(hoyer(pair[0], pair[1])) <= sparsity else (low, middle)
    assert threshold_ratio(sparsity) == pytest.approx(math.exp(low), rel=1e-6)


def test_the_default_threshold_is_a_difference_of_eleven_percent() -> None:
    assert threshold_ratio(Thresholds().sparsity_thr) == pytest.approx(1.11, abs=0.01)
    assert threshold_ratio(0.0) == 1.0
    assert threshold_ratio(1.0) == math.inf
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(SabError):
            threshold_ratio(wrong)


def test_halves_are_disjoint_equal_and_split_no_sample() -> None:
    batches = capture(tiny(), dialogues(14), batch_size=3)
    parts, tokens = halves(batches, seed=1)
    assert tokens > 0
    for index in range(4):
        assert sum(int(masks[index].sum()) for masks in parts) == tokens
    for batch, (language_a, language_b, vision_a, vision_b) in zip(batches, parts, strict=True):
        assert not ((language_a | language_b) & ~batch.language).any()
        assert not ((vision_a | vision_b) & ~batch.vision).any()
        in_a, in_b = ((one | two).any(1) for one, two in ((language_a, vision_a), (language_b, vision_b)))
        assert not (in_a & in_b).any()
    whole = sum(int(batch.vision.sum()) for batch in batches)
    assert whole - 4 <= 2 * tokens <= whole  # vision, the scarcer, is halved and nothing more
    again, _ = halves(batches, seed=1)
    assert all(torch.equal(x, y) for one, two in zip(parts, again, strict=True) for x, y in zip(one, two, strict=True))
    other, _ = halves(batches, seed=2)
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(parts, other, strict=True))


def test_a_null_needs_two_samples_of_each_modality() -> None:
    for samples in (dialogues(1), [sample for sample in dialogues(9) if sample.picture is None]):
        with pytest.raises(SabError, match="two samples of each modality"):
            controls(tiny(), [samples])
    with pytest.raises(SabError, match="no calibration samples"):
        controls(tiny(), [])


@pytest.mark.parametrize("sensitivity", ["input", "fisher"])
def test_groups_of_tokens_give_the_maps_in_the_same_pass(sensitivity: str) -> None:
    """Language and vision as groups are the maps, bit for bit, and halves of Fisher information make it whole."""
    lvlm, samples = tiny(), dialogues(6)
    batches = capture(lvlm, samples)
    groups = []
    for batch in batches:
        first = torch.arange(batch.vision.shape[1]) % 2 == 0
        groups.append((batch.language, batch.vision, batch.vision & first, batch.vision & ~first))
    tokens = [sum(int(mask.sum()) for mask in masks) for masks in zip(*groups, strict=True)]
    found = sensitivities.group_sensitivities(lvlm, batches, groups, sensitivity)
    for name, (language, vision) in sensitivities.maps(lvlm, samples, sensitivity).items():
        assert torch.equal(found[name][0], language)
        assert torch.equal(found[name][1], vision)
        if sensitivity == "fisher":
            whole = (found[name][2] * tokens[2] + found[name][3] * tokens[3]) / tokens[1]
            torch.testing.assert_close(whole, vision, rtol=1e-4, atol=1e-12)
    with pytest.raises(SabError, match="choose input or fisher"):
        sensitivities.group_sensitivities(lvlm, batches, groups, "taylor")


@pytest.mark.parametrize("sensitivity", ["input", "fisher"])
def test_controls_of_a_model_cover_every_linear(sensitivity: str) -> None:
    lvlm = tiny()
    calibrations = [dialogues(12), list(reversed(dialogues(9)))]
    found = controls(lvlm, calibrations, sensitivity)
    assert list(found.linears) == list(lvlm.decoder_linears)
    for name, linear in lvlm.decoder_linears.items():
        assert found.linears[name].full.weights == 2 * linear.weight.numel()
        assert found.linears[name].matched.weights == 4 * linear.weight.numel()
    total = found.overall()
    assert total.agreement is not None
    assert int(total.agreement.classes.sum()) == sum(linear.weight.numel() for linear in lvlm.decoder_linears.values())
    whole = significance_map(linear.weight, *sensitivities.maps(lvlm, calibrations[0], sensitivity)[name])
    both = significance_map(linear.weight, *sensitivities.maps(lvlm, calibrations[1], sensitivity)[name])
    assert found.linears[name].full.unimodal == sum(
        count for part in (whole, both) for key, count in part.counts().items() if key.endswith("only")
    )
    assert found.linears[name].agreement is not None
    assert torch.equal(found.linears[name].agreement.classes, Agreement.of(whole, both).classes)
    single = controls(lvlm, calibrations[:1], sensitivity)
    batches = capture(lvlm, calibrations[0])
    language_a, language_b, vision_a, vision_b = sensitivities.group_sensitivities(
        lvlm, batches, halves(batches)[0], sensitivity
    )[name]
    for kind, pair in (("language", (language_a, language_b)), ("vision", (vision_a, vision_b))):
        null_ratios = Contrast.of(significance_map(linear.weight, *pair)).ratios
        assert torch.equal(getattr(single.linears[name], f"null_{kind}").ratios, null_ratios)
    assert single.overall().agreement is None
    assert single.summary()["overall"]["stability"] is None
    assert single.overall().signal < 1


def test_the_command_prints_and_writes_the_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "controls.json"
    arguments = ["controls", str(tiny_folder()), "--seeds", "2", "--samples", "8", "--out", str(path)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads(path.read_text())
    assert len(result["linears"]) == 14
    assert result["threshold_ratio"] == pytest.approx(1.11, abs=0.01)
    assert {"full", "matched", "null_language", "null_vision", "signal", "stability"} == set(result["overall"])
    assert 0 <= result["overall"]["null_vision"]["unimodal_share"] <= 1
    assert "overall" in err
    assert "down_proj" in err
    assert control_files.read(path).halves
    stored = StoredControls({"sensitivity": "fisher", "linears": {}}, {})
    stored.write(path)  # figures of another kind take the halves of the first along
    assert not control_files.read(path).halves
    with pytest.raises(SabError, match="json"):
        stored.write(path.with_suffix(".safetensors"))


def test_controls_take_no_file_that_is_not_theirs(tmp_path: Path) -> None:
    foreign = tmp_path / "model.safetensors"
    foreign.write_bytes(b"of somebody else")
    StoredControls({"sensitivity": "fisher", "linears": {}}, {}).write(tmp_path / "model.json")
    assert foreign.read_bytes() == b"of somebody else"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0"],
        ["--samples", "0"],
        ["--samples", "1"],
        ["--sensitivity", "taylor"],
        ["--split", "sideways"],
        ["--sparsity-thr", "2"],
        ["--damping", "0"],
        ["--out", "."],
    ],
)
def test_wrong_input_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(["controls", str(tiny_folder()), "--seeds", "1", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("sab: ")
