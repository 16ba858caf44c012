"""Calibration samples: the dialogues over which Hessians and Fisher information are averaged.

A sample is a whole conversation, answers included, so that language statistics hold answers as well as
questions. Everything is seeded. Where they come from is a source, as recipes and `--calibration` name it: the demo
world's calibration suite, whose seeds are disjoint from the tuning and the final suite; a folder, a file of JSON lines
or a dataset of the Hugging Face hub, all three read by calibration_files.py.

From a source with both kinds, conversations with and without a picture are drawn in a fixed proportion: one in eight
without for the split by tokens, as in the demo world, where language has tokens of every sample; half and half for the
split by corpus, where only they are language (METHOD 1).
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from PIL import Image

from sab.errors import SabError

EMBEDDED = "embedded"
HUB = re.compile(r"hf:(?P<name>\w[\w.-]*/\w[\w.-]*)(?:/(?P<config>\w[\w.-]*))?(?::(?P<split>\w[\w.-]*))?")
WITHOUT_PICTURE = {"token": 1 / 8, "corpus": 1 / 2}  # share of samples, by split


@dataclass(frozen=True)
class Sample:
    """One conversation: {"role", "content"} texts; the picture goes with the first user turn."""

    messages: list[dict[str, str]]
    picture: Image.Image | None


@dataclass(frozen=True)
class SampleSet(Sequence[Sample]):
    """Samples and where they are from; `skipped`: how many that were drawn could not be used."""

    samples: tuple[Sample, ...]
    source: str
    skipped: int = 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every text and every pixel, in order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            size = list(sample.picture.size) if sample.picture is not None else None
            digest.update(json.dumps([sample.messages, size], sort_keys=True).encode())
            if sample.picture is not None:
                digest.update(sample.picture.tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a run notes of its samples, for JSON."""
        pictures = sum(sample.picture is not None for sample in self.samples)
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "samples": len(self.samples),
            "with_picture": pictures,
            "text_only": len(self.samples) - pictures,
            "skipped": self.skipped,
        }


def embedded(count: int, seed: int = 0) -> SampleSet:
    """`count` seeded samples of the demo world. Raises SabError when count is not positive."""
    from sab.demo.suite import samples

    _check_count(count)
    found = samples(count, seed=seed)
    return SampleSet(tuple(Sample(messages=messages, picture=picture) for messages, picture in found), EMBEDDED)


def as_set(samples: Sequence[Sample]) -> SampleSet:
    """Samples that somebody made as a set, which says so."""
    return samples if isinstance(samples, SampleSet) else SampleSet(tuple(samples), "given")


def source_of(named: str | None) -> str | None:
    """How recipes name a source that a person names: None for the demo world, files by their whole path.

    Raises SabError for what is neither a folder nor a file nor written like a dataset.
    """
    if named is None or named == EMBEDDED:
        return None
    if named.startswith("hf:"):
        if not HUB.fullmatch(named):
            raise SabError(
                f"{named!r} names no dataset; write it as hf:owner/name, hf:owner/name:split "
                "or hf:owner/name/configuration:split."
            )
        return named
    path = Path(named)
    if not (path.is_dir() or path.is_file()):  # a pipe could not be read twice
        raise SabError(
            f"There are no calibration samples at {named}; name a folder of pictures with texts, a file of JSON lines, "
            f"hf:owner/name, or {EMBEDDED}."
        )
    return str(path.resolve())


def choose(source: str | None, count: int, seed: int = 0, split: str = "token") -> SampleSet:
    """`count` seeded samples of a source as `source_of` names it, in the proportion that the split wants.

    What cannot be used is skipped with a warning; where one kind runs out, the other fills up; fewer than `count` are
    warned about. Raises SabError where the source is not there or none of its samples can be used.
    """
    if source is None:
        return embedded(count, seed)
    _check_count(count)
    from sab import calibration_files

    wanted = {False: round(count * WITHOUT_PICTURE.get(split, 0))}
    wanted[True] = count - wanted[False]
    found: list[Sample] = []
    reserve: list[calibration_files.Entry] = []
    refused: list[str] = []

    def take(entry: calibration_files.Entry) -> bool:
        try:
            found.append(entry.read())
        except SabError as refusal:
            refused.append(f"{entry.place}: {str(refusal).rstrip('.')}")
            return False
        return True

    for entry in calibration_files.entries(source, seed, count):
        if wanted[entry.with_picture]:
            wanted[entry.with_picture] -= take(entry)
        elif len(reserve) < count:
            reserve.append(entry)
        if len(found) == count:
            break
    for entry in reserve:
        if len(found) == count:
            break
        take(entry)
    if not found:
        raise SabError(f"No calibration sample of {source} can be used ({refused[0] if refused else 'it is empty'}).")
    if refused:
        warnings.warn(f"{len(refused)} calibration samples are skipped, first {refused[0]}.", stacklevel=2)
    if len(found) < count:
        warnings.warn(f"{source} has {len(found)} samples that can be used, not {count}; all are used.", stacklevel=2)
    return SampleSet(tuple(found), source, len(refused))


def _check_count(count: int) -> None:
    if count < 1:
        raise SabError("Calibration needs at least one sample; raise the number of samples.")
