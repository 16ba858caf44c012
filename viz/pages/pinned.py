"""Two pinned runs side by side: the numbers that matter, error and sign flips by layer, the difference in one layer,
accuracy by category. Everything is read off what the runs store; nothing is computed on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from sab.errors import SabError
from viz.figures import category_bars, difference_map, run_difference
from viz.pages.asked import read_answers
from viz.pages.chart import chart, chart_value, no_chart
from viz.pages.notice import notice
from viz.pages.progress import duration
from viz.pages.results import OVERALL, Result, size
from viz.pages.scores import by_category, kl_cell, share_cell
from viz.pages.selection import Selection
from viz.pages.store import Store, version
from viz.pages.table import Column, Row, table, table_value

if TYPE_CHECKING:
    from sab.runs import Run

HOW_TO_PIN = "Pin one run as A and another as B in the table above: their differences appear here."
NO_MAP = "Choose a layer that both runs have."
Z_95 = 1.96
COLUMNS = (Column(""), Column("A", True), Column("B", True), Column("A − B", True))


@dataclass(frozen=True)
class Pair:
    """Both runs and what follows from their codes: `names` of the layers that both have finished, in forward order, and
    `flips`, the share of weights of each whose sign they store differently."""

    a: Run
    b: Run
    names: tuple[str, ...]
    flips: tuple[float, ...]


class PinnedRuns:
    """The panel and its components; `show` gives the updates for a selection."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flips = store.kept(8)
        gr.Markdown("### Compare A and B", elem_id="binarize-compare-title")
        self.said = notice("binarize-compare-notice")
        with gr.Column(visible=False, elem_id="binarize-compare") as self.panel:
            self.numbers = table("binarize-numbers")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=340):
                    self.layers = chart("Error and sign flips by layer", no_chart(""), "binarize-difference")
                with gr.Column(min_width=340):
                    self.layer = gr.Dropdown([], label="Layer", elem_id="binarize-map-layer", filterable=True)
                    self.map = chart("A − B, weight by weight", no_chart(NO_MAP), "binarize-map")
            self.categories = chart("Accuracy by category", no_chart(""), "binarize-categories")

    @property
    def outputs(self) -> list[Any]:
        return [self.said, self.panel, self.numbers, self.layers, self.layer, self.map, self.categories]

    def show(self, selection: Selection) -> dict[Any, Any]:
        """The pinned runs of a selection, and the layer that Explore shows."""
        try:
            pair = self.pair(selection)
        except SabError as refusal:
            return {self.said: str(refusal), self.panel: gr.Column(visible=False)}
        if pair is None:
            return {self.said: HOW_TO_PIN, self.panel: gr.Column(visible=False)}
        worst = max(zip(pair.flips, pair.names, strict=True))[1]
        chosen = selection.linear if selection.linear in pair.names else worst
        info = {name: report for name, report in pair.a.reports.items() if name in pair.names}
        choices = [(f"block {info[name].block}, {info[name].kind}", name) for name in pair.names]
        return {
            self.said: "",
            self.panel: gr.Column(visible=True),
            self.numbers: numbers_table(pair),
            self.layers: layers_chart(pair),
            self.layer: gr.Dropdown(choices=choices, value=chosen),
            self.map: map_chart(pair, chosen),
            self.categories: categories_chart(pair),
        }

    def show_layer(self, selection: Selection, name: object) -> dict[str, Any]:
        """The map of another layer."""
        try:
            pair = self.pair(selection)
        except SabError as refusal:
            return no_chart(str(refusal))
        return no_chart(NO_MAP) if pair is None or name not in pair.names else map_chart(pair, str(name))

    def pair(self, selection: Selection) -> Pair | None:
        """What the selection pins; None unless that is two runs. Raises SabError for two that cannot be compared."""
        if not selection.pin_a or not selection.pin_b:
            return None
        a, b = self._store.run(selection.pin_a), self._store.run(selection.pin_b)
        if a.fingerprint != b.fingerprint:
            raise SabError("A and B are runs of different models: pin two of the same one.")
        names = tuple(name for name in a.reports if name in b.reports)
        if not names:
            raise SabError("A and B have no finished layer in common: pin two runs that share one.")
        flips = self._flips.get((version(a), version(b)), lambda: tuple(flipped(a, b, name) for name in names))
        return Pair(a, b, names, flips)


