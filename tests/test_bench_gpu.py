"""The script for a GPU runs through without one, in Triton's interpreter, and tells a wrong kernel from a right one."""

from __future__ import annotations

import json

import pytest
import torch

from sab import bench_gpu
from sab.devices import CHOICE, TRITON
from sab.errors import SabError
from sab.kernels import gpu
from tests import gpu as script
from tests.triton_device import needs_triton

pytestmark = needs_triton


@pytest.mark.slow  # takes long in a suite that people wait for
def test_the_script_ends_with_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--toy", "--seconds", "0.01"]) == 0
    found = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert found["tests_passed"]
    assert found["agrees"]
    assert {case["format"] for case in found["agreement"]} == {"sab", "sab-h", "billm", "gptq3"}
    assert all(walk["differ"] == 0 for walk in found["walk"])
    for case in found["cases"]:
        taken = case["milliseconds"]
        assert case["ratio_vs_bf16"] == pytest.approx(taken["bf16"] / taken["packed"])
        assert case["kernel"] == TRITON
    for fit in found["fits"]:
        assert fit["seconds"] > 0
        assert sum(fit["asked"].values()) > 0
    for stack in found["stacks"]:
        assert stack["losses"]["together"] == pytest.approx(stack["losses"]["apart"], rel=1e-4)
    assert {stack["method"] for stack in found["stacks"]} == {"gptq3", "sab"}


def test_a_kernel_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, TRITON)
    right = gpu.Weight.multiply
    monkeypatch.setattr(gpu.Weight, "multiply", lambda self, x: right(self, x) * 1.02)
    with pytest.raises(SabError, match="the kernel is wrong"):
        bench_gpu.bench(toy=True, seconds=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do() -> None:
    with pytest.raises(SabError, match="--toy"):
        bench_gpu.bench()


def test_what_the_host_waits_for_is_counted() -> None:
    with bench_gpu._Asked() as asked:
        values = torch.ones(4)
        float(values.sum())
        values[values > 0]
        values + 1
    assert dict(asked.counts) == {"_local_scalar_dense": 1, "index by a mask": 1}
