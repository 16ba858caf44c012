"""The list of runs, and what a person does with the chosen one: name it, delete it, take it home."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from sab.errors import SabError
from viz.pages.downloads import place_for
from viz.pages.notice import notice
from viz.pages.progress import duration
from viz.pages.results import accuracy_cell, size
from viz.pages.selection import Selection
from viz.pages.shared import Shared, header_value
from viz.pages.signal import reading
from viz.pages.store import Store
from viz.pages.table import Column, Row, table, table_value

if TYPE_CHECKING:
    from sab.runs import Run

COLUMNS = (
    Column("Run"),
    Column("Bits, all‑in", True, "every stored bit of the binarized layers over their number of weights"),
    Column("Nominal", True, "what papers print: 1 + the share of salient columns"),
    Column("Size", True, "bytes of the packed layers"),
    Column("Accuracy", True, "held-out questions answered exactly, with the 95 % interval"),
    Column("Recipe", False, "thresholds (top share / difference quantile / sparsity), samples, seed"),
    Column("Layers", True),
    Column("Time", True, "fitting time of all its layers"),
)
NO_RUNS = "No runs yet: choose a method and press Binarize."


class RunList:
    """The table and the buttons under it. `resume` and `reuse` are for the page to listen to."""

    def __init__(self, store: Store, shared: Shared) -> None:
        self._store = store
        self._shared = shared
        self.table = table("binarize-runs")
        self.chosen = notice("binarize-chosen")
        with gr.Row(elem_id="binarize-actions"):
            self._download = gr.Button("Download the packed model (zip)", size="sm", elem_id="binarize-download")
            self._recipe = gr.Button("Download its recipe", size="sm", elem_id="binarize-recipe-file")
            self.reuse = gr.Button("Use its recipe", size="sm", elem_id="binarize-reuse")
            self.resume = gr.Button("Resume", size="sm", elem_id="binarize-resume")
            self._rename = gr.Button("Rename…", size="sm", elem_id="binarize-rename")
            self._delete = gr.Button("Delete…", size="sm", elem_id="binarize-delete")
            self._file = gr.DownloadButton(visible="hidden", elem_id="binarize-zip")
        with gr.Row(visible=False, elem_id="binarize-naming") as self._naming:
            self._name = gr.Textbox(
                label="Name of the run", max_length=80, max_lines=1, elem_id="binarize-name", min_width=220
            )
            self._save = gr.Button("Save the name", size="sm", variant="primary", elem_id="binarize-name-save")
            self._keep_name = gr.Button("Cancel", size="sm", elem_id="binarize-name-cancel")
        with gr.Row(visible=False, elem_id="binarize-deleting") as self._deleting:
            self._question = notice("binarize-question")
            self._confirm = gr.Button("Delete for good", size="sm", variant="stop", elem_id="binarize-delete-confirm")
            self._keep = gr.Button("Keep it", size="sm", elem_id="binarize-delete-cancel")
        self._asked = gr.State("")  # the run that is named or deleted: another may be chosen meanwhile
        self.said = notice("binarize-runs-notice")

    def show(self, selection: Selection) -> dict[Any, Any]:
        """The list as it is now, and what may be done with the chosen run."""
        run = next((run for run in self._store.runs(fresh=True) if run.id == selection.run), None)
        shipped = run is None or is_shipped(run)
        return {
            self.table: runs_table(self._store),
            self.chosen: f"Chosen: {run.name}" if run is not None else "",
            self.resume: gr.Button(interactive=run is not None and not run.finished),
            self._rename: gr.Button(interactive=not shipped),
            self._delete: gr.Button(interactive=not shipped),
        }

    @property
    def outputs(self) -> list[Any]:
        return [self.table, self.chosen, self.resume, self._rename, self._delete]

    def listen(self) -> None:
        """Register what the buttons do."""
        shared = self._shared
        rows = [self._naming, self._deleting]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        fetch = "() => document.querySelector('#binarize-zip')?.click()"
        read, chosen = partial(reading, self._store), shared.selection
        for button, make in ((self._download, zipped), (self._recipe, recipe_file)):
            button.click(read(self._packer(make)), chosen, [self._file, self.said], **quiet).then(None, js=fetch)
        self._rename.click(read(self._ask_name), chosen, [*rows, self._name, self._asked, self.said], **quiet)
        self._delete.click(read(self._ask_deletion), chosen, [*rows, self._question, self._asked, self.said], **quiet)
        done = [*rows, self.said, shared.header, *self.outputs]
        for event in (self._save.click, self._name.submit):
            event(read(self._save_name), [chosen, self._asked, self._name], done, **quiet)
        self._confirm.click(read(self._delete_run), [chosen, self._asked], done, **quiet)
        for button in (self._keep_name, self._keep):
            button.click(lambda: [gr.Row(visible=False)] * 2, None, rows, **quiet)

    def _packer(self, make: Callable[[Run], Path]) -> Callable[[Selection], tuple[Any, str]]:
        def pack(selection: Selection) -> tuple[Any, str]:
            try:
                return gr.DownloadButton(value=str(make(self._store.run(selection.run)))), ""
            except SabError as error:
                return gr.DownloadButton(value=None), str(error)
            except OSError as error:
                reason = error.strerror or error
                return gr.DownloadButton(value=None), f"The file could not be written ({reason}): make room, try again."

        return pack

    def _ask_name(self, selection: Selection) -> dict[Any, Any]:
        try:
            run = self._store.run(selection.run)
        except SabError as error:
            return {self.said: str(error)}
        return {
            self._naming: gr.Row(visible=True),
            self._deleting: gr.Row(visible=False),
            self._name: gr.Textbox(value=run.label, placeholder=run.description),
            self._asked: run.id,
            self.said: "",
        }

    def _ask_deletion(self, selection: Selection) -> dict[Any, Any]:
        try:
            run = self._store.run(selection.run)
        except SabError as error:
            return {self.said: str(error)}
        return {
            self._naming: gr.Row(visible=False),
            self._deleting: gr.Row(visible=True),
            self._question: f"Delete “{run.name}” ({run.id}) with its codes and results? This cannot be undone.",
            self._asked: run.id,
            self.said: "",
        }

    def _save_name(self, selection: Selection, asked: object, name: object) -> dict[Any, Any]:
        from sab import library

        def rename() -> dict[str, str]:
            library.rename(self._store.run(str(asked)), name)
            return {}

        return self._changed(selection, rename)

    def _delete_run(self, selection: Selection, asked: object) -> dict[Any, Any]:
        from sab import library

        def delete() -> dict[str, str]:
            run = self._store.run(str(asked))
            if self._store.jobs.working_on(run.directory):
                raise SabError("This run is being worked on: stop that first, then delete it.")
            library.delete(run)
            self._store.runs(fresh=True)
            without = Selection(**{**asdict(selection), **{pin: "" for pin in pins_of(selection, run.id)}})
            left = asdict(self._store.resolve(without)[0])
            return {name: value for name, value in left.items() if value != getattr(selection, name)}

        return self._changed(selection, delete)

    def _changed(self, selection: Selection, act: Callable[[], dict[str, str]]) -> dict[Any, Any]:
        """Do something to a run, then show list and header anew; what went wrong is said and nothing closes."""
        try:
            change = act()
        except SabError as error:
            return {self.said: str(error)}
        shown = self.show(Selection(**{**asdict(selection), **change}))
        return {
            **shown,
            self._naming: gr.Row(visible=False),
            self._deleting: gr.Row(visible=False),
            self.said: "",
            self._shared.header: header_value(self._store, selection, change=change),
        }


def pins_of(selection: Selection, run_id: str) -> list[str]:
    """Where a selection names a run."""
    return [name for name in ("run", "pin_a", "pin_b") if getattr(selection, name) == run_id]


def is_shipped(run: Run) -> bool:
    """Whether a run came with the program, so that it can be neither named nor deleted."""
    from sab import library

    return library.is_shipped(run)


def runs_table(store: Store) -> dict[str, Any]:
    """All runs, newest first; a click chooses one for the whole page, A and B pin two for a comparison."""
    rows = []
    for run in reversed(store.runs(fresh=True)):
        done = bool(run.reports)
        rows.append(
            Row(
                [
                    (f"{run.name}\n{run.description if run.label else run.id}", run.name),
                    (f"{run.bits_all_in:.2f}" if done else "", run.bits_all_in if done else None),
                    (f"{run.bits_nominal:.2f}" if done else "", run.bits_nominal if done else None),
                    (size(run.bytes), run.bytes),
                    accuracy_cell(run.accuracy),
                    (recipe_words(run), None),
                    (f"{len(run.reports)} of {len(run.names)}", len(run.reports)),
                    (duration(run.seconds), run.seconds),
                ],
                run.id,
                "" if run.finished else "unfinished",
            )
        )
    return table_value(COLUMNS, rows, NO_RUNS, "run", pins=True)


def recipe_words(run: Run) -> str:
    """What of a recipe fits into a cell."""
    from sab.binarizers import METHODS

    recipe = run.recipe
    below = f"{recipe.samples} samples, seed {recipe.seed}"
    if not METHODS[recipe.method].uses_significance:
        return f"no thresholds\n{below}"
    thresholds = recipe.thresholds
    values = (thresholds.salient_top_p, thresholds.diff_quantile, thresholds.sparsity_thr)
    kind = "Fisher" if recipe.sensitivity == "fisher" else "input side"
    return f"{' / '.join(f'{value:g}' for value in values)}\n{kind}, {below}"


def zipped(run: Run) -> Path:
    """A zip of the run directory ; codes do not compress, so they are only stored."""
    path = place_for(f"{run.id}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(run.directory.rglob("*")):
            if file.is_file() and not file.name.startswith(".tmp-"):
                archive.write(file, f"{run.id}/{file.relative_to(run.directory).as_posix()}")
    return path


def recipe_file(run: Run) -> Path:
    """The run's recipe.json under a name of its own; `quantize --recipe` and the form read it."""
    path = place_for(f"{run.id}-recipe.json")
    shutil.copyfile(run.directory / "recipe.json", path)
    return path
