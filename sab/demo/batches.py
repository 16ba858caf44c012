"""Dialogues and scenes as tensors: token ids with answer targets, rotary positions, labels, pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sab.demo import model as architecture
from sab.demo.scenes import GRID, SIDE, SLOTS, Scene, render, token_labels

TOKENS = GRID * GRID


@dataclass
class Batch:
    """Token ids and targets [B, L] (targets -100 outside answers), positions [3, B, L], labels [P, 16, slots] of the
    rows that have a picture (`with_picture` [P]), and the pictures where they were drawn."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    labels: Tensor
    with_picture: Tensor
    pictures: list[NDArray[np.uint8]]


class Encoder:
    """Turns dialogues into token ids and answer targets; caches single turns, of which many repeat."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        ids = architecture.token_ids(tokenizer)
        self.roles = {"system": ids["<|system|>"], "user": ids["<|user|>"], "assistant": ids["<|assistant|>"]}
        self.end, self.pad, self.image = ids["<|end|>"], ids["<|pad|>"], ids["<|image_pad|>"]
        self.vision = [ids["<|vision_start|>"], *[self.image] * TOKENS, ids["<|vision_end|>"]]

    def encode(self, messages: list[dict[str, str]], picture: bool) -> tuple[list[int], list[int]]:
        """Ids and targets of one dialogue; the picture's tokens open the first user turn."""
        ids: list[int] = []
        targets: list[int] = []
        contents = self.tokenizer([m["content"] for m in messages], add_special_tokens=False)["input_ids"]
        shown = False
        for message, content in zip(messages, contents, strict=True):
            head = [self.roles[message["role"]]]
            if message["role"] == "user" and picture and not shown:
                head, shown = head + self.vision, True
            ids += [*head, *content, self.end]
            spoken = message["role"] == "assistant"
            targets += [-100] * len(head) + ([*content, self.end] if spoken else [-100] * (len(content) + 1))
        return ids, targets

    def batch(self, items: list[tuple[list[dict[str, str]], Scene | None]], draw_pictures: bool) -> Batch:
        """Pad dialogues to one batch (right padding: the causal mask then needs nothing else)."""
        rows = [self.encode(messages, scene is not None) for messages, scene in items]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.pad)
        targets = torch.full((len(rows), longest), -100)
        positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
        for index, (row_ids, row_targets) in enumerate(rows):
            ids[index, : len(row_ids)] = torch.tensor(row_ids)
            targets[index, : len(row_ids)] = torch.tensor(row_targets)
            positions[:, index] = rope_positions(row_ids, self.image, longest)
        scenes = [scene for _, scene in items if scene is not None]
        labels = (
            torch.from_numpy(np.stack([token_labels(s) for s in scenes]))
            if scenes
            else torch.zeros(0, TOKENS, len(SLOTS)).long()
        )
        with_picture = torch.tensor([i for i, (_, scene) in enumerate(items) if scene is not None], dtype=torch.long)
        pictures = [np.asarray(render(s)) for s in scenes] if draw_pictures else []
        return Batch(ids, targets, positions, labels, with_picture, pictures)


def rope_positions(ids: list[int], image: int, length: int) -> Tensor:
    """Multimodal rotary positions [3, length] (time, row, column) of a row with at most one 4 x 4 picture."""
    start = ids.index(image) if image in ids else None
    if start is None:
        return torch.arange(length).expand(3, -1)
    after = torch.arange(length - start - TOKENS) + start + GRID
    raster = torch.arange(TOKENS)
    inside = torch.stack([torch.zeros(TOKENS, dtype=torch.long), raster // GRID, raster % GRID]) + start
    before = torch.arange(start).expand(3, -1)
    return torch.cat([before, inside, after.expand(3, -1)], dim=1)


def pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Patches exactly as the image processor makes them, [pictures * 64, 588], from 112 x 112 RGB arrays."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)  # [B, 3, 112, 112]
    patch, merge = 14, 2
    side = SIDE // (patch * merge)
    patches = batch.reshape(len(pictures), 3, side, merge, patch, side, merge, patch)
    return patches.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3 * patch * patch)
