"""A download from a hub: what is fetched, how far it is, how it stops, and one sentence for what goes wrong."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from sab import cli, hub, models
from sab.errors import SabError
from tests.hub_server import CHUNK, Hub, ask_here, serving
from tests.tiny import tiny_folder

NAME = "somebody/tiny-qwen"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with the tiny model and files beside it that nobody needs; an empty cache."""
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "served"))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights once more")
    with serving() as running:
        running.repositories[NAME] = folder
        ask_here(monkeypatch, running, tmp_path / "cache")
        yield running


class Heard:
    """A progress callback that keeps what it hears, and calls `then` with it."""

    def __init__(self) -> None:
        self.news: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.news.append((done, total))


def test_a_download_brings_a_model_that_loads_and_nothing_that_runs(server: Hub) -> None:
    planned = hub.plan(NAME)
    assert planned.missing == planned.total == sum(planned.sizes.values())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(planned.sizes)
    heard = Heard()
    folder = hub.fetch(planned, heard, threading.Event())
    assert set(server.downloads()) == set(planned.sizes)
    assert not {"modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors"} & set(server.downloads())
    done = [count for count, _ in heard.news]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, planned.total)
    assert done.count(planned.total) < len(done) / 4  # bytes that came and bytes that were written count once
    assert all(total == planned.total for _, total in heard.news)
    there = models.load(folder, device="cpu")
    here = models.load(tiny_folder(), device="cpu")
    assert there.fingerprint == here.fingerprint


def test_what_is_there_is_not_fetched_again(server: Hub) -> None:
    assert hub.on_this_machine(NAME) is None
    folder = hub.fetch(hub.plan(NAME), Heard(), threading.Event())
    server.asked.clear()
    again = hub.plan(NAME)
    assert again.missing == 0
    heard = Heard()
    assert hub.fetch(again, heard, threading.Event()) == folder
    assert server.downloads() == []
    assert heard.news[-1] == (again.total, again.total)
    server.broken = True  # and without the hub
    assert hub.on_this_machine(NAME) == folder


def test_a_stopped_download_keeps_whole_files_and_leaves_no_halves(server: Hub, tmp_path: Path) -> None:
    stop, planned = threading.Event(), hub.plan(NAME)
    server.flowing.clear()

    def hear(done: int, total: int) -> None:
        # of the weights the first chunk has come, and no more can; so all else is there
        if done >= planned.total - planned.sizes["model.safetensors"] + CHUNK:
            stop.set()
            server.flowing.set()

    with pytest.raises(hub.Stopped):
        hub.fetch(planned, hear, stop)
    kept = hub.plan(NAME)
    assert kept.missing < kept.total
    assert kept.missing >= planned.sizes["model.safetensors"]
    assert hub.on_this_machine(NAME) is None
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    server.asked.clear()
    heard = Heard()
    hub.fetch(kept, heard, threading.Event())
    assert heard.news[0] == (kept.total - kept.missing, kept.total)
    assert heard.news[-1] == (kept.total, kept.total)
    assert "model.safetensors" in server.downloads()
    assert "config.json" not in server.downloads()


def test_an_unknown_and_a_gated_repository_are_one_sentence_each(server: Hub) -> None:
    with pytest.raises(SabError, match="no model somebody/else on the Hugging Face Hub, or it is private"):
        hub.plan("somebody/else")
    server.gated.add(NAME)
    planned = hub.plan(NAME)  # the listing of a gated model is public
    with pytest.raises(SabError, match=f"{NAME} is gated: accept its terms at https://huggingface.co/{NAME}"):
        hub.configuration(planned)
    with pytest.raises(SabError, match="is gated"):
        hub.fetch(planned, Heard(), threading.Event())


def test_a_repository_without_safetensors_is_refused(server: Hub) -> None:
    (server.repositories[NAME] / "model.safetensors").unlink()
    with pytest.raises(SabError, match="holds no safetensors weights"):
        hub.plan(NAME)


def test_a_hub_that_fails_or_does_not_answer_is_told_apart(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.broken = True
    with pytest.raises(SabError, match=r"answers with an error \(503\)"):
        hub.plan(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hub.Unreachable, match=f"cannot be reached .* so {NAME} cannot be downloaded"):
        hub.plan(NAME)


def test_a_full_disk_is_seen_before_and_said_during(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.listed[NAME] = {"model.safetensors": 10**18}
    planned = hub.plan(NAME)
    with pytest.raises(SabError, match=r"needs 1000000000\.0 GB more on the disk"):
        hub.check_disk(planned)
    server.listed.clear()
    hub.check_disk(hub.plan(NAME))

    def full(done: int, total: int) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SabError, match="The disk is full; whole files of"):
        hub.fetch(hub.plan(NAME), full, threading.Event())


def test_loading_tells_how_far_it_is_and_stops() -> None:
    heard, stop = Heard(), threading.Event()
    with hub.watched_loading(heard, stop):
        loaded = models.load(tiny_folder(), device="cpu")
    assert isinstance(next(loaded.model.parameters()), torch.nn.Parameter)
    done = [count for count, _ in heard.news]
    assert done == list(range(len(done)))
    assert len(done) == heard.news[0][1] > 10
    models.load(tiny_folder(), device="cpu")  # nobody listens any more
    assert len(heard.news) == len(done)
    stop.set()
    with hub.watched_loading(heard, stop), pytest.raises(SabError):
        models.load(tiny_folder(), device="cpu")


def test_the_command_line_shows_a_download_and_does_without_the_hub(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["quantize", NAME, "--method", "xnor", "--samples", "4", "--export", "none", "--device", "cpu"]
    assert cli.main([*quick, "--out", str(tmp_path / "first")]) == 0
    assert f"downloading {NAME}" in capsys.readouterr().err
    server.broken = True
    code, said = cli.main([*quick, "--out", str(tmp_path / "second")]), capsys.readouterr().err
    assert code == 0, said
    assert "downloading" not in said
    assert cli.main(["export", str(tmp_path / "first"), "--out", str(tmp_path / "packed")]) == 0
    assert cli.main(["quantize", "somebody/else", "--samples", "4", "--out", str(tmp_path / "third")]) != 0
