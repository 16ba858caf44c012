"""What a run depends on besides the machine: a recipe, its defaults, its limits, and its form in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sab.binarizers import METHODS
from sab.compensate import COMPENSATIONS, EMPHASES, KEEP, SEARCHES, FitSettings
from sab.errors import SabError
from sab.parts import PARTS, in_forward_order
from sab.significance import Thresholds

CHOICES: dict[str, tuple[str, ...]] = {
    "sensitivity": ("input", "fisher"),
    "split": ("token", "corpus"),
    "compensation": COMPENSATIONS,
    "search": SEARCHES,
    "emphasis": EMPHASES,
    "keep": KEEP,
}
WHOLE_NUMBERS = {
    "samples": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
    "iterations": (0, 1000),
    "max_salient": (1, 49),
    "block_size": (128, 4096),
}


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the machine. `model` None is the embedded one; `parts` are those of
    `sab.parts`, in forward order; `linears` None is every linear of the parts. `beta` holds for the decoder:
    elsewhere there are vision tokens only. `refine`: epochs over which the scales and bits of each decoder
    block are refined together, None for what the method does by itself. `calibration`: the source of the samples as
    `calibration.source_of` names it, None for the demo world. The other fields are described in METHOD.md and in
    `compensate.FitSettings`.
    """

    model: str | None = None
    method: str = "sab"
    thresholds: Thresholds = field(default_factory=Thresholds)
    sensitivity: str = "input"
    split: str = "token"
    samples: int = 512
    seed: int = 0
    iterations: int = 15
    parts: tuple[str, ...] = ("decoder",)
    linears: tuple[str, ...] | None = None
    beta: float | None = None
    compensation: str = "exact"
    search: str = "published"
    max_salient: int = 49
    emphasis: str = "constant"
    block_size: int = 128
    damping: float = 0.01
    keep: str = "magnitude"
    bits: float | None = None
    refine: int | None = None
    calibration: str | None = None

    @property
    def refine_epochs(self) -> int:
        """Epochs of refinement: as asked for, else the method's own."""
        return (METHODS[self.method].refine or 0) if self.refine is None else self.refine

    @property
    def fit_settings(self) -> FitSettings:
        """What the fit of one linear needs of it: the fields of the same names."""
        return FitSettings(**{entry.name: getattr(self, entry.name) for entry in fields(FitSettings)})

    def validate(self) -> None:
        """Raise SabError, in one sentence, for the first value that is unknown or out of range."""
        if self.method not in METHODS:
            raise SabError(f"There is no method {self.method!r}; choose one of {', '.join(METHODS)}.")
        if not isinstance(self.thresholds, Thresholds):
            raise SabError("The thresholds must be a Thresholds value.")
        self.thresholds.validate()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SabError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(choices)}.")
        for name, (low, high) in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise SabError(f"{name} is {value!r}; give a whole number from {low} to {high}.")
        if self.block_size % 128:
            raise SabError(f"block_size is {self.block_size}; give a multiple of 128.")
        if not _is_number(self.damping) or not 0 < self.damping <= 1:
            raise SabError(f"damping is {self.damping!r}; give a number above 0 and at most 1.")
        if self.beta is not None and (not _is_number(self.beta) or not 0 <= self.beta <= 1):
            raise SabError(f"beta is {self.beta!r}; give a number from 0 to 1, or none for the token share.")
        named = isinstance(self.parts, tuple) and all(part in PARTS for part in self.parts)
        if not named or not self.parts or self.parts != in_forward_order(self.parts):
            raise SabError(f"parts is {self.parts!r}; choose from {', '.join(PARTS)}, in this order.")
        if self.bits is not None and (not _is_number(self.bits) or not 1 <= self.bits <= 4):
            raise SabError(f"bits is {self.bits!r}; give a number from 1 to 4.")
        if (self.search == "budget") != (self.bits is not None):
            raise SabError("A budget search takes bits, the stored bits a weight, and no other search does.")
        if self.search == "budget" and self.method != "sab-h":
            raise SabError(f"{self.method} has no budget search; choose sab-h.")
        if self.refine is not None:
            if type(self.refine) is not int or not 0 <= self.refine <= 100:
                raise SabError(f"refine is {self.refine!r}; give a whole number of epochs from 0 to 100.")
            if self.refine and METHODS[self.method].refine is None:
                raise SabError(f"{self.method} has no signs and scales to refine; leave refine out.")
        if self.linears is not None and (not self.linears or not all(isinstance(name, str) for name in self.linears)):
            raise SabError("linears must name at least one linear, or be left out for all of them.")
        if self.model is not None and not isinstance(self.model, str):
            raise SabError(f"model is {self.model!r}; give a folder or a Hugging Face id.")
        if self.calibration is not None and (not isinstance(self.calibration, str) or not self.calibration):
            raise SabError(f"calibration is {self.calibration!r}; give a folder, a file or hf:owner/name.")

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json` can write and `from_json` reads back."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def map_conditions(self, fingerprint: str) -> dict[str, Any]:
        """What figures about the maps of a model depend on, for JSON."""
        names = ("sensitivity", "split", "samples", "seed", "calibration", "damping", "thresholds")
        stored = self.to_json()
        model = {"model": self.model or "embedded", "fingerprint": fingerprint}
        return model | {name: stored[name] for name in names}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`. Raises SabError for unknown fields and invalid values."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SabError(f"The recipe has an unknown field {unknown[0]!r}; it was made by another version.")
        given = dict(values)
        try:
            given["thresholds"] = Thresholds(**given.get("thresholds", {}))
            for name in ("parts", "linears"):
                if given.get(name) is not None:
                    given[name] = tuple(given[name])
        except TypeError as error:
            raise SabError("The recipe's thresholds or names cannot be read; write it anew.") from error
        recipe = cls(**given)
        recipe.validate()
        return recipe


def method_and_budget(entry: str) -> tuple[str, float | None]:
    """What `sab-h` and `sab-h@2.0` name: a method, and the stored bits a weight it may use (None: no budget).

    SabError for bits that are no number.
    """
    method, mark, bits = entry.partition("@")
    try:
        return method, float(bits) if mark else None
    except ValueError as error:
        raise SabError(f"{entry!r} is no method with a budget of bits; write it as sab-h@2.0.") from error


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
