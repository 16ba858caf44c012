"""What happens when a visitor opens the page, for pages that are built inside the shell's Blocks."""

from __future__ import annotations

from typing import Any

from gradio.context import Context


def when_opened(**event: Any) -> None:
    """Register a load event (`fn`, `inputs`, `outputs` …) of the page that is being built."""
    if Context.root_block is None:
        raise RuntimeError("a page is built inside gr.Blocks")
    Context.root_block.load(**event)
