"""Packing: exact round trips, the layout byte by byte, honest bit counts, and refusal of damage."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sab.binarizers import METHODS, BinaryCodes, IntegerCodes, KeptCodes, LinearCodes
from sab.binarizers.sab_h import COLUMN_SCALE_ROWS
from sab.compensate import FitSettings, fit_linear
from sab.errors import SabError
from sab.packing import count_bits, pack, unpack
from sab.significance import significance_map


def codes_of(method: str, rows: int, width: int, seed: int = 0, block_size: int = 8) -> LinearCodes:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    found = significance_map(weight, torch.rand(width, generator=generator), torch.rand(width, generator=generator))
    inputs = torch.randn(4 * width, width, generator=generator)
    return fit_linear(weight, inputs.T @ inputs, method, FitSettings(block_size=block_size), found).codes


def assert_same(one: LinearCodes, two: LinearCodes) -> None:
    assert type(one) is type(two)
    for field in dataclasses.fields(one):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if isinstance(first, Tensor):
            assert first.dtype == second.dtype, field.name
            assert torch.equal(first, second), field.name
        else:
            assert first == second, field.name


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(METHODS)), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_unpacking_gives_back_exactly_what_was_packed(method: str, rows: int, width: int, seed: int) -> None:
    codes = codes_of(method, rows, width, seed, block_size=16)
    tensors, metadata = pack(codes)
    again = unpack(tensors, json.loads(json.dumps(metadata)))
    assert_same(codes, again)
    assert torch.equal(codes.dense(), again.dense())


@pytest.mark.parametrize("method", ["sab", "billm", "xnor", "gptq3", "pb-llm"])
def test_codes_survive_a_file_and_a_cast(method: str, tmp_path: Path) -> None:
    codes = codes_of(method, 5, 20)
    tensors, metadata = pack(codes)
    assert not any(values.is_floating_point() for values in tensors.values())  # nothing .to() could recast
    save_file(tensors, tmp_path / "linear.safetensors")
    assert_same(codes, unpack(load_file(tmp_path / "linear.safetensors"), metadata))


def test_bits_lie_where_the_layout_says() -> None:
    codes = codes_of("sab", 3, 20)
    assert isinstance(codes, BinaryCodes)
    assert codes.group is not None
    tensors, metadata = pack(codes)
    assert tensors["codes"].shape == (3, 3, 2)  # k = 8: a byte of signs, a byte of group bits
    for row in range(3):
        for column in range(20):
            signs, groups = (int(value) for value in tensors["codes"][row, column // 8])
            assert bool(signs >> column % 8 & 1) == bool(codes.first[row, column])
            assert bool(groups >> column % 8 & 1) == bool(codes.group[row, column])
    for column in range(20):
        assert bool(int(tensors["salient"][column // 8]) >> column % 8 & 1) == bool(codes.salient[column])
    for row in range(3):
        for place in range(int(codes.salient.sum())):
            byte = int(tensors["second"][row, place // 8])
            assert bool(byte >> place % 8 & 1) == bool(codes.second[row, place])
    assert metadata["format_version"] == 1
    assert torch.equal(tensors["row_scale"].view(torch.float16), codes.row_scale)


def test_integers_lie_in_planes() -> None:
    codes = codes_of("gptq3", 2, 12)
    assert isinstance(codes, IntegerCodes)
    tensors, _ = pack(codes)
    assert tensors["codes"].shape == (2, 2, 3)
    for row in range(2):
        for column in range(12):
            planes = [int(value) >> column % 8 & 1 for value in tensors["codes"][row, column // 8]]
            assert planes[0] + 2 * planes[1] + 4 * planes[2] == int(codes.levels[row, column])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(list(METHODS)), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
@example("pb-llm", 4, 40, 0)
def test_every_stored_byte_is_counted(method: str, rows: int, width: int, seed: int) -> None:
    codes = codes_of(method, rows, width, seed)
    count = count_bits(codes)
    stored = sum(values.numpy().nbytes for values in pack(codes)[0].values())
    assert count.bytes == stored
    assert sum(count.breakdown.values()) == 8 * stored
    assert count.all_in == pytest.approx(8 * stored / (rows * width))
    if isinstance(codes, IntegerCodes):
        wanted = float(codes.bits)
    elif isinstance(codes, KeptCodes):
        kept = int(codes.kept.sum())
        wanted = (8 * kept + rows * width - kept) / (rows * width)
    else:
        wanted = 1 + int(codes.salient.sum()) / width
    assert count.nominal == pytest.approx(wanted)


def made_up(method: str, rows: int, width: int, columns: int) -> LinearCodes:
    """Codes in a method's format with a given number of salient columns, values of no interest."""
    blocks = width // 128
    if method.startswith(("gptq", "rtn")):
        bits = METHODS[method].bits
        grid = torch.ones(blocks, rows)
        levels = torch.zeros(rows, width, dtype=torch.uint8)
        return IntegerCodes(method, (rows, width), 128, bits, levels, grid.half(), grid.to(torch.uint8))
    if method == "pb-llm":
        kept = torch.zeros(rows * width, dtype=torch.bool)
        kept[: rows * width // 10] = True
        row = torch.ones(rows)
        return KeptCodes(
            method=method,
            shape=(rows, width),
            block_size=128,
            first=torch.zeros(rows, width).bool(),
            levels=torch.zeros(rows, width, dtype=torch.uint8),
            kept=kept.reshape(rows, width),
            row_mean=row.half(),
            row_scale=row.half(),
            kept_scale=row.half(),
            kept_zero=row.to(torch.uint8),
        )
    slots = {"xnor": 1, "arb-rc-cgb": 4, "sab": 4, "sab-h": 4}.get(method, 3)
    if slots == 1:
        columns = 0
    mean, scaled = method in ("xnor", "billm", "arb", "arb-x"), method in ("arb-rc", "arb-rc-cgb", "sab")
    rows_of = torch.ones(slots, blocks, rows).half()
    column_scale = torch.ones(2, width).half() if scaled else None
    if method == "sab-h" and rows >= COLUMN_SCALE_ROWS:
        column_scale = torch.ones(1, width).half()
    return BinaryCodes(
        method=method,
        shape=(rows, width),
        block_size=128,
        first=torch.ones(rows, width).bool(),
        group=None if slots == 1 else torch.ones(rows, width).bool(),
        salient=torch.arange(width) < columns,
        second=torch.ones(rows, columns).bool(),
        row_scale=rows_of,
        second_row_scale=rows_of[2:],
        row_mean=rows_of if mean else None,
        column_scale=column_scale,
        second_column_scale=torch.ones(max(0, slots - 2), columns).half() if scaled else None,
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_made_up_codes_have_the_format_of_the_method(method: str) -> None:
    real, fake = pack(codes_of(method, 4, 128, block_size=128))[0], pack(made_up(method, 4, 128, 7))[0]
    assert real.keys() == fake.keys()
    for name in real:
        if name not in ("second", "second_column_scale"):
            assert real[name].shape == fake[name].shape, name


@pytest.mark.parametrize(
    ("method", "nominal", "all_in"),
    [
        ("xnor", 1.0, 1.25),
        ("billm", 1.07, 2.95),
        ("arb", 1.07, 2.95),
        ("arb-x", 1.07, 2.95),
        ("pb-llm", 1.7, 2.814),
        ("arb-rc", 1.07, 2.58),
        ("arb-rc-cgb", 1.07, 2.83),
        ("sab", 1.07, 2.83),
        ("sab-h", 1.07, 2.824),
        ("gptq2", 2.0, 2.14),
        ("gptq3", 3.0, 3.15),
        ("gptq4", 4.0, 4.16),
    ],
)
def test_bits_of_a_large_linear(method: str, nominal: float, all_in: float) -> None:
    count = count_bits(made_up(method, 4096, 4096, round(0.07 * 4096)))
    assert count.nominal == pytest.approx(nominal, abs=0.001)
    assert count.all_in == pytest.approx(all_in, abs=0.005)


def flipped(tensors: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return tensors | {name: change(tensors[name].clone())}


def last_bit(values: Tensor) -> Tensor:
    values[..., -1] |= 128
    return values


@pytest.mark.parametrize("method", ["sab", "billm", "xnor", "gptq3"])
def test_damage_is_refused(method: str) -> None:
    tensors, metadata = pack(codes_of(method, 3, 20))
    for name in tensors:
        short = tensors[name][..., :-1] if tensors[name].numel() else torch.zeros(1)
        for broken in (
            {key: values for key, values in tensors.items() if key != name and key not in ("row_mean",)}
            if name not in ("row_mean", "column_scale", "second_column_scale")
            else tensors | {name: short},
            tensors | {name: short},
            tensors | {name: tensors[name].float()},
        ):
            with pytest.raises(SabError, match="damaged"):
                unpack(broken, metadata)
    with pytest.raises(SabError, match="padding"):
        unpack(flipped(tensors, "codes", last_bit), metadata)
    ragged = {"gptq3": "zero", "xnor": None}.get(method, "second")
    if ragged:  # 9 bits of zeros, or c bits of residual signs
        assert method == "gptq3" or int(unpack(tensors, metadata).second.shape[1]) % 8
        with pytest.raises(SabError, match="padding"):
            unpack(flipped(tensors, ragged, last_bit), metadata)
    scale = "scale" if method == "gptq3" else "row_scale"
    with pytest.raises(SabError, match="NaN"):
        unpack(flipped(tensors, scale, lambda values: torch.full_like(values, 0x7E00)), metadata)
    with pytest.raises(SabError, match="damaged"):
        unpack(tensors | {"extra": torch.zeros(1)}, metadata)


def test_kept_values_lie_row_after_row_beside_two_planes() -> None:
    codes = codes_of("pb-llm", 3, 20)
    assert isinstance(codes, KeptCodes)
    tensors, metadata = pack(codes)
    assert (metadata["layout"], metadata["planes"], metadata["kept_bits"]) == ("binary", 2, 8)
    assert tensors["codes"].shape == (3, 3, 2)
    levels = tensors["kept"].tolist()
    assert len(levels) == 6
    for row in range(3):
        for column in range(20):
            signs, kept = (int(value) for value in tensors["codes"][row, column // 8])
            assert bool(kept >> column % 8 & 1) == bool(codes.kept[row, column])
            assert bool(signs >> column % 8 & 1) == bool(codes.first[row, column])
            if codes.kept[row, column]:
                assert levels.pop(0) == int(codes.levels[row, column])
    assert not levels


def test_damaged_kept_values_are_refused() -> None:
    tensors, metadata = pack(codes_of("pb-llm", 3, 20))
    for name in tensors:
        for broken in (
            {key: values for key, values in tensors.items() if key != name},
            tensors | {name: tensors[name][..., :-1]},
            tensors | {name: tensors[name].float()},
        ):
            with pytest.raises(SabError, match="damaged"):
                unpack(broken, metadata)
    with pytest.raises(SabError, match="sign bit"):
        unpack(flipped(tensors, "codes", lambda values: values[..., 1:].repeat(1, 1, 2)), metadata)
    with pytest.raises(SabError, match="NaN"):
        unpack(flipped(tensors, "row_scale", lambda values: torch.full_like(values, 0x7E00)), metadata)
    for changes in ({"kept_bits": 4}, {"planes": 1}, {"shape": [4, 20]}):
        with pytest.raises(SabError):
            unpack(tensors, metadata | changes)
    with pytest.raises(SabError, match="damaged"):
        unpack(tensors | {"extra": torch.zeros(1)}, metadata)


@pytest.mark.parametrize("method", ["sab", "xnor", "gptq3", "pb-llm"])
def test_scales_that_are_not_finite_are_not_written(method: str) -> None:
    codes = codes_of(method, 3, 20)
    name = "scale" if method == "gptq3" else "row_scale"
    broken = getattr(codes, name).clone()
    broken[0] = float("nan")
    with pytest.raises(SabError, match="NaN"):
        pack(dataclasses.replace(codes, **{name: broken}))


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"layout": "ternary"},
        {"shape": [3]},
        {"shape": [0, 20]},
        {"shape": [3, 21]},
        {"shape": [4, 20]},
        {"block_size": 7},
        {"block_size": "a"},
        {"planes": 1},
        {"planes": 3},
    ],
)
def test_wrong_metadata_is_refused(changes: dict[str, Any]) -> None:
    tensors, metadata = pack(codes_of("sab", 3, 20))
    with pytest.raises(SabError):
        unpack(tensors, metadata | changes)
    for name in ("format_version", "layout", "method", "shape", "block_size", "planes"):
        with pytest.raises(SabError):
            unpack(tensors, {key: value for key, value in metadata.items() if key != name})


def test_salient_columns_that_do_not_fit_the_residual_signs_are_refused() -> None:
    tensors, metadata = pack(codes_of("sab", 3, 40))
    with pytest.raises(SabError, match="damaged"):
        unpack(flipped(tensors, "salient", torch.zeros_like), metadata)
    with pytest.raises(SabError, match="padding"):
        unpack(pack(codes_of("sab", 3, 20))[0] | {"salient": torch.full((3,), 255, dtype=torch.uint8)}, metadata_of(20))


def metadata_of(width: int) -> dict[str, Any]:
    return pack(codes_of("sab", 3, width))[1]


@pytest.mark.parametrize("bits", [1.2, 1.6, 2.4, 3.2])
def test_codes_of_a_budget_survive_packing_and_keep_to_it(bits: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 256, generator=generator)
    inputs = torch.randn(1024, 256, generator=generator)
    fit = fit_linear(
        weight, inputs.T @ inputs, "sab-h", FitSettings(search="budget", bits=bits, block_size=128, iterations=1)
    )
    tensors, metadata = pack(fit.codes)
    assert metadata["scale_type"] == "int8"
    assert tensors["row_scale"].dtype == torch.int8
    assert_same(fit.codes, unpack(tensors, json.loads(json.dumps(metadata))))
    smallest = 1 + 8 / 128 + 16 / 256 + 1 / 64  # one plane, one int8 scale per row and block, a step, the index
    assert count_bits(fit.codes).all_in <= max(bits, smallest)
    assert count_bits(fit.codes).all_in > bits - 0.3
    for name in ("row_scale", "row_step"):
        with pytest.raises(SabError, match="damaged"):
            unpack({key: values for key, values in tensors.items() if key != name}, metadata)
