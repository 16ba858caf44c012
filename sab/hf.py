"""The transformers quantizer "sab": packed checkpoints through `from_pretrained` and `save_pretrained`.

A checkpoint holds the stored tensors of each packed linear (layout.py) beside every other tensor of the model, under
the names transformers gives them, and in its configuration what the tensors cannot say: the format, and for each
*module* the metadata from which every type and shape follows. Module names, because the names inside a file differ from
them in several families. So before a tensor is read, the linears of the empty model are replaced by empty packed
ones, and whatever does not fit is refused; a checksum for each linear says after reading that the bits are those that
were written. No float tensor of a packed linear exists at any time.

Imported by `registration` while transformers is being imported: at its top it may import of transformers only the two
modules of quantizers and their configuration.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sab.errors import SabError
from sab.kernels import reference
from sab.layout import FORMAT_VERSION, check, sizes
from sab.packed import PackedLinear, Stored, packed_linears

METHOD = "sab"
CHECKSUM = "crc32"
INITIALIZED = "_is_hf_initialized"  # transformers' own mark of modules that it leaves alone after loading
OWN = ("shape", "salient", "kept", CHECKSUM)  # said of each linear, even where all have the same


@register_quantization_config(METHOD)
class SabConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed checkpoint.

    `linears`: for each packed module its complete metadata (`layout.complete`) and checksum, less what is `shared` by
    all of them. `method`: how they were binarized. Other keys are kept as they are.
    """

    def __init__(
        self,
        linears: Mapping[str, Mapping[str, Any]] | None = None,
        shared: Mapping[str, Any] | None = None,
        format_version: int | None = None,
        method: str = "",
        **more: Any,
    ) -> None:
        """SabError for another format and for what is no description of linears."""
        if format_version != FORMAT_VERSION:
            raise SabError(
                f"This checkpoint has the packed format {format_version!r} and this program reads {FORMAT_VERSION}; "
                "update it, or export the checkpoint again."
            )
        described = isinstance(linears, Mapping) and all(isinstance(entry, Mapping) for entry in linears.values())
        if not described or not linears or not isinstance(shared, Mapping):
            raise SabError("This checkpoint's configuration describes no packed linears; export it again.")
        self.quant_method: Any = METHOD
        self.format_version = format_version
        self.method = method
        self.shared = dict(shared)
        self.linears = {name: dict(entry) for name, entry in linears.items()}
        self.__dict__.update({name: value for name, value in more.items() if name not in self.__dict__})

    @classmethod
    def describe(cls, packed: Mapping[str, Stored], **more: Any) -> SabConfig:
        """The configuration of a model with these linears, as they are stored and with their complete metadata."""
        full = {name: metadata | {CHECKSUM: checksum(tensors)} for name, (tensors, metadata) in packed.items()}
        shared = {
            key: value
            for key, value in next(iter(full.values())).items()
            if key not in OWN and all(one.get(key) == value for one in full.values())
        }
        own = {name: {k: v for k, v in entry.items() if k not in shared} for name, entry in full.items()}
        return cls(own, shared, FORMAT_VERSION, **more)

    def metadata(self, name: str) -> dict[str, Any]:
        """Everything that is known of a module's stored tensors."""
        return self.shared | self.linears[name]


@register_quantizer(METHOD)
class SabQuantizer(HfQuantizer):
    """Loads packed linears instead of dense ones. It only reads what `checkpoint.export` and `save_pretrained` write:
    binarizing a model takes calibration and is what `sab.quantize` does."""

    requires_calibration = True
    quantization_config: SabConfig

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the stored tensors again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed linears have no gradients."""
        return False

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """True for stored tensors, so that their shapes are left to our own check, which says what to do."""
        module, _, name = param_name.rpartition(".")
        parent = model.get_submodule(module)
        return isinstance(parent, PackedLinear) and name in parent.stored_names

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        replace_linears(model, self.quantization_config)
        if checkpoint_files and all(str(file).endswith(".safetensors") for file in checkpoint_files):
            _check_files(model, checkpoint_files)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        packed = packed_linears(model)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # minutes for billions of weights, one after another
            list(pool.map(self._finish, packed, packed.values()))
        return model.requires_grad_(False)  # a pass that asks for gradients would stop at the first packed linear

    def _finish(self, name: str, linear: PackedLinear) -> None:
        """Check what was read of a linear and put it in the order of the kernel."""
        stored = linear.stored()
        if any(values.is_meta for values in stored.values()):
            return  # left on disk by the device map: nothing can be read here
        try:
            check(stored, linear.metadata)
        except SabError as refusal:
            raise SabError(f"{name}: {str(refusal).removesuffix(': write it again')}; get it again.") from refusal
        if checksum(stored) != self.quantization_config.metadata(name).get(CHECKSUM):
            raise SabError(f"{name} is missing from the checkpoint or damaged (its checksum differs); get it again.")
        linear.arrange()

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, linear in packed_linears(model).items():
            model.set_submodule(name, _dense(linear, dtype or model.dtype))
        return model


def checksum(stored: Mapping[str, Tensor]) -> int:
    """CRC-32 over the bytes of a linear's stored tensors, in the order of their names."""
    value = 0
    for name in sorted(stored):
        value = zlib.crc32(stored[name].cpu().contiguous().numpy().data, value)
    return value


