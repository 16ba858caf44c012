"""How the C kernel comes to be: compiled once, by one process or two, or said to be missing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from sab.errors import SabError
from sab.kernels import cpu

ROOT = Path(__file__).parents[1]
needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")  # one that fails is a failure


def _load_in(folder: str, results: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = folder
    cpu.FLAGS = tuple("-O0" if flag == "-O2" else flag for flag in cpu.FLAGS)  # sooner done
    results.put(cpu.load.__wrapped__() is not None)


@needs_c
def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_load_in, args=(str(tmp_path), results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=240) for _ in workers] == [True, True]
    for worker in workers:
        worker.join(60)
    assert len(list((tmp_path / "sab-lens" / "kernels").iterdir())) == 1  # and nothing half-written is left


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_reference_says_so(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="run on the torch reference"):
        assert cpu.load.__wrapped__() is None
    kernels = tmp_path / "sab-lens" / "kernels"
    assert not kernels.exists() or not list(kernels.iterdir())


def test_it_is_said_once(tmp_path: Path) -> None:
    script = "import warnings; warnings.simplefilter('always'); from sab.kernels import cpu; cpu.load(); cpu.load()"
    environment = {**os.environ, "CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0
    assert said.stderr.count("no C kernel") == 1


def test_an_unknown_path_is_one_sentence() -> None:
    with pytest.raises(SabError, match="SAB_KERNEL is 'sse'"):
        cpu.load("sse")


@needs_c
def test_where_there_is_a_compiler_there_is_a_kernel() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu.load.__wrapped__() is not None
    assert cpu.load() is not None
