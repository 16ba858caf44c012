"""The bench of the kernels measures what it says, on sizes small enough for a test."""

import pytest
import torch

from sab import bench_kernels
from sab.errors import SabError
from sab.kernels import cpu
from sab.packing import count_bits

needs_c = pytest.mark.skipif(cpu.load() is None, reason="no C compiler")


@needs_c
def test_every_case_is_named_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "QUICK", (((64, 256),), (1, 64)))
    monkeypatch.setattr(bench_kernels, "EMBEDDED_QUESTIONS", 2)
    monkeypatch.setattr(bench_kernels, "FORMATS_AT", ((64, 256), (1,)))
    monkeypatch.setattr(bench_kernels.DECODER, "hidden", 128)
    monkeypatch.setattr(bench_kernels.DECODER, "inner", 256)
    monkeypatch.setattr(bench_kernels.DECODER, "heads", 4)
    found = bench_kernels.kernels(quick=True, seconds=0.01)
    assert [(case["method"], case["batch"], case["mode"]) for case in found["cases"]] == [
        *(("sab", batch, mode) for batch in (1, 64) for mode in cpu.MODES),
        *((method, 1, mode) for method in ("billm", "pb-llm", "gptq3") for mode in cpu.MODES),
    ]
    for case in found["cases"]:
        times = case["milliseconds"]
        assert case["ratio_vs_bf16"] == pytest.approx(times["bf16"] / times["packed"])
        assert case["gb_s"] > 0
        assert case["relative_error"] < 0.03
    assert found["decoder"]["packed_bytes"] < found["decoder"]["bf16_bytes"] / 3
    assert found["decoder"]["packed_fast_tokens_s"] > 0
    speeds = found["embedded"]["tokens_per_second"]
    assert found["embedded"]["ratio_fast"] == pytest.approx(speeds["fast"] / speeds["dequantized"])


def test_random_codes_have_the_format_s_share_of_salient_columns() -> None:
    codes = bench_kernels.random_codes(256, 1024)
    assert codes.salient_fraction == pytest.approx(bench_kernels.SALIENT / bench_kernels.BLOCK)
    assert 2.5 < count_bits(codes).all_in < 3.1


def test_random_formats_are_as_large_as_those_of_their_methods() -> None:
    bits = {codes.method: count_bits(codes).all_in for codes in bench_kernels.random_formats(512, 1024)}
    assert bits == pytest.approx({"billm": 2.97, "pb-llm": 2.82, "gptq3": 3.15}, abs=0.06)


def test_the_cpu_clock_counts_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(SabError, match="one thread"):
        bench_kernels.kernels(clock="cpu")
    with pytest.raises(SabError, match="wall or cpu"):
        bench_kernels.kernels(clock="sun")
