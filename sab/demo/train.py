"""Train the embedded model in stages, resumable, on CPU or CUDA, everything from one seed.

1. `vision`: the tower and merger learn, per visual token, what lies there (`scenes.token_labels`), under linear heads
   that are thrown away, and to write it as a sum of fixed random codes, one per label (a codebook).
2. `language`: the decoder learns to read such sums of codes, without any picture (labels of drawn scenes stand in
   for the tower), together with written scenes, the almanac and computed answers. It needs no pictures, so it
   sees many more scenes an hour; and since both sides speak the codebook, it does not wait for stage 1. Early on,
   the codes of characters move onto the decoder's own letter embeddings; the tower follows by a linear map.
3. `joint`: tower and decoder together on pictures; a share of code batches stays in, and the distance to the
   codes stays on as an auxiliary loss.

Visual tokens carry no trace of their place (the tower sees relative positions only), so the decoder has to work it
out from its rotary positions and write it into its states before it can say where something is. A throw-away head on
the states of an early block, which names each visual token's row and column, makes that form early.

Hidden matrices are trained with Muon, everything else with AdamW. The loss counts answer tokens alone.
State (weights, optimizers, step) is written every few minutes and at the end of each slice (temporary file, then
rename); the log has one JSON object a line.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sab.demo import model as architecture
from sab.demo.batches import TOKENS, Batch, Encoder, pixels
from sab.demo.codebook import CODEBOOK_FILE, CODEBOOK_SEED, codebook, load_codes, save_codes, slot_offsets
from sab.demo.lessons import items, picture_scene
from sab.demo.scenes import GRID, SIDE, SLOTS, render, token_labels
from sab.demo.suite import CHECKS, scene_questions
from sab.errors import SabError
from sab.files import make_directory
from sab.models import chosen_device

STAGES = ("vision", "language", "joint")
TIE_STEP = 300  # of the language stage: by then text has taught the decoder its letters (`Trainer.tie_spelt`)
EARLIER = ("vision.pt", "language.pt")  # the states that joint goes on from
PLACE_BLOCK = 1  # the block whose states the place head reads: early enough for the others to use what it finds


def float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    """Scaled dot-product attention in float32: on CPU its bf16 backward takes three times as long."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **kwargs)


AttentionInterface.register("float32", float32_attention)


@dataclass(frozen=True)
class Plan:
    """Settings of one stage: batch, learning rates, curriculum (steps until scenes reach 5 shapes)."""

    batch: int
    rate: float
    vision_rate: float = 0.0
    grow: int = 2000
    picture_share: float = 0.6
    code_share: float = 0.0
    turns: int = 6


PLANS = {
    "vision": Plan(batch=48, rate=2e-3, vision_rate=2e-3),
    "language": Plan(batch=36, rate=2e-3, grow=1000),
    "joint": Plan(batch=32, rate=7e-4, vision_rate=2e-4, grow=0, picture_share=0.7, code_share=0.25),
}


