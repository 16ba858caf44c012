"""Runs are named and deleted beside what they hold; a recipe file gives the same codes wherever it is read."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sab import cli, library, models, runs, sequential
from sab.errors import SabError
from sab.recipes import Recipe
from sab.runs import Run
from tests.tiny import dialogues, tiny, tiny_folder
from viz.pages import worker
from viz.pages.worker import Task

NAMES = ("model.language_model.layers.0.self_attn.k_proj", "model.language_model.layers.1.self_attn.k_proj")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of two small linears."""
    recipe = Recipe(model=str(tiny_folder()), method="xnor", linears=NAMES)
    with pytest.warns(UserWarning, match="tokens calibrate"):
        list(sequential.quantize(tiny(), recipe, tmp_path / "runs" / "small", samples=dialogues(2)))
    return Run.open(tmp_path / "runs" / "small")


def test_a_name_lies_beside_the_run_and_changes_nothing_in_it(run: Run) -> None:
    manifest, description = (run.directory / "manifest.json").read_bytes(), run.name
    library.rename(run, "  my \n first run ")
    assert (run.directory / "manifest.json").read_bytes() == manifest
    named = Run.open(run.directory)
    assert (named.name, named.description) == ("my first run", description)
    named.record_accuracy({"accuracy": {"overall": 0.5}})  # writes a new manifest
    library.rename(named, "another")
    Run.open(run.directory).verify()
    assert Run.open(run.directory).recipe == run.recipe
    library.rename(named, "")
    assert Run.open(run.directory).name == description


def test_a_run_that_was_deleted_meanwhile_gets_no_name(run: Run) -> None:
    library.delete(run)
    with pytest.raises(SabError, match="not there any more"):
        library.rename(run, "a ghost")
    assert not run.directory.exists()


@pytest.mark.parametrize("label", [3, None, "x" * 81, "a\x00b", "\u202eevil"])
def test_what_is_no_name_is_refused_and_keeps_the_old_one(run: Run, label: object) -> None:
    library.rename(run, "kept")
    with pytest.raises(SabError):
        library.rename(run, label)
    assert Run.open(run.directory).name == "kept"


def test_a_deleted_run_is_gone_and_the_others_stay(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "recipe.json").write_bytes((run.directory / "recipe.json").read_bytes())
    library.delete(run)
    assert [each.id for each in runs.list_runs(tmp_path / "runs")] == ["other"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
    with pytest.raises(SabError, match="not there any more"):
        library.delete(run)


def test_a_deletion_that_was_cut_short_is_not_listed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.shutil, "rmtree", lambda *_, **__: None)
    library.delete(run)
    assert runs.list_runs(tmp_path / "runs") == []


def test_shipped_runs_stay() -> None:
    shipped = Run.open(runs.ASSET_RUNS / "sab")
    for change in (lambda: library.delete(shipped), lambda: library.rename(shipped, "mine")):
        with pytest.raises(SabError, match="came with the program"):
            change()
    assert Run.open(runs.ASSET_RUNS / "sab").label == ""


def test_a_recipe_is_read_from_a_run_and_bare(run: Run, tmp_path: Path) -> None:
    found = library.read_recipe(run.directory / "recipe.json")
    assert (found.recipe, found.fingerprint) == (run.recipe, run.fingerprint)
    (tmp_path / "bare.json").write_text(json.dumps(run.recipe.to_json()))
    assert library.read_recipe(tmp_path / "bare.json") == library.RecipeFile(run.recipe, None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"recipe": 3}',
        '{"method": ["sab"]}',
        '{"method": "sab", "thresholds": 3}',
        '{"method": "sab", "samples": "many"}',
        '{"method": "sab", "linears": 7}',
        '{"method": "sab", "unheard": 1}',
        '{"method": "sab", "damping": NaN}',
        "\ufffe",
    ],
)
def test_what_is_no_recipe_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(SabError) as caught:
        library.read_recipe(path)
    assert "\n" not in str(caught.value)


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every code file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (directory / "codes").iterdir()}


def test_the_command_line_makes_the_same_codes_from_the_recipe_of_a_run_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(name for name in models.load().decoder_linears if ".layers.2.mlp.up_proj" in name)
    recipe = Recipe(method="sab", samples=16, iterations=2, linears=(name,))
    bench, made = worker.Bench(), tmp_path / "page"
    ahead = Task(None, "", recipe, 0)
    for task in (ahead, Task(None, str(made), recipe, 0)):  # what is kept between runs must not show in the codes
        assert bench.perform(task, threading.Event(), lambda *_: None)[0] == worker.DONE
    assert cli.main(["quantize", "--recipe", str(made / "recipe.json"), "--out", str(tmp_path / "cli")]) == 0
    assert digests(tmp_path / "cli") == digests(made)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"] is True


def test_a_recipe_beside_other_options_and_one_of_other_weights_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(run.directory / "recipe.json")
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["quantize", "--recipe", path, "--seed", "3", *out]) == 2
    assert "leave --seed out" in capsys.readouterr().err
    for typed in ("--seed=0", "--method=sab"):  # what the defaults are
        assert cli.main(["quantize", "--recipe", path, typed, *out]) == 2
        assert f"leave {typed.partition('=')[0]} out" in capsys.readouterr().err
    header: dict[str, Any] = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(header | {"fingerprint": "0" * 64}))
    assert cli.main(["quantize", "--recipe", path, *out]) == 2
    assert "made for other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
