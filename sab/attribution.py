"""Why did they differ: which linears of a binarized model move its next token away from full precision.

Both models read the same text, a prompt and an answer (teacher forcing), and the distance at a token is
KL(full ‖ binarized) of the two distributions of that token, in nats. Then one linear, or one block, is swapped:

    repair   the binarized model with the full-precision weight of that linear back in place: how much of the KL goes
    damage   the full-precision model with the binarized weight of that linear alone: how much KL comes

Up to the block that holds the linear nothing changes, so each model runs once, its hidden states are kept at every
block's boundary, and a swap costs the blocks from its own on (in front of the decoder: everything). All answer
tokens come out of the same pass, since a token sees only those before it.

What the figures cannot mean: repairs do not add up, for errors of linears cancel and amplify each other; a linear
may repair because it made good another's error, and swapping it back may make matters worse (a negative repair);
one token after one text says nothing of others. The sum over all linears is no control; all swapped at once is:
that repairs everything, which a test holds.

Cost: for L linears in N blocks about (L + N)·(N + 1)/(2N) forward passes over one text a direction, and a private
copy of each model, so that those who are using the models meanwhile notice nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sab.capture import Batch, reach_decoder, replay_block, replay_rest, watching
from sab.errors import SabError
from sab.evaluate import token_kl
from sab.models import LVLM, Inputs

REPAIR, DAMAGE = "repair", "damage"


@dataclass(frozen=True)
class Swap:
    """KL(full ‖ ·) in nats of each answer token, `kl` [T], with the linears `names` swapped in the direction
    `repair` or `damage`; no names: nothing is swapped."""

    direction: str
    names: tuple[str, ...]
    kl: Tensor


@dataclass(frozen=True)
class Feed:
    """How visual tokens feed one linear, each float32 [visual tokens] on the CPU, in the order of the picture.

    `error`: ‖(W − Ŵ) x_t‖, the output error that the binarized weight adds at token t; `signal`: ‖W x_t‖, the
    linear's whole output there; x_t is what the linear reads at t in the binarized model. `error_share` and
    `signal_share`: the visual tokens' part of the summed squares over all tokens of the text, in [0, 1].
    """

    error: Tensor
    signal: Tensor
    error_share: float
    signal_share: float


class Probe:
    """A private copy of a model that has read one prompt [1, S] and answer [T tokens], its hidden states kept."""

    @torch.no_grad()
    def __init__(self, lvlm: LVLM, inputs: Inputs, tokens: Sequence[int]) -> None:
        """SabError for an answer without tokens."""
        if not tokens:
            raise SabError("There is no answer yet to compare the models on; ask a question first.")
        self._lvlm = lvlm.copy()
        self._inputs = self._lvlm.extend(self._lvlm.place(inputs), tokens[:-1])
        self._count = len(tokens)
        self._boundaries = self._run()

    @torch.no_grad()
    def logprobs(self, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log-probabilities [T, V] of the answer's tokens, with other weights [n, m] in some linears; afterwards the
        weights are what they were, to the last bit."""
        weights = weights or {}
        with swapped(self._lvlm.linears, weights):
            infos = [self._lvlm.info[name] for name in weights]
            if any(info.part != "decoder" for info in infos):
                start, batch = 0, self._decoder_inputs()
            else:
                start = min((info.block for info in infos), default=len(self._lvlm.blocks))
                batch = self._boundaries[start]
            logits = replay_rest(self._lvlm, start, batch, self._count)[0]
        return torch.log_softmax(logits.float(), -1)

    @torch.no_grad()
    def inputs_of(self, name: str) -> Tensor:
        """What a decoder linear reads at every token, float32 [S, m]. SabError for linears outside the decoder."""
        if name not in self._lvlm.decoder_linears:
            raise SabError(f"“{name}” stands in front of the decoder, where there are no tokens yet.")
        seen: list[Tensor] = []
        block = self._lvlm.info[name].block
        with watching({name: self._lvlm.linears[name]}, lambda names, inputs: seen.append(inputs)):
            replay_block(self._lvlm, block, self._boundaries[block])
        return seen[0][0].float()

    @property
    def visual(self) -> Tensor:
        """Which positions hold visual tokens, bool [S]."""
        return self._boundaries[0].vision[0]

    def _decoder_inputs(self) -> Batch:
        ids = self._inputs["input_ids"]
        vision = ids == self._lvlm.image_token_id
        return Batch(reach_decoder(self._lvlm, self._inputs), None, ~vision, vision, torch.full_like(ids, -100))

    def _run(self) -> list[Batch]:
        """The text at every boundary: before the first block, after it, …, after the last."""
        boundaries = [self._decoder_inputs()]
        for index in range(len(self._lvlm.blocks)):
            batch = boundaries[-1]
            boundaries.append(replace(batch, hidden=replay_block(self._lvlm, index, batch)))
        return boundaries


