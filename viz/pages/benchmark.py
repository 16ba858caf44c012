"""Benchmark: Every run by category of question, with its true bits."""

from __future__ import annotations

import gradio as gr

from viz.pages.shared import Shared
from viz.pages.store import Store


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    gr.Markdown("## Benchmark\n\nEvery run by category of question, with its true bits.")
