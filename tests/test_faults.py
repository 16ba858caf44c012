"""What is killed, cut short or damaged: a run that goes on ends with the same bytes, or is refused in one sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sab import files, runs, sequential
from sab.errors import SabError
from sab.runs import Run
from tests.children import answering
from tests.killed import LINEARS, RECIPES, SAMPLES
from tests.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PLAIN = RECIPES["plain"]
MOMENTS = ("before", "torn", "after")
Attempt = Callable[..., dict[str, Any]]


def quantize(directory: Path) -> None:
    for _ in sequential.quantize(tiny(), PLAIN, directory, samples=SAMPLES):
        pass


def stored(directory: Path) -> dict[str, bytes]:
    """Codes and sensitivities; reports hold times."""
    return {path.name: path.read_bytes() for path in sorted(directory.rglob("*.safetensors"))}


def whole(directory: Path) -> bool:
    """Whether the run is finished, every file is as the manifest says, and nothing half-written lies about."""
    run = Run.open(directory)
    run.verify()
    left = [path for path in directory.rglob("*") if path.name.startswith(files.TEMPORARY)]
    return run.finished and list(run.reports) == list(run.names) and not left


# --- killed


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Attempt]]:
    """A directory, and a way to quantize into a run below it in a process that can be killed."""
    directory = tmp_path_factory.mktemp("killed")
    with answering("tests.killed", str(directory)) as send:

        def ask(run: str, recipe: str, **how: Any) -> dict[str, Any]:
            return send({"run": run, "recipe": recipe, **how})

        yield directory, ask


def reference(attempt: tuple[Path, Attempt], recipe: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What an undisturbed run of the recipe stores, and what it took."""
    directory, ask = attempt
    name = f"whole {recipe}"
    if not (directory / name).exists():
        found = ask(name, recipe)
        assert (found["killed"], found["refusal"]) == (False, "")
        (directory / f"{name}.json").write_text(json.dumps(found))
    return stored(directory / name), json.loads((directory / f"{name}.json").read_text())


def ends_the_same(attempt: tuple[Path, Attempt], recipe: str, deaths: list[dict[str, Any]]) -> int:
    """Killed in all these ways, one after the other, and then left alone: the same bytes as undisturbed. Returns how
    often it was killed before it had ended."""
    directory, ask = attempt
    expected, _ = reference(attempt, recipe)
    shutil.rmtree(directory / "victim", ignore_errors=True)  # of a test that failed
    killed = 0
    for how in deaths:
        found = ask("victim", recipe, **how)
        assert found["refusal"] == "", how
        killed += found["killed"]
    assert ask("victim", recipe)["refusal"] == ""
    assert stored(directory / "victim") == expected, deaths
    assert whole(directory / "victim")
    shutil.rmtree(directory / "victim")
    return killed


@pytest.mark.parametrize("recipe", ["plain", "together"])
def test_a_run_that_is_killed_at_a_write_ends_with_the_same_bytes(attempt: tuple[Path, Attempt], recipe: str) -> None:
    calls = reference(attempt, recipe)[1]["calls"]
    draw = random.Random(recipe)
    for moment in MOMENTS:
        assert ends_the_same(attempt, recipe, [{"at": [draw.randint(1, calls), moment]}])
    for call in (1, calls):
        assert ends_the_same(attempt, recipe, [{"at": [call, "before"]}])


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(attempt: tuple[Path, Attempt]) -> None:
    seconds = reference(attempt, "plain")[1]["seconds"]
    draw = random.Random(1)
    assert ends_the_same(attempt, "plain", [{"after": draw.uniform(0.1, 0.6) * seconds} for _ in range(6)])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(attempt: tuple[Path, Attempt], recipe: str) -> None:
    found = reference(attempt, recipe)[1]
    for call in range(1, found["calls"] + 1):
        for moment in MOMENTS:
            assert ends_the_same(attempt, recipe, [{"at": [call, moment]}])
    draw = random.Random(recipe)
    for _ in range(20):
        ends_the_same(attempt, recipe, [{"after": draw.random() * found["seconds"]} for _ in range(3)])


