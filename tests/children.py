"""A child process that loads its libraries once and then answers requests, one JSON line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextmanager
def answering(module: str, *arguments: str) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """`python -m module arguments…`, and a way to send it a request and read its answer."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    requests, answers = child.stdin, child.stdout
    assert requests is not None
    assert answers is not None

    def ask(request: dict[str, Any]) -> Any:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    yield ask
    requests.close()
    assert child.wait(60) == 0
