"""Load the processor of a model: the tokenizer and what turns pictures into tensors. Knows families, as models.py does.

Stock processors of the Qwen, InternVL and SmolVLM families contain a video part that needs torchvision. Where it is
missing, the same stock class is built from its tokenizer and picture part alone. The PIL picture processor is used in
both cases, so that inputs do not depend on whether torchvision is installed.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, AutoProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available

from sab.errors import SabError

OWN_STEPS = {  # of processors, which give way to the common ones
    "Idefics3Processor": ("__call__", "prepare_inputs_layout"),  # they count characters of a text read in one piece
    "InternVLProcessor": ("__call__",),  # it takes control tokens that a person types for placeholders
}
WITHOUT_VIDEO = {"SmolVLMProcessor": ("apply_chat_template",)}  # it asks the video part, also where there is no video


def read_from(source: str, reader: Any, *arguments: Any, **options: Any) -> Any:
    """Call a transformers loader; whatever a bad checkpoint makes it raise becomes one sentence."""
    try:
        return reader(*arguments, **options)
    except SabError:
        raise
    except Exception as error:  # loaders raise a dozen kinds (OSError, JSON, safetensors, KeyError ...)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if lines and "trust_remote_code" in str(error):
            lines = ["it needs code that comes with it, which is never run here"]
        elif lines and lines[0].endswith(":"):  # what follows says what it is about
            lines = [" ".join(lines[:2])]
        reason = lines[0] if lines else type(error).__name__
        raise SabError(f"The model {source} could not be loaded ({reason}); check the name or the folder.") from error


def load_processor(source: str, config: Any, revision: str | None) -> Any:
    """The stock processor, with its PIL picture part; without its video part where torchvision is missing. SabError,
    in one sentence, for files that cannot be read."""
    stock: Any = PROCESSOR_MAPPING.get(type(config), None)
    safely = {"trust_remote_code": False}  # said each time: where it is left out, transformers asks on the terminal
    if stock is None or (is_torchvision_available() and stock.__name__ not in OWN_STEPS):
        processor = read_from(source, AutoProcessor.from_pretrained, source, revision=revision, **safely)
    else:
        image_only: Any = image_only_class(stock)
        processor = read_from(source, image_only.from_pretrained, source, revision=revision or "main", **safely)
    processor.image_processor = read_from(
        source, AutoImageProcessor.from_pretrained, source, revision=revision, backend="pil", **safely
    )
    return processor


def image_only_class(stock: Any) -> Any:
    """The stock processor class, told that it has no video part (which cannot exist without torchvision), and with the
    common steps in the place of its own where those need that part, or cannot keep control tokens in a text as text."""
    names = [name for name in stock.get_attributes() if name != "video_processor"]
    changed: dict[str, Any] = {"get_attributes": classmethod(lambda cls: list(names))}
    for step in (*OWN_STEPS.get(stock.__name__, ()), *WITHOUT_VIDEO.get(stock.__name__, ())):
        changed[step] = getattr(ProcessorMixin, step)
    begin = stock.__init__
    if names != stock.get_attributes() and "video_processor" in _required(begin):
        # the same code with one more default: processors are read and saved by the parameters this code has
        changed["__init__"] = FunctionType(
            begin.__code__, begin.__globals__, "__init__", (None, *(begin.__defaults__ or ())), begin.__closure__
        )
    return type(stock.__name__, (stock,), changed)


def _required(function: Any) -> list[str]:
    """Names of the parameters without a default."""
    parameters = inspect.signature(function).parameters
    return [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
