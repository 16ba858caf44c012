"""Tiny random checkpoints of the real classes of other families, on disk: 2 blocks, width 64, a working processor.

Each family has its own way of writing pictures into a prompt, of counting their tokens and of wiring its halves; what
they share here is a byte-level tokenizer and the sizes of the two towers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sab import models as sab_models
from sab.models import LVLM
from sab.processors import image_only_class

END, PAD, BOS = "<|end|>", "<|pad|>", "<|begin|>"
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": 56, "width": 56}


@dataclass(frozen=True)
class Family:
    """How a checkpoint is made and what it has to show: `picture_tokens` of a 56 × 56 picture; `build(tokenizer)` gives
    configuration and processor; `picture` is what stands for one in a prompt; `special` are the tokenizer's own names
    of tokens, `tokens` others."""

    build: Callable[[Any], tuple[Any, Any]]
    picture: str
    picture_tokens: int
    special: dict[str, str]
    tokens: tuple[str, ...] = ()


def _template(picture: str) -> str:
    return (
        "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + picture + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def _tokenizer(family: Family) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        bos_token=BOS,
        extra_special_tokens=family.special,
        chat_template=_template(family.picture),
    )
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant")]
    fast.add_special_tokens({"additional_special_tokens": [*roles, *family.tokens]})
    return fast


def _square(kind: Any, **more: Any) -> Any:
    return kind(size=SQUARE, do_convert_rgb=True, **more)


def _qwen3_vl(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=tower
        | {"out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        **_ids(tokenizer, vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>"),
    )
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56}, patch_size=14)
    return config, image_only_class(Qwen3VLProcessor)(pictures, tokenizer)


def _internvl(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    config = transformers.InternVLConfig(
        text_config=TEXT | {"model_type": "qwen3", "vocab_size": len(tokenizer)},
        vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_seq_length=4,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    pictures = _square(GotOcr2ImageProcessorPil, crop_to_patches=False)
    return config, image_only_class(InternVLProcessor)(pictures, tokenizer, image_seq_length=4)


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = transformers.LlavaConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=TOWER | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
        image_seq_length=16,
        **_ids(tokenizer, image_token_index="<image>"),
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)
    return config, transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _idefics(config_class: Any, pictures: Any, processor: Any, tokenizer: Any) -> tuple[Any, Any]:
    config = config_class(
        text_config=TEXT
        | {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config=TOWER | {"image_size": 56, "patch_size": 14},
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    longest = {"longest_edge": 56}
    return config, processor(
        pictures(size=longest, max_image_size=longest, do_image_splitting=False), tokenizer, image_seq_len=4
    )


def _idefics3(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _idefics(transformers.Idefics3Config, Idefics3ImageProcessorPil, transformers.Idefics3Processor, tokenizer)


def _smolvlm(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    stock = image_only_class(SmolVLMProcessor)
    return _idefics(transformers.SmolVLMConfig, SmolVLMImageProcessorPil, stock, tokenizer)


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = transformers.Gemma3Config(
        text_config={key: value for key, value in TEXT.items() if key != "rope_parameters"}
        | {"vocab_size": len(tokenizer), "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        | {"query_pre_attn_scalar": 16, "pad_token_id": tokenizer.pad_token_id},
        vision_config=TOWER | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        **_ids(tokenizer, image_token_index="<image_soft_token>", boi_token_index="<start_of_image>"),
        **_ids(tokenizer, eoi_token_index="<end_of_image>"),
    )
    return config, transformers.Gemma3Processor(_square(Gemma3ImageProcessorPil), tokenizer, image_seq_length=4)


def _paligemma(tokenizer: Any) -> tuple[Any, Any]:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pictures = _square(SiglipImageProcessorPil)
    pictures.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(pictures, tokenizer)  # adds its own tokens
    config = transformers.PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "vocab_size": len(tokenizer)},
        vision_config=TOWER | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14},
        projection_dim=64,
        **_ids(tokenizer, image_token_index="<image>"),
    )
    return config, processor


def _ids(tokenizer: Any, **named: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}


IDEFICS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
}
FAMILIES = {
    "qwen3_vl": Family(
        _qwen3_vl,
        "<|vision_start|><|image_pad|><|vision_end|>",
        4,
        {},
        ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    "internvl": Family(
        _internvl,
        "<IMG_CONTEXT>\n",
        4,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "llava": Family(_llava, "<image>\n", 16, {"image_token": "<image>"}),
    "idefics3": Family(_idefics3, "<image>", 4, IDEFICS, ("<end_of_utterance>",)),
    "smolvlm": Family(_smolvlm, "<image>", 4, IDEFICS, ("<end_of_utterance>",)),
    "gemma3": Family(
        _gemma3,
        "<start_of_image>",
        4,
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "paligemma": Family(_paligemma, "<image>", 16, {"image_token": "<image>"}),
}


@cache
def family_folder(name: str) -> Path:
    """A saved checkpoint of a family, made once per test process."""
    family = FAMILIES[name]
    folder = Path(mkdtemp(prefix=f"sab-{name}-"))
    tokenizer = _tokenizer(family)
    config, processor = family.build(tokenizer)
    processor.chat_template = tokenizer.chat_template
    processor.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        embeddings = model.get_input_embeddings().weight
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter is not embeddings:
                # more than the usual start, so that a random model does not say one token again and again; also where
                # it starts from zero, as Gemma 3's projector does
                parameter.data.normal_(std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    return folder


@cache
def _loaded(name: str) -> LVLM:
    return sab_models.load(family_folder(name), device="cpu")


def family(name: str) -> LVLM:
    """A fresh copy of a family's tiny model, float32 on the CPU."""
    return _loaded(name).copy()