def replace_linears(model: nn.Module, config: SabConfig) -> None:
    """Put an empty packed linear, on the meta device, in the place of each that the configuration names.

    SabError, before anything is changed, where one is no linear of the model or of another shape.
    """
    modules = dict(model.named_modules())
    replacements: dict[str, PackedLinear] = {}
    for name in config.linears:
        linear, metadata = modules.get(name), config.metadata(name)
        if not isinstance(linear, nn.Linear):
            raise SabError(f"The checkpoint packs {name}, which is no linear of this model; get or export it again.")
        try:
            expected = sizes(metadata)
        except SabError as refusal:
            raise SabError(f"{name}: {str(refusal).removesuffix(': write it again')}; get it again.") from refusal
        if list(metadata["shape"]) != list(linear.weight.shape):
            raise SabError(
                f"The checkpoint packs {name} as {tuple(metadata['shape'])}, the model wants "
                f"{tuple(linear.weight.shape)}; get or export it again."
            )
        empty = {part: torch.empty(shape, dtype=dtype, device="meta") for part, (dtype, shape) in expected.items()}
        dtype = linear.weight.dtype
        replacements[name] = PackedLinear((empty, metadata), linear.bias, device="meta", dtype=dtype)
    for name, replacement in replacements.items():
        model.set_submodule(name, replacement.eval())
        owner = model.get_submodule(name.rpartition(".")[0])
        for module in (owner, replacement):  # some models start the weights of a module's linears from the module
            setattr(module, INITIALIZED, True)


def stored_sizes(files: Sequence[str]) -> Iterator[tuple[str, str, int, int]]:
    """Name, type, number of values and number of bytes of every tensor in safetensors files, from their headers.

    SabError for a file that is damaged, cut short or cannot be read.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(opened.keys()):
                    part = opened.get_slice(name)
                    count, kind = math.prod(part.get_shape()), part.get_dtype()
                    bits = re.search(r"\d+", kind)  # BOOL is the only one without
                    yield name, kind, count, count * (int(bits[0]) if bits else 8) // 8
        except (SafetensorError, OSError, ValueError) as error:
            raise SabError(f"{file} is damaged or incomplete ({error}); get it again.") from error


def _check_files(model: Any, files: Sequence[str]) -> None:
    """SabError where the model wants more values than the files hold: what is missing would be allocated and filled
    with noise, however much the configuration asks for."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    wanted = sum(values.numel() for name, values in model.state_dict().items() if name not in tied)
    held = sum(count for _, _, count, _ in stored_sizes(files))
    if wanted > held:
        raise SabError(
            f"The checkpoint holds {held:,} values and its configuration asks for {wanted:,}: one of them is damaged "
            "or incomplete; get it again."
        )


def _dense(linear: PackedLinear, dtype: torch.dtype) -> nn.Linear:
    stored = linear.stored()
    device = next(iter(stored.values())).device
    dense = nn.Linear(1, 1, bias=False, device=device, dtype=dtype)
    dense.in_features, dense.out_features = linear.in_features, linear.out_features
    rows = [part.to(dtype) for part in reference.dense_rows(stored, linear.metadata)]
    dense.weight = nn.Parameter(torch.cat(rows), requires_grad=False)
    dense.register_parameter("bias", linear.bias)
    return dense.eval()