class Trainer:
    """One stage in progress: model, heads, optimizers, step. `run` goes on until the time or the steps are over.

    SabError for a device that cannot be used, a state directory that cannot be made, and, where there is no state to go
    on from, a directory that no stage can start from.
    """

    def __init__(self, stage: str, directory: Path, seed: int, device: str | None, start: Path | None = None) -> None:
        self.stage, self.directory, self.seed, self.plan = stage, directory, seed, PLANS[stage]
        self.device = chosen_device(device)
        if start is not None and not self.path.exists():
            _check_start(start)  # before anything is written: a vocabulary made here would be kept
        make_directory(directory)
        torch.manual_seed(seed)
        self.tokenizer = self._tokenizer(start)
        self.model: Qwen2_5_VLForConditionalGeneration = architecture.build_model(
            architecture.build_config(self.tokenizer)
        )
        if self.device.type == "cpu":
            self.model.set_attn_implementation({"text_config": "float32", "vision_config": "sdpa"})
        self.encoder = Encoder(self.tokenizer)
        width = architecture.WIDTH
        self.codes = codebook(width).to(self.device)
        self.offsets = torch.from_numpy(slot_offsets()).to(self.device)
        self.heads = nn.Linear(width, len(self.codes))
        self.places = nn.Linear(width, 2 * GRID)  # row and column of a visual token, read off block PLACE_BLOCK
        self.early: list[Tensor] = []
        self.model.model.language_model.layers[PLACE_BLOCK].register_forward_hook(
            lambda module, given, states: self.early.append(states)
        )
        self.model.to(self.device)  # type: ignore[arg-type]
        self.heads.to(self.device)
        self.places.to(self.device)
        self.step, self.seconds, self.tied = 0, 0.0, False
        self.grow = 0 if start is not None else self.plan.grow  # weights that know scenes need no curriculum
        self.optimizers = self._optimizers()
        if self.path.exists():
            self._load(torch.load(self.path, map_location=self.device, weights_only=True))
        elif start is not None:
            self._start_from(start)

    def _tokenizer(self, start: Path | None) -> PreTrainedTokenizerFast:
        """The tokenizer of the state, else of the checkpoint to start from, else trained anew: weights in progress
        must keep their vocabulary even where the world has changed since."""
        kept = self.directory / "tokenizer"
        known = [place for place in (kept, start) if place is not None and (place / "tokenizer.json").exists()]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(known[0]) if known else architecture.build_tokenizer()
        tokenizer.save_pretrained(kept)
        return tokenizer

    @property
    def path(self) -> Path:
        """The stage's state file."""
        return self.directory / f"{self.stage}.pt"

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        vision = list(self.model.model.visual.named_parameters())
        language = [(n, p) for n, p in self.model.named_parameters() if "visual" not in n]
        trained: list[tuple[list[tuple[str, nn.Parameter]], float]] = []
        if self.stage != "language":
            trained.append((vision, self.plan.vision_rate))
        if self.stage != "vision":
            trained.append((language, self.plan.rate))
        hidden, other = [], []
        for named, rate in trained:
            matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
            rest = [p for n, p in named if p.ndim != 2 or "embed" in n]
            hidden.append({"params": matrices, "lr": rate, "base": rate})
            other.append({"params": rest, "lr": rate, "base": rate})
        if self.stage == "vision":
            other.append({"params": list(self.heads.parameters()), "lr": 1e-3, "base": 1e-3})
        else:
            other.append({"params": list(self.places.parameters()), "lr": 1e-3, "base": 1e-3})
        return [
            torch.optim.Muon(hidden, lr=1e-3, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(other, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]

    def _load(self, state: dict) -> None:
        if len(state["codes"]) != len(self.codes):
            raise SabError(
                f"{self.path} was made for another set of labels; begin from its exported checkpoint "
                "(--start) in a new --state directory."
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.places.load_state_dict(state["places"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.grow = state["step"], state["seconds"], state["grow"]
        self.codes, self.tied = state["codes"], state["tied"]

    def _start_from(self, directory: Path) -> None:
        """Take what the earlier stages left: decoder from `language`, tower from `vision`, or a whole checkpoint."""
        if _is_checkpoint(directory):
            loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
            self.model.load_state_dict(loaded.state_dict())
            self.model.to(self.device)  # type: ignore[arg-type]
            self.codes = load_codes(directory).to(self.device)
            self.tied = True
            self._heads_from_codes()
            return
        vision, language = (
            torch.load(directory / name, map_location=self.device, weights_only=True) for name in EARLIER
        )
        merged = {**language["model"], **{k: v for k, v in vision["model"].items() if ".visual." in k}}
        self.model.load_state_dict(merged)
        self.codes = vision["codes"].to(self.device)  # what the tower speaks now: a stage begun anew has tied codes
        if language.get("tied"):
            self._move_codes(language["codes"].to(self.device))

    @torch.no_grad()
    def _heads_from_codes(self) -> None:
        """Let the heads read the codes that the tower already writes: with heads begun at random, the first steps would
        spoil the tower for them. Logit 10 for a value that is there, 5 for "nothing", 0 for every other value."""
        self.heads.weight.copy_(10 * torch.linalg.pinv(self.codes.double(), rtol=1e-4).T)
        self.heads.bias.zero_()
        self.heads.bias[self.offsets] = 5.0

    @torch.no_grad()
    def tie_spelt(self) -> None:
        """Make the codes of what is read (characters, bar values) speak the decoder's own letters and digits.

        Each becomes the token's embedding (mean of its forms with and without a space, length 1) plus a mark of its
        slot, rolled by a share of its width that differs from slot to slot: without that "AB" and "BA" in one visual
        token would sum to the same. Shapes and colours are few and learned at once; 36 characters in two places are
        not, and the decoder already handles their tokens in text.
        """
        vocabulary = self.tokenizer.get_vocab()
        embeddings = self.model.model.language_model.embed_tokens.weight
        generator = torch.Generator().manual_seed(CODEBOOK_SEED + 1)
        for offset, (slot, values) in zip(self.offsets.tolist(), SLOTS.items(), strict=True):
            turn = {"left character": 0, "bar value": 1, "right character": 2}.get(slot)
            if turn is None:
                continue
            mark = torch.randn(embeddings.shape[1], generator=generator) * 0.5 * embeddings.shape[1] ** -0.5
            for index, value in enumerate(values[1:], start=1):
                forms = [vocabulary[form] for form in (value, "\u0120" + value) if form in vocabulary]
                word = embeddings[forms].mean(0)
                word = word.roll(turn * len(word) // 4)
                self.codes[offset + index] = word / word.norm() + mark.to(self.device)
        self.tied = True

    @torch.no_grad()
    def _move_codes(self, codes: Tensor) -> None:
        """Compose the map from this codebook to another into the merger's last linear: y M with M = I + A⁺(B − A)
        takes every old code A to its new one B and leaves the rest alone."""
        old = self.codes.double()
        move = torch.eye(old.shape[1], dtype=torch.float64, device=self.device)
        move += torch.linalg.pinv(old) @ (codes.double() - old)
        last = self.model.model.visual.merger.mlp[2]
        last.weight.copy_((last.weight.double().T @ move).T)
        last.bias.copy_(last.bias.double() @ move)
        self.codes, self.tied = codes, True

    def save(self) -> None:
        """Write the state durably: temporary file, flush, rename."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "places": self.places.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "grow": self.grow,
            "codes": self.codes,
            "tied": self.tied,
        }
        partial = self.path.with_suffix(".tmp")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path)

    def export(self, directory: Path) -> None:
        """Write the checkpoint (bf16) and, beside it, the codebook that a later training goes on with."""
        if self.device.type == "cpu":
            self.model.set_attn_implementation("sdpa")
        architecture.save(self.model.to("cpu"), self.tokenizer, directory)  # type: ignore[arg-type]
        save_codes(self.codes, directory)

    # ---------------------------------------------------------------------------------------- losses
    def codes_for(self, labels: Tensor, noise: float) -> Tensor:
        """Sums of codes of label values, [P, 16, width], with noise so that the decoder bears an imperfect tower."""
        keep = torch.rand(labels.shape, device=labels.device) > 0.01
        summed = self.codes[(labels * keep) + self.offsets].sum(dim=2)
        return summed + noise * torch.randn_like(summed) * summed.shape[-1] ** -0.5

    def see(self, pictures: list[NDArray[np.uint8]]) -> Tensor:
        """The tower's visual tokens, [P, 16, width]."""
        grid = torch.tensor([[1, SIDE // 14, SIDE // 14]] * len(pictures), device=self.device)
        seen = self.model.model.visual(pixels(pictures).to(self.device), grid_thw=grid)
        tokens = seen.pooler_output if hasattr(seen, "pooler_output") else seen
        return tokens.reshape(len(pictures), TOKENS, -1)

    def distance(self, seen: Tensor, labels: Tensor) -> Tensor:
        """Squared distance of visual tokens to their sums of codes, relative to the codes' own square."""
        target = self.codes[labels + self.offsets].sum(dim=2)
        return (seen.float() - target).square().mean() / target.square().mean()

    def vision_loss(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of every slot under the heads, plus the distance to the sum of codes."""
        logits = self.heads(seen)
        total = self.distance(seen, labels)
        right = {"distance": float(total.detach())}
        bounds = [*self.offsets.tolist(), len(self.codes)]
        for index, name in enumerate(SLOTS):
            wanted = labels[:, :, index].flatten()
            scores = logits[:, :, bounds[index] : bounds[index + 1]].flatten(0, 1).float()
            weight = torch.where(wanted > 0, 4.0, 1.0)
            total = total + (F.cross_entropy(scores, wanted, reduction="none") * weight).sum() / weight.sum()
            filled = wanted > 0
            if filled.any():
                right[name] = float((scores.argmax(1) == wanted)[filled].float().mean())
        return total, right

    def _states(self, batch: Batch, visual: Tensor | None) -> Tensor:
        """The decoder's last hidden states [B, L, width]; those of block PLACE_BLOCK are left in `self.early`."""
        self.early.clear()
        embeds = self.model.model.language_model.embed_tokens(batch.ids.to(self.device))
        if visual is not None and len(batch.with_picture):
            mask = (batch.ids == self.encoder.image).to(self.device)
            embeds = embeds.masked_scatter(mask[..., None], visual.to(embeds.dtype))
        return self.model.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions.to(self.device), use_cache=False
        ).last_hidden_state

    def language_loss(self, batch: Batch, visual: Tensor | None) -> tuple[Tensor, float]:
        """Mean cross-entropy of the answer tokens, and the share predicted right."""
        states = self._states(batch, visual)
        targets = batch.targets.to(self.device)[:, 1:]
        chosen = targets != -100
        scores = self.model.lm_head(states[:, :-1][chosen]).float()
        loss = F.cross_entropy(scores, targets[chosen])
        return loss, float((scores.argmax(1) == targets[chosen]).float().mean())

    def place_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of each visual token's row and column under the throw-away head, after `_states`."""
        mask = (batch.ids == self.encoder.image).to(self.device)
        scores = self.places(self.early.pop()[mask]).float().reshape(-1, 2, GRID)
        raster = torch.arange(TOKENS, device=self.device).repeat(len(batch.with_picture))
        wanted = torch.stack([raster // GRID, raster % GRID], 1)
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten())

    @torch.no_grad()
    def check(self, suite: str, count: int) -> dict[str, float]:
        """Share of answers predicted token by token exactly as the reference, by category (codes stand in for the
        pictures in the language stage). Stricter than the suites' own rule, which accepts other wordings and does not
        ask the earlier turns of a conversation again."""
        right: dict[str, list[bool]] = {}
        pairs = scene_questions(suite, count)
        for start in range(0, count, 64):
            part = pairs[start : start + 64]
            made = [([*a.messages, {"role": "assistant", "content": a.answer}], scene) for scene, a in part]
            batch = self.encoder.batch(made, draw_pictures=self.stage == "joint")
            labels = batch.labels.to(self.device)
            visual = self.see(batch.pictures) if batch.pictures else self.codes_for(labels, 0.0)
            states = self._states(batch, visual)
            guesses = self.model.lm_head(states[:, :-1]).argmax(-1).cpu()
            wanted = batch.targets[:, 1:]
            exact = ((guesses == wanted) | (wanted == -100)).all(1)
            for (_, one), ok in zip(part, exact.tolist(), strict=True):
                right.setdefault(one.category, []).append(ok)
                right.setdefault("overall", []).append(ok)
        return {category: round(float(np.mean(values)), 3) for category, values in right.items()}

    # ---------------------------------------------------------------------------------------- the loop
    def _most(self) -> int:
        return 5 if not self.grow else min(5, 2 + int(4 * self.step / self.grow))

    def _backward_vision(self, draw: random.Random) -> dict[str, float]:
        scenes = [picture_scene(draw) for _ in range(self.plan.batch)]
        labels = torch.from_numpy(np.stack([token_labels(s) for s in scenes])).to(self.device)
        loss, figures = self.vision_loss(self.see([np.asarray(render(s)) for s in scenes]), labels)
        loss.backward()
        return {"loss": float(loss.detach()), **figures}

    def _backward_language(self, draw: random.Random) -> dict[str, float]:
        from_codes = self.stage == "language" or draw.random() < self.plan.code_share
        made = items(draw, self.plan.batch, self._most(), self.plan.picture_share, self.plan.turns)
        # Rows of like length go together, so that little is spent on padding.
        made.sort(key=lambda item: sum(len(m["content"]) for m in item[0]))
        size = -(-len(made) // 3)
        batches = [
            self.encoder.batch(made[i : i + size], draw_pictures=not from_codes) for i in range(0, len(made), size)
        ]
        answers = sum(int((b.targets != -100).sum()) for b in batches)
        figures = {"loss": 0.0, "right": 0.0}
        for batch in batches:
            share = int((batch.targets != -100).sum()) / answers
            labels = batch.labels.to(self.device)
            extra: Tensor | float = 0.0
            if batch.pictures:
                visual = self.see(batch.pictures)
                extra = self.distance(visual, labels)
                figures["distance"] = float(extra.detach())
            else:
                visual = self.codes_for(labels, draw.choice((0.0, 0.1, 0.3)))
            loss, right = self.language_loss(batch, visual)
            if len(batch.with_picture):
                place = self.place_loss(batch)
                extra = extra + place
                figures["place"] = float(place.detach())
            ((loss + 0.3 * extra) * share).backward()
            figures["loss"] += float(loss.detach()) * share
            figures["right"] += right * share
        return figures

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns what the log shows."""
        draw = random.Random(self.seed * 7_919 + STAGES.index(self.stage) * 2**36 + self.step)
        torch.manual_seed(self.seed * 7_919 + self.step)  # the noise on codes: a resumed training repeats it
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            figures = self._backward_vision(draw) if self.stage == "vision" else self._backward_language(draw)
        warm = min(1.0, (self.step + 1) / 40)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * warm * self.decay
        torch.nn.utils.clip_grad_norm_([p for o in self.optimizers for g in o.param_groups for p in g["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return figures

    decay: float = 1.0

    def run(self, minutes: float, steps: int | None, cool_down: float) -> Iterator[dict]:
        """Train for some minutes or steps; the last `cool_down` share of the slice lowers the rate to a tenth."""
        began, saved, from_step = time.monotonic(), time.monotonic(), self.step
        sums: dict[str, list[float]] = {}
        while True:
            spent = time.monotonic() - began
            share = (self.step - from_step) / steps if steps else spent / (minutes * 60)
            if share >= 1:
                break
            self.decay = 1.0 if share < 1 - cool_down else 0.1 + 0.9 * (1 - share) / cool_down
            if self.stage == "language" and not self.tied and self.step >= TIE_STEP:
                self.tie_spelt()
                yield {"stage": self.stage, "step": self.step, "share": round(share, 4), "event": "spelt codes tied"}
            before = time.monotonic()
            for name, value in self.train_step().items():
                sums.setdefault(name, []).append(value)
            self.seconds += time.monotonic() - before
            if self.step % 25 == 0:
                means = {name: round(float(np.mean(values)), 4) for name, values in sums.items()}
                sums = {}
                yield {
                    "stage": self.stage,
                    "step": self.step,
                    "seconds": round(self.seconds),
                    "share": round(share, 4),
                    "remaining_seconds": round(spent * (1 - share) / max(share, 1e-6)),
                    **means,
                }
            if time.monotonic() - saved > 240:
                self.save()
                if self.stage != "vision":
                    for suite, count in CHECKS.items():
                        yield {
                            "stage": self.stage,
                            "step": self.step,
                            "share": round(share, 4),
                            "check": suite,
                            **self.check(suite, count),
                        }
                saved = time.monotonic()
        self.save()


def _is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds what `Trainer.export` writes."""
    return all((directory / name).is_file() for name in ("model.safetensors", CODEBOOK_FILE))


def _check_start(directory: Path) -> None:
    if not _is_checkpoint(directory) and not all((directory / name).is_file() for name in EARLIER):
        raise SabError(
            f"{directory} holds neither a checkpoint with its codebook nor {' and '.join(EARLIER)}; train the stages "
            "vision and language first, or name another directory with --start."
        )
