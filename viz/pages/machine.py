"""What the models that are open in one process share: the device, the two lines in front of it, and the memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from sab.errors import SabError
from sab.hub import gigabytes
from viz.pages.gate import Gate
from viz.pages.jobs import Jobs

MOST_MODELS = 3  # in memory; the page of one that had to go loads it again when it is needed
COPIES = 2  # full precision and a run beside it, as Chat has them


def bytes_in_memory(config: Any) -> int:
    """What the weights of a model take where they are put by default, going by its configuration."""
    from sab.models import chosen_device, chosen_dtype
    from sab.streaming import on_meta, weight_bytes

    return weight_bytes(on_meta(config, chosen_dtype(None, chosen_device(None))))


def free_bytes() -> int:
    """What is free where weights are put by default."""
    from sab.memory import free_memory
    from sab.models import chosen_device

    return free_memory(chosen_device(None))


class Resident(Protocol):
    """Something that holds a model in memory."""

    def release(self) -> bool:
        """Let go of the model, unless it is just being loaded; whether that was done."""


class Machine:
    """One device for all models: passes and fits run one at a time, questions and jobs stand in one line each."""

    def __init__(self) -> None:
        self.device_lock = threading.Lock()  # one forward or backward pass at a time
        self.loading = threading.Lock()  # transformers changes its classes while it loads, for all threads
        self.jobs = Jobs()  # runs and evaluations that visitors have asked for
        self.gate = Gate()  # questions of the chat
        self._residents: OrderedDict[Resident, None] = OrderedDict()  # the least recently used first
        self._guard = threading.Lock()

    def used(self, resident: Resident) -> None:
        """Note that a model in memory was used; the least recently used ones above MOST_MODELS go."""
        with self._guard:
            self._residents[resident] = None
            self._residents.move_to_end(resident)
            surplus = list(self._residents)[: max(0, len(self._residents) - MOST_MODELS)]
        for each in surplus:  # without the guard: what goes has locks of its own
            self._release(each)

    def make_room(self, name: str, place: str) -> None:
        """Have room for the model in the folder `place` and for a run of it, other models going where they must.
        SabError where even that is not enough, and for what no page can show."""
        from sab.configurations import configuration

        if (Path(place) / "recipe.json").exists() and not (Path(place) / "config.json").exists():
            raise SabError(f"{name} is a run and not a model: open its model, and choose the run there.")
        config = configuration(place)
        if getattr(config, "quantization_config", None):
            raise SabError(
                f"{name} is a packed checkpoint, without the full precision that every page compares with: open the "
                "model that it was made from, or ask it by `python -m sab chat`."
            )
        weights = bytes_in_memory(config)
        while free_bytes() < COPIES * weights:
            with self._guard:
                others = list(self._residents)
            if not any(self._release(each) for each in others) and not self.jobs.let_go():
                raise SabError(
                    f"{name} takes {gigabytes(weights)} in memory and as much again for a run beside it, and "
                    f"{gigabytes(free_bytes())} are free: `python -m sab quantize` binarizes it one block "
                    "at a time."
                )

    def _release(self, resident: Resident) -> bool:
        released = resident.release()
        if released:
            with self._guard:
                self._residents.pop(resident, None)
        return released
