"""Catch what enters the decoder, then replay one block at a time on it.

Calling a decoder layer by itself is wrong for several families: Qwen3-VL adds picture features between
layers, Gemma 3 has masks and rotary positions per layer. So the decoder's keyword arguments are caught once
per batch, and block i runs by calling the *decoder* with the blocks before it stubbed (the last stub returns
the cached output of block i − 1) and the block after it ending the call. The decoder then builds masks and
positions as always; the result is the same to the last bit. Cost per replay: one block, one mask and one
rotary table; memory: the hidden states of one boundary for all samples.

The vision tower and the projector come before all that. They are small and every family wires them in its own
way, so they are not replayed block by block: `reach_decoder` runs the whole of them, with hooks where needed.

Batches rest on the host where the model is streamed, and go to its device one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sab import distributed
from sab.calibration import Sample
from sab.errors import SabError
from sab.models import LVLM, Inputs, length_buckets
from sab.progress import Listener, silent

SPLITS = ("token", "corpus")


@dataclass(frozen=True)
class Batch:
    """One calibration batch at a block boundary.

    `arguments` are the decoder's keyword arguments, `hidden` what the block before returned ([B, S, D], or a
    tuple that starts with it; None before the first block). `language` and `vision` are bool [B, S]: the
    positions that feed each modality; padding is in neither. `targets` [B, S] holds the next token where it
    belongs to an answer, else −100. `position`: which of all batches this is; a process may have a few of them only.
    """

    arguments: dict[str, Any]
    hidden: Any
    language: Tensor
    vision: Tensor
    targets: Tensor
    position: int = 0

    def on(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if self.language.device == device:
            return self
        return Batch(**{entry.name: moved(getattr(self, entry.name), device) for entry in fields(self)})


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or tensors inside dictionaries, lists and tuples, on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(entry, device) for entry in value)
    return value


MOST_REFUSED = 16  # samples that are refused before any is taken


class _Reached(Exception):
    """Ends a forward pass early; carries what was caught."""

    def __init__(self, caught: Any = None) -> None:
        super().__init__()
        self.caught = caught


def capture(
    lvlm: LVLM,
    samples: Sequence[Sample],
    split: str = "token",
    batch_size: int = 16,
    progress: Listener | None = None,
) -> list[Batch]:
    """Run the samples up to the decoder; of several processes each its share. Raises SabError for no samples or an
    unknown split.

    split "token": attended picture positions are vision, all other attended positions language. "corpus":
    all attended positions of samples with a picture are vision, those of text-only samples language.
    """
    if not samples:
        raise SabError("There are no calibration samples; raise the number of samples.")
    if split not in SPLITS:
        raise SabError(f"The split {split!r} is not known; choose token or corpus.")
    tell = progress or silent
    rows: list[Inputs] = []
    refused: list[SabError] = []
    for place, sample in enumerate(samples):
        if place % batch_size == 0:
            tell("calibration samples", place / len(samples) / 2)
        try:
            row = moved(lvlm.prepare(sample.messages, sample.picture), lvlm.rests_on)
            answers = lvlm.template.answer_mask(sample.messages, sample.picture, row).to(lvlm.rests_on)
        except SabError as error:
            refused.append(error)
            if len(refused) == MOST_REFUSED and not rows:
                raise  # it is the model, not the sample
            continue
        row["targets"] = next_tokens(row["input_ids"], answers[None])
        row["with_picture"] = torch.full_like(row["input_ids"], int(sample.picture is not None))
        rows.append(row)
    if not rows:
        raise refused[0]
    if refused:
        warnings.warn(
            f"{len(refused)} of {len(samples)} calibration samples are left out. The first: {refused[0]}", stacklevel=2
        )
    batches: list[Batch] = []
    buckets = length_buckets(rows, batch_size)
    with lvlm.holding_front():
        for position in distributed.share(len(buckets), "calibration batches"):
            tell("calibration samples", 0.5 + position / len(buckets) / 2)
            batch = _capture_batch(lvlm, [rows[index] for index in buckets[position]], split)
            batches.append(replace(batch, position=position).on(lvlm.rests_on))
    return batches


def next_tokens(input_ids: Tensor, answers: Tensor) -> Tensor:
    """Targets of next-token prediction [B, S]: the following id where it belongs to `answers`, else −100."""
    targets = torch.full_like(input_ids, -100)
    targets[:, :-1] = torch.where(answers[:, 1:], input_ids[:, 1:], -100)
    return targets


def _capture_batch(lvlm: LVLM, rows: Sequence[Inputs], split: str) -> Batch:
    collated = lvlm.place(lvlm.collate(rows))
    attended = collated["attention_mask"].bool()
    targets = collated.pop("targets").masked_fill(~attended, -100)
    with_picture = collated.pop("with_picture").bool()
    vision = collated["input_ids"] == lvlm.image_token_id if split == "token" else with_picture
    return Batch(reach_decoder(lvlm, collated), None, attended & ~vision, attended & vision, targets)


def reach_decoder(lvlm: LVLM, inputs: Inputs) -> dict[str, Any]:
    """Run vision tower and projector on a batch of model inputs, up to the decoder; returns its arguments."""

    def catch(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if positional:
            raise SabError(f"The {lvlm.family} family calls its decoder in a way that is not supported.")
        raise _Reached(named)

    hook = lvlm.decoder.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            lvlm.model(**lvlm.forward_arguments(inputs))
    except _Reached as reached:
        return {**reached.caught, "use_cache": False, "past_key_values": None}
    finally:
        hook.remove()
    raise SabError(f"The decoder of the {lvlm.family} family was not reached; it is not supported.")


def picture_batches(lvlm: LVLM, samples: Sequence[Sample], batch_size: int = 16) -> list[Inputs]:
    """Model inputs of the samples that have a picture, for `reach_decoder`. SabError where none has one."""
    rows = []
    for sample in samples:
        with suppress(SabError):  # `capture` says how many are left out
            if sample.picture is not None:
                rows.append(moved(lvlm.prepare(sample.messages, sample.picture), lvlm.rests_on))
    if not rows:
        raise SabError("No calibration sample has a picture, so nothing reaches the vision tower; take more samples.")
    buckets = length_buckets(rows, batch_size)
    own = distributed.share(len(buckets), "batches of calibration pictures")
    return [lvlm.collate([rows[index] for index in buckets[position]]) for position in own]


@contextmanager
def patched(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute `forward`; its attributes, which some decoders read, stay."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def replay_block(lvlm: LVLM, index: int, batch: Batch) -> Any:
    """Output of decoder block `index` (a tensor [B, S, D], or a tuple that starts with it; None where `watching` left
    it) over a batch whose `hidden` is the output of block index − 1. Runs with the caller's gradient mode, on the
    model's device; a streamed model must be holding the block."""
    blocks = lvlm.blocks
    original = blocks[index].forward
    batch = batch.on(lvlm.device)

    def end(*positional: Any, **named: Any) -> Any:
        raise _Reached(original(*positional, **named))

    with ExitStack() as stack:
        _stub_before(stack, blocks, index, batch.hidden)
        stack.enter_context(patched(blocks[index], end))
        try:
            lvlm.decoder(**batch.arguments)
        except _Reached as reached:
            return reached.caught
    raise SabError(f"Decoder block {index} of the {lvlm.family} family was not reached; it is not supported.")


