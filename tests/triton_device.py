"""Where Triton's kernels are tested, and (run as a program) whether they compile for GPUs that are not here."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from sab.devices import runs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MISSING = not runs_triton(DEVICE) and os.environ.get("SAB_REQUIRE_TRITON") != "1"
needs_triton = pytest.mark.skipif(MISSING, reason="Triton is not installed (pip install triton)")
ARCHITECTURES = (80, 90)
POINTERS = {
    "*bf16": ("x", "y", "bias"),
    "*fp32": ("partial",),
    "*i32": ("counters", "codes", "tail"),
    "*fp16": ("row_scale", "second_scale", "mean", "column_scale", "second_column"),
    "*u8": ("salient", "second", "zero"),
}
FORMATS: dict[str, dict[str, Any]] = {
    "sab": {"PLANES": 2, "RESIDUALS": 2, "COLUMNS": 2, "TAIL": 32, "mean": None, "step": None, "zero": None},
    "billm": {"PLANES": 2, "RESIDUALS": 1, "COLUMNS": 0, "TAIL": 32, "MEANS": True, "step": None, "zero": None},
    "gptq3": {"PLANES": 3, "RESIDUALS": 0, "COLUMNS": 0, "TAIL": 0, "INTEGER": True, "mean": None, "step": None},
}
USUAL = {"K": 128, "UNIT": 128, "WORD": 32, "SMALL": False, "MEANS": False, "INTEGER": False, "BIAS": True}
WALK = {
    "*fp32": ("weight", "factor", "settled", "one", "two", "three", "four"),
    "*u8": ("mask",),
}


def needs_gpu(test: Any) -> Any:
    """Marks a test as one for a CUDA device, skipped without one."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    return pytest.mark.gpu(missing(test))


def compile_for(
    architecture: int, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, **options: Any
) -> dict[str, Any]:
    """What a kernel compiles to for arguments of such types (int32 where not named) and such constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items() if name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled: dict[str, Any] = triton.compile(source, target=target, options={"num_warps": warps, **options}).asm
    return compiled


def main() -> None:
    """Compiles the kernels for every architecture, in some formats and with sizes of 1, which Triton takes apart."""
    from sab.binarizers import walk
    from sab.kernels import gpu_linear

    types = {name: kind for kind, names in POINTERS.items() for name in names}
    ones = dict.fromkeys(("n", "blocks", "count"), 1)
    decode, few = gpu_linear.decode, gpu_linear.few
    cases = [(architecture, "sab", kernel, {}) for architecture in ARCHITECTURES for kernel in (decode, few)]
    latest = ARCHITECTURES[-1]
    cases += [(latest, "sab", decode, ones), (latest, "billm", few, {}), (latest, "gptq3", decode, {})]
    for architecture, name, kernel, sizes in cases:
        chosen = kernel.configs[1]  # with splits
        constants = USUAL | FORMATS[name] | chosen.kwargs | sizes | {"EMULATED": False}
        assert compile_for(architecture, kernel.fn, types, constants, chosen.num_warps)["cubin"]
    types = {name: kind for kind, names in WALK.items() for name in names}
    for kind, size in ((walk.KEPT, 255), (walk.SUMS, 2)):
        constants = {"KIND": kind, "SIZE": size, "WIDTH": 128, "ROWS": 4}
        compiled = compile_for(latest, walk._settle, types, constants, 1, enable_fp_fusion=False)
        assert compiled["cubin"]
        assert "fma.rn.f32" not in compiled["ptx"], "multiply and subtract must round one by one, as in torch"
    print("compiled")


if __name__ == "__main__":
    main()
