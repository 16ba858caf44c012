"""The parts of a vision-language model, in forward order. Its output head belongs to none of them."""

from collections.abc import Iterable

PARTS = ("vision", "projector", "decoder")


def in_forward_order(parts: Iterable[str]) -> tuple[str, ...]:
    """The same parts, each once; names that are no parts come last."""
    return tuple(sorted(dict.fromkeys(parts), key=lambda part: PARTS.index(part) if part in PARTS else len(PARTS)))
