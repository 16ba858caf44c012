"""Chat: Ask both models about one picture and see where their answers part."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import Shared
from viz.pages.store import Store


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    gr.Markdown("## Chat\n\nAsk both models about one picture and see where their answers part.")
