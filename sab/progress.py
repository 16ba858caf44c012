"""Who hears how far long work has come, by the name of a stage and the share of it, in 0…1, that is done."""

from collections.abc import Callable

Listener = Callable[[str, float], None]


def silent(stage: str, share: float) -> None:
    """The listener of work that nobody watches."""
