"""Explore: Where vision, language and both live in the model, layer by layer."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import Shared
from viz.pages.store import Store


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    gr.Markdown("## Explore\n\nWhere vision, language and both live in the model, layer by layer.")