@torch.no_grad()
def run_decoder(lvlm: LVLM, batch: Batch) -> Any:
    """Run all blocks on a batch as `capture` made it, before the first of them."""
    return lvlm.decoder(**batch.arguments)


def replay_rest(lvlm: LVLM, index: int, batch: Batch, last: int | None = None) -> Tensor:
    """Logits [B, S, V] of a batch whose `hidden` is the output of block index − 1: block `index` and those after
    it, the final norm and the head. `last`: of that many positions at the end only."""
    with ExitStack() as stack:
        _stub_before(stack, lvlm.blocks, index, batch.hidden)
        states = lvlm.decoder(**batch.arguments).last_hidden_state
    return cast(Tensor, lvlm.model.get_output_embeddings()(states if last is None else states[:, -last:]))


def replay_head(lvlm: LVLM, batch: Batch) -> Tensor:
    """Logits [B, S, V] of a batch whose `hidden` is the output of the last block."""
    return replay_rest(lvlm, len(lvlm.blocks), batch)


def _stub_before(stack: ExitStack, blocks: Sequence[nn.Module], index: int, hidden: Any) -> None:
    """Blocks before `index` pass their input on; the last of them returns `hidden`."""
    wraps = isinstance(hidden, tuple)

    def skip(hidden_states: Tensor, *positional: Any, **named: Any) -> Any:
        return (hidden_states,) if wraps else hidden_states

    def cached(*positional: Any, **named: Any) -> Any:
        return hidden

    for position, block in enumerate(blocks[:index]):
        stack.enter_context(patched(block, cached if position == index - 1 else skip))


