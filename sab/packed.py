"""Linears that hold bits instead of floats and compute on them.

A `PackedLinear` keeps a linear's codes in one of two forms, both of integers, which no cast of the model changes:
arranged for the C kernel (`kernels/tiles.py`), or as stored (`layout.py`) for Triton and the torch reference. It goes
from one to the other by itself: what leaves it (another device, a state dict) is in the stored form, bit for bit. Few
tokens are multiplied from the bits; many by dequantizing a few rows at a time. `swap` puts the linears of a run into a
model.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sab.devices import CHOICE, REFERENCE, TRITON, takes_triton
from sab.errors import SabError
from sab.kernels import cpu, gpu, reference
from sab.kernels.tiles import Tiles, arrange_stored, stored
from sab.layout import complete, sizes
from sab.packing import pack

if TYPE_CHECKING:
    from sab.binarizers.codes import LinearCodes
    from sab.models import LVLM
    from sab.runs import Run

UNPACK_FROM = 32  # tokens from which dequantizing rows and multiplying costs less than looking up
UNPACK_FROM_SHUFFLED = 64  # the same where fast mode looks bytes up by a shuffle
LOOK_UP, UNPACK, BFLOAT16 = "look up", "unpack", "bfloat16"  # how tokens are multiplied
BFLOAT16_FROM = {  # the same, by mode, where the processor multiplies bfloat16 with one of these
    "matrix unit": {"exact": 8, "fast": 8},
    "vectors": {"exact": 6, "fast": 16},
}


Stored = tuple[dict[str, Tensor], dict[str, Any]]


class PackedLinear(nn.Module):
    """`y = x W^T + bias` with W [n, m] in its codes; for inference.

    `mode`: exact (float32; from 6, 8 or 32 tokens on, W in the dtype of x, in float32 without AVX-512) or fast (see
    `kernels.cpu`; from 8 or 16 tokens on, x and W in bfloat16 where the processor multiplies that; from 32 or 64 on
    as in exact mode).

    On a CPU with a C compiler the C kernel runs, on a CUDA device with Triton its kernel (float32 sums; from 3 tokens
    on, W in the dtype of x) for every method but pb-llm; else the reference, on any device. SAB_KERNEL forces
    `reference`, `triton` or a path of the C kernel.
    """

    def __init__(
        self,
        codes: LinearCodes | Stored,
        bias: Tensor | None = None,
        mode: str = "exact",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`codes`: codes, or stored tensors with their complete metadata (`layout.complete`), which may be on the meta
        device; `bias` [n] or None. SabError for a bias of another size and an unknown mode or kernel."""
        super().__init__()
        if isinstance(codes, tuple):
            tensors, self.metadata = codes
        else:
            tensors, metadata = pack(codes)
            self.metadata = complete(tensors, metadata)
        self.out_features, self.in_features = self.metadata["shape"]
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise SabError(f"the bias is {tuple(bias.shape)} instead of ({self.out_features},)")
        self.method: str = self.metadata["method"]
        self.mode = mode
        self.sizes: dict[str, int] | None = None  # of the arrangement, where the bits are arranged
        self._weight: cpu.Weight | gpu.Weight | None = None
        self._names: tuple[str, ...] = ()
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
        self._hold({name: values.to(device) for name, values in tensors.items()})
        self.arrange()
        self.set_mode(mode)

    def _hold(self, tensors: dict[str, Tensor], sizes: dict[str, int] | None = None) -> None:
        for name in self._names:
            delattr(self, name)
        for name, values in tensors.items():
            self.register_buffer(name, values)
        self._names, self.sizes, self._weight = tuple(tensors), sizes, None

    def _held(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._names}

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the tensors it stores."""
        return tuple(sizes(self.metadata))

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors (layout.py): those it holds, or made from the arrangement."""
        if self.sizes is None:
            return self._held()
        return stored(Tiles((self.out_features, self.in_features), self.sizes, self._held()))

    def arrange(self) -> None:
        """Put the bits in the order of the C kernel, where they are on a CPU that has it; else leave them as stored.

        SabError for stored tensors that are damaged."""
        if self.sizes is not None or getattr(self, self._names[0]).device.type != "cpu" or chosen_library() is None:
            return
        tiles = arrange_stored(self._held(), self.metadata)
        if tiles is not None:
            self._hold(tiles.tensors, tiles.sizes)

    @property
    def kernel(self) -> str:
        """What computes a token: `reference`, `triton`, or such as `c avx512vnni fast`."""
        return self.kernel_for(1, torch.float32)

    def kernel_for(self, tokens: int, dtype: torch.dtype) -> str:
        """What computes so many tokens of a type at once: few are looked up in the bits, of many the weights are
        dequantized a piece at a time."""
        if self.sizes is None:
            return TRITON if self._takes_triton else REFERENCE
        weight = self._arranged()
        unit = weight.units[-1] if weight.units else ""
        ways = {BFLOAT16: f"bfloat16 {unit}", UNPACK: "dequantizing"}
        return f"c {weight.library.path} {ways.get(self._way(tokens, dtype), weight.runs(self.mode))}"

    @property
    def resident_bytes(self) -> int:
        """Memory of everything this linear owns."""
        owned = [*self.buffers(), *self.parameters()]
        owned += self._weight.derived if isinstance(self._weight, gpu.Weight) else []
        return sum(values.numel() * values.element_size() for values in owned)

    def set_mode(self, mode: str) -> None:
        """Exact or fast, from the next call on. SabError for anything else."""
        if mode not in cpu.MODES:
            raise SabError(f"the mode is {mode!r}; choose {' or '.join(cpu.MODES)}")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., m], float32, bfloat16 or float16, to [..., n] in its dtype."""
        if x.ndim < 1 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise SabError(f"the input is {x.dtype} {tuple(x.shape)} instead of floats (..., {self.in_features})")
        if x.requires_grad and torch.is_grad_enabled():
            raise SabError("packed linears are for inference only; ask for gradients of the dequantized model")
        if self.sizes is None and self._takes_triton and x.dtype in gpu.DTYPES:
            y = self._on_gpu().multiply(x.reshape(-1, self.in_features), self.bias)
            return y.reshape(*x.shape[:-1], self.out_features)
        if self.sizes is None:
            y = reference.linear(x, self._held(), self.metadata)
        elif x.device.type != "cpu":
            raise SabError(f"this linear is packed for the CPU, its input is on {x.device}; pack it for that device")
        else:
            y = self._multiply(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _multiply(self, x: Tensor) -> Tensor:
        """[tokens, m] to [tokens, n] in the same dtype by the C kernel."""
        weight, way = self._arranged(), self._way(len(x), x.dtype)
        if way == BFLOAT16:
            made = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
            return weight.multiply_bfloat16(x.bfloat16(), made).to(x.dtype)
        if way == UNPACK:
            known = x if x.dtype == torch.bfloat16 else x.float()
            return weight.multiply_unpacked(known).to(x.dtype)
        return weight.multiply(x.float(), self.mode).to(x.dtype)

    def _way(self, tokens: int, dtype: torch.dtype) -> str:
        reduced = dtype == torch.bfloat16 or self.mode == "fast"
        weight = self._arranged()
        if reduced and weight.units and tokens >= BFLOAT16_FROM[weight.units[-1]][self.mode]:
            return BFLOAT16
        shuffled = weight.library.path == "avx2" and weight.runs(self.mode) == "fast"
        return UNPACK if tokens >= (UNPACK_FROM_SHUFFLED if shuffled else UNPACK_FROM) else LOOK_UP

    def _arranged(self) -> cpu.Weight:
        if self._weight is None:
            library = chosen_library()
            if library is None or self.sizes is None:
                raise SabError("this linear is packed for the C kernel, which is not there; pack it again")
            self._weight = cpu.Weight(Tiles((self.out_features, self.in_features), self.sizes, self._held()), library)
        assert isinstance(self._weight, cpu.Weight)
        return self._weight

    @property
    def _takes_triton(self) -> bool:
        """Whether Triton's kernel multiplies what is held as stored. SabError where it is asked for and cannot run."""
        return takes_triton(getattr(self, self._names[0]).device) and gpu.takes(self.metadata)

    def _on_gpu(self) -> gpu.Weight:
        if self._weight is None:
            self._weight = gpu.Weight(self._held(), self.metadata)
        assert isinstance(self._weight, gpu.Weight)
        return self._weight

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self._weight = None  # it points into the tensors that are replaced now
        here = getattr(self, self._names[0]).device
        there = fn(torch.empty(0, dtype=torch.uint8, device=here)).device
        if there.type != "cpu" and self.sizes is not None:
            self._hold(self.stored())
        super()._apply(fn, recurse)
        if here.type != "meta":  # what comes from there holds nothing yet
            self.arrange()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sizes is not None:
            for name in self._names:
                del destination[prefix + name]
            destination.update({prefix + name: values for name, values in self.stored().items()})

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._hold(self.stored())
        super()._load_from_state_dict(*arguments)
        self.arrange()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": None}  # pointers cannot be copied

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, method={self.method}"


