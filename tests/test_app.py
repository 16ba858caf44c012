"""Claims about the command line of the page: what is wrong with it is said before anything is served."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import app


class Started(Exception):
    """The server would be up now."""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*arguments: object, **options: Any) -> None:
        raise Started

    monkeypatch.setattr(gr.Blocks, "launch", launch)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine at which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of arguments, after exit code 2."""
    assert app.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("app.py: ")
    assert line.endswith(".")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999999"], "choose one from 1 to 65535"),
        (["--port", "-1"], "choose one from 1 to 65535"),
        (["--port", "0"], "choose one from 1 to 65535"),
        (["--port", "many"], "see python app.py --help"),
        (["--host", "999.1.1.1"], "name an address of this machine"),
        (["--host", "x" * 100], "name an address of this machine"),
        (["--model", "/nope"], "There is no folder /nope"),
        (["--model", str(Path(__file__).parent)], "holds no config.json"),
        (["--allow-model", "Qwen/Qwen2.5-VL-3B-Instruct", "--allow-model", "/nope"], "There is no folder /nope"),
        (["--runs", __file__], "is no directory"),
        (["--runs", f"{__file__}/below"], "is no directory"),
        (["--dance"], "see python app.py --help"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refusal(capsys, *arguments)


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str], taken: int) -> None:
    assert f"127.0.0.1, port {taken} (" in refusal(capsys, "--port", str(taken))


def test_right_arguments_lead_to_the_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    new = str(tmp_path_factory.mktemp("runs") / "to" / "be")
    for arguments in ([], ["--runs", new, "--host", "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"]):
        with pytest.raises(Started):
            app.main(arguments)


def test_a_model_that_is_allowed_in_the_environment_is_looked_at_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAB_ALLOW_MODELS", "some/one, /nope")
    assert "There is no folder /nope" in refusal(capsys)
