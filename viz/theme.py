"""Colours, type and the plotly template: the one place that knows how the app looks.

The three modalities take hues that stay apart for every common kind of colour blindness (a test
simulates them); the rest of the page is neutral, so that colour always means a modality or a method.
"""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

FONT = '"IBM Plex Sans", ui-sans-serif, system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif'
MONO = '"IBM Plex Mono", ui-monospace, SFMono-Regular, Menlo, Consolas, monospace'


@dataclass(frozen=True)
class Palette:
    """Colours of one mode (light or dark), as #rrggbb."""

    page: str
    surface: str
    raised: str
    line: str
    text: str
    muted: str
    accent: str
    accent_text: str
    good: str
    bad: str
    neither: str
    language: str
    vision: str
    cross: str
    ramp: tuple[str, ...]  # low to high, for one-sided quantities
    diverging: tuple[str, str, str]  # negative, zero, positive


LIGHT = Palette(
    page="#f6f7f9",
    surface="#ffffff",
    raised="#f0f2f5",
    line="#dde1e7",
    text="#16202c",
    muted="#5a6675",
    accent="#1f3a5f",
    accent_text="#ffffff",
    good="#1d7a4f",
    bad="#b3261e",
    neither="#e7eaee",
    language="#2178be",
    vision="#e58a00",
    cross="#7d1d63",
    ramp=("#f4f6f8", "#c9dbe0", "#86b5bd", "#3f8290", "#114b5a"),
    diverging=("#7a4a9e", "#f7f7f7", "#2a7f5f"),
)

DARK = Palette(
    page="#0e1319",
    surface="#161d26",
    raised="#1f2833",
    line="#2d3845",
    text="#e8edf3",
    muted="#9aa8b8",
    accent="#8db8ea",
    accent_text="#0e1319",
    good="#5cc792",
    bad="#ff8a80",
    neither="#25303c",
    language="#6cb6f5",
    vision="#ffb02e",
    cross="#c03a8f",
    ramp=("#1a222c", "#24474f", "#2f7480", "#62a9b3", "#bfe5ea"),
    diverging=("#b48ad6", "#2a323c", "#5cc79c"),
)

METHOD_COLOURS: dict[str, str] = {
    "full": "#5a6675",
    "gptq4": "#7d6b00",
    "gptq3": "#a48f1c",
    "gptq2": "#c7b45a",
    "rtn4": "#6d6d6d",
    "rtn3": "#8c8c8c",
    "rtn2": "#ababab",
    "xnor": "#b3261e",
    "pb-llm": "#d1697a",
    "billm": "#c05a1c",
    "arb": "#2a7f9e",
    "arb-x": "#3f9fb8",
    "arb-rc": "#1f7a6a",
    "arb-rc-cgb": "#3a9a55",
    "sab": "#9c2f86",
    "sab-h": "#6a2c91",
}


def palette(dark: bool) -> Palette:
    """The colours of one mode."""
    return DARK if dark else LIGHT


def method_colour(name: str, dark: bool = False) -> str:
    """The colour of a binarizer in every chart, lighter on dark ground; an unknown name is drawn neutral."""
    colour = METHOD_COLOURS.get(name, "#5a6675")
    return mixed(colour, "#ffffff", 0.35) if dark else colour


def mixed(colour: str, other: str, share: float) -> str:
    """`colour` with a share (0 to 1) of another one in it; both and the result as #rrggbb."""
    pairs = ((int(colour[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(one + share * (two - one)):02x}" for one, two in pairs)


def css_variables() -> str:
    """Both palettes as CSS custom properties; the page and the scripts read colours from these only."""

    def block(colours: Palette) -> str:
        plain = {
            name: value for name, value in vars(colours).items() if isinstance(value, str)
        }
        lists = {"ramp": colours.ramp, "diverging": colours.diverging}
        rules = [f"--sab-{name.replace('_', '-')}: {value};" for name, value in plain.items()]
        rules += [f"--sab-{name}: {', '.join(values)};" for name, values in lists.items()]
        return " ".join(rules)

    return (
        f":root {{ --sab-font: {FONT}; --sab-mono: {MONO}; color-scheme: light; {block(LIGHT)} }}\n"
        f".dark {{ color-scheme: dark; {block(DARK)} }}\n"
    )


def template(dark: bool) -> go.layout.Template:
    """The plotly template of one mode: quiet grid, the page's own type, nothing behind the plot."""
    colours = palette(dark)
    axis = {
        "gridcolor": colours.line,
        "linecolor": colours.line,
        "zerolinecolor": colours.line,
        "tickcolor": colours.line,
        "tickfont": {"color": colours.muted, "size": 12},
        "title": {"font": {"color": colours.muted, "size": 12}},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "color": colours.text, "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [colours.language, colours.vision, colours.cross, colours.good, colours.muted],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "hoverlabel": {
                "bgcolor": colours.surface,
                "bordercolor": colours.line,
                "font": {"family": FONT, "color": colours.text, "size": 13},
            },
            "legend": {"orientation": "h", "font": {"color": colours.muted}},
            "coloraxis": {"colorscale": ramp_scale(dark)},
        }
    )


def two_panels(
    drawn: go.Figure, dark: bool, height: int, split: tuple[float, float], stacked: tuple[float, float]
) -> None:
    """Lay out a figure of two panels, the first on `xaxis` and `yaxis`, the second on `xaxis2` and `yaxis2`.

    They stand side by side, on a phone one above the other. `split`: where the left one ends and the right one begins,
    as shares of the width; `stacked`: where the lower one (the second) ends and the upper one begins, of the height.
    """
    drawn.update_layout(
        template=template(dark),
        showlegend=False,
        xaxis={"domain": [0, split[0]]},
        xaxis2={"domain": [split[1], 1], "anchor": "y2"},
        yaxis2={"anchor": "x2"},
        meta={
            "height": height,
            "narrow": {
                "height": 520,
                "xaxis.domain": [0, 1],
                "xaxis2.domain": [0, 1],
                "yaxis.domain": [stacked[1], 1],
                "yaxis2.domain": [0, stacked[0]],
            },
        },
    )


def ramp_scale(dark: bool) -> list[list[object]]:
    """The one-sided ramp as a plotly colour scale."""
    colours = palette(dark).ramp
    return [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]
