"""Binarize: choose a method and thresholds, binarize layers, and watch the error of each."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import Shared
from viz.pages.store import Store


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    gr.Markdown(
        "## Binarize\n\n"
        "Choose a method and thresholds, binarize the decoder or some of its layers, watch the error of each."
    )
