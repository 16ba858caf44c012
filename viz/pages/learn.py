"""Learn: How a weight becomes one bit, step by step."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import Shared
from viz.pages.store import Store


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    gr.Markdown("## Learn\n\nHow a weight becomes one bit, step by step.")
