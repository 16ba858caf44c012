"""The Triton kernels of packed linears against float64: on a CUDA device where there is one, else interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab import devices
from sab.binarizers import METHODS, BinaryCodes, LinearCodes
from sab.devices import CHOICE, TRITON
from sab.errors import SabError
from sab.kernels import gpu
from sab.models import load
from sab.packed import PackedLinear, has_kernel, swap
from sab.packing import pack
from sab.recipes import Recipe
from sab.runs import Run
from sab.sequential import quantize
from tests.test_kernels import binary_codes, inputs, integer_codes, largest
from tests.test_packing import codes_of
from tests.tiny import dialogues, tiny_folder
from tests.triton_device import DEVICE, needs_gpu, needs_triton

ROOT = Path(__file__).parents[1]
TAKEN = [method for method in METHODS if method != "pb-llm"]

pytestmark = needs_triton


def weight_of(codes: LinearCodes) -> gpu.Weight:
    tensors, metadata = pack(codes)
    return gpu.Weight({name: values.to(DEVICE) for name, values in tensors.items()}, metadata)


def product(weight: gpu.Weight, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return weight.multiply(x.to(DEVICE), None if bias is None else bias.to(DEVICE)).cpu()


def can_be_stored(codes: LinearCodes) -> bool:
    """Whether a file could hold them, in blocks that the kernels take."""
    if isinstance(codes, BinaryCodes) and codes.column_scale is not None and len(codes.column_scale) == 2:
        return codes.second_column_scale is not None and codes.block_size % gpu.LEAST_UNIT == 0
    return codes.block_size % gpu.LEAST_UNIT == 0


@settings(deadline=None, max_examples=20)
@given(
    codes=st.one_of(binary_codes(), integer_codes()).filter(can_be_stored),
    tokens=st.sampled_from([1, 2, 3, 17]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1.0, 1e-30, 1e25]),
)
def test_float32_inputs_give_the_float64_product(codes: LinearCodes, tokens: int, seed: int, size: float) -> None:
    x = inputs(tokens, codes.shape[1], seed, size)
    error = (product(weight_of(codes), x).double() - x.double() @ codes.dense().double().T).abs()
    rounding = (codes.shape[1] + 20) * 2.0**-24
    assert bool((error <= rounding * (x.double().abs() @ largest(codes).T) + 1e-37).all())


@pytest.mark.parametrize("method", TAKEN)
@pytest.mark.parametrize(("rows", "width", "block_size"), [(21, 70, 32), (1, 300, 128), (35, 1, 16), (3, 100, 48)])
def test_every_method_s_codes_multiply(method: str, rows: int, width: int, block_size: int) -> None:
    codes = codes_of(method, rows, width, block_size=block_size)
    weight, bias = weight_of(codes), torch.randn(rows, generator=torch.Generator().manual_seed(3))
    for tokens in (1, 3):
        x = inputs(tokens, width, 1)
        want = torch.nn.functional.linear(x.double(), codes.dense().double(), bias.double())
        assert torch.allclose(product(weight, x, bias).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["sab", "billm", "gptq3"])
def test_short_inputs_are_summed_in_float32(method: str, dtype: torch.dtype) -> None:
    codes = codes_of(method, 40, 256, block_size=128)
    weight = weight_of(codes)
    for tokens, dense in ((1, codes.dense()), (5, codes.dense().to(dtype))):
        x = inputs(tokens, 256, 0).to(dtype)
        found = product(weight, x)
        want = x.double() @ dense.double().T
        assert found.dtype == dtype
        rounding = torch.finfo(dtype).eps  # of the result alone, were it not for levels that round either way
        assert (found.double() - want).norm() < rounding * want.norm()


def test_a_weight_that_float16_does_not_hold_meets_no_zero() -> None:
    codes = codes_of("sab-h", 20, 100, block_size=32)
    assert isinstance(codes, BinaryCodes)
    row_scale = torch.ones_like(codes.row_scale, dtype=torch.int8)
    row_scale[: codes.groups] = 127  # of ordinary weights, of which there are none
    codes = replace(
        codes,
        salient=torch.ones(100, dtype=torch.bool),
        second=codes.first.clone(),
        row_scale=row_scale,
        second_row_scale=torch.ones_like(codes.second_row_scale, dtype=torch.int8),
        row_step=torch.full((20,), 2000.0).half(),
        column_scale=None,
    )
    x = inputs(3, 100, 0).half() / 1000
    want = x.double() @ codes.dense().double().T
    assert torch.allclose(product(weight_of(codes), x).double(), want, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("kernel", ["decode", "few", "many"])
def test_every_configuration_gives_the_product(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sab.kernels import gpu_linear

    launched = getattr(gpu_linear, kernel)
    codes = codes_of("sab", 40, 300, block_size=128)
    weight = weight_of(codes)
    x = inputs({"decode": 1, "few": 20, "many": 70}[kernel], 300, 0)
    want = x.double() @ codes.dense().double().T
    known = {"decode": gpu_linear.DECODE[::3], "few": gpu_linear.FEW[::3], "many": gpu_linear.MANY[::2]}
    for configuration in known[kernel]:
        monkeypatch.setattr(launched, "configs", [configuration])
        found = product(weight, x)
        assert torch.allclose(found.double(), want, rtol=1e-4, atol=1e-4), configuration
        assert torch.equal(product(weight, x), found)  # the counters are as they were, the order is fixed


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's
def test_inputs_that_are_not_finite_stay_visible() -> None:
    weight = weight_of(codes_of("sab", 20, 64, block_size=32))
    for tokens in (2, 4):
        x = inputs(tokens, 64, 0)
        clean = product(weight, x)
        for wrong in (float("nan"), float("inf")):
            broken = x.clone()
            broken[1, 5] = wrong
            found = product(weight, broken)
            assert not bool(torch.isfinite(found[1]).any())
            assert torch.equal(found[[0, *range(2, tokens)]], clean[[0, *range(2, tokens)]])


def test_what_does_not_fit_is_one_sentence() -> None:
    codes = codes_of("sab", 20, 64, block_size=32)
    weight = weight_of(codes)
    x = torch.randn(2, 64, device=DEVICE)
    for wrong in (x[:, :63], x.double(), x[0], x[None], x.to("meta"), x.long()):
        with pytest.raises(SabError, match="instead of"):
            weight.multiply(wrong)
    with pytest.raises(SabError, match="bias"):
        weight.multiply(x, torch.ones(19, device=DEVICE))
    assert weight.multiply(x[:0]).shape == (0, 20)
    tensors, metadata = pack(codes)
    for broken in ({"codes": tensors["codes"][:, :, 1:]}, {"second": tensors["second"].short()}):
        with pytest.raises(SabError, match="damaged"):
            gpu.Weight(tensors | broken, metadata)
    for method, block_size in (("pb-llm", 32), ("sab", 8)):
        with pytest.raises(SabError, match="takes no such"):
            weight_of(codes_of(method, 20, 64, block_size=block_size))


def test_a_packed_linear_computes_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, TRITON)
    codes, bias = codes_of("sab", 21, 70, block_size=32), torch.randn(21)
    linear = PackedLinear(codes, bias, device=DEVICE)
    assert linear.kernel == TRITON
    assert has_kernel(torch.device(DEVICE))
    for shape in ((70,), (1, 70), (2, 3, 70), (0, 70)):
        x = torch.randn(shape)
        want = torch.nn.functional.linear(x, codes.dense(), bias)
        found = linear(x.to(DEVICE)).cpu()
        assert found.shape == want.shape
        assert torch.allclose(found, want, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 70, dtype=torch.float64, device=DEVICE)
    assert linear(x).dtype == torch.float64  # the reference's
    assert PackedLinear(codes_of("pb-llm", 21, 70, block_size=32), device=DEVICE).kernel == "reference"
    monkeypatch.setenv(CHOICE, "reference")
    assert linear.kernel == "reference"


def test_asked_for_where_it_cannot_run_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, TRITON)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(SabError, match="needs a CUDA device"):
        _ = PackedLinear(codes_of("sab", 21, 70, block_size=32)).kernel


@needs_gpu
@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_a_call_can_be_captured_in_a_cuda_graph(tokens: int) -> None:
    codes = codes_of("sab", 200, 640, block_size=128)
    linear = PackedLinear(codes, torch.randn(200), device="cuda")
    x = torch.zeros(tokens, 640, device="cuda")
    linear(x)  # the configuration is chosen
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x)
    for seed in range(3):
        x.copy_(inputs(tokens, 640, seed))
        graph.replay()
        assert torch.equal(y, linear(x))


@needs_gpu
def test_a_linear_that_moves_takes_the_kernel_of_where_it_is() -> None:
    codes = codes_of("sab", 40, 256, block_size=128)
    linear = PackedLinear(codes)
    x = inputs(2, 256, 0)
    here = linear(x)
    there = linear.to("cuda")
    assert there.kernel == TRITON
    assert torch.allclose(there(x.cuda()).cpu(), here, rtol=1e-4, atol=1e-4)
    assert torch.allclose(there.cpu()(x), here)


@needs_gpu
def test_a_model_on_the_gpu_says_what_its_dequantized_weights_say(tmp_path: Path) -> None:
    from tests.test_packed import answers

    original, dense, packed = (load(str(tiny_folder()), "cuda", "float32") for _ in range(3))
    for _ in quantize(original, Recipe(method="sab", iterations=1), tmp_path / "run", samples=dialogues(2)):
        pass
    run = Run.open(tmp_path / "run")
    run.apply(dense)
    assert set(swap(packed, run).kernels) == {TRITON}
    assert answers(packed) == answers(dense)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_triton_reaches_no_gpu_torch_computes_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    devices._reaches_gpu.cache_clear()
    with pytest.warns(UserWarning, match="torch computes instead"):
        assert not devices.takes_triton("cuda")
    assert not devices.takes_triton("cuda")  # said once
    monkeypatch.setenv(CHOICE, TRITON)
    with pytest.raises(SabError, match="needs a CUDA device"):
        devices.takes_triton("cuda")


@pytest.mark.slow  # takes long in a suite that people wait for
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """Triton's compiler needs no GPU: to machine code for an A100 and an H100, without running it."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.triton_device"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "compiled" in run.stdout
