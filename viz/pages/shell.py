"""The frame of the app: header, five tabs, and the state that all of them share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from viz import theme
from viz.pages import benchmark, binarize, chat, explore, learn
from viz.pages.chooser import Chooser
from viz.pages.selection import Selection
from viz.pages.shared import ASSETS, PLOTLY, Shared, header_value, script_tags, script_url, static_paths
from viz.pages.signal import selection_source
from viz.pages.store import Store

PAGES = {
    "explore": ("Explore", explore.build),
    "binarize": ("Binarize", binarize.build),
    "chat": ("Chat", chat.build),
    "benchmark": ("Benchmark", benchmark.build),
    "learn": ("Learn", learn.build),
}
MOST_THREADS = 128  # who waits in the chat's line holds two, and nobody else may wait for that
MOST_SESSIONS = 200
HEADER_TEMPLATE = '<div class="sab-header"></div>'
HEADER_SCRIPT = "SabLens.mountHeader({element, props, watch});"


def page(store: Store, chooser: Chooser | None = None) -> gr.Blocks:
    """The whole page around a store, ready to be served; everything a visitor sees hangs off this. `chooser`: the way
    to other models."""
    gr.set_static_paths(static_paths())
    title = "SAB Lens" if store.model is None else f"{store.model_name} · SAB Lens"
    with gr.Blocks(title=title, fill_width=True, analytics_enabled=False) as blocks:
        header = gr.HTML(
            value=None,
            html_template=HEADER_TEMPLATE,
            js_on_load=HEADER_SCRIPT,
            head=script_tags(),
            apply_default_css=False,
            elem_id="sab-header",
        )
        selection = selection_source()
        if chooser is not None:
            chooser.build()
        with gr.Tabs(elem_id="sab-tabs"):
            shared = Shared(selection=selection, header=header)
            for name, (label, build) in PAGES.items():
                with gr.Tab(label, id=name, elem_id=f"sab-tab-{name}", elem_classes="sab-page") as tab:
                    build(store, shared)
                tab.select(
                    None,
                    js=f"() => {{ window.SabLens && SabLens.tabShown('{name}'); }}",
                    api_visibility="private",
                    show_progress="hidden",
                    queue=False,
                )

        def restore(request: gr.Request) -> dict[str, Any]:
            query = dict(request.query_params)
            chosen, sentence = store.resolve(Selection.from_query(query))
            if "kind" not in query:
                chosen = replace(chosen, kind=store.first_kind(chosen))
            return header_value(store, chosen, sentence)

        blocks.load(restore, None, header, show_progress="hidden", queue=False, api_visibility="private")
    blocks.max_threads, blocks.state_session_capacity = MOST_THREADS, MOST_SESSIONS
    blocks.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    return blocks


def served_options() -> dict[str, Any]:
    """How any page is served: own look, no telemetry, no footer, bounded uploads."""
    style = theme.css_variables() + "".join(
        path.read_text(encoding="utf-8") for path in sorted((ASSETS / "css").glob("*.css"))
    )
    return {
        "theme": gradio_theme(),
        "head": (
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{style}</style>"
            f'<meta name="sab-plotly" content="{script_url(PLOTLY)}">'
        ),
        "footer_links": [],
        "run_history": False,
        "max_file_size": "10mb",
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": True,
    }


def launch_options() -> dict[str, Any]:
    """How the server is started around the first page."""
    sessions = {"max_threads": MOST_THREADS, "state_session_capacity": MOST_SESSIONS}
    return served_options() | sessions | {"share": False, "quiet": True}


def gradio_theme() -> gr.themes.Base:
    """Gradio's own components in the page's colours; fonts come with gradio, nothing is fetched."""
    light, dark = theme.LIGHT, theme.DARK
    both = {
        "body_background_fill": "page",
        "body_text_color": "text",
        "body_text_color_subdued": "muted",
        "background_fill_primary": "surface",
        "background_fill_secondary": "page",
        "border_color_primary": "line",
        "border_color_accent": "accent",
        "color_accent_soft": "raised",
        "link_text_color": "accent",
        "link_text_color_hover": "text",
        "link_text_color_active": "accent",
        "link_text_color_visited": "accent",
        "code_background_fill": "raised",
        "block_background_fill": "surface",
        "block_border_color": "line",
        "block_label_background_fill": "surface",
        "block_label_border_color": "line",
        "block_label_text_color": "muted",
        "block_title_text_color": "text",
        "block_info_text_color": "muted",
        "panel_background_fill": "surface",
        "panel_border_color": "line",
        "input_background_fill": "surface",
        "input_border_color": "line",
        "input_border_color_focus": "accent",
        "input_placeholder_color": "muted",
        "checkbox_background_color": "surface",
        "checkbox_background_color_selected": "accent",
        "checkbox_border_color": "muted",
        "checkbox_border_color_selected": "accent",
        "checkbox_label_background_fill": "surface",
        "checkbox_label_background_fill_hover": "raised",
        "checkbox_label_background_fill_selected": "raised",
        "checkbox_label_text_color": "text",
        "checkbox_label_text_color_selected": "text",
        "slider_color": "accent",
        "loader_color": "accent",
        "stat_background_fill": "accent",
        "table_border_color": "line",
        "table_even_background_fill": "surface",
        "table_odd_background_fill": "page",
        "table_row_focus": "raised",
        "button_primary_background_fill": "accent",
        "button_primary_background_fill_hover": "text",
        "button_primary_border_color": "accent",
        "button_primary_text_color": "accent_text",
        "button_secondary_background_fill": "surface",
        "button_secondary_background_fill_hover": "raised",
        "button_secondary_border_color": "line",
        "button_secondary_text_color": "text",
        "button_cancel_background_fill": "surface",
        "button_cancel_background_fill_hover": "raised",
        "button_cancel_border_color": "bad",
        "button_cancel_text_color": "bad",
        "error_background_fill": "surface",
        "error_border_color": "bad",
        "error_text_color": "bad",
    }
    colours = {name: getattr(light, field) for name, field in both.items()}
    colours |= {f"{name}_dark": getattr(dark, field) for name, field in both.items()}
    weights = (400, 700)  # gradio's semi-bold files hold only a few letters
    return gr.themes.Base(
        font=[gr.themes.LocalFont("IBM Plex Sans", weights), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights), "ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        **colours,
        block_border_width="1px",
        block_radius="12px",
        button_border_width="1px",
        input_border_width="1px",
        block_shadow="none",
        block_label_text_weight="600",
        block_title_text_weight="600",
        button_primary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_shadow="none",
        button_secondary_shadow_hover="none",
        checkbox_label_shadow="none",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px *border_color_accent",
        layout_gap="16px",
    )