# --- full disks


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with an evaluation."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    quantize(directory)
    Run.open(directory).record_accuracy({"accuracy": {"overall": 0.5}}, {"questions": "q", "answers": ["a"]})
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many bytes, or change its size; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        options = f"size={size}" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", place], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(
    undisturbed: Path, small_disk: Callable[[int], Path]
) -> None:
    used = sum((path.stat().st_size + 4095) // 4096 * 4096 for path in undisturbed.rglob("*") if path.is_file())
    refused: list[str] = []
    for eighths in range(1, 13):
        run = small_disk(max(4096, used * eighths // 8)) / "run"
        try:
            quantize(run)
            break
        except SabError as refusal:
            refused.append(str(refusal))
            assert not [path for path in run.rglob("*") if path.name.startswith(files.TEMPORARY)]
    assert len(refused) >= 3
    assert all("No space left" in refusal for refusal in refused)
    assert stored(run) == stored(undisturbed)
    assert whole(run)


@pytest.mark.parametrize("written", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nth", [1, 3, 6, 9, 11])
def test_a_write_that_breaks_off_leaves_the_file_as_it_was(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, written: float
) -> None:
    """The disk takes only a part of the n-th file, and refuses every write after it."""
    sync, calls = os.fsync, 0

    def breaking(descriptor: int) -> None:
        nonlocal calls
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            calls += 1
            if calls >= nth:
                os.ftruncate(descriptor, int(os.fstat(descriptor).st_size * written))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", breaking)
        with pytest.raises(SabError, match=r"No space left.*make room"):
            quantize(tmp_path / "run")
    quantize(tmp_path / "run")
    assert stored(tmp_path / "run") == stored(undisturbed)
    assert whole(tmp_path / "run")


# --- damaged and foreign state


@pytest.fixture
def half_done(undisturbed: Path, tmp_path: Path) -> Path:
    """The undisturbed run as it was before its last two linears."""
    directory = tmp_path / "half"
    shutil.copytree(undisturbed, directory)
    for name in ("manifest.json", *runs.EVALUATION):
        (directory / name).unlink()
    for name in LINEARS[-2:]:
        (directory / "reports" / f"{name}.json").unlink()
        (directory / "codes" / f"{name}.safetensors").unlink()
    return directory


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


KINDS = ("recipe.json", "sensitivity-input.safetensors", "sensitivity-input.sha256", "codes/*", "reports/*")


@pytest.mark.parametrize("kind", [*KINDS, "events.jsonl"])
def test_a_flipped_bit_is_refused_or_changes_nothing(undisturbed: Path, half_done: Path, kind: str) -> None:
    draw = random.Random(kind)
    refused: list[str] = []
    for _ in range(12):
        path = draw.choice(sorted(half_done.glob(kind)))
        before = path.read_bytes()
        flip(path, draw)
        try:
            quantize(half_done)
        except SabError as refusal:
            refused.append(str(refusal))
            path.write_bytes(before)
        else:
            assert kind in ("recipe.json", "events.jsonl"), "only versions, machine and log may change unnoticed"
            assert stored(half_done) == stored(undisturbed)
            break  # it is finished
    assert refused or kind == "events.jsonl"
    assert not any("\n" in refusal for refusal in refused)


@pytest.mark.parametrize("kind", ["manifest.json", "accuracy.json", "answers.json", *KINDS[1:]])
def test_a_flipped_bit_in_a_finished_run_is_refused(undisturbed: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    draw = random.Random(kind)
    for _ in range(20):
        path = draw.choice(sorted((tmp_path / "run").glob(kind)))
        before = path.read_bytes()
        flip(path, draw)
        if kind == "sensitivity-input.sha256":  # the manifest covers it; what it vouches for is refused on reading
            with pytest.raises(SabError):
                Run.open(tmp_path / "run").sensitivities()
        with pytest.raises(SabError) as refusal:
            quantize(tmp_path / "run")
        assert "\n" not in str(refusal.value)
        path.write_bytes(before)
    quantize(tmp_path / "run")


def test_state_of_another_run_is_refused(undisturbed: Path, half_done: Path, tmp_path: Path) -> None:
    """Of another recipe, of other samples and of other weights: each is whole in itself."""
    other = tmp_path / "other"
    for _ in sequential.quantize(tiny(), PLAIN, other, samples=SAMPLES[1:]):
        pass
    name = LINEARS[-1]
    for relative in (f"codes/{name}.safetensors", f"reports/{name}.json"):
        shutil.copy(other / relative, half_done / relative)
    with pytest.raises(SabError, match=f"{name}.json is damaged or belongs to another run"):
        quantize(half_done)
    (half_done / "reports" / f"{name}.json").unlink()
    for suffix in ("safetensors", "sha256"):
        shutil.copy(half_done / f"sensitivity-input.{suffix}", tmp_path)
        shutil.copy(other / f"sensitivity-input.{suffix}", half_done)
    with pytest.raises(SabError, match="sensitivity-input"):
        quantize(half_done)
    for suffix in ("safetensors", "sha256"):
        shutil.copy(tmp_path / f"sensitivity-input.{suffix}", half_done)
    for changed in (
        {"recipe": {**Run.open(half_done).header["recipe"], "iterations": 3}},
        {"fingerprint": "0" * 64},
        {"linears": list(LINEARS[:3])},
        {"format_version": 2},
    ):
        header = Run.open(half_done).header
        files.write_json(half_done / "recipe.json", {**header, **changed})
        with pytest.raises(SabError):
            quantize(half_done)
        files.write_json(half_done / "recipe.json", header)
    quantize(half_done)
    assert stored(half_done) == stored(undisturbed)


def test_a_report_that_was_made_with_other_settings_is_foreign_however_the_header_is_changed(half_done: Path) -> None:
    """Whoever edits the recipe of a half-done run, and asks for the edited one, gets no mixture."""
    header = Run.open(half_done).header
    edited = {**header, "recipe": {**header["recipe"], "iterations": 3}}
    files.write_json(half_done / "recipe.json", edited)
    with pytest.raises(SabError, match="another run"):
        next(sequential.quantize(tiny(), Run.open(half_done).recipe, half_done, samples=SAMPLES))


# --- evaluations


@pytest.mark.parametrize("nth", range(1, 5))
def test_an_evaluation_that_is_interrupted_leaves_a_run_that_holds(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    replace, calls = os.replace, 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            run.record_accuracy({"accuracy": {"overall": 0.9}}, {"questions": "q", "answers": ["b"]})
    again = Run.open(tmp_path / "run")
    assert again.finished
    again.verify()
    assert again.accuracy in ({"accuracy": {"overall": 0.5}}, {"accuracy": {"overall": 0.9}})
    if (answers := tmp_path / "run" / "answers.json").exists():  # never beside figures of another evaluation
        expected = "a" if again.accuracy == {"accuracy": {"overall": 0.5}} else "b"
        assert json.loads(answers.read_text())["answers"] == [expected]
    again.record_accuracy({"accuracy": {"overall": 0.9}})
    assert whole(tmp_path / "run")


def test_a_log_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_bytes(b'{"event": "sta')
    files.append_line(log, '{"event": "finished"}')
    files.append_line(log, '{"event": "again"}')
    assert log.read_text().splitlines() == ['{"event": "sta', '{"event": "finished"}', '{"event": "again"}']