@contextmanager
def watching(
    linears: dict[str, nn.Linear], see: Callable[[list[str], Tensor], None], *, to_the_end: bool = True
) -> Iterator[None]:
    """Report the inputs of linears while the context is open: `see(names, inputs)`.

    Linears that are called in turn on the very same tensor (q, k, v; gate and up) are reported together, so
    that their common Hessian is computed once. What was seen last is reported when the context closes or
    `watching` meets another tensor. A replay that need not go on `to_the_end` is left, with None, as soon as every
    linear was called: nobody needs the block's last product.
    """
    pending: list[Any] = []  # [names, inputs] of the tensor seen last
    waiting = set(linears)

    def flush() -> None:
        if pending:
            names, inputs = pending[0]
            pending.clear()
            see(names, inputs)

    def note(name: str, inputs: Tensor) -> None:
        if pending and pending[0][1] is inputs:
            pending[0][0].append(name)
            return
        flush()
        pending.append(([name], inputs))

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, positional: tuple[Any, ...]) -> None:
            note(name, positional[0])
            waiting.discard(name)
            if not waiting and not to_the_end:
                raise _Reached

        return hook

    hooks = [module.register_forward_pre_hook(hook_for(name)) for name, module in linears.items()]
    try:
        yield
        flush()
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(inputs: Tensor, mask: Tensor, name: str) -> Tensor:
    """Inputs [B, S, m] at the masked positions: [tokens, m]. SabError where a linear sees other positions."""
    if inputs.shape[:-1] != mask.shape:
        raise SabError(
            f"The linear {name} does not see every token (a mixture of experts?), which is not supported; "
            "choose a dense model."
        )
    return inputs[mask]


def answer_gradient(lvlm: LVLM, batch: Batch) -> Tensor:
    """Gradient of the answers' log-likelihood (summed over tokens) at the last block's output, [B, S, D], where the
    batch rests. A streamed model must be holding the head."""
    batch = batch.on(lvlm.device)
    with torch.enable_grad():
        states, wrapped = _leaf(batch.hidden)
        logits = replay_head(lvlm, replace(batch, hidden=wrapped)).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return torch.autograd.grad(loss, states)[0].to(lvlm.rests_on)


def block_gradient(
    lvlm: LVLM,
    index: int,
    batch: Batch,
    gradient: Tensor,
    linears: dict[str, nn.Linear],
    see: Callable[[str, Tensor, Tensor], None],
) -> Tensor:
    """Take a gradient [B, S, D] back through block `index`, replayed with gradients on.

    `see(name, inputs [B, S, m], gradient [B, S, n])` is called for each linear. Returns the gradient at the
    block's input, where the batch rests. A streamed model must be holding the block.
    """
    batch, gradient = batch.on(lvlm.device), gradient.to(lvlm.device)

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, positional: tuple[Any, ...], output: Tensor) -> None:
            inputs = positional[0].detach()
            output.register_hook(lambda arrived: see(name, inputs, arrived))

        return hook

    hooks = [module.register_forward_hook(hook_for(name)) for name, module in linears.items()]
    try:
        with torch.enable_grad():
            if batch.hidden is None:
                states = batch.arguments["inputs_embeds"].detach().requires_grad_()
                batch = replace(batch, arguments={**batch.arguments, "inputs_embeds": states})
            else:
                states, wrapped = _leaf(batch.hidden)
                batch = replace(batch, hidden=wrapped)
            output = replay_block(lvlm, index, batch)
            first = output[0] if isinstance(output, tuple) else output
            return torch.autograd.grad(first, states, gradient)[0].to(lvlm.rests_on)
    finally:
        for hook in hooks:
            hook.remove()


def _leaf(hidden: Any) -> tuple[Tensor, Any]:
    """The hidden states as a leaf that collects a gradient, alone and inside the block's own return value."""
    if isinstance(hidden, tuple):
        states = hidden[0].detach().requires_grad_()
        return states, (states, *hidden[1:])
    states = hidden.detach().requires_grad_()
    return states, states
