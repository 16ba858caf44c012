"""Packed linears in a model: the same answers, fewer bytes, nothing dense left behind."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import shutil
import sys
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sab.binarizers import METHODS
from sab.devices import CHOICE
from sab.errors import SabError
from sab.evaluate import greedy
from sab.kernels import cpu
from sab.layout import complete
from sab.models import LVLM
from sab.packed import BFLOAT16_FROM, UNPACK_FROM, PackedLinear, swap
from sab.packing import pack
from sab.recipes import Recipe
from sab.runs import Run
from sab.sequential import quantize
from tests.test_packing import codes_of
from tests.tiny import dialogues, picture, tiny

needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("packed") / "run"
    for _ in quantize(tiny(), Recipe(method="sab", iterations=1), directory, samples=dialogues(2)):
        pass
    return Run.open(directory)


@pytest.mark.parametrize("kernel", ["reference", ""])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_codes_multiply(method: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, kernel)
    codes = codes_of(method, 21, 70, block_size=32)
    bias = torch.randn(21)
    linear = PackedLinear(codes, bias)
    for shape in ((70,), (1, 70), (2, 3, 70), (0, 70), (UNPACK_FROM, 70)):
        x = torch.randn(shape)
        want = torch.nn.functional.linear(x, codes.dense(), bias)
        assert torch.allclose(linear(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mode", cpu.MODES)
def test_inputs_keep_their_type(dtype: torch.dtype, mode: str) -> None:
    codes = codes_of("sab", 32, 128, block_size=128)
    linear = PackedLinear(codes, mode=mode)
    for tokens in (1, *(unit[mode] for unit in BFLOAT16_FROM.values()), UNPACK_FROM):
        x = torch.randn(tokens, 128)
        found = linear(x.to(dtype))
        assert found.dtype == dtype
        want = x @ codes.dense().T
        assert (found.float() - want).norm() / want.norm() < 0.03


@needs_c
@pytest.mark.parametrize(
    ("path", "units", "mode", "dtype", "ways"),
    [
        ("avx2", (), "exact", torch.float32, {1: "look up", 31: "look up", 32: "unpack"}),
        ("avx2", (), "fast", torch.bfloat16, {63: "look up", 64: "unpack"}),
        ("avx512", (), "fast", torch.bfloat16, {31: "look up", 32: "unpack"}),
        ("avx512vnni", ("vectors",), "exact", torch.float32, {31: "look up", 32: "unpack"}),
        ("avx512vnni", ("vectors",), "exact", torch.bfloat16, {5: "look up", 6: "bfloat16"}),
        ("avx512vnni", ("vectors",), "fast", torch.float32, {15: "look up", 16: "bfloat16"}),
        ("avx512vnni", cpu.UNITS, "fast", torch.float32, {7: "look up", 8: "bfloat16"}),
    ],
)
def test_the_way_follows_tokens_mode_and_processor(
    path: str, units: tuple[str, ...], mode: str, dtype: torch.dtype, ways: dict[int, str]
) -> None:
    linear = PackedLinear(codes_of("sab", 16, 128, block_size=128), mode=mode)
    weight = linear._arranged()
    weight.library = replace(weight.library, path=path, units=units)
    assert {tokens: linear._way(tokens, dtype) for tokens in ways} == ways


def test_casts_leave_codes_and_scales_alone() -> None:
    linear = PackedLinear(codes_of("sab", 21, 70, block_size=32), torch.randn(21))
    x = torch.randn(2, 70)
    want = linear(x)
    before = {name: values.clone() for name, values in linear.named_buffers()}
    again = linear.to(torch.bfloat16).to(torch.float32)
    assert all(torch.equal(values, before[name]) for name, values in again.named_buffers())
    assert torch.allclose(again(x), want, atol=0.05)  # the bias went through bfloat16
    assert torch.equal(copy.deepcopy(again)(x), again(x))


@pytest.mark.parametrize("kernel", ["reference", ""])
@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_holds_what_is_stored(method: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, kernel)
    tensors, metadata = pack(codes_of(method, 37, 70, block_size=32))
    bias = torch.randn(37)
    linear = PackedLinear((tensors, complete(tensors, metadata)), bias, dtype=torch.bfloat16)
    found = linear.state_dict()
    assert torch.equal(found.pop("bias"), bias.bfloat16())
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values)
    other = pack(codes_of(method, 37, 70, seed=1, block_size=32))
    twin = PackedLinear((other[0], complete(*other)), bias)
    if {name: values.shape for name, values in other[0].items()} == {k: v.shape for k, v in tensors.items()}:
        x = torch.randn(3, 70)
        before = twin(x)
        assert not torch.equal(before, linear(x))
        twin.load_state_dict(linear.state_dict())
        assert torch.allclose(twin(x), linear(x), atol=1e-5)


def test_what_leaves_the_processor_is_as_stored_and_comes_back_arranged() -> None:
    """The meta device stands for any other: nothing of the C kernel's order is left there."""
    tensors, metadata = pack(codes_of("sab", 37, 70, block_size=32))
    linear = PackedLinear((tensors, complete(tensors, metadata)))
    away = copy.deepcopy(linear).to("meta")
    assert {name: values.shape for name, values in away.named_buffers()} == {k: v.shape for k, v in tensors.items()}
    assert away.kernel == "reference"
    empty = away.to_empty(device="cpu")  # whatever lies in that memory is not taken for bits
    assert empty.kernel == "reference"
    empty.load_state_dict(linear.state_dict())
    x = torch.randn(3, 70)
    assert torch.equal(empty(x), linear(x))
    assert empty.kernel == linear.kernel


