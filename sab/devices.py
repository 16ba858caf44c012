"""Where Triton's kernels compute: on CUDA devices that have it, and, to test them, on the CPU in its interpreter."""

import functools
import importlib.util
import os
import subprocess
import warnings

import torch

from sab.errors import SabError

CHOICE = "SAB_KERNEL"  # environment variable that forces a kernel: reference, triton, or a path of the C kernel
REFERENCE, TRITON = "reference", "triton"


@functools.cache
def _installed() -> bool:
    """Whether Triton is there; CUDA builds of torch bring it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _reaches_gpu() -> bool:
    """Whether Triton can launch anything: it first builds a small library, for which slim images have no compiler."""
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"Triton does not run on this GPU ({said}): torch computes instead, slowly", stacklevel=2)
        return False
    return True


def runs_triton(device: torch.device | str) -> bool:
    """Whether Triton's kernels can run there: on the CPU only with TRITON_INTERPRET=1, set before its import."""
    kind = torch.device(device).type
    if kind == "cuda":
        return _installed() and _reaches_gpu()
    return _installed() and kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def takes_triton(device: torch.device | str) -> bool:
    """Whether Triton's kernels are to run there: on CUDA devices unless SAB_KERNEL is reference, else if it is triton.

    SabError where it is asked for and cannot run.
    """
    kind, choice = torch.device(device).type, os.environ.get(CHOICE)
    if kind == "meta" or choice == REFERENCE or (kind != "cuda" and choice != TRITON):
        return False
    if choice == TRITON and not runs_triton(device):
        raise SabError(f"{CHOICE} is {choice}, which needs a CUDA device and the package triton; leave it out.")
    return runs_triton(device)
