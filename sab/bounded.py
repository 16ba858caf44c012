"""A limit of time and memory for a chat template: it is a program of the checkpoint's, which Jinja's sandbox keeps from
files and from the network, but not from going on for ever or filling the memory.

A thread watches and, past a limit, raises an exception in the thread that renders; loops of a template are Python, so
it is seen between two steps.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
SECONDS = 10.0
BYTES = 1 << 30
PAUSE = 0.02
STATM = Path("/proc/self/statm")


class Halted(Exception):
    """Raised in a thread whose call went past its limit."""


def bounded(call: Callable[[], Result], seconds: float = SECONDS, most_bytes: int = BYTES) -> Result:
    """`call()`, or Halted once it has taken longer, or the process has grown by more (where the system tells)."""
    ident, lock, state = threading.get_ident(), threading.Lock(), {"done": False, "halted": False}
    ended = threading.Event()

    def watch() -> None:
        start, size = time.monotonic(), _resident()
        while not ended.wait(PAUSE):
            if time.monotonic() - start > seconds or _resident() - size > most_bytes:
                with lock:
                    if not state["done"]:
                        state["halted"] = True
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Halted))
                return

    watcher = threading.Thread(target=watch, name="bounded", daemon=True)
    watcher.start()
    try:
        result = call()
        with lock:
            state["done"] = True
        if state["halted"]:  # under way to this thread: it comes at one of the next steps
            for _ in range(1000):
                time.sleep(0.001)
        return result
    finally:
        state["done"] = True
        ended.set()


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
