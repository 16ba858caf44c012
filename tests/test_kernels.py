"""Products with packed weights: the reference and every path of the C kernel against float64, and its manners."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sab.binarizers import METHODS, BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.errors import SabError
from sab.kernels import cpu, reference
from sab.kernels import tiles as arrangement
from sab.kernels.tiles import Tiles, arrange, arrange_stored, stored
from sab.packing import pack
from tests.fast_bound import fast_error_bound
from tests.test_packing import codes_of

ROOT = Path(__file__).parents[1]
LIBRARY = cpu.load()
needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")  # one that fails is a failure


def paths() -> list[str]:
    """The paths this machine can run."""
    found = []
    for name in cpu.PATHS:
        try:
            found.append(name if cpu.load(name) else "")
        except SabError:
            continue
    return [name for name in found if name]


def library(path: str) -> cpu.Library:
    loaded = cpu.load(path)
    assert loaded is not None
    return loaded


def halves(generator: torch.Generator, *size: int, kind: str) -> Tensor:
    """Random scales; `kind` adds what is awkward."""
    values = torch.randn(*size, generator=generator)
    if kind == "zero":
        values = values * (torch.rand(*size, generator=generator) < 0.5)
    elif kind == "denormal":
        values = values * 1e-7
    elif kind == "huge":
        values = values.sign() * 6e4
    return values.half()


@st.composite
def binary_codes(draw: st.DrawFn) -> BinaryCodes:
    """Any combination of planes, salient columns, means and column scales that a method could store."""
    rows, width = draw(st.integers(1, 70)), draw(st.integers(1, 150))
    block_size = draw(st.sampled_from([8, 32, 64, 128]))
    kind = draw(st.sampled_from(["plain", "zero", "denormal", "huge"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grouped = draw(st.booleans())
    slots = draw(st.sampled_from([2, 3, 4] if grouped else [1, 2]))
    residuals = {(False, 2): 1, (True, 3): 1, (True, 4): 2}.get((grouped, slots), 0)
    salient = torch.rand(width, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    salient &= bool(residuals)
    count, blocks = int(salient.sum()), -(-width // block_size)

    def bits(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator) < 0.5

    group = bits(rows, width) if grouped else None
    if group is not None and slots == 3:
        group &= ~salient
    columns = draw(st.sampled_from([0, 1, 2] if grouped else [0, 1]))
    means = draw(st.booleans()) and not columns and slots < 4
    small = draw(st.booleans()) and not means
    row_scale = halves(generator, slots, blocks, rows, kind=kind)
    second = halves(generator, residuals, blocks, rows, kind=kind)
    if small:
        row_scale = torch.randint(-127, 128, row_scale.shape, generator=generator, dtype=torch.int8)
        second = torch.randint(-127, 128, second.shape, generator=generator, dtype=torch.int8)
    return BinaryCodes(
        method="any",
        shape=(rows, width),
        block_size=block_size,
        first=bits(rows, width),
        group=group,
        salient=salient,
        second=bits(rows, count),
        row_scale=row_scale,
        second_row_scale=second,
        row_mean=halves(generator, slots, blocks, rows, kind=kind) if means else None,
        column_scale=halves(generator, columns, width, kind="zero") if columns else None,
        second_column_scale=halves(generator, residuals, count, kind="zero") if columns == 2 and residuals else None,
        row_step=halves(generator, rows, kind="plain") if small else None,
    )


@st.composite
def integer_codes(draw: st.DrawFn) -> IntegerCodes:
    rows, width, bits = draw(st.integers(1, 70)), draw(st.integers(1, 150)), draw(st.integers(1, 8))
    block_size = draw(st.sampled_from([8, 32, 128]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    blocks = -(-width // block_size)
    return IntegerCodes(
        method="any",
        shape=(rows, width),
        block_size=block_size,
        bits=bits,
        levels=torch.randint(0, 2**bits, (rows, width), generator=generator).to(torch.uint8),
        scale=halves(generator, blocks, rows, kind=draw(st.sampled_from(["plain", "zero", "denormal", "huge"]))),
        zero=torch.randint(0, 2**bits, (blocks, rows), generator=generator).to(torch.uint8),
    )


@st.composite
def kept_codes(draw: st.DrawFn) -> KeptCodes:
    rows, width = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["plain", "zero", "denormal", "huge"]))
    kept = torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return KeptCodes(
        method="any",
        shape=(rows, width),
        block_size=draw(st.sampled_from([8, 40, 72, 128])),
        first=(torch.rand(rows, width, generator=generator) < 0.5) & ~kept,
        levels=torch.randint(0, 256, (rows, width), generator=generator).to(torch.uint8) * kept,
        kept=kept,
        row_mean=halves(generator, rows, kind=kind),
        row_scale=halves(generator, rows, kind=kind),
        kept_scale=halves(generator, rows, kind="plain" if kind == "huge" else kind),
        kept_zero=torch.randint(0, 256, (rows,), generator=generator).to(torch.uint8),
    )


def any_codes() -> st.SearchStrategy[LinearCodes]:
    return st.one_of(binary_codes(), integer_codes(), kept_codes())


def largest(codes: LinearCodes) -> Tensor:
    """For each weight the sum of the sizes of all that is added up for it, float64 [n, m]: what rounding is a share of.

    Both groups' scales count, because the kernel adds both planes up and takes the difference.
    """
    if isinstance(codes, IntegerCodes):
        wide = codes.scale.double().abs().T.repeat_interleave(codes.block_size, 1)[:, : codes.shape[1]]
        return wide * 2.0 ** (codes.bits + 1)
    if isinstance(codes, KeptCodes):
        sign = codes.row_mean.double().abs() + codes.row_scale.double().abs()
        return 2 * sign[:, None] + 256 * codes.kept_scale.double().abs()[:, None] * codes.kept
    assert isinstance(codes, BinaryCodes)
    first, second = codes.row_scales()
    parts = [*first.double().abs(), *second.double().abs()]
    if codes.row_mean is not None:
        parts += [*codes.row_mean.double().abs()]
    rows = torch.stack(parts).sum(0).T.repeat_interleave(codes.block_size, 1)[:, : codes.shape[1]]
    columns = torch.ones(codes.shape[1], dtype=torch.float64)
    if codes.column_scale is not None:
        columns = columns + codes.column_scale.double().abs().sum(0)
    if codes.second_column_scale is not None:
        columns[codes.salient] += codes.second_column_scale.double().abs().sum(0)
    return rows * columns


def tiles_of(codes: LinearCodes) -> Tiles:
    tiles = arrange(codes)
    assert tiles is not None
    return tiles


def inputs(tokens: int, width: int, seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) * size
    return x * (torch.rand(tokens, width, generator=generator) < 0.9)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(METHODS)), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_the_reference_multiplies_every_method_s_codes(method: str, rows: int, width: int, seed: int) -> None:
    codes = codes_of(method, rows, width, seed, block_size=16)
    tensors, metadata = pack(codes)
    x = inputs(3, width, seed)
    want = x.double() @ codes.dense().double().T
    assert torch.allclose(reference.linear(x, tensors, metadata).double(), want, rtol=1e-5, atol=1e-5)


def test_the_reference_reads_kept_values_of_later_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "WEIGHTS_AT_ONCE", 100)  # two rows at a time
    for method in ("pb-llm", "sab", "gptq3"):
        codes = codes_of(method, 9, 50, block_size=16)
        assert torch.equal(torch.cat(list(reference.dense_rows(*pack(codes)))), codes.dense())


@needs_c
@pytest.mark.parametrize("path", paths())
@settings(deadline=None, max_examples=60)
@given(
    codes=any_codes(),
    tokens=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1.0, 1e-30, 1e25]),
)
def test_exact_is_the_float64_product(path: str, codes: LinearCodes, tokens: int, seed: int, size: float) -> None:
    x = inputs(tokens, codes.shape[1], seed, size)
    weight = cpu.Weight(tiles_of(codes), library(path))
    error = (weight.multiply(x).double() - x.double() @ codes.dense().double().T).abs()
    rounding = (codes.shape[1] + 20) * 2.0**-24
    assert bool((error <= rounding * (x.double().abs() @ largest(codes).T) + 1e-37).all())
    unpacked = weight.unpack(0, weight.tiles.sizes["tiles"])[:, : codes.shape[0]].T
    assert bool(((unpacked - codes.dense()).double().abs() <= 2.0**-22 * largest(codes)).all())


@needs_c
@pytest.mark.parametrize("path", paths())
@settings(deadline=None, max_examples=60)
@given(
    codes=any_codes(),
    tokens=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1.0, 1e-36, 1e25]),
)
def test_fast_keeps_its_bound(path: str, codes: LinearCodes, tokens: int, seed: int, size: float) -> None:
    x = inputs(tokens, codes.shape[1], seed, size)
    weight = cpu.Weight(tiles_of(codes), library(path))
    error = (weight.multiply(x, "fast").double() - x.double() @ codes.dense().double().T).abs()
    rounding = (codes.shape[1] + 20) * 2.0**-24 * (x.double().abs() @ largest(codes).T) + 1e-37
    assert bool((error <= fast_error_bound(weight.tiles, x) + rounding).all())


def wide_codes(method: str, width: int) -> BinaryCodes:
    """Codes of 20 rows in one block; 1,024 columns again and again."""
    codes, times = codes_of(method, 20, 1024, block_size=1024), width // 1024
    assert isinstance(codes, BinaryCodes)
    repeated = {name: getattr(codes, name) for name in ("first", "group", "second")}
    return replace(
        codes,
        shape=(20, width),
        block_size=width,
        salient=codes.salient.repeat(times),
        column_scale=None if codes.column_scale is None else codes.column_scale.repeat(1, times),
        second_column_scale=None if codes.second_column_scale is None else codes.second_column_scale.repeat(1, times),
        **{name: None if bits is None else bits.repeat(1, times) for name, bits in repeated.items()},
    )


@needs_c
@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("width", [2048, 4096])
@pytest.mark.parametrize("sign", [True, False])
def test_the_largest_sums_of_wide_blocks_fit(path: str, width: int, sign: bool) -> None:
    codes = wide_codes("xnor", width)
    codes = replace(codes, first=torch.full_like(codes.first, sign))
    x = torch.ones(2, width)  # every weight looks the largest entry up, all of one sign
    want = x.double() @ codes.dense().double().T
    for mode in cpu.MODES:
        found = cpu.Weight(tiles_of(codes), library(path)).multiply(x, mode)
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@needs_c
@pytest.mark.parametrize("width", [1024, 2048, 4096])
@pytest.mark.parametrize("group", [True, False])
def test_the_largest_sums_of_every_part_of_a_wide_block_fit(width: int, group: bool) -> None:
    codes = wide_codes("sab", width)
    assert codes.group is not None
    codes = replace(
        codes,
        first=torch.ones_like(codes.first),
        group=torch.full_like(codes.group, group),
        second=torch.ones_like(codes.second),
        column_scale=torch.ones(2, width).half(),
        second_column_scale=torch.ones(2, codes.second.shape[1]).half(),
    )
    x = torch.ones(2, width)
    want = x.double() @ codes.dense().double().T
    for path in paths():
        weight = cpu.Weight(tiles_of(codes), library(path))
        found = weight.multiply(x, "fast")
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        wide = path == "avx2" and width > 1024  # both planes together
        assert weight.runs("fast") == ("exact" if wide or path == "avx512" else "fast")


@needs_c
@pytest.mark.parametrize("method", ["sab", "billm", "gptq2"])
def test_fast_is_off_by_about_a_percent(method: str) -> None:
    codes = codes_of(method, 64, 512, block_size=128)
    x = inputs(16, 512, 0)
    assert LIBRARY is not None
    weight = cpu.Weight(tiles_of(codes), LIBRARY)
    want = x.double() @ codes.dense().double().T
    assert (weight.multiply(x, "fast").double() - want).norm() / want.norm() < 0.02


@needs_c
@settings(deadline=None, max_examples=25)
@given(codes=any_codes(), tokens=st.sampled_from([1, 31, 40]), seed=st.integers(0, 99))
def test_many_tokens_are_multiplied_by_dequantized_rows(codes: LinearCodes, tokens: int, seed: int) -> None:
    assert LIBRARY is not None
    weight = cpu.Weight(tiles_of(codes), LIBRARY)
    x = inputs(tokens, codes.shape[1], seed)
    want = x.double() @ codes.dense().double().T
    scale = x.double().abs() @ largest(codes).T + 1e-30
    found = weight.multiply_unpacked(x, weights_at_once=1000).double()
    assert bool(((found - want).abs() <= 1e-5 * scale).all())
    short = x.bfloat16()
    want = short.double() @ codes.dense().bfloat16().double().T
    found = weight.multiply_unpacked(short, weights_at_once=1000).double()
    assert bool(((found - want).abs() <= 2.0**-8 * scale).all())
    near = (short.double().abs()[:, None, :] * largest(codes)).amax(-1)  # a weight halfway may be rounded otherwise
    for unit in weight.units:
        found = weight.multiply_bfloat16(short, unit=unit).double()
        assert bool(((found - want).abs() <= 1e-5 * scale + 2.0**-7 * near).all())


@needs_c
@pytest.mark.parametrize("unit", cpu.UNITS)
def test_bfloat16_takes_whole_and_broken_groups(unit: str) -> None:
    assert LIBRARY is not None
    if unit not in LIBRARY.units:
        pytest.skip(f"this processor multiplies bfloat16 without {unit}")
    for method, rows, times, tokens in (
        *(("rtn2", 300, 9, 70), ("rtn2", 40, 17, 9), ("pb-llm", 530, 9, 9), ("pb-llm", 40, 17, 70)),
        *(("sab", 16, 1, 1), ("sab", 272, 1, 32)),
    ):
        codes = codes_of(method, rows, 256, block_size=128)
        if isinstance(codes, IntegerCodes | KeptCodes):
            weights, blocks = ("levels", "first", "kept"), ("scale", "zero")
            wide = {name: each.repeat(1, times) for name, each in vars(codes).items() if name in weights}
            wide |= {name: each.repeat(times, 1) for name, each in vars(codes).items() if name in blocks}
            codes = replace(codes, shape=(rows, 256 * times), **wide)
        x = inputs(tokens, codes.shape[1], 1).bfloat16()
        weight = cpu.Weight(tiles_of(codes), LIBRARY)
        found = weight.multiply_bfloat16(x, unit=unit)
        assert torch.allclose(found.double(), x.double() @ codes.dense().bfloat16().double().T, atol=1e-3)
        assert torch.equal(weight.multiply_bfloat16(x, torch.bfloat16, unit), found.bfloat16())
        with pytest.raises(SabError, match="float32 or bfloat16"):
            weight.multiply_bfloat16(x, torch.float16)
        with pytest.raises(SabError, match="does not take hands"):
            weight.multiply_bfloat16(x, unit="hands")


@needs_c
@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("mode", cpu.MODES)
@pytest.mark.parametrize("method", ["sab", "pb-llm"])
def test_inputs_that_are_not_finite_stay_visible(path: str, mode: str, method: str) -> None:
    weight = cpu.Weight(tiles_of(codes_of(method, 20, 64, block_size=32)), library(path))
    x = inputs(3, 64, 0)
    clean = weight.multiply(x, mode)
    for wrong in (float("nan"), float("inf")):
        broken = x.clone()
        broken[1, 5] = wrong
        found = weight.multiply(broken, mode)
        assert not bool(torch.isfinite(found[1]).any())
        assert torch.equal(found[[0, 2]], clean[[0, 2]])


@needs_c
@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("method", ["billm", "pb-llm"])
def test_threads_and_odd_addresses_change_nothing(path: str, method: str) -> None:
    codes = codes_of(method, 200, 300, block_size=128)
    tiles = tiles_of(codes)
    x = inputs(20, 300, 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpu.Weight(tiles, library(path)).multiply(x)
        torch.set_num_threads(3)
        assert torch.equal(cpu.Weight(tiles, library(path)).multiply(x), alone)
        own = replace(library(path), parallel=0)  # as where torch has no OpenMP to lend
        assert torch.equal(cpu.Weight(tiles, own).multiply(x), alone)
    finally:
        torch.set_num_threads(before)
    moved = replace(tiles, tensors={name: _shifted(values) for name, values in tiles.tensors.items()})
    assert torch.equal(cpu.Weight(moved, library(path)).multiply(_shifted(x)), alone)


def _shifted(values: Tensor) -> Tensor:
    """The same values one element further in memory."""
    return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)


@needs_c
def test_what_does_not_fit_is_refused_before_c_sees_it() -> None:
    assert LIBRARY is not None
    tiles = tiles_of(codes_of("sab", 20, 64, block_size=32))
    weight = cpu.Weight(tiles, LIBRARY)
    x = torch.randn(2, 64)
    for wrong in (x[:, :63], x.double(), x[0], x[None], x.to("meta"), x.long()):
        with pytest.raises(SabError, match="instead of"):
            weight.multiply(wrong)
    with pytest.raises(SabError, match="exact or fast"):
        weight.multiply(x, "quick")
    assert weight.multiply(x[:0]).shape == (0, 20)
    for first, count in ((-1, 1), (0, 0), (0, 3), (2, 1)):
        with pytest.raises(SabError, match="no tiles"):
            weight.unpack(first, count)
    with pytest.raises(SabError, match="unpacked to"):
        weight.unpack(0, 1, torch.float16)
    with pytest.raises(SabError, match="scratch"):
        weight.unpack(0, 1, scratch=torch.empty(1023))


@needs_c
@pytest.mark.parametrize("method", ["sab", "billm", "gptq3", "pb-llm"])
def test_damaged_arrangements_are_refused(method: str) -> None:
    assert LIBRARY is not None
    tiles = tiles_of(codes_of(method, 20, 70, block_size=32))
    for name, values in tiles.tensors.items():
        for broken in (values[1:], values.to(torch.float64), values.to("meta"), values.transpose(0, -1)):
            if broken.shape == values.shape and broken.dtype == values.dtype and broken.device == values.device:
                continue
            with pytest.raises(SabError):
                cpu.Weight(replace(tiles, tensors=tiles.tensors | {name: broken}), LIBRARY)
        with pytest.raises(SabError):
            cpu.Weight(replace(tiles, tensors={k: v for k, v in tiles.tensors.items() if k != name}), LIBRARY)
    for name in cpu.SIZES:
        for changed in ({name: tiles.sizes[name] + 1}, {name: -1}):
            with pytest.raises(SabError):
                cpu.Weight(replace(tiles, sizes=tiles.sizes | changed), LIBRARY)
        with pytest.raises(SabError):
            cpu.Weight(replace(tiles, sizes={k: v for k, v in tiles.sizes.items() if k != name}), LIBRARY)
    for name, value in (("order", 32), ("order", -2), ("order", 0), ("start", 33), ("start", -1)):
        outside = tiles.tensors | {name: torch.full_like(tiles.tensors[name], value)}
        with pytest.raises(SabError, match="columns"):
            cpu.Weight(replace(tiles, tensors=outside), LIBRARY)


@needs_c
@pytest.mark.parametrize(
    ("name", "value"), [("kept_index", 32), ("kept_index", 6), ("kept_count", 255), ("kept_start", 10**9), ("start", 0)]
)
def test_kept_weights_outside_are_refused(name: str, value: int) -> None:
    assert LIBRARY is not None
    tiles = tiles_of(codes_of("pb-llm", 20, 70, block_size=32))
    changed, at = tiles.tensors[name].clone(), -1
    if name == "kept_index":  # the last of a row in its last block, which has 6 columns
        row = int(tiles.tensors["kept_count"][:, -1].nonzero()[0])
        at = int(tiles.tensors["kept_start"][row] + tiles.tensors["kept_count"][row].sum()) - 1
    changed[at] = value
    with pytest.raises(SabError, match="lie outside"):
        cpu.Weight(replace(tiles, tensors=tiles.tensors | {name: changed}), LIBRARY)


@needs_c
def test_kept_weights_are_in_order_and_in_a_format_that_has_them() -> None:
    assert LIBRARY is not None
    tiles = tiles_of(codes_of("pb-llm", 20, 64, block_size=32))
    order = tiles.tensors["order"].clone()
    order[0, :2] = order[0, :2].flip(0)
    row, block = (int(at[0]) for at in (tiles.tensors["kept_count"] > 1).nonzero(as_tuple=True))
    first = int(tiles.tensors["kept_start"][row] + tiles.tensors["kept_count"][row, :block].sum())
    twice = tiles.tensors["kept_index"].clone()
    twice[first + 1] = twice[first]
    for changed in ({"order": order}, {"kept_index": twice}):
        with pytest.raises(SabError, match="lie outside"):
            cpu.Weight(replace(tiles, tensors=tiles.tensors | changed), LIBRARY)
    integer = tiles_of(codes_of("gptq3", 20, 64, block_size=32))
    kept = {name: values for name, values in tiles.tensors.items() if name.startswith("kept")}
    kept["scale"] = integer.tensors["scale"][:1]
    sizes = integer.sizes | {name: tiles.sizes[name] for name in ("kept_blocks", "scale_blocks")}
    with pytest.raises(SabError, match="make no sense"):
        cpu.Weight(Tiles(integer.shape, sizes, integer.tensors | kept), LIBRARY)
    means = tiles_of(codes_of("xnor", 20, 64, block_size=32))
    columns = {"column": torch.zeros(1, 2, 32, dtype=torch.int16)}
    with pytest.raises(SabError, match="make no sense"):
        cpu.Weight(replace(means, sizes=means.sizes | {"columns": 1}, tensors=means.tensors | columns), LIBRARY)


def test_what_no_method_stores_is_left_to_the_reference() -> None:
    codes = codes_of("billm", 8, 32, block_size=16)
    assert isinstance(codes, BinaryCodes)
    assert arrange(codes) is not None
    assert arrange(codes_of("pb-llm", 8, 256, block_size=128)) is not None
    assert arrange(codes_of("pb-llm", 8, 256, block_size=136)) is None
    columns = torch.ones(1, 32).half()
    assert arrange(replace(codes, column_scale=columns)) is None


@needs_c
def test_the_matrix_unit_emulated(tmp_path: Path) -> None:
    """Where a processor has bfloat16 vectors and no matrix unit, what is done with one runs in plain C."""
    if LIBRARY is None or LIBRARY.units != cpu.UNITS[:1]:
        pytest.skip("no bfloat16 vectors, or a matrix unit of its own")
    header = ROOT / "tests" / "matrix_unit.h"
    environment = {**os.environ, "CC": f"cc -include {header}", "XDG_CACHE_HOME": str(tmp_path)}
    script = "from tests.test_kernels import exercise; exercise(['avx512vnni'], 'matrix unit')"
    run = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "1 paths exercised" in run.stdout


def _sanitized() -> Path | None:
    """The library with AddressSanitizer and UBSan, and the runtime to load before it; None where there is none."""
    runtime = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return Path(runtime) if os.path.isabs(runtime) and Path(runtime).exists() else None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_c
def test_the_c_code_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    runtime = _sanitized()
    if runtime is None:
        pytest.skip("the compiler has no AddressSanitizer")
    environment = {
        **os.environ,
        "CC": "cc -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": str(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
    }
    script = "from tests.test_kernels import exercise; exercise()"
    run = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "paths exercised" in run.stdout


def exercise(ran: list[str] | None = None, unit: str | None = None) -> None:
    """Every path (or those given, with this unit) over methods and odd sizes, the tensors each in a buffer of just
    their size."""
    ran = ran or paths()
    for path in ran:
        for method in ("sab", "arb-rc", "billm", "xnor", "sab-h", "gptq3", "pb-llm"):
            for rows, width, block_size in ((33, 150, 32), (16, 128, 128), (1, 1, 8), (520, 64, 64)):
                codes = codes_of(method, rows, width, 0, block_size)
                weight = cpu.Weight(tiles_of(codes), library(path))
                assert unit in (None, *weight.units) or width < 16
                for tokens in (1, 18):
                    x = inputs(tokens, width, 0)
                    want = x.double() @ codes.dense().double().T
                    assert torch.allclose(weight.multiply(x).double(), want, atol=1e-3)
                    weight.multiply(x, "fast")
                    weight.multiply_unpacked(x.bfloat16())
                    want = x.bfloat16().double() @ codes.dense().bfloat16().double().T
                    for each in weight.units:
                        found = weight.multiply_bfloat16(x.bfloat16(), torch.float32, each)
                        assert torch.allclose(found.double(), want, atol=1e-3)
                        weight.multiply_bfloat16(x.bfloat16(), torch.bfloat16, each)
    print(len(ran), "paths exercised")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(list(METHODS)),
    st.integers(1, 70),
    st.integers(1, 300),
    st.sampled_from([8, 40, 128]),
    st.integers(0, 9),
)
def test_the_arrangement_goes_back_to_the_stored_tensors(
    method: str, rows: int, width: int, block_size: int, seed: int
) -> None:
    """Bit for bit, also where the rows are arranged and taken back in several pieces."""
    codes = codes_of(method, rows, width, seed, block_size)
    tensors, metadata = pack(codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrangement, "WEIGHTS_AT_ONCE", 1)
        tiles = arrange_stored(tensors, metadata)
        whole = arrange(codes)
        assert tiles is not None
        assert whole is not None
        assert (tiles.shape, tiles.sizes) == (whole.shape, whole.sizes)
        assert all(torch.equal(values, whole.tensors[name]) for name, values in tiles.tensors.items())
        back = stored(tiles)
    assert set(back) == set(tensors)
    for name, values in tensors.items():
        assert back[name].dtype == values.dtype
        assert torch.equal(back[name], values)
