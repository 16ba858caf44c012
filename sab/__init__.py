"""SAB Lens: significance-aware binarization of vision-language models.

`sab.load(path_or_id)`, `sab.quantize(lvlm, recipe, run_dir)` and `sab.export(lvlm, run, folder)` are the front door;
the steps behind them are one file each (README, Layout). They are looked up on first use, so that
`import sab.significance` and the command line's help do not wait for transformers. After `import sab`,
`from_pretrained` of transformers reads packed checkpoints (`registration`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from sab.registration import register

if TYPE_CHECKING:
    from sab.checkpoint import export
    from sab.models import LVLM, load
    from sab.recipes import Recipe
    from sab.runs import Run
    from sab.sequential import quantize

__version__ = "0.1.0"
__all__ = ["LVLM", "Recipe", "Run", "SabError", "export", "load", "quantize"]

_HOMES = {
    "LVLM": "sab.models",
    "Recipe": "sab.recipes",
    "Run": "sab.runs",
    "export": "sab.checkpoint",
    "load": "sab.models",
    "quantize": "sab.sequential",
}

register()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sab' has no attribute {name!r}")
