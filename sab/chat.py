"""Streaming generation with a key-value cache, and where two answers part.

The loop is written out instead of calling `generate`, so that every token carries its probability and its
rivals, a stop takes effect before the next token, and a page can draw what it has. Positions, masks and cache
updates come from the methods `generate` uses itself, which makes the loop right for every family.
"""

from __future__ import annotations

import io
import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import DynamicCache

from sab.errors import SabError
from sab.files import contents
from sab.models import LVLM, Inputs
from sab.templates import Message, checked_messages

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PICTURE_PIXELS = 64_000_000
TOP = 5


@dataclass(frozen=True)
class TokenEvent:
    """One generated token.

    `text` is what this token adds to the answer (empty while a character of several tokens is unfinished, and
    for the token that ends the answer), `logprob` its natural-log probability at temperature 1, `top` the
    five likeliest tokens as (text, probability) and `top_ids` their ids, `seconds` the time since the stream was
    started and `at` the clock when the token came, in seconds since 1970.
    """

    text: str
    token_id: int
    logprob: float
    top: list[tuple[str, float]]
    seconds: float
    top_ids: tuple[int, ...] = ()
    at: float = 0.0


@dataclass(frozen=True)
class TokenScore:
    """What a model thinks of one token of a text that is given: natural-log probability, the five likeliest tokens
    as (text, probability), and their ids."""

    logprob: float
    top: list[tuple[str, float]]
    top_ids: tuple[int, ...]


class Decoding:
    """Greedy or sampled decoding of a batch, one position at a time, with a key-value cache."""

    def __init__(self, lvlm: LVLM, inputs: Inputs) -> None:
        """`inputs` as `LVLM.prepare` or `LVLM.collate` return them ([B, S], padded on the left)."""
        self.model = lvlm.model
        self.keep_last = lvlm.keeping(1)
        self.tokens = inputs["input_ids"]
        decoder_config = lvlm.model.config.get_text_config(decoder=True)
        self.arguments: dict[str, Any] = {
            **{key: value for key, value in lvlm.positions(inputs).items() if key != "input_ids"},
            "past_key_values": DynamicCache(config=decoder_config),
            "use_cache": True,
        }
        self.started = False

    @torch.inference_mode()
    def step(self, chosen: Tensor | None = None) -> Tensor:
        """Append `chosen` ids [B] (None: read the prompt) and return the next logits, float32 [B, V]."""
        if chosen is not None:
            self.tokens = torch.cat([self.tokens, chosen[:, None]], dim=1)
        prepared = self.model.prepare_inputs_for_generation(
            self.tokens,
            next_sequence_length=1 if self.started else None,
            is_first_iteration=not self.started,
            **self.keep_last,
            **self.arguments,
        )
        outputs = self.model(**prepared, return_dict=True)
        self.arguments = self.model._update_model_kwargs_for_generation(outputs, self.arguments)
        self.started = True
        return outputs.logits[:, -1].float()


