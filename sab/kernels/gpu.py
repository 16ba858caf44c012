"""The product with a packed weight on a CUDA device, by Triton kernels on the stored tensors (`gpu_linear.py`).

Nothing is rearranged: what a file holds is what the kernels read, and beside it there is only a list of the salient
columns. A call allocates its output, launches one kernel and asks the host for nothing, so it can be captured in a
CUDA graph once the shape has been met (`gpu_tuning.py`). Sums are float32 in a fixed order: a call repeats bit for bit.

Under Triton's interpreter (TRITON_INTERPRET=1) the same code runs on the CPU, very slowly: that is how it is tested
where there is no GPU. It has not been run on a GPU by its authors; `python -m tests.gpu` does that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sab.devices import runs_triton
from sab.errors import SabError
from sab.layout import RESIDUALS, as_half, check, complete, unpack_bits

DECODE_TOKENS = 2  # up to which each token has programs of its own (by operation counts, not measured)
LEAST_UNIT, LARGEST_UNIT = 16, 128  # columns multiplied at a time; tensor cores take no fewer than 16
LEAST_ROWS = 16  # of a program
TAIL = 32  # salient columns multiplied at a time
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def takes(metadata: dict[str, Any]) -> bool:
    """Whether the kernels multiply this format: all but kept values (pb-llm) and blocks that 16 does not divide."""
    return "kept_bits" not in metadata and metadata["block_size"] % LEAST_UNIT == 0


class Weight:
    """Stored tensors of a linear, checked, with what the kernels need to know of them. The tensors are kept alive."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """As `packing.pack` gives them, on one device. SabError for what does not fit together or is not taken."""
        whole = complete(tensors, metadata)
        check(tensors, whole)
        if not takes(metadata) or not runs_triton(tensors["codes"].device):
            raise SabError("the Triton kernel takes no such linear or device; set SAB_KERNEL=reference")
        self.rows, self.width = metadata["shape"]
        self.device = tensors["codes"].device
        block_size, integer = metadata["block_size"], metadata["layout"] == "integer"
        planes = metadata["bits"] if integer else metadata["planes"]
        unit = min(LARGEST_UNIT, block_size & -block_size)
        word = min(32, unit)
        self._blocks = -(-self.width // block_size)
        count = 0 if integer else whole["salient"]
        listed = torch.zeros(1, dtype=torch.bool) if integer else unpack_bits(tensors["salient"], (self.width,))
        self._count = count
        tail = listed.nonzero()[:, 0].to(torch.int32).to(self.device)
        counters = torch.zeros(DECODE_TOKENS * -(-self.rows // LEAST_ROWS), dtype=torch.int32, device=self.device)
        self.derived = [tail, counters]  # all that it owns beside the stored tensors
        words = tensors["codes"].contiguous().view({16: torch.int16, 32: torch.int32}[word])
        scales = {name: as_half(values) for name, values in tensors.items() if values.dtype == torch.int16}
        scales = {name: values for name, values in tensors.items() if values.dtype == torch.int8} | scales
        self._tensors = [
            words,
            scales["scale" if integer else "row_scale"],
            *(scales.get(name) for name in ("second_row_scale", "row_mean", "row_step")),
            tensors.get("zero"),
            *(scales.get(name) for name in ("column_scale", "second_column_scale")),
            tensors.get("salient"),
            tail,
            tensors.get("second"),
        ]
        columns = scales["column_scale"].shape[0] if "column_scale" in scales else 0
        self._counters = counters
        self._format = {
            "K": block_size,
            "UNIT": unit,
            "WORD": word,
            "PLANES": planes,
            "RESIDUALS": 0 if integer else RESIDUALS[planes][whole["slots"]],
            "SMALL": "row_step" in scales,
            "MEANS": "row_mean" in scales,
            "COLUMNS": columns if planes == 2 or columns < 2 else 0,
            "INTEGER": integer,
            "TAIL": TAIL if count else 0,
        }

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` [tokens, m] in float16, bfloat16 or float32 to [tokens, n] in its dtype; `bias` [n] or None.

        SabError for anything else.
        """
        if x.device != self.device or x.dtype not in DTYPES or x.ndim != 2 or x.shape[1] != self.width:
            raise SabError(
                f"the input is {x.dtype} {tuple(x.shape)} on {x.device} instead of float16, bfloat16 or float32 "
                f"(tokens, {self.width}) on {self.device}"
            )
        if bias is not None and (bias.device != self.device or tuple(bias.shape) != (self.rows,)):
            raise SabError(f"the bias is {tuple(bias.shape)} on {bias.device}, not ({self.rows},) on {self.device}")
        from sab.kernels import gpu_linear, gpu_tuning  # here, so that nothing needs Triton before it is used

        x, tokens = x.contiguous(), len(x)
        y = x.new_empty(tokens, self.rows)
        if not tokens:
            return y
        split = tokens <= gpu_linear.MOST_SPLIT_TOKENS
        kernel = gpu_linear.few if split else gpu_linear.many
        kernel = gpu_linear.decode if tokens <= DECODE_TOKENS else kernel
        partial = torch.empty(gpu_linear.MOST_SPLITS if split else 0, tokens, self.rows, device=x.device)

        def grid(chosen: dict[str, int]) -> tuple[int, int, int]:
            return -(-self.rows // chosen["ROWS"]), -(-tokens // chosen.get("TOKENS", 1)), chosen["SPLITS"]

        bucket = 1 << (tokens - 1).bit_length()
        sizes = tokens, bucket, self.rows, self.width, self._blocks, self._count
        with torch.cuda.device_of(x):
            kernel[grid](
                x, y, None if bias is None else bias.contiguous(), partial, self._counters, *self._tensors, *sizes,
                **self._format, BIAS=bias is not None, EMULATED=gpu_tuning.interpreted(),
            )  # fmt: skip
        return y
