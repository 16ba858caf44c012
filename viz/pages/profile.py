"""The whole model under thresholds of one's own: what the overview and the depth figure show once they are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from viz.pages.selection import Selection
from viz.pages.store import Store, version

if TYPE_CHECKING:
    from sab.runs import Run

MOST_WEIGHTS = 20_000_000  # of a run whose every layer is partitioned anew; about a second on two cores


@dataclass(frozen=True)
class Seen:
    """A linear's report with the classes and r of other thresholds (see `viz.figures.overview.Report`); `sparsity` is
    its mean ρ, NaN where the map is switched off."""

    name: str
    block: int
    kind: str
    part: str
    relative_loss: float
    bits_all_in: float
    unimodal_ratio: float
    counts: Mapping[str, int]
    sparsity: float


class Profiles:
    """Reports of whole runs under any thresholds; the latest few are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept = store.kept(16)

    def reports(self, run: Run, selection: Selection) -> list[Seen] | None:
        """What each linear of a run that is done shows under the selection; None where that is not at hand: without
        sensitivities of this kind, for another model's run, or where it would take long."""
        reports = run.reports
        if not reports or sum(report.shape[0] * report.shape[1] for report in reports.values()) > MOST_WEIGHTS:
            return None
        if run.fingerprint != self._store.lvlm.fingerprint:
            return None
        found = {name: self._store.sensitivity(run, name, selection.kind) for name in reports}
        if any(pair is None for pair in found.values()):
            return None
        thresholds = selection.thresholds()

        def build() -> list[Seen]:
            from sab.significance import significance_map

            seen = []
            for name, report in reports.items():
                pair = found[name]
                assert pair is not None
                drawn = significance_map(self._store.weight(run, name), *pair, thresholds)
                seen.append(
                    Seen(
                        name=name,
                        block=report.block,
                        kind=report.kind,
                        part=report.part,
                        relative_loss=report.relative_loss,
                        bits_all_in=report.bits_all_in,
                        unimodal_ratio=drawn.unimodal_ratio,
                        counts=drawn.counts(),
                        sparsity=float("nan") if drawn.switched_off else float(drawn.sparsity.mean()),
                    )
                )
            return seen

        return self._kept.get((version(run), selection.kind, thresholds), build)
