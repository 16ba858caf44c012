"""What the shell hands to every page: the visitor's selection, the header, and how to reach a script.

The selection lives in the browser (in the URL) and goes with every event as the input `Shared.selection`. Scripts
change it by `SabLens.update({...})`; Python changes it by returning `header_value(store, selection)` to
`Shared.header`, and the scripts follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from viz.pages.selection import THRESHOLD_RANGES, Selection
from viz.pages.store import Store

ASSETS = Path(__file__).parents[2] / "assets"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


@dataclass(frozen=True)
class Shared:
    """Components that belong to the shell and that pages read or write.

    selection: the visitor's selection, an input of functions that `signal.reading` wraps; `signal.on_selection`
    listens to it.
    header: output `header_value(store, selection)` to it after a run was made, renamed or deleted, to show
    another run or layer, or to go to another tab.
    """

    selection: gr.HTML
    header: gr.HTML


def header_value(
    store: Store, selection: Selection, message: str = "", change: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the header shows: the model, all runs, the selection, and one sentence if something is amiss. `change`:
    what changes in the selection that the browser has by now, which then stands instead of `selection`: for the end of
    long work, when the visitor may look at something else."""
    return {
        "model": store.model_name,
        "runs": [
            {
                "id": run.id,
                "name": run.name,
                "method": run.recipe.method,
                "finished": run.finished,
                "bits_nominal": run.bits_nominal,
                "bits_all_in": run.bits_all_in,
                "bytes": run.bytes,
                "linears": list(run.reports),
            }
            for run in store.runs()
        ],
        "selection": asdict(selection),
        "change": None if change is None else dict(change),
        "defaults": asdict(Selection()),
        "ranges": THRESHOLD_RANGES,
        "message": message,
    }


def static_paths() -> list[Path]:
    """What the server may hand out as it is: scripts, styles and plotly."""
    return [ASSETS / "js", ASSETS / "css", PLOTLY]


def script_url(path: Path) -> str:
    """Where the browser finds a static file; the query changes with its content, so no cache is stale."""
    version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"gradio_api/file={path.resolve()}?v={version}"


def script_tags(*names: str) -> str:
    """`<script>` tags for files of assets/js, for the `head` of a `gr.HTML`, whose `js_on_load` waits for
    them. `lens.js` (the `SabLens` global) always comes first."""
    files = [ASSETS / "js" / name for name in ("lens.js", *names)]
    return "".join(f'<script src="{script_url(path)}"></script>' for path in files)
