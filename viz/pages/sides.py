"""Who answers on a side of the chat: full precision, a run, or a run in which another run's layers were laid over.

A side is named by a text: "" is full precision, "sab" the run of that id, "sab~mine" the run "sab" with the finished
linears of the run "mine" in place of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sab.errors import SabError

if TYPE_CHECKING:
    from sab.models import LVLM
    from sab.runs import Run
    from viz.pages.store import PackedModel, Store

FULL = "Full precision"
OVER = "~"


@dataclass(frozen=True)
class Runtime:
    """How a side computes: the kernel in use in words, bytes that its weights take in memory, and whether binarized
    weights are only simulated (held dequantized, so that the answers are right and the speed is not) or computed on as
    they are packed."""

    kernel: str
    resident_bytes: int
    simulated: bool


def runtime(store: Store, side: str) -> Runtime:
    """The one place that knows by which kernel a side computes; the model must be loaded."""
    packed = packed_of(store, side)
    if packed is not None:
        return Runtime(packed.kernel, packed.resident_bytes, simulated=False)
    model = store.lvlm.model
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    dtype = str(store.lvlm.dtype).removeprefix("torch.")
    kernel = f"torch {dtype}, dequantized weights" if side else f"torch {dtype}"
    return Runtime(kernel, held, simulated=bool(side))


def runs_of(store: Store, side: str) -> list[Run]:
    """The runs that make up a side, the first one below; empty for full precision. SabError for unknown ones."""
    if not side:
        return []
    if OVER in side:
        below, _, over = side.rpartition(OVER)
        return [*runs_of(store, below), store.run(over)]
    return [store.run(side)]


def model_of(store: Store, side: str) -> LVLM:
    """The model of a side with dense (dequantized) weights; waits until it is in memory."""
    runs = runs_of(store, side)
    return store.binarized(*(run.id for run in runs)) if runs else store.lvlm


def packed_of(store: Store, side: str) -> PackedModel | None:
    """The side's model with packed linears, where the kernel can hold all of them; layers laid over others stay
    simulated."""
    runs = runs_of(store, side)
    return store.packed(runs[0].id) if len(runs) == 1 else None


def answering_model(store: Store, side: str) -> LVLM:
    """The model that answers on a side: packed where it can be, else simulated. Waits until it is in memory."""
    packed = packed_of(store, side)
    return model_of(store, side) if packed is None else packed.lvlm


def checked_side(store: Store, side: object) -> str:
    """A side that exists. Raises SabError for anything else."""
    if side in ("", None):
        return ""
    if not isinstance(side, str) or len(side) > 300:
        raise SabError("Choose a model for each side from its list.")
    return OVER.join(run.id for run in runs_of(store, side))


def side_name(store: Store, side: str) -> str:
    """What a person reads."""
    runs = runs_of(store, side)
    if not runs:
        return FULL
    return runs[0].name + "".join(f", {changed_layers(run)} by {run.name.partition(' (')[0]}" for run in runs[1:])


def changed_layers(run: Run) -> str:
    """The linears that a run was asked for, in a few words."""
    kinds = [f"block {report.block} {report.kind}" for report in run.reports.values()]
    return kinds[0] if len(kinds) == 1 else f"{len(kinds)} layers"


def side_names(store: Store, *more: str) -> list[tuple[str, str]]:
    """Name and side of full precision and every run; runs of one name are told apart by their id. `more`: further
    sides to offer, of runs laid over others."""
    runs = store.runs()
    names = [run.name for run in runs]
    offered = [(run.name if names.count(run.name) == 1 else f"{run.name} · {run.id}", run.id) for run in runs]
    return [(FULL, ""), *offered, *((side_name(store, side), side) for side in more if OVER in side)]


def side_head(store: Store, side: str) -> dict[str, Any]:
    """Name, tags and facts of one side for the page's head: bits, kernel, weights in memory and packed."""
    runs = runs_of(store, side)
    shown: dict[str, Any] = {"name": side_name(store, side), "tags": [], "facts": []}
    if store.loaded:
        found = runtime(store, side)
        shown["facts"] += [["kernel", found.kernel], ["weights in memory", f"{found.resident_bytes / 1e6:.1f} MB"]]
        if side:
            shown["tags"].append("simulated" if found.simulated else "packed kernel")
    if runs:
        reports = {name: report for run in runs for name, report in run.reports.items()}
        weights = sum(report.weights for report in reports.values())

        def mean(field: str) -> float:
            return sum(getattr(each, field) * each.weights for each in reports.values()) / max(1, weights)

        shown["tags"][:0] = [f"{mean('bits_all_in'):.2f} bits all-in", f"{mean('bits_nominal'):.2f} nominal"]
        shown["facts"].append(["packed linears", f"{sum(each.bytes for each in reports.values()) / 1e6:.2f} MB"])
    return shown