@dataclass(frozen=True)
class Swapped:
    """What `swap` did: the linears by name, the bytes they own now and owned before, and how many run on what."""

    linears: dict[str, PackedLinear]
    resident_bytes: int
    dense_bytes: int

    @property
    def kernels(self) -> dict[str, int]:
        """Number of linears by kernel, the most frequent first."""
        return dict(Counter(linear.kernel for linear in self.linears.values()).most_common())

    def set_mode(self, mode: str) -> None:
        """Exact or fast, for all of them."""
        for linear in self.linears.values():
            linear.set_mode(mode)


def swap(lvlm: LVLM, run: Run, mode: str = "exact") -> Swapped:
    """Replace the linears of a finished or unfinished run in the model by packed ones, for good.

    They leave `lvlm.linears`, so that nothing keeps their floats. All are packed before the first is replaced: an
    error changes nothing. SabError when the run was made from another model, or a linear is not there any more.
    """
    run.check_model(lvlm)
    if not run.reports:
        raise SabError(f"The run in {run.directory} has no finished linear; finish it first.")
    packed: dict[str, PackedLinear] = {}
    dense = 0
    for name in run.reports:
        linear = lvlm.linears.get(name)
        if linear is None:
            raise SabError(f"{name} of {lvlm.source} is not dense any more; load the model again.")
        owned = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
        dense += sum(values.numel() * values.element_size() for values in owned)
        packed[name] = PackedLinear(run.codes(name), linear.bias, mode, lvlm.device, linear.weight.dtype)
    for name, replacement in packed.items():
        lvlm.model.set_submodule(name, replacement.eval())
        del lvlm.linears[name]
        lvlm.decoder_linears.pop(name, None)
    del linear, owned
    gc.collect()
    return Swapped(packed, sum(linear.resident_bytes for linear in packed.values()), dense)


def packed_linears(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed linears of a model, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def kernels_of(model: nn.Module) -> dict[str, int]:
    """Number of packed linears in a model by what computes them, the most frequent first."""
    return dict(Counter(linear.kernel for linear in packed_linears(model).values()).most_common())


def has_kernel(device: torch.device) -> bool:
    """Whether something faster than the reference multiplies there; on a CPU it may be compiled now."""
    return takes_triton(device) or (device.type == "cpu" and chosen_library() is not None)


def chosen_library() -> cpu.Library | None:
    """The C kernel; None where there is none, or SAB_KERNEL asks for another."""
    choice = os.environ.get(CHOICE) or None
    return None if choice in (REFERENCE, TRITON) else cpu.load(choice)