def flipped(a: Run, b: Run, name: str) -> float:
    """Share of a layer's weights whose sign two runs store differently; zero counts as positive, as everywhere."""
    return float(((a.codes(name).dense() < 0) != (b.codes(name).dense() < 0)).float().mean())


def numbers_table(pair: Pair) -> dict[str, Any]:
    """One line a quantity, over the layers that both have."""
    a, b = pair.a, pair.b
    both = [[run.reports[name] for name in pair.names] for run in (a, b)]
    weights = sum(report.weights for report in both[0])
    means = {
        what: [sum(getattr(report, what) * report.weights for report in reports) / weights for reports in both]
        for what in ("bits_all_in", "bits_nominal", "relative_loss")
    }
    flips = sum(share * report.weights for share, report in zip(pair.flips, both[0], strict=True)) / weights
    rows = [
        line("Bits, all-in", means["bits_all_in"], "{:.2f}", signed("{:+.2f}")),
        line("Bits, nominal", means["bits_nominal"], "{:.2f}", signed("{:+.2f}")),
        line("Packed size", [sum(report.bytes for report in each) for each in both], size, signed_size),
        line("Output error", [100 * loss for loss in means["relative_loss"]], "{:.2f} %", signed("{:+.2f} points")),
        accuracy_line(a, b),
        distance_line(a, b),
        Row([("Signs that differ", None), ("", None), ("", None), (f"{100 * flips:.1f} %", flips)]),
        line("Fitting time", [sum(report.seconds for report in each) for each in both], duration, None),
    ]
    columns = [COLUMNS[0], Column(f"A: {a.name}", True), Column(f"B: {b.name}", True), COLUMNS[3]]
    return table_value(columns, [row for row in rows if row is not None], "")


def line(
    label: str,
    values: Sequence[float],
    form: str | Callable[[Any], str],
    change: str | Callable[[Any], str] | None,
) -> Row:
    """A quantity of both, and the difference of what is shown."""

    def said(value: float, how: str | Callable[[Any], str]) -> str:
        return how.format(value) if isinstance(how, str) else how(value)

    difference = values[0] - values[1]
    return Row(
        [
            (label, None),
            *((said(value, form), value) for value in values),
            ("", None) if change is None else (said(difference, change), difference),
        ]
    )


def signed(form: str) -> Callable[[float], str]:
    """A difference in a form with a sign; what rounds to nothing has none."""

    def said(value: float) -> str:
        text = form.format(value)
        return text.replace("-", "−") if any(digit in text for digit in "123456789") else text[1:]

    return said


def signed_size(count: float) -> str:
    """A difference of bytes for people."""
    return f"{'+' if count >= 0 else '−'}{size(abs(int(count)))}"


def accuracy_line(a: Run, b: Run) -> Row:
    """Accuracy of both with intervals; their difference question by question where both were asked the same ones."""
    found = [overall(run) for run in (a, b)]

    def points(share: float) -> str:
        return signed("{:+.1f}")(100 * share)

    difference: tuple[str, float | None] = ("not asked the same questions", None)
    paired = paired_difference(a, b)
    if paired is not None:
        value, margin = paired
        difference = (
            f"{points(value)} points\n{points(value - margin)} to {points(value + margin)}, paired",
            value,
        )
    elif None in found:
        difference = ("", None)
    cells = [share_cell(None if each is None else each[:3], "" if each is None else f"n = {each[3]}") for each in found]
    return Row([("Accuracy", None), *((text or "not asked yet", value) for text, value in cells), difference])


