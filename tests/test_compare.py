"""The table of methods: entries, means over calibration seeds, paired gaps, and going on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sab import cli, compare, evaluate
from sab.binarizers import METHODS
from sab.compare import Asked, gap
from sab.demo import card
from sab.demo.suite import questions
from sab.errors import SabError
from sab.models import LVLM, load
from sab.recipes import Recipe, method_and_budget
from sab.runs import Run
from sab.sequential import quantize

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens calibrate")
QUICK = Recipe(samples=2, iterations=1, linears=("model.language_model.layers.0.mlp.down_proj",))
ENTRIES = {name: replace(QUICK, method=name) for name in ("arb-rc-cgb", "xnor")}


def make(lvlm: LVLM, recipe: Recipe, directory: Path, **shared: object) -> Run:
    list(quantize(lvlm, recipe, directory, **shared))  # type: ignore[arg-type]
    return Run.open(directory)


def asked(correct: list[bool], kl: list[float]) -> Asked:
    return Asked({}, [""] * len(correct), correct, kl)


def test_entries_name_a_method_and_maybe_a_budget() -> None:
    assert method_and_budget("sab") == ("sab", None)
    assert method_and_budget("sab-h@1.75") == ("sab-h", 1.75)
    with pytest.raises(SabError, match="budget"):
        method_and_budget("sab-h@two")


def test_an_entry_may_choose_its_own_map() -> None:
    options = cli._parser().parse_args(["compare", "--methods", "sab", "--seed", "3"])
    recipe = cli._recipe(options, "sab+fisher")
    assert (recipe.method, recipe.sensitivity, recipe.seed) == ("sab", "fisher", 3)
    assert cli._recipe(options, "sab").sensitivity == "input"
    with pytest.raises(SabError, match="sensitivity"):
        cli._recipe(options, "sab+hope")


def test_an_entry_may_have_its_blocks_refined() -> None:
    options = cli._parser().parse_args(["compare", "--methods", "sab"])
    assert cli._recipe(options, "sab").refine is None
    recipe = cli._recipe(options, "sab+fisher+refined")
    assert (recipe.sensitivity, recipe.refine) == ("fisher", METHODS["sab-h"].refine)
    with pytest.raises(SabError, match="no signs and scales to refine"):
        cli._recipe(options, "gptq3+refined")
    with pytest.raises(SabError, match="two maps"):
        cli._recipe(options, "sab+fisher+input")


def test_a_gap_is_paired_by_question() -> None:
    """Two methods that fail on the same hard questions differ by nothing, with certainty."""
    hard = [True, False] * 50
    same = gap("a", "b", [asked(hard, [0.1] * 100)], [asked(hard, [0.1] * 100)])
    assert same["accuracy"] == {"value": 0.0, "interval": [0.0, 0.0]}
    better = [True] * 10 + hard[10:]
    found = gap("a", "b", [asked(better, [0.1] * 100)], [asked(hard, [0.2] * 100)])
    assert found["accuracy"]["value"] == pytest.approx(0.05)
    assert found["accuracy"]["interval"][0] > 0  # unpaired, the interval would be ±14 points wide
    assert found["kl"]["value"] == pytest.approx(-0.1)


def test_seeds_are_averaged_per_question_before_the_interval() -> None:
    one, two = asked([True, True, False, False], [1, 1, 1, 1]), asked([True, False, True, False], [3, 3, 3, 3])
    zero = asked([False] * 4, [0] * 4)
    found = gap("a", "b", [one, two], [zero, zero])
    values = np.array([1.0, 0.5, 0.5, 0.0])
    assert found["accuracy"]["value"] == 0.5
    margin = evaluate.Z_95 * values.std(ddof=1) / 2
    assert found["accuracy"]["interval"] == pytest.approx([0.5 - margin, 0.5 + margin])
    assert found["kl"]["value"] == 2


def test_a_comparison_has_a_row_per_entry_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, suite = load(), questions("final", 8)
    found = compare.compare(full, ENTRIES, suite, "final", [0, 1], tmp_path, make)
    assert [row["entry"] for row in found["rows"]] == ["full", "arb-rc-cgb", "xnor"]
    assert [entry["first"] for entry in found["gaps"]] == ["xnor"]
    row = found["rows"][2]
    assert row["seeds"] == len(row["accuracy_by_seed"]) == 2
    assert row["accuracy"]["overall"] == pytest.approx(np.mean(row["accuracy_by_seed"]))
    assert {path.name for path in tmp_path.iterdir() if "full" not in path.name} == {
        *("arb-rc-cgb", "arb-rc-cgb-seed1"),
        *("xnor", "xnor-seed1"),
    }
    for name, share in row["blank_picture"]["accuracy"].items():
        low, high = row["blank_picture"]["interval"][name]
        assert low <= share <= high
    Run.open(tmp_path / "xnor").verify()
    stored = json.loads((tmp_path / "xnor" / "answers.json").read_text())
    assert len(stored["answers"]) == len(stored["correct"]) == len(stored["kl"]) == 8

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(evaluate, "evaluate", measured_again)
    assert compare.compare(full, ENTRIES, suite, "final", [0, 1], tmp_path, make) == found
    with pytest.raises(AssertionError, match="measured again"):  # other questions are other figures
        compare.compare(full, ENTRIES, suite[:4], "final", [0, 1], tmp_path, make)


def table(*entries: str, **other: object) -> dict[str, Any]:
    named = {entry: entry.partition("@") for entry in entries}
    rows = [
        {"entry": entry, "method": method, "bits_all_in": float(bits or 2.9), "seconds": float(len(other))}
        for entry, (method, _, bits) in named.items()
    ]
    gaps = [{"first": entry, "second": "full"} for entry in entries if entry != "full"]
    return {**dict.fromkeys(compare.SAME, "same"), "rows": rows, "gaps": gaps, **other}


def test_a_table_takes_over_the_rows_of_methods_that_were_not_asked_for() -> None:
    earlier = table("full", "sab", "sab-h", "xnor")
    asked_now = ("full", "sab-h", "sab-h@2.5", "sab-h@3", "billm")
    found = compare.extended(table(*asked_now, seen=True), earlier)
    assert [row["entry"] for row in found["rows"]] == ["full", "sab", "sab-h@3", "sab-h", "sab-h@2.5", "xnor", "billm"]
    assert [row["seconds"] for row in found["rows"]] == [1, 0, 1, 1, 1, 0, 1]  # what was asked for again is the new one
    assert [entry["first"] for entry in found["gaps"]] == ["sab", "xnor", *asked_now[1:]]
    moved = table("full", "sab-h@2.5")
    moved["rows"][0]["accuracy_by_seed"] = [0.5]
    assert [entry["first"] for entry in compare.extended(moved, earlier)["gaps"]] == ["sab-h@2.5"]


def test_an_earlier_table_is_of_the_same_setting_and_whole(tmp_path: Path) -> None:
    setting = {"recipe": {"seed": 0, "damping": 0.01}}
    earlier = table("full", "sab", **setting)
    compare.check_same(table("xnor", **setting), earlier)
    others = (setting | {"seeds": 2}, {"recipe": {"seed": 7, "damping": 0.01}}, {})
    for other, named in zip(others, ("seeds", "seed", "recipe"), strict=True):
        with pytest.raises(SabError, match=f"other {named} "):
            compare.check_same(table("sab", **other), earlier)
    path = tmp_path / "table.json"
    for text in ("", "{}", '{"rows": [], "gaps": []}', '{"rows": [{"entry": "sab"}], "gaps": []}', '{"rows": 3}', "[]"):
        path.write_text(text)
        with pytest.raises(SabError, match="table"):
            compare.read_table(path)
    with pytest.raises(SabError, match="table"):
        compare.read_table(tmp_path / "nowhere.json")
    path.write_text(json.dumps(earlier))
    assert compare.read_table(path) == earlier


def test_a_comparison_is_extended_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    common = ["compare", "--limit", "8", "--samples", "2", "--linears", QUICK.linears[0]]  # type: ignore[index]
    assert cli.main([*common, "--methods", "full,xnor", "--table", str(path)]) == 0
    extending = [*common, "--methods", "full,rtn2", "--extend", str(path), "--table", str(path)]
    assert cli.main(extending) == 0
    assert [row["entry"] for row in json.loads(path.read_text())["rows"]] == ["full", "xnor", "rtn2"]
    before = path.read_text()
    assert cli.main([*extending, "--damping", "0.5"]) != 0
    assert "other damping" in capsys.readouterr().err
    assert path.read_text() == before


def test_an_interval_over_seeds_holds_the_mean_of_the_seeds() -> None:
    seeds = [{"accuracy": {"overall": share}, "counts": {"overall": 125}, "interval": {}} for share in (0.0, 0.2, 0.1)]
    found = compare._blank(seeds)
    assert found["accuracy"] == {"overall": pytest.approx(0.1)}
    assert found["interval"]["overall"] == pytest.approx(list(evaluate.wilson(12.5, 125)))
    assert compare._interval(np.ones(125)) == list(evaluate.wilson(125, 125))  # of all questions, not of all there are
    low, high = compare._interval(np.array([1.0, 1.0, 1.0, 0.5]))
    assert low < 0.875 < high == 1.0


def test_the_shipped_table_names_runs_and_no_places() -> None:
    shipped = json.loads((Path(__file__).parents[1] / "assets" / "comparison.json").read_text(encoding="utf-8"))
    assert {row["run"] for row in shipped["rows"] if "run" in row} == {
        row["entry"].replace("@", "-").replace("+", "-") for row in shipped["rows"] if row["entry"] != "full"
    }


def test_the_readme_and_the_card_say_what_the_shipped_table_says() -> None:
    root = Path(__file__).parents[1]
    table = json.loads((root / "assets" / "comparison.json").read_text(encoding="utf-8"))
    for path, content in (
        (root / "README.md", card.comparison(table)),
        (root / "assets" / "demo-model" / "README.md", card.felt(table)),
    ):
        text = path.read_text(encoding="utf-8")
        assert card.between(text, content) == text
        assert card.between(text, content + "0") != text
    with pytest.raises(SabError, match="marks"):
        card.between("no marks", "figures")


@pytest.fixture
def card_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[Path, str]:
    """README and card of a project of its own, with what they say before."""
    places = {tmp_path / "README.md": "above", tmp_path / "demo-model" / "README.md": "beside"}
    for place, text in places.items():
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"{text}\n{card.BEGIN}\nold\n{card.END}\n", encoding="utf-8")
    monkeypatch.setattr(card, "README", tmp_path / "README.md")
    monkeypatch.setattr(card, "DEMO_MODEL", str(tmp_path / "demo-model"))
    return {place: place.read_text(encoding="utf-8") for place in places}


def test_a_table_is_written_into_readme_and_card(card_texts: dict[Path, str]) -> None:
    shipped = Path(__file__).parents[1] / "assets" / "comparison.json"
    table = json.loads(shipped.read_text(encoding="utf-8"))
    assert card.main(["--comparison", str(shipped)]) == 0
    for (place, before), content in zip(card_texts.items(), (card.comparison(table), card.felt(table)), strict=True):
        assert place.read_text(encoding="utf-8") == before.replace("old", content)
        assert list(place.parent.glob(".tmp-*")) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no table of a comparison"),
        ("", "is no table of a comparison"),
        ('{"rows": [{"entry": "full", "method"', "is no table of a comparison"),
        ('{"rows": [], "gaps": []}', "is no whole table"),
        ('{"rows": [{"entry": "full", "method": "full", "bits_all_in": 16}], "gaps": []}', "lacks what README"),
    ],
)
def test_without_a_whole_table_readme_and_card_stay_as_they_are(
    card_texts: dict[Path, str], content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.json"
    if content is not None:
        table.write_text(content, encoding="utf-8")
    assert card.main(["--comparison", str(table)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sab.demo.card: ")
    assert said in line
    assert {place: place.read_text(encoding="utf-8") for place in card_texts} == card_texts


def test_a_text_without_marks_leaves_the_other_as_it_is(
    card_texts: dict[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    readme, beside = card_texts
    beside.write_text("no marks", encoding="utf-8")
    assert card.main(["--comparison", str(Path(__file__).parents[1] / "assets" / "comparison.json")]) == 2
    assert "lacks the marks" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == card_texts[readme]


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "3"], ["--limit", "many"], ["--dance"]])
def test_wrong_arguments_of_the_card_are_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert card.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_readme_says_how_much_sab_h_wins_back() -> None:
    root = Path(__file__).parents[1]
    table = json.loads((root / "assets" / "comparison.json").read_text(encoding="utf-8"))
    right = {row["entry"]: row["accuracy"]["overall"] for row in table["rows"]}
    bits = {row["entry"]: row["bits_all_in"] for row in table["rows"]}

    def share(entry: str) -> str:
        return f"{100 * (right[entry] - right['sab']) / (right['full'] - right['sab']):.0f} %"

    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert f"({share('sab-h')} here), at fewer bits" in text
    assert f"({share('sab-h@3.0')}; {bits['sab-h@3.0']:.2f} and {bits['sab']:.2f} bits)" in text
    assert f"with {bits['sab-h@1.5']:.2f} stored bits it answers at least as well as `sab`" in text
    assert f"with {bits['sab-h@1.1']:.2f}, fewer than XNOR stores" in text
    assert f"at least as well as BiLLM with {bits['billm']:.2f}" in text
    assert bits["sab-h"] < bits["sab"]
    assert right["sab-h@1.5"] >= right["sab"]
    assert bits["sab-h@1.1"] < bits["xnor"]
    assert right["sab-h@1.1"] >= right["billm"]


def test_the_readme_says_what_refining_gives() -> None:
    root = Path(__file__).parents[1]
    table = json.loads((root / "assets" / "comparison.json").read_text(encoding="utf-8"))
    rows = {row["entry"]: row for row in table["rows"]}
    right = {entry: f"{100 * row['accuracy']['overall']:.1f} %" for entry, row in rows.items()}
    kl = {entry: f"{row['divergence']['kl']:.3f}" for entry, row in rows.items() if entry != "full"}
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert right["sab+refined"] == right["arb-rc-cgb+refined"]
    assert f"without the map both answer {right['sab+refined']}, BiLLM {right['billm+refined']}, and XNOR" in text
    assert f"XNOR {right['xnor+refined']} instead of {right['xnor']}" in text
    assert f"in the KL ({kl['sab-h']} instead of {kl['sab+refined']})" in text
    small, refined = rows["sab-h@1.25"]["bits_all_in"], rows["xnor+refined"]["bits_all_in"]
    assert f"with {small:.2f} it answers {right['sab-h@1.25']}, refined XNOR with {refined:.2f}" in text
    assert f"with {refined:.2f} {right['xnor+refined']}" in text