def stream(
    lvlm: LVLM,
    messages: Sequence[Message] | str,
    picture: Image.Image | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop: threading.Event | None = None,
    begun: Sequence[int] = (),
) -> Iterator[TokenEvent]:
    """Answer the last user turn token by token; temperature 0 takes the likeliest token, else sample by seed.

    `begun`: ids with which the answer has to begin; the events start with the last of them, whose probability is
    the model's own, and all of them count as new tokens. Ends at the model's end token (whose event has no text),
    after `max_new_tokens`, or when `stop` is set (looked at before every token). Raises SabError at the first step
    for an empty prompt, settings out of range, or a conversation longer than the model's context.
    """
    started = time.perf_counter()
    if type(temperature) not in (int, float) or not 0.0 <= temperature <= 5.0:
        raise SabError("The temperature must lie between 0 and 5.")
    if type(max_new_tokens) is not int or not 1 <= max_new_tokens <= 4096:
        raise SabError("The number of new tokens must lie between 1 and 4096.")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise SabError("The seed must be a whole number from 0 to 2^63 - 1.")
    turns = checked_messages(messages)
    if turns[-1]["role"] != "user":
        raise SabError("The last message must be the user's; write a question.")
    inputs = lvlm.prepare(turns, picture)
    length = inputs["input_ids"].shape[1]
    if lvlm.context_length is not None and length + max_new_tokens > lvlm.context_length:
        raise SabError(
            f"The conversation has {length} tokens and the model's context holds {lvlm.context_length}; "
            "start a new conversation or ask for a shorter answer."
        )
    generator = torch.Generator(device=lvlm.device).manual_seed(seed)
    answer = list(begun[:-1])
    decoding = Decoding(lvlm, lvlm.extend(inputs, answer) if answer else inputs)
    shown = lvlm.tokenizer.decode(answer, skip_special_tokens=True)
    forced = list(begun[-1:])
    chosen: Tensor | None = None
    for _ in range(max_new_tokens - len(answer)):
        if stop is not None and stop.is_set():
            return
        logprobs = torch.log_softmax(decoding.step(chosen)[0], dim=-1)
        if not torch.isfinite(logprobs.max()):
            raise SabError("The model produced numbers that are not finite; load it in float32.")
        if forced:
            chosen = torch.tensor([forced.pop()], device=logprobs.device)
        elif temperature == 0:
            chosen = logprobs.argmax()[None]
        else:
            chosen = torch.multinomial(torch.softmax(logprobs / temperature, -1), 1, generator=generator)
        token = int(chosen[0])
        score = token_score(lvlm, logprobs, token)
        ended = token in lvlm.end_tokens
        text = ""
        if not ended:
            answer.append(token)
            decoded = lvlm.tokenizer.decode(answer, skip_special_tokens=True)
            if not decoded.endswith("\N{REPLACEMENT CHARACTER}"):  # else wait for the character's other bytes
                text, shown = decoded[len(shown) :], decoded
        seconds = time.perf_counter() - started
        yield TokenEvent(text, token, score.logprob, score.top, seconds, score.top_ids, time.time())
        if ended:
            return


def token_score(lvlm: LVLM, logprobs: Tensor, token: int) -> TokenScore:
    """What the log-probabilities [V] of one token say about it."""
    values, rivals = logprobs.topk(min(TOP, logprobs.numel()))
    ids = rivals.tolist()
    top = [(lvlm.tokenizer.decode([rival]), math.exp(value)) for rival, value in zip(ids, values.tolist(), strict=True)]
    return TokenScore(float(logprobs[token]), top, tuple(ids))


@torch.inference_mode()
def answer_logprobs(
    lvlm: LVLM, messages: Sequence[Message] | str, picture: Image.Image | None, tokens: Sequence[int]
) -> Tensor:
    """Log-probabilities, float32 [T, V], that a model gives to each of the T tokens of an answer it is made to read,
    in one pass. SabError for an answer without tokens and messages that ask nothing."""
    if not tokens:
        raise SabError("There is no answer yet to read; ask a question first.")
    inputs = lvlm.extend(lvlm.prepare(messages, picture), tokens[:-1])
    logits = lvlm.model(**lvlm.forward_arguments(inputs), **lvlm.keeping(len(tokens))).logits[0, -len(tokens) :]
    return torch.log_softmax(logits.float(), -1)


def first_divergence(a: Sequence[TokenEvent], b: Sequence[TokenEvent]) -> int | None:
    """Index of the first token in which two answers differ; None while one is a beginning of the other.

    An answer that has ended carries its end token, so a shorter finished answer differs there.
    """
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left.token_id != right.token_id:
            return index
    return None


def open_picture(source: str | Path | bytes | Image.Image) -> Image.Image:
    """A picture from a file, its bytes, or PIL, upright and in RGB (transparent parts on white).

    Only PNG, JPEG and WebP, first frame, at most 64 megapixels. Raises SabError for anything else.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(
                io.BytesIO(source if isinstance(source, bytes) else contents(Path(source))), formats=PICTURE_FORMATS
            )
            if opened.width * opened.height > MAX_PICTURE_PIXELS:
                raise SabError(f"The picture has {opened.width}×{opened.height} pixels; use a smaller one.")
            opened.load()
            return _rgb(opened)
    except SabError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, bomb errors and EOFError
        name = "The picture" if isinstance(source, bytes) else f"The picture {source}"
        raise SabError(f"{name} cannot be read; use a PNG, JPEG or WebP file.") from error


def _rgb(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return upright.convert("RGB")
