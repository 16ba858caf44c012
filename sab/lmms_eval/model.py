"""`--model sab` of the lmms-eval harness: a model, a packed checkpoint or a run answers the questions of its tasks.

Pictures and prompts go through `LVLM.prepare`, as they do in calibration, evaluation and chat, and answers are decoded
one at a time by `chat.stream`. Checked against lmms-eval 0.7.3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from sab import chat, models
from sab.checkpoint import is_checkpoint
from sab.errors import SabError
from sab.models import LVLM
from sab.runs import Run
from sab.templates import Message

MAX_NEW_TOKENS = 1024  # where a task does not say; what else it may say:
PLAIN = {"num_beams": (None, 1), "top_p": (None, 1, 1.0), "top_k": (None, 0, 1)}


class SabModel(lmms):
    """A model for lmms-eval. `pretrained`: a folder or Hugging Face id, a packed checkpoint, or the directory of a run,
    whose weights are dequantized. Raises SabError for what sab cannot load, and for several processes."""

    is_simple = False  # takes whole conversations

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SabError("--model sab answers in one process; start lmms-eval without accelerate launch or torchrun.")
        if str(batch_size or 1) != "1":
            raise SabError("--model sab answers one question at a time; use --batch_size 1.")
        self.lvlm = opened(pretrained, device, dtype)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests."""
        answers = []
        for request in tqdm(requests, desc="sab"):
            context, messages_of, settings, document, task, split = request.args
            turns, picture = conversation(messages_of(self.task_dict[task][split][document]))
            answers.append(answer(self.lvlm, turns, picture, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), answers[-1])
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: the tasks for which this was written let a model answer."""
        raise NotImplementedError("--model sab has no likelihoods of given answers; choose a task that generates.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered either."""
        raise NotImplementedError("--model sab answers single questions; choose a task without several rounds.")


def opened(named: str, device: str | None, dtype: str | None) -> LVLM:
    """The model of a folder or id, or of a run with the run's weights. Raises SabError where there is none."""
    directory = Path(named)
    if not (directory / "recipe.json").exists() or is_checkpoint(directory):
        return models.load(named, device, dtype)
    run = Run.open(directory)
    run.require_finished()
    lvlm = models.load(run.recipe.model, device, dtype)
    run.apply(lvlm)
    return lvlm


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Message], Image.Image | None]:
    """Turns and the picture of what a task asks. SabError for several pictures, sound and video."""
    turns: list[Message] = []
    pictures: list[Any] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if others := {part["type"] for part in parts} - {"text", "image"}:
            raise SabError(f"sab reads pictures and text, and this task has {' and '.join(sorted(others))}.")
        turns.append({"role": message["role"], "content": "".join(p["text"] for p in parts if p["type"] == "text")})
        pictures += [part["url"] for part in parts if part["type"] == "image"]
    if len(pictures) > 1:
        raise SabError("sab answers questions about one picture, and this task has several.")
    return turns, chat.open_picture(pictures[0]) if pictures else None


def answer(lvlm: LVLM, turns: list[Message], picture: Image.Image | None, settings: Mapping[str, Any]) -> str:
    """The answer under a task's settings of generation, cut in front of what it may go `until`."""
    for name, allowed in PLAIN.items():
        if settings.get(name) not in allowed:
            raise SabError(f"sab decodes greedily or samples by temperature; {name}={settings[name]} is not offered.")
    temperature = float(settings.get("temperature") or 0) if settings.get("do_sample", True) else 0.0
    until = settings.get("until") or ()
    stops = [until] if isinstance(until, str) else list(until)
    said = ""
    for event in chat.stream(
        lvlm,
        turns,
        picture,
        max_new_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
        temperature=temperature,
    ):
        said += event.text
        if found := [said.index(stop) for stop in stops if stop and stop in said]:
            return said[: min(found)]
    return said
