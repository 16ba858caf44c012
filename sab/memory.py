"""How much memory is free, how it is given back, and what happens where the device has too little."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from sab.errors import SabError

Result = TypeVar("Result")
Fallback = Callable[[str], None]  # hears what the host does because the device ran out of memory
HOST = torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; of the host, what programs can have without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return freed memory to the system: glibc keeps blocks below 32 MB, which most weights are, in a heap that
    fragments until it holds a whole model. Elsewhere there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def warn_of_host(what: str) -> None:
    """Say that the host takes over a piece of work."""
    warnings.warn(f"{what}: the device is out of memory, so the host does this part; it takes longer.", stacklevel=2)


def with_host(
    what: str, work: Callable[[torch.device], Result], device: torch.device, fallback: Fallback = warn_of_host
) -> Result:
    """`work(device)`; where its memory does not do, `fallback(what)` and `work` on the host. SabError where even that
    finds no room on the device."""
    try:
        return work(device)
    except torch.cuda.OutOfMemoryError:
        pass  # left before the second try, because the error keeps the tensors of the first alive
    torch.cuda.empty_cache()
    fallback(what)
    try:
        return work(HOST)
    except torch.cuda.OutOfMemoryError as error:
        raise SabError(
            f"{what}: the device has too little memory for one batch of calibration samples; choose --device cpu, or a "
            "device with more."
        ) from error
