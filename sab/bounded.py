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
WORKING = 0.25  # seconds from which growth counts as this call's: other threads may be loading a model
PAUSE = 0.02
STATM = Path("/proc/self/statm")


class Halted(Exception):
    """Raised in a thread whose call went past its limit."""


def bounded(call: Callable[[], Result], seconds: float = SECONDS, most_bytes: int = BYTES) -> Result:
    """`call()`, or Halted once this thread has worked for longer (where the system does not tell, once more time has
    passed), or the process has grown by more while it worked."""
    ident, lock, state = threading.get_ident(), threading.Lock(), {"done": False, "halted": False}
    ended, clock = threading.Event(), _clock(ident)
    start, size = clock(), _resident()

    def passed() -> float:
        try:
            return clock() - start
        except OSError:  # the thread is gone, so its call has ended
            return 0.0

    def watch() -> None:
        while not ended.wait(PAUSE):
            if passed() > seconds or (passed() > WORKING and _resident() - size > most_bytes):
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


def _clock(ident: int) -> Callable[[], float]:
    """Seconds that a thread has worked, so that a busy machine halts nothing."""
    try:
        number = time.pthread_getcpuclockid(ident)
    except (AttributeError, OSError):
        return time.monotonic
    return lambda: time.clock_gettime(number)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
