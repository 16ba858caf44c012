"""Which models can be loaded: told from the configuration, before a weight is read or anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from sab.errors import SabError
from sab.hub import HUB_ID
from sab.processors import read_from

PACKED = "sab"  # the quantization method of our own checkpoints (hf.METHOD)
LAYERS = re.compile(r"(layers?|blocks?|depth)$")
MOST_LAYERS = 1_000  # several times those of any model


def configuration(source: str, revision: str | None = None) -> Any:
    """The configuration of a model that `load` takes, before a weight is read. SabError in one sentence for any
    other."""
    if not Path(source).exists() and not HUB_ID.fullmatch(source):
        raise SabError(
            f"There is no model at {source}; give a folder or a Hugging Face id such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    _check_depth(read_from(source, transformers.PreTrainedConfig.get_config_dict, source, revision=revision)[0], source)
    config = read_from(
        source, transformers.AutoConfig.from_pretrained, source, revision=revision, trust_remote_code=False
    )
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise SabError(
            f"{source} is a {config.model_type} model, not one that reads pictures and text; "
            "choose a vision-language model."
        )
    if config.is_encoder_decoder:
        raise SabError(
            f"{source} is an encoder-decoder model ({config.model_type}), which is not supported; "
            "choose one with a decoder that reads picture tokens, such as Qwen2.5-VL."
        )
    _check_family(config, source)
    return config


def _check_depth(values: Any, source: str) -> None:
    """SabError for a configuration, as JSON, of more layers than any model has: they are counted out one by one, in
    lists and in modules, long before a weight is read."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if LAYERS.search(str(key)) and isinstance(value, int) and value > MOST_LAYERS:
            raise SabError(f"The configuration of {source} asks for {value:,} as its {key}; get the checkpoint again.")
        _check_depth(value, source)


def _check_family(config: Any, source: str) -> None:
    """SabError for kinds of models that can be told from the configuration and are not supported."""
    decoder = config.get_text_config(decoder=True)
    if any("expert" in key and isinstance(value, int) and value > 1 for key, value in decoder.to_dict().items()):
        raise SabError(
            f"{source} ({config.model_type}) is a mixture of experts, which is not supported; choose a dense model "
            "such as Qwen2.5-VL, InternVL or LLaVA."
        )
    if getattr(decoder, "cross_attention_layers", None):
        raise without_picture_tokens(config, source)
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") != PACKED:
        raise SabError(
            f"{source} is quantized already ({quantization.get('quant_method')}); name its full-precision checkpoint."
        )


def without_picture_tokens(config: Any, source: str) -> SabError:
    """What to raise for a model whose pictures do not reach the decoder as tokens."""
    return SabError(
        f"{source} ({config.model_type}) does not pass its pictures through the decoder as tokens, "
        "so it is not supported; choose a model such as Qwen2.5-VL, InternVL or LLaVA."
    )
