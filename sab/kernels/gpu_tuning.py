"""How a Triton kernel is configured: measured on a GPU when a shape is first met, fixed under the interpreter."""

from collections.abc import Callable
from typing import Any

import triton


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU (TRITON_INTERPRET=1 before they are imported)."""
    return bool(triton.knobs.runtime.interpret)


def tuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """Decorator: the fastest of `configs` for each value of the arguments `key`; the first one when interpreted.

    The first call of a shape runs them all and waits, so it cannot be the one that a CUDA graph captures; every
    later call only launches. What was found is kept in Triton's cache folder for later processes.
    """
    return triton.autotune(configs=configs[:1] if interpreted() else configs, key=key, cache_results=True)