def overall(run: Run) -> tuple[float, float, float, int] | None:
    """Accuracy, its interval, and how many questions; None where none were asked."""
    stored = run.accuracy
    if not stored or OVERALL not in stored.get("accuracy", {}):
        return None
    low, high = stored["interval"][OVERALL]
    return stored["accuracy"][OVERALL], low, high, stored["counts"][OVERALL]


def paired_difference(a: Run, b: Run) -> tuple[float, float] | None:
    """Mean of A's minus B's correct answers, question by question, and half of its 95 % interval; None where one of
    them does not hold its single answers, or they are to other questions. A shorter evaluation asks the first questions
    of a longer one."""
    one, two = read_answers(a.directory), read_answers(b.directory)
    if one is None or two is None:
        return None
    common = min(len(one.correct), len(two.correct))
    same = one.questions == two.questions or (one.of_the_suite and two.of_the_suite)
    if not same or common < 2:
        return None
    difference = np.array(one.correct[:common], dtype=float) - np.array(two.correct[:common], dtype=float)
    return float(difference.mean()), Z_95 * float(difference.std(ddof=1)) / math.sqrt(common)


def distance_line(a: Run, b: Run) -> Row | None:
    """KL to full precision, where one of them was measured."""
    found = [(run.accuracy or {}).get("divergence") or {} for run in (a, b)]
    if not any(found):
        return None
    difference: tuple[str, float | None] = ("", None)
    if all(found):
        change = found[0]["kl"] - found[1]["kl"]
        difference = (signed("{:+.4f}")(change), change)
    return Row([("KL to full, nats", None), *(kl_cell(each) for each in found), difference])


def layers_chart(pair: Pair) -> dict[str, Any]:
    """Error of both and sign flips, layer by layer."""
    reports = [[run.reports[name] for name in pair.names] for run in (pair.a, pair.b)]
    drawn = run_difference.info(
        pair.names,
        [report.block for report in reports[0]],
        [report.kind for report in reports[0]],
        ([report.relative_loss for report in reports[0]], [report.relative_loss for report in reports[1]]),
        pair.flips,
    )
    words = ""
    if any(run.recipe.linears is not None for run in (pair.a, pair.b)):
        words = (
            "A run of some layers only has full-precision inputs before them: its errors are not those of a whole run."
        )
    return chart_value("runs-by-layer", lambda dark: run_difference.figure(drawn, dark), words)


def map_chart(pair: Pair, name: str) -> dict[str, Any]:
    """What A stores for a layer minus what B stores."""
    dense = [run.codes(name).dense().numpy() for run in (pair.a, pair.b)]
    drawn = difference_map.info(dense[0], dense[1])
    share = pair.flips[pair.names.index(name)]
    rows, columns = drawn.shape
    words = f"{rows} × {columns} weights; {100 * share:.1f} % of the signs differ. "
    if drawn.factor > 1:
        words += f"Pooled ×{drawn.factor}: a cell shows the largest difference of its {drawn.factor}² weights."
    return chart_value("a-minus-b", lambda dark: difference_map.figure(drawn, dark), words)


def categories_chart(pair: Pair) -> dict[str, Any]:
    """Accuracy by category of those that were asked."""
    asked = [
        Result(f"{letter}: {run.name}", letter, run, run.accuracy)
        for letter, run in (("A", pair.a), ("B", pair.b))
        if run.accuracy and OVERALL in run.accuracy.get("accuracy", {})
    ]
    if not asked:
        return no_chart("Neither run has been asked questions: choose one and evaluate it in Benchmark.")
    drawn = by_category(asked)
    words = "" if len(asked) == 2 else "The other run has not been asked questions yet."

    def draw(dark: bool) -> Any:
        figure = category_bars.figure(drawn, dark)
        colours = run_difference.pair_colours(dark)
        for trace, letter in zip(figure.data, drawn.methods, strict=True):
            trace.marker.color = colours["AB".index(letter)]
        return figure

    return chart_value("a-and-b-by-category", draw, words)
