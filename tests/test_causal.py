"""The causal check of the labels: matched sets, zeroing, and what it shows where the truth is known."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sab import causal, cli, sensitivities
from sab.causal import BAND, LABELS, Knockout, matched_sets, selectivity, tolerance, zeroed
from sab.errors import SabError
from sab.evaluate import AnswerDistance, summed, wilson
from sab.hessian import HessianAccumulator, input_sensitivity
from sab.significance import PARTITION_NAMES, Thresholds, significance_map
from tests.test_evaluate import QUESTIONS
from tests.tiny import dialogues, tiny, tiny_folder

WIDE = Thresholds(salient_top_p=0.3, diff_quantile=0.4, sparsity_thr=0.005)


def synthetic(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and partitions of two linears of different size and scale."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "small": torch.randn(40, 60, generator=generator),
        "large": 7 * torch.randn(120, 90, generator=generator),
    }
    partitions = {
        name: significance_map(weight, *torch.rand(2, *weight.shape, generator=generator), WIDE).partition
        for name, weight in weights.items()
    }
    return weights, partitions


@pytest.mark.parametrize("share", [0.005, 0.02])
def test_matched_sets_have_equal_counts_and_nearly_equal_squares(share: float) -> None:
    weights, partitions = synthetic()
    sets = matched_sets(weights, partitions, share)
    assert [one.label for one in sets] == [*LABELS, "random", "random", "random"]
    total = sum(weight.numel() for weight in weights.values())
    for one in sets:
        assert one.count == round(share * total) == sum(len(places) for places in one.places.values())
        squares = sum(float(weights[name].flatten()[places].square().sum()) for name, places in one.places.items())
        assert one.energy == pytest.approx(squares, rel=1e-5)
        for name, places in one.places.items():
            assert len(places.unique()) == len(places) == len(sets[0].places[name])  # equal per linear as well
            if one.label in LABELS:
                classes = partitions[name].flatten()[places]
                assert (classes == PARTITION_NAMES.index(one.label)).all()
    energies = [one.energy for one in sets]
    assert max(energies) / min(energies) < BAND**2
    assert tolerance(sets) == pytest.approx(max(abs(e / (sum(energies) / 6) - 1) for e in energies))
    assert tolerance(sets) < 0.02


def test_matching_holds_in_every_linear_and_band() -> None:
    """Sorted by size, the sets agree weight by weight within one band."""
    weights, partitions = synthetic()
    first, *others = matched_sets(weights, partitions, 0.02)
    for name, weight in weights.items():
        reference = weight.flatten()[first.places[name]].abs().sort().values
        for one in others:
            ratio = weight.flatten()[one.places[name]].abs().sort().values / reference
            assert ratio.max() < BAND * 1.0001
            assert ratio.min() > 1 / BAND / 1.0001


def test_draws_repeat_by_seed_and_differ_between_draws() -> None:
    weights, partitions = synthetic()
    one, two, other = (matched_sets(weights, partitions, 0.01, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(a.places["large"], b.places["large"])
        assert not torch.equal(a.places["large"], c.places["large"])
    assert not torch.equal(one[3].places["large"], one[4].places["large"])


def test_a_share_beyond_the_labels_is_refused_and_the_largest_is_not() -> None:
    weights, partitions = synthetic()
    largest = causal.largest_share(weights, partitions)
    assert 0.02 < largest < 0.3
    used = matched_sets(weights, partitions, largest)
    assert used[0].count == round(largest * sum(weight.numel() for weight in weights.values()))
    with pytest.raises(SabError, match="smaller share"):
        matched_sets(weights, partitions, largest * 1.05)


def test_weights_that_are_zero_are_never_drawn() -> None:
    weights, partitions = synthetic()
    weights["small"] = torch.zeros_like(weights["small"])
    weights["large"][:, :10] = 0
    for one in matched_sets(weights, partitions, 0.01):
        assert not len(one.places["small"])
        assert (weights["large"].flatten()[one.places["large"]] != 0).all()


def test_zeroing_changes_the_chosen_weights_and_no_others() -> None:
    lvlm, original = tiny(), tiny()
    names = list(lvlm.decoder_linears)
    places = {names[0]: torch.tensor([0, 5, 129]), names[3]: torch.tensor([7])}
    with zeroed(lvlm.decoder_linears, places):
        for name, linear in lvlm.linears.items():
            wanted = original.linears[name].weight.clone()
            wanted.flatten()[places.get(name, torch.tensor([], dtype=torch.long))] = 0
            assert torch.equal(linear.weight, wanted)
    with pytest.raises(RuntimeError, match="stopped"), zeroed(lvlm.decoder_linears, places):
        raise RuntimeError("stopped")
    for key, value in original.model.state_dict().items():
        assert torch.equal(lvlm.model.state_dict()[key], value)


def test_labels_of_disjoint_inputs_are_found_and_have_the_consequences_they_claim() -> None:
    """Vision features feed the first columns, language features the last, both those between."""
    generator = torch.Generator().manual_seed(0)
    width = 96
    rows = {name: torch.randn(2000, width, generator=generator) for name in ("language", "vision")}
    rows["vision"][:, 64:] *= 0.05
    rows["language"][:, :32] *= 0.05
    linear = nn.Linear(width, 48, bias=False)
    linear.weight.requires_grad_(False).copy_(torch.randn(48, width, generator=generator))
    sensitivities = []
    for name in ("language", "vision"):
        moments = HessianAccumulator(width)
        moments.add(rows[name])
        sensitivities.append(input_sensitivity(moments.hessian))
    partition = significance_map(linear.weight, *sensitivities, Thresholds(0.2, 0.0, 0.1)).partition
    columns = {name: set((partition == kind).nonzero()[:, 1].tolist()) for kind, name in enumerate(PARTITION_NAMES)}
    for name, fed in (("vision-only", range(32)), ("cross-modal", range(32, 64)), ("language-only", range(64, width))):
        assert columns[name]
        assert columns[name] <= set(fed)

    sets = matched_sets({"": linear.weight.detach()}, {"": partition}, 0.02, random_draws=1)
    whole = {name: linear(inputs) for name, inputs in rows.items()}
    lost: dict[str, dict[str, float]] = {}
    for one in sets:
        with zeroed({"": linear}, one.places):
            lost[one.label] = {
                name: float((linear(inputs) - whole[name]).square().sum() / whole[name].square().sum())
                for name, inputs in rows.items()
            }
    assert lost["vision-only"]["vision"] > 50 * lost["vision-only"]["language"]
    assert lost["language-only"]["language"] > 50 * lost["language-only"]["vision"]
    assert 0.5 < lost["cross-modal"]["vision"] / lost["cross-modal"]["language"] < 2
    assert lost["vision-only"]["vision"] > 1.2 * lost["random"]["vision"]


def knockout(label: str, with_picture: list[float], without: list[float], draw: int = 0) -> Knockout:
    distances = {
        kind: [AnswerDistance(kl, 1, 2) for kl in values]
        for kind, values in ((causal.PICTURE, with_picture), (causal.TEXT, without))
    }
    divergence = {kind: summed(part) for kind, part in distances.items()}
    return Knockout(label, draw, 0.01, 5, 1.0, {}, {}, {}, 1.0, divergence, distances)


def test_selectivity_compares_the_two_sets_on_the_same_questions() -> None:
    vision = knockout("vision-only", [0.8, 1.6, 2.4], [0.1, 0.3])
    language = knockout("language-only", [0.4, 0.8, 1.2], [0.4, 1.2])
    found = selectivity([vision, language], "vision-only", "language-only")
    assert found.value == pytest.approx(3.0)  # twice with a picture, a quarter without
    assert found.interval == (pytest.approx(3.0), pytest.approx(3.0))  # in proportion question by question
    back = selectivity([vision, language], "language-only", "vision-only")
    assert back.value == pytest.approx(-3.0)
    noisy = knockout("language-only", [1.2, 0.8, 0.4], [0.4, 1.2])
    low, high = selectivity([vision, noisy], "vision-only", "language-only").interval
    assert low < 3.0 < high
    draws = [knockout("random", [0.2, 0.8, 1.2], [0.4, 1.2]), knockout("random", [0.6, 0.8, 1.2], [0.4, 1.2], 1)]
    assert selectivity([vision, *draws], "vision-only", "random").value == pytest.approx(3.0)
    still = knockout("random", [0.0, 0.0, 0.0], [0.0, 0.0])
    assert math.isnan(selectivity([vision, still], "vision-only", "random").value)


@pytest.fixture(scope="module")
def maps() -> dict[str, tuple[Tensor, Tensor]]:
    return sensitivities.maps(tiny(), dialogues(8), "fisher")


def test_the_check_measures_every_set_and_leaves_the_model_alone(maps: dict[str, tuple[Tensor, Tensor]]) -> None:
    lvlm, original = tiny(), tiny()
    heard: list[float] = []
    found = causal.causal(
        lvlm,
        maps,
        QUESTIONS,
        [0.02, 0.005, 0.9],
        WIDE,
        random_draws=2,
        max_new_tokens=2,
        progress=lambda stage, share: heard.append(share),
    )
    assert found.left_out == [0.9]
    assert 0.02 < found.largest_share < 0.9
    assert [(row.share, row.label, row.draw) for row in found.knockouts] == [
        (share, label, draw)
        for share in (0.005, 0.02)
        for label, draw in [*((label, 0) for label in LABELS), ("random", 0), ("random", 1)]
    ]
    assert found.full.divergence[causal.PICTURE].kl == pytest.approx(0, abs=1e-9)
    for row in found.knockouts:
        assert row.counts == {"overall": 5, "shape": 2, "sums": 2, "place": 1, causal.PICTURE: 3, causal.TEXT: 2}
        assert row.accuracy[causal.PICTURE] == pytest.approx(2 / 3)  # two of three are right whatever is said
        assert row.interval[causal.PICTURE] == wilson(2, 3)
        assert row.divergence[causal.PICTURE].kl > 0
    assert set(found.tolerance) == {0.005, 0.02}
    assert max(found.tolerance.values()) < BAND**2 - 1
    assert len(found.selectivity) == 6
    assert heard == sorted(heard)
    assert heard[-1] == 1
    assert "distances" not in found.summary()["knockouts"][0]
    for key, value in original.model.state_dict().items():
        assert torch.equal(lvlm.model.state_dict()[key], value)


def test_more_zeroed_weights_move_the_answers_further(maps: dict[str, tuple[Tensor, Tensor]]) -> None:
    found = causal.causal(tiny(), maps, QUESTIONS, [0.001, 0.03], WIDE, random_draws=1, max_new_tokens=1)
    few, many = (
        [row.divergence[causal.PICTURE].kl for row in found.knockouts if row.share == share] for share in (0.001, 0.03)
    )
    assert sum(many) > 2 * sum(few)


def test_questions_of_one_kind_give_no_selectivity(maps: dict[str, tuple[Tensor, Tensor]]) -> None:
    pictures = [question for question in QUESTIONS if question.picture is not None]
    found = causal.causal(tiny(), maps, pictures, [0.01], WIDE, random_draws=1, max_new_tokens=1)
    assert not found.selectivity
    assert causal.TEXT not in found.full.accuracy


def test_shares_that_cannot_be_used_are_refused(maps: dict[str, tuple[Tensor, Tensor]]) -> None:
    for shares in ([], [0.0], [-0.1], [1.5], [math.nan]):
        with pytest.raises(SabError, match="at least one share"):
            causal.causal(tiny(), maps, QUESTIONS, shares)
    with pytest.raises(SabError, match="can be matched"):
        causal.causal(tiny(), maps, QUESTIONS, [0.5])
    with pytest.raises(SabError, match="no questions"):
        causal.causal(tiny(), maps, [], [0.001])


def test_the_command_prints_and_writes_the_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "causal.json"
    arguments = ["causal", str(tiny_folder()), "--sensitivity", "fisher", "--samples", "8", "--limit", "8"]
    arguments += ["--share", "0.2,40", "--random-draws", "1", "--out", str(path)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads(path.read_text())
    assert (result["sensitivity"], result["questions"], result["left_out"]) == ("fisher", 14, [0.4])
    assert result["full"]["counts"][causal.PICTURE] == result["full"]["counts"][causal.TEXT] == 7
    assert [row["label"] for row in result["knockouts"]] == [*LABELS, "random"]
    assert {row["count"] for row in result["knockouts"]} == {result["knockouts"][0]["count"]}
    assert "vision-only against language-only" in err
    assert "40 % cannot be matched" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--share", "some"],
        ["--share", ""],
        ["--share", "0"],
        ["--share", "nan"],
        ["--share", "90"],
        ["--random-draws", "0"],
        ["--limit", "0"],
        ["--sensitivity", "taylor"],
        ["--out", "."],
    ],
)
def test_wrong_input_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(["causal", str(tiny_folder()), "--samples", "4", "--limit", "2", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("sab: ")


def test_a_tie_of_labels_gives_equal_sets() -> None:
    """Every label offers the same: each gives all it has."""
    partition = torch.tensor([[1, 2, 3] * 10], dtype=torch.uint8)
    weight = torch.arange(1.0, 11.0).repeat_interleave(3)[None]
    sets = matched_sets({"": weight}, {"": partition}, 10 / 30, random_draws=1)
    for one in sets[:3]:
        assert one.places[""].tolist() == (partition[0] == PARTITION_NAMES.index(one.label)).nonzero()[:, 0].tolist()
    assert [one.energy for one in sets[:3]] == [385.0] * 3


def test_the_readme_says_what_the_shipped_files_say() -> None:
    root = Path(__file__).parents[1]
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())

    def effect(sensitivity: str, first: str, second: str, share: float, sign: int = 1) -> str:
        shipped = json.loads((root / "assets" / f"causal-{sensitivity}.json").read_text(encoding="utf-8"))
        (found,) = (
            each
            for each in shipped["selectivity"]
            if (each["first"], each["second"]) == (first, second) and each["share"] == pytest.approx(share)
        )
        low, high = sorted(sign * end for end in found["interval"])
        return f"{sign * found['value']:.1f}, {low:.1f} to {high:.1f}".replace("-", "−")

    def bracketed(effect: str) -> str:
        return effect.replace(", ", " (") + ")"

    both = [bracketed(effect(kind, "vision-only", "language-only", 0.009)) for kind in ("input", "fisher")]
    assert f"by {both[0].replace(' (', ' doublings of the KL (')} with the input-side map, by {both[1]}" in text
    single = [effect(kind, "vision-only", "random", 0.009) for kind in ("input", "fisher")]
    assert f"({'; '.join(single)}; at 0.25 %" in text
    assert f"the Fisher map's are, barely: {effect('fisher', 'vision-only', 'random', 0.0025)})" in text
    assert f"({effect('input', 'language-only', 'random', 0.009, -1)}, with the input-side map)" in text
