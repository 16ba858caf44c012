"""Calibration samples: the dialogues over which Hessians and Fisher information are averaged.

A sample is a whole conversation, answers included, so that language statistics hold answers as well as
questions. Everything is seeded; the embedded samples come from the demo world's calibration suite, whose
seeds are disjoint from the tuning and the final suite.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from sab.errors import SabError


@dataclass(frozen=True)
class Sample:
    """One conversation: {"role", "content"} texts; the picture goes with the first user turn."""

    messages: list[dict[str, str]]
    picture: Image.Image | None


def embedded(count: int, seed: int = 0) -> list[Sample]:
    """`count` seeded samples of the demo world. Raises SabError when count is not positive."""
    from sab.demo.suite import samples

    if count < 1:
        raise SabError("Calibration needs at least one sample; raise the number of samples.")
    return [Sample(messages=messages, picture=picture) for messages, picture in samples(count, seed=seed)]
