"""A tiny random Qwen2.5-VL on disk, for tests that need the real class but no skill: 2 blocks, width 128."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sab import models as sab_models
from sab.calibration import Sample
from sab.processors import image_only_class

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _processor() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:2] + VISION})
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56})
    return image_only_class(Qwen2_5_VLProcessor)(pictures, fast, chat_template=TEMPLATE)


@cache
def tiny_folder() -> Path:
    """A saved checkpoint (weights, processor), made once per test process."""
    folder = Path(mkdtemp(prefix="sab-tiny-"))
    processor = _processor()
    processor.save_pretrained(folder)
    tokenizer = processor.tokenizer
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2_5_VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:  # ten times the usual start, so that a random model is not a constant
                parameter.data.mul_(10)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return folder


@cache
def _loaded() -> sab_models.LVLM:
    return sab_models.load(tiny_folder(), device="cpu")


def tiny() -> sab_models.LVLM:
    """A fresh copy of the tiny model, float32 on the CPU."""
    return _loaded().copy()


def picture(seed: int = 0, size: int = 56) -> Image.Image:
    """A seeded picture with a disc in it."""
    canvas = Image.new("RGB", (size, size), ((37 * seed) % 256, 120, 200))
    left = 5 + (seed * 7) % 20
    ImageDraw.Draw(canvas).ellipse((left, 8, left + 22, 30), fill=(220, (50 * seed) % 256, 20))
    return canvas


def dialogues(count: int) -> list[Sample]:
    """Calibration samples of different lengths, every third without a picture."""
    made = []
    for seed in range(count):
        messages = [
            {"role": "user", "content": "What is here?" + " Look." * (seed % 4)},
            {"role": "assistant", "content": f"A disc, number {seed}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        made.append(Sample(messages=messages, picture=None if seed % 3 == 2 else picture(seed)))
    return made
