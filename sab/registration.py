"""`import sab` teaches transformers the quantizer "sab" (hf.py) without importing transformers, which takes seconds.

transformers knows quantizers by a table in `transformers.quantizers.auto` and has no entry points for others. Where
that module is loaded already, ours is entered at once; else as soon as somebody imports it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

TABLE = "transformers.quantizers.auto"


def register() -> None:
    """Enter the quantizer now or when transformers is there; calling it again changes nothing."""
    if TABLE in sys.modules:
        import_module("sab.hf")
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds nothing itself: has the table's own loader import our quantizer once it is done."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                import_module("sab.hf")

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
