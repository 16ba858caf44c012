"""The embedded model's architecture, tokenizer and processor: a small Qwen2.5-VL with a vocabulary of its own.

Sizes: decoder 6 x 256 (8 heads, 4 key-value heads, MLP 768), vision tower 4 x 256, 112 x 112 pixels in patches of
14 merged 2 x 2 to 16 visual tokens, 1,536 byte-level BPE tokens. About 10 M parameters, 20 MB in bf16.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sab.demo.knowledge import text_question
from sab.demo.phrasing import WORDINGS, loosen
from sab.demo.scenes import SIDE, sample
from sab.demo.suite import dialogue

VOCABULARY = 1536
WIDTH = 256
# Rotary frequencies go to (time, row, column) in turn, not in three runs: in runs, columns would get the lowest six of
# the 16 frequencies alone, and neighbouring columns of a 4 x 4 picture would differ by 0.003 radians at most.
MROPE_SECTION = (*[1] * 12, 2, 1, 1)
PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
VISION_START, VISION_END, IMAGE, VIDEO = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL = (PAD, SYSTEM, USER, ASSISTANT, END, VISION_START, VISION_END, IMAGE, VIDEO)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    + VISION_START
    + IMAGE
    + VISION_END
    + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

# Digits and capitals in a row are single tokens: what is read from a picture is spelt, never looked up.
_SPELT = r" ?\d| ?[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]"


def _corpus(seed: int, count: int) -> Iterator[str]:
    draw = random.Random(seed)
    for index in range(count):
        scene = sample(draw, False) if index % 2 else None
        for message in dialogue(draw, scene, 4):
            yield message["content"]
            if message["role"] == "user" and index % 3 == 0:
                yield loosen(draw, message["content"])
    for intent, variants in WORDINGS.items():
        yield f"{intent} " + " ".join(variants[:-1])
    for _ in range(count):
        yield text_question(draw, False).answer


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on the world's own text; the same seed gives the same tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPELT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, 6000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[t for t in SPECIAL if t not in (PAD, END)],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The id of every special token."""
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in SPECIAL}


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The model's configuration; every width a multiple of 128."""
    ids = token_ids(tokenizer)
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(MROPE_SECTION)},
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": WIDTH,
            "intermediate_size": 768,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "window_size": SIDE,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "out_hidden_size": WIDTH,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Pictures become 112 x 112 pixels' worth of patches; works without torchvision."""
    return Qwen2VLImageProcessorPil(
        patch_size=14,
        temporal_patch_size=1,
        merge_size=2,
        size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised float32 model; embeddings of unit length so that they match the visual codes."""
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.model.language_model.embed_tokens.weight.data.normal_(0.0, WIDTH**-0.5)
    return model


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a checkpoint that `AutoModelForImageTextToText` and `AutoProcessor` load: weights in bf16."""
    directory.mkdir(parents=True, exist_ok=True)
    end, pad = (tokenizer.convert_tokens_to_ids(t) for t in (END, PAD))
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, max_new_tokens=96, do_sample=False)
    deepcopy(model).to(torch.bfloat16).save_pretrained(directory)  # type: ignore[arg-type]
    (directory / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(directory)
    images = build_image_processor().to_dict()
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    images["processor_class"] = "Qwen2_5_VLProcessor"
    (directory / "preprocessor_config.json").write_text(json.dumps(images, indent=2, default=str) + "\n")