def attribute(
    full: LVLM,
    binarized: LVLM,
    inputs: Inputs,
    tokens: Sequence[int],
    groups: Sequence[tuple[str, ...]] | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Swap]:
    """Swap group after group of linears, in both directions, on the answer `tokens` to the prompt `inputs`
    (`prepare`, [1, S]). Groups default to `swap_groups(full, binarized)`.

    First comes the repair of nothing, which is the whole KL; then for each group its repair and, after all of
    those, its damage. `stop` is looked at before each. Both models stay as they are. SabError for an empty answer.
    """
    if groups is None:
        groups = swap_groups(full, binarized)
    reference = Probe(full, inputs, tokens)
    wanted = reference.logprobs()
    for direction, base, donor in ((REPAIR, binarized, full), (DAMAGE, full, binarized)):
        probe = Probe(base, inputs, tokens) if direction == REPAIR else reference
        for names in ([(), *groups] if direction == REPAIR else groups):
            if stop is not None and stop.is_set():
                return
            found = probe.logprobs({name: donor.linears[name].weight for name in names})
            yield Swap(direction, tuple(names), token_kl(wanted, found).cpu())


def swap_groups(full: LVLM, binarized: LVLM) -> list[tuple[str, ...]]:
    """The linears whose weights differ, each by itself, then each block's (and each part's) together."""
    changed = [name for name, linear in full.linears.items() if _differ(linear, binarized.linears[name])]
    blocks: dict[tuple[str, int], list[str]] = {}
    for name in changed:
        blocks.setdefault((full.info[name].part, full.info[name].block), []).append(name)
    return [*((name,) for name in changed), *(tuple(names) for names in blocks.values() if len(names) > 1)]


def feed(probe: Probe, weight: Tensor, binarized: Tensor, name: str) -> Feed | None:
    """How the picture feeds a decoder linear of full-precision weight `weight` and binarized weight [n, m] in the
    binarized model's `probe`; None for a text without a picture."""
    visual = probe.visual
    if not bool(visual.any()):
        return None
    inputs = probe.inputs_of(name)
    signal = (inputs @ weight.to(inputs).T).norm(dim=1)  # [S]
    error = (inputs @ (weight.to(inputs) - binarized.to(inputs)).T).norm(dim=1)

    def share(norms: Tensor) -> float:
        whole = float(norms.square().sum())
        return float(norms[visual].square().sum()) / whole if whole > 0 else 0.0

    return Feed(error[visual].cpu(), signal[visual].cpu(), share(error), share(signal))


@contextmanager
def swapped(linears: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other weights [n, m] in place while the context is open; afterwards all bits are back."""
    kept = {name: linears[name].weight.detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                linears[name].weight.copy_(weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                linears[name].weight.copy_(weight)


def _differ(one: nn.Linear, other: nn.Linear) -> bool:
    return not torch.equal(one.weight.to(other.weight.device), other.weight)
