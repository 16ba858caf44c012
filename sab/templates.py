"""Conversations as a checkpoint writes them: messages through its chat template, and where its answers lie.

A template is a program of the checkpoint's; it runs within a limit of time and memory (bounded.py), and whatever it
raises becomes one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sab.bounded import Halted, bounded
from sab.errors import SabError

PLAIN_TEMPLATE = """{% for message in messages %}{% for part in message.content %}\
{% if part.type == "image" %}{{ PICTURE }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ "\\n" }}{% endfor %}"""

Message = dict[str, str]


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a `processor` of transformers, or a plain one where it has none; `image_token_id` stands for a
    picture, `source` names the checkpoint in errors."""

    processor: Any
    image_token_id: int
    source: str

    def encode(self, messages: Sequence[Message] | str, picture: Image.Image | None = None) -> dict[str, Any]:
        """Model inputs of one conversation, batch size 1.

        A string is a single user turn. The picture goes in front of the first user turn. When the last turn
        is the user's, the header of the answer is appended. Control tokens in the text are kept as plain
        text. Keys are what the family's processor returns; `input_ids` and `attention_mask` are [1, S].
        Raises SabError for an empty prompt, unknown roles, or a picture the processor cannot take.
        """
        turns = checked_messages(messages)
        header = turns[-1]["role"] == "user"
        try:
            return dict(self._rendered(self.processor, _conversation(turns, picture), header, return_tensors="pt"))
        except SabError:
            raise
        except ValueError as error:
            named = self._tokenizer.convert_ids_to_tokens(self.image_token_id)
            if any(named in turn["content"] for turn in turns):
                raise SabError(f"{named} stands for a picture in this model; write the text without it.") from error
            if picture is not None:
                raise SabError(f"The model cannot take this picture ({error}); use another one.") from error
            # PaliGemma wants a picture
            return dict(self._rendered(self._tokenizer, _conversation(turns, None), header, return_tensors="pt"))

    def answer_mask(
        self, messages: Sequence[Message], picture: Image.Image | None, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Which positions of `inputs` (`encode(messages, picture)`, [1, S]) hold assistant turns: bool [S].

        Counted on the template before picture tokens are expanded: pictures stand in front of every answer,
        so the expansion shifts all answers by the same number of positions. Some processors put a line feed behind
        the whole, which is told from the tokens. Raises SabError where the answers are not found.
        """
        turns = checked_messages(messages)
        ids = inputs["input_ids"][0].tolist()
        plain = self._ids(turns, picture)
        spans = [
            slice(
                len(self._ids(turns[:position], picture, header=True)),
                len(self._ids(turns[: position + 1], picture)),
            )
            for position, turn in enumerate(turns)
            if turn["role"] == "assistant"
        ]
        mask = torch.zeros(len(ids), dtype=torch.bool)
        for shift in (len(ids) - len(plain) - behind for behind in (0, 1)):
            there = [slice(span.start + shift, span.stop + shift) for span in spans]
            if all(ids[one] == plain[other] for one, other in zip(there, spans, strict=True)):
                for span in there:
                    mask[span] = True
                return mask
        raise SabError(f"The chat template of {self.source} does not write answers as they are; choose another model.")

    @property
    def _tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def _written(self) -> Any:
        return getattr(self.processor, "chat_template", None) or self._tokenizer.chat_template or self._plain

    @property
    def _plain(self) -> str:
        """For checkpoints that were never taught to chat: the turns as they are, a line each."""
        picture = self._tokenizer.convert_ids_to_tokens(self.image_token_id)
        return PLAIN_TEMPLATE.replace("PICTURE", json.dumps(picture))

    def _ids(self, turns: Sequence[Message], picture: Image.Image | None, header: bool = False) -> list[int]:
        """Ids of a conversation with one placeholder for its picture."""
        if not turns:
            return []
        return list(self._rendered(self._tokenizer, _conversation(turns, picture, embed=False), header)["input_ids"])

    def _rendered(self, by: Any, conversation: Any, header: bool, **more: Any) -> Any:
        """A conversation, with the `header` of an answer or not, through the chat template, within a limit. SabError
        where the template refuses it or does not come to an end; ValueError as the processor raises it."""
        render = partial(
            by.apply_chat_template,
            conversation,
            chat_template=self._written,
            add_generation_prompt=header,
            tokenize=True,
            return_dict=True,
            sanitize_control_tokens=True,
            **more,
        )
        try:
            return bounded(render)
        except (Halted, MemoryError, RecursionError) as error:
            raise SabError(
                f"The chat template of {self.source} does not come to an end; get the checkpoint again, or another one."
            ) from error
        except ValueError:
            raise
        except Exception as error:  # a template is a program: whatever it may raise
            raise SabError(f"The chat template of {self.source} refuses this conversation ({error}).") from error


def checked_messages(messages: Sequence[Message] | str) -> list[Message]:
    """Messages as a list of turns. Raises SabError for no turns, empty user turns or unknown roles."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if not turns:
        raise SabError("There is no message to answer; write a prompt.")
    for turn in turns:
        known = turn.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(turn.get("content"), str):
            raise SabError("Each message needs a role (system, user or assistant) and a text as content.")
        if turn["role"] == "user" and not turn["content"].strip():
            raise SabError("The prompt is empty; write a question.")
    return turns


def _conversation(turns: Sequence[Message], picture: Image.Image | None, embed: bool = True) -> list[dict[str, Any]]:
    conversation = []
    waiting = picture is not None
    for turn in turns:
        content: list[dict[str, Any]] = [{"type": "text", "text": turn["content"]}]
        if waiting and turn["role"] == "user":
            content.insert(0, {"type": "image", "image": picture} if embed else {"type": "image"})
            waiting = False
        conversation.append({"role": turn["role"], "content": content})
    return conversation
