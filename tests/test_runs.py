import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sab import cli, runs, sequential
from sab.binarizers import BinaryCodes
from sab.errors import SabError
from sab.parts import in_forward_order
from sab.recipes import Recipe
from sab.runs import Run
from sab.significance import Thresholds
from tests.tiny import dialogues, tiny

NAMES = ("model.language_model.layers.0.self_attn.k_proj", "model.language_model.layers.1.self_attn.k_proj")
RECIPE = Recipe(model="tiny", method="xnor", linears=NAMES)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of two small linears."""
    with pytest.warns(UserWarning, match="tokens calibrate"):
        list(sequential.quantize(tiny(), RECIPE, tmp_path / "runs" / "small", samples=dialogues(2)))
    return Run.open(tmp_path / "runs" / "small")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "magic"),
        ("sensitivity", "taylor"),
        ("split", "halves"),
        ("compensation", "some"),
        ("search", "widest"),
        ("emphasis", "late"),
        ("samples", 0),
        ("samples", True),
        ("samples", 12.0),
        ("seed", -1),
        ("iterations", 1001),
        ("iterations", math.nan),
        ("max_salient", 50),
        ("block_size", 192),
        ("block_size", 64),
        ("damping", 0),
        ("damping", math.nan),
        ("damping", True),
        ("damping", "0.01"),
        ("beta", 1.5),
        ("beta", math.inf),
        ("beta", False),
        ("parts", ()),
        ("parts", ("head",)),
        ("parts", ("decoder", "vision")),
        ("parts", ("vision", "vision")),
        ("parts", "decoder"),
        ("parts", None),
        ("parts", ([],)),
        ("keep", "both"),
        ("linears", ()),
        ("linears", (1,)),
        ("model", 7),
        ("thresholds", Thresholds(salient_top_p=math.nan)),
        ("thresholds", Thresholds(diff_quantile=1.5)),
        ("thresholds", Thresholds(sparsity_thr=True)),
        ("thresholds", 0.5),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(field: str, value: object) -> None:
    with pytest.raises(SabError) as refusal:
        Recipe(**{field: value}).validate()  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(model="some/where", thresholds=Thresholds(0.1, 0.2, 0.3), linears=("a", "b"), beta=0.25, seed=7)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json() | {"linears": ["a", "b"]})))
    assert again == recipe
    assert Recipe.from_json({}) == Recipe()
    with pytest.raises(SabError, match="unknown field 'colour'"):
        Recipe.from_json({"colour": "red"})
    with pytest.raises(SabError, match="thresholds"):
        Recipe.from_json({"thresholds": {"top": 1}})


def test_parts_come_in_forward_order() -> None:
    assert in_forward_order(["decoder", "vision", "decoder"]) == ("vision", "decoder")
    assert in_forward_order(["head", "projector"]) == ("projector", "head")
    Recipe(parts=("vision", "projector", "decoder")).validate()
    assert "vision + projector" in _named(Recipe(parts=("vision", "projector")))
    literature = _named(Recipe(compensation="lineage", beta=0.0))
    assert "lineage compensation" in literature
    assert "beta 0" in literature


def _named(recipe: Recipe) -> str:
    header = {"recipe": recipe.to_json(), "fingerprint": "", "linears": [], "format_version": 1}
    return Run(Path("x"), header).name


def test_reports_of_older_runs_still_open(run: Run) -> None:
    header = {key: value for key, value in run.header.items() if key != "calibration"}
    runs.write_json(run.directory / "recipe.json", header)  # from before samples were noted: without seals
    for path in (run.directory / "reports").iterdir():
        values = json.loads(path.read_text())
        assert values["damping_used"] == RECIPE.damping
        newer = ("damping_used", "part", "switched_off", "seal")
        older = {key: value for key, value in values.items() if key not in newer}
        path.write_text(json.dumps(older))
    for report in Run.open(run.directory).reports.values():
        assert (report.damping_used, report.part, report.switched_off) == (None, "decoder", None)
    shipped = runs.list_runs(runs.ASSET_RUNS)
    assert shipped
    assert all(len(each.reports) == len(each.names) for each in shipped)


def test_nothing_that_is_not_finite_reaches_a_file(run: Run, tmp_path: Path) -> None:
    name = NAMES[0]
    codes, report = run.codes(name), run.reports[name]
    before = (run.directory / "reports" / f"{name}.json").read_bytes()
    with pytest.raises(SabError, match=f"{name}: relative_loss is nan"):
        runs.store_linear(run, replace(report, relative_loss=math.nan), codes)
    assert isinstance(codes, BinaryCodes)
    broken = replace(codes, row_scale=codes.row_scale * math.inf)
    with pytest.raises(SabError, match=f"{name}: a scale is NaN"):
        runs.store_linear(run, report, broken)
    assert (run.directory / "reports" / f"{name}.json").read_bytes() == before
    run.verify()
    with pytest.raises(SabError, match=f"{name}: its input sensitivity"):
        runs.store_sensitivities(run, "input", {name: (torch.ones(4), torch.tensor([1.0, math.nan]))})
    run.verify()
    runs.write_json(tmp_path / "x.json", {"a": (math.nan, 1.5), "b": [math.inf]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [None]}


def test_a_run_tells_its_totals(run: Run) -> None:
    assert (run.id, run.finished, list(run.reports)) == ("small", True, list(NAMES))
    assert run.recipe == RECIPE
    assert run.bits_nominal == 1
    assert run.bits_all_in == pytest.approx(8 * run.bytes / sum(r.weights for r in run.reports.values()))
    assert run.accuracy is None
    assert "2 linears" in run.name
    assert run.sensitivity(NAMES[0], "fisher") is None
    assert run.sensitivity("lm_head") is None
    with pytest.raises(SabError, match="no codes of"):
        run.codes("lm_head")


def test_apply_puts_the_stored_weights_and_only_those(run: Run) -> None:
    lvlm, original = tiny(), tiny()
    run.apply(lvlm)
    for name, linear in lvlm.linears.items():
        if name in NAMES:
            assert torch.equal(linear.weight, run.codes(name).dense())
        else:
            assert torch.equal(linear.weight, original.linears[name].weight)


def test_a_run_of_other_weights_is_not_applied(run: Run) -> None:
    lvlm = tiny()
    lvlm.fingerprint = "another"
    with pytest.raises(SabError, match="other weights"):
        run.apply(lvlm)


def test_the_manifest_lists_every_file_but_the_log_and_notices_changes(run: Run) -> None:
    sizes = run.verify()
    on_disk = {p.relative_to(run.directory).as_posix() for p in run.directory.rglob("*") if p.is_file()}
    assert on_disk - set(sizes) == {"manifest.json", "events.jsonl"}
    (run.directory / "reports" / f"{NAMES[0]}.json").write_text("{}")
    with pytest.raises(SabError, match="checksum"):
        run.verify()


def test_recording_accuracy_keeps_the_run_whole(run: Run) -> None:
    run.record_accuracy({"accuracy": {"overall": 0.5}})
    again = Run.open(run.directory)
    assert again.accuracy == {"accuracy": {"overall": 0.5}}
    assert again.finished
    assert "accuracy.json" in again.verify()


def test_answers_of_an_earlier_evaluation_do_not_stay_beside_new_figures(run: Run) -> None:
    answers = {"questions": "q", "answers": ["a"], "correct": [True]}
    run.record_accuracy({"accuracy": {"overall": 1.0}}, answers)
    assert "answers.json" in run.verify()
    run.record_accuracy({"accuracy": {"overall": 0.5}})
    assert not (run.directory / "answers.json").exists()
    run.verify()


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1}', '{"format_version": 99}'])
def test_a_damaged_recipe_is_one_sentence_and_hides_no_other_run(run: Run, content: str) -> None:
    broken = run.directory.parent / "broken"
    broken.mkdir()
    (broken / "recipe.json").write_text(content)
    with pytest.raises(SabError):
        Run.open(broken)
    assert [found.id for found in runs.list_runs(run.directory.parent)] == ["small"]


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": []},
        {"fingerprint": None},
        {"linears": "abc"},
        {"linears": []},
        {"linears": [1]},
        {"machine": 5},
        {"calibration": 5},
    ],
)
def test_a_header_with_a_value_of_the_wrong_kind_is_one_sentence(
    run: Run, changed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.write_json(run.directory / "recipe.json", run.header | changed)
    with pytest.raises(SabError, match="is damaged"):
        Run.open(run.directory)
    assert cli.main(["export", str(run.directory), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("recipe.json is damaged; make the run again.\n")


def test_damaged_reports_codes_and_sensitivities_are_noticed(run: Run) -> None:
    codes = run.directory / "codes" / f"{NAMES[0]}.safetensors"
    codes.write_bytes(codes.read_bytes()[:-4])
    with pytest.raises(SabError, match="checksum"):
        run.codes(NAMES[0])
    codes.unlink()
    with pytest.raises(SabError, match="missing"):
        run.codes(NAMES[0])
    stored = run.directory / "sensitivity-input.safetensors"
    stored.write_bytes(stored.read_bytes()[:-4] + b"1234")
    with pytest.raises(SabError, match="checksum"):
        run.sensitivity(NAMES[0])
    (run.directory / "reports" / f"{NAMES[1]}.json").write_text('{"name": "x"}')
    with pytest.raises(SabError, match="damaged"):
        _ = Run.open(run.directory).reports


def test_runs_of_one_name_in_two_places_have_two_ids(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "more" / "small")
    found = runs.list_runs(run.directory.parent, tmp_path / "more", tmp_path / "nowhere")
    assert len({each.id for each in found}) == 2
    assert found[0].id == "small"


def test_fresh_directories_differ(tmp_path: Path) -> None:
    assert runs.fresh_directory(tmp_path, "sab") != runs.fresh_directory(tmp_path, "sab")


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SabError, match="cannot be made"):
        runs.fresh_directory(tmp_path / "file", "sab")
    with pytest.raises(SabError, match="could not be written"):
        runs.write_json(tmp_path / "file" / "x.json", {})