def test_wrong_calls_are_one_sentence() -> None:
    codes = codes_of("sab", 21, 70, block_size=32)
    linear = PackedLinear(codes)
    for wrong in (torch.randn(2, 69), torch.randint(3, (2, 70)), torch.tensor(1.0)):
        with pytest.raises(SabError, match="instead of floats"):
            linear(wrong)
    with pytest.raises(SabError, match="inference"):
        linear(torch.randn(1, 70, requires_grad=True))
    with pytest.raises(SabError, match="bias"):
        PackedLinear(codes, torch.randn(20))
    with pytest.raises(SabError, match="mode"):
        PackedLinear(codes, mode="quick")


@needs_c
def test_the_kernel_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of("sab", 21, 70, block_size=32)
    linear = PackedLinear(codes, mode="fast")
    library = cpu.load()
    assert library is not None
    assert linear.kernel == f"c {library.path} {linear._arranged().runs('fast')}"
    assert PackedLinear(codes_of("pb-llm", 21, 70, block_size=32)).kernel == f"c {library.path} exact"
    assert PackedLinear(codes_of("pb-llm", 21, 280, block_size=136)).kernel == "reference"
    monkeypatch.setenv(CHOICE, "portable")
    assert PackedLinear(codes).kernel == "c portable exact"
    monkeypatch.setenv(CHOICE, "reference")
    assert PackedLinear(codes).kernel == "reference"


def answers(lvlm: LVLM) -> list[list[int]]:
    asked = [("What is here?", picture(1)), ("Is it red?", picture(2)), ("Say something.", None)]
    return [greedy(lvlm, lvlm.prepare(prompt, seen), 12)[0] for prompt, seen in asked]


@pytest.mark.parametrize("kernel", ["reference", ""])
def test_a_swapped_model_says_what_the_dequantized_one_says(
    run: Run, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOICE, kernel)
    dense, packed = tiny(), tiny()
    run.apply(dense)
    done = swap(packed, run)
    assert set(done.linears) == set(run.names)
    assert answers(packed) == answers(dense)
    assert done.resident_bytes < done.dense_bytes / 4
    assert sum(done.kernels.values()) == len(run.names)


def test_no_swapped_linear_owns_its_weights_as_floats(run: Run) -> None:
    lvlm = tiny()
    dense = [weakref.ref(lvlm.linears[name].weight) for name in run.names]
    done = swap(lvlm, run)
    gc.collect()
    assert not any(reference() is not None for reference in dense)
    assert not set(run.names) & (set(lvlm.linears) | set(lvlm.decoder_linears))
    for linear in done.linears.values():
        many = linear.out_features * linear.in_features
        answers(lvlm)
        owned = [*linear.parameters(), *linear.buffers(), *vars(linear).values()]
        tensors = [values for values in owned if isinstance(values, torch.Tensor)]
        assert not any(values.is_floating_point() and values.numel() >= many for values in tensors)


def test_what_cannot_be_swapped_leaves_the_model_as_it_was(run: Run, tmp_path: Path) -> None:
    other = replace(tiny(), fingerprint="another")
    with pytest.raises(SabError, match="other weights"):
        swap(other, run)
    lvlm = tiny()
    swap(lvlm, run)
    with pytest.raises(SabError, match="not dense"):
        swap(lvlm, run)


def resident() -> int:
    """Bytes this process holds, what the allocator keeps for later given back first."""
    gc.collect()
    with suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_c
def test_swapping_again_and_again_does_not_leak(run: Run) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("no /proc")
    original = tiny()
    for _ in range(3):  # allocators settle
        swap(original.copy(), run)
    before = resident()
    gone = []
    swaps = 12  # so many that one leaking weighs more than what the allocator cannot give back
    for _ in range(swaps):
        done = swap(original.copy(), run)
        gone += [weakref.ref(linear) for linear in done.linears.values()]
        del done
    gc.collect()
    assert not any(linear() for linear in gone)
    weights = sum(entry.weight.nbytes for entry in original.decoder_linears.values())
    assert resident() - before < swaps * weights / 2


@needs_c
def test_the_process_holds_bits_instead_of_floats() -> None:
    """Memory of the process: a linear of 64 MB in float32 becomes one of less than 8 MB."""
    if not sys.platform.startswith("linux"):
        pytest.skip("no /proc")
    codes = codes_of("rtn2", 1024, 128, block_size=128)
    wide = replace(
        codes,
        shape=(1024, 16384),
        levels=codes.levels.repeat(1, 128),
        scale=codes.scale.repeat(128, 1),
        zero=codes.zero.repeat(128, 1),
    )
    linear = torch.nn.Linear(16384, 1024, bias=False)
    model = torch.nn.Sequential(linear)

    with torch.no_grad():
        linear.weight.copy_(wide.dense())
    held = resident()
    model[0] = PackedLinear(wide)
    del linear
    assert held - resident() > 56e6
    x = torch.randn(1, 16384)
    assert torch.allclose(model(x), x @ wide.dense().T, atol=1e-2, rtol=1e-3)
    assert 2 * 1024 * 16384 / 8 <= model[0].resident_bytes < 8e6  # two bits a weight at least
