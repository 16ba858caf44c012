"""Learn: how a weight becomes one bit and why the map matters, in six steps with live figures.

Every figure is computed from the model, the layer and the run that the page shows; nothing is written down beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from sab.errors import SabError
from viz.figures import bit_breakdown, one_bit, sparsity_curve, weight_block, weighting
from viz.pages.bounded import Bounded
from viz.pages.chart import Control, chart, chart_value, no_chart, stepped
from viz.pages.lessons import LayerHessians, feedback_chart, format_chart
from viz.pages.notice import notice
from viz.pages.results import breakdown
from viz.pages.selection import Selection
from viz.pages.shared import Shared
from viz.pages.signal import on_selection, reading
from viz.pages.store import Store, version

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 32  # rows and columns under the microscope
BLOCK = 128  # columns of a block, as the fits use them
TRACED = ("sab", "arb-rc", "arb")  # the alternating methods
FORMATS = ("rtn4", "rtn3", "rtn2", "billm", "arb", "xnor")
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # times the layer's mean
RATIOS = tuple(round(0.05 * step, 2) for step in range(21))
STEPS: tuple[tuple[str, str, str, str], ...] = (
    (
        "What is one bit?",
        "A weight is usually stored in 16 bits. With one bit only its <b>sign</b> is left, and all weights of a row "
        "share one magnitude. Each point below is one weight of one row: across is what it was, up is what is stored. "
        "A method that keeps it exact puts the point on the dotted diagonal; the red lines are what is lost. Move the "
        "slider from four bits down to one and watch the steps of the staircase disappear.",
        "binarize",
        "Try the methods in Binarize",
    ),
    (
        "Rounds: signs and scales take turns",
        "One scale per row is crude. The alternating methods give each column a scale too and improve one thing at a "
        "time: row scales, column scales, then the signs, each the best possible while the others stand still. So the "
        "weighted loss can only fall. Salient columns are stored with <b>two</b> signs per weight; there the pair is "
        "picked anew in every round, and signs flip.",
        "binarize",
        "Choose the rounds in Binarize",
    ),
    (
        "Whose weight is it?",
        "Significance S̄ says how much a modality's output would suffer without the weight. <b>Hoyer sparsity ρ</b> "
        "puts the two numbers into one: 0 when language and vision need the weight equally, 1 when one of them alone "
        "does. Move both sliders: only their ratio matters. Mind how low the usual threshold lies on the curve: a "
        "small difference already passes it.",
        "explore",
        "See the maps in Explore",
    ),
    (
        "Which weights the fit protects",
        "One number per layer, <b>r</b>, says how much of its significance lies in weights of a single modality. It "
        "turns ρ into the weighting Λ: with r above one half the weights of one modality are fitted more carefully, "
        "below one half the shared ones, and at exactly one half all count the same and the map changes nothing.",
        "explore",
        "See Λ of any layer in Explore",
    ),
    (
        "What it really costs",
        "Papers print <i>nominal</i> bits: 1 plus the share of salient columns. But the scales, the bitmaps that say "
        "which group a weight belongs to, and the second signs are stored as well. Change the format below: the bits "
        "are counted as they would be written to the file. The second figure counts those of the chosen run.",
        "benchmark",
        "Compare runs in Benchmark",
    ),
    (
        "An error need not stay",
        "Blocks of columns are fitted from left to right. What a block gets wrong can be <b>carried on</b>: later "
        "columns change a little, so that together they give nearly the same output. The published releases divide by "
        "the diagonal alone; the exact formula takes the whole block into account, and costs no bit more.",
        "binarize",
        "Choose the compensation in Binarize",
    ),
)
LIMITS = (
    "The embedded model is small and its world is generated. Its figures do not predict those of a 7B model.",
    "In Chat a run computes on its packed bits where there is a C kernel for it, and the page names the kernel. "
    "Without a C compiler, for layers laid over a run, and in every evaluation, dequantized weights are "
    "multiplied (“simulated”): the answers are those of the packed weights, the speed and the memory are not.",
    "With input-side significance the ratio of the two modalities is constant down each column, so Λ can act through "
    "the row scales alone. Expect SAB to stay close to the same method without the map, and look at the interval.",
    "A label is a comparison with thresholds. Two samples of one modality give “unimodal” weights too when tokens are "
    "few; Explore shows that null beside the map, so read small shares with care.",
)
GLOSSARY = (
    ("Linear", "a matrix W with n output rows and m input columns; a decoder block has seven of them."),
    (
        "Block",
        "either one layer of the decoder, or a run of 128 input columns that share their scales; the text says which.",
    ),
    (
        "Hessian",
        "H, the second moments of a linear's inputs on calibration tokens: which directions its outputs depend on.",
    ),
    ("Salient", "so significant that a cheaper code would be felt: in its modality's top share."),
    ("Significance S̄", "the loss of removing a weight, per modality, over the layer's mean."),
    ("ρ", "Hoyer sparsity over the two modalities: 0 shared, 1 one modality alone."),
    ("r", "the share of a layer's significance that lies in weights of one modality."),
    ("Λ", "how much each weight counts in the fit: r·ρ + (1−r)·(1−ρ), scaled to mean 1."),
    ("α_r, α_c", "row and column scales; a stored weight is sign · α_r · α_c."),
    ("Compensation", "changing the columns not yet binarized so that they make up for the error of those that are."),
    ("Nominal bits", "what papers print: 1 + the share of salient columns."),
    ("All-in bits", "every stored bit of a linear over its number of weights."),
)


@dataclass(frozen=True)
class Piece:
    """Where in a linear the figures look: its name, and the first row and column of the piece."""

    linear: str
    row: int
    column: int


def build(store: Store, shared: Shared) -> None:
    """Fill the tab."""
    drawn = store.kept(24)
    hessians = LayerHessians(store)

    with gr.Column(elem_id="learn"):
        gr.HTML(
            '<p class="ln-lead">Six steps from a single weight to the whole map. The figures are computed now, '
            "from the model and the run chosen at the top.</p>",
            apply_default_css=False,
        )
        said = notice("learn-notice")
        step(0)
        bit = chart("", no_chart("Computing…"), "learn-bit")
        step(1)
        with gr.Row(elem_id="learn-microscope-controls"):
            method = gr.Dropdown(
                [(name.upper(), name) for name in TRACED],
                value=TRACED[0],
                label="Method",
                min_width=140,
                filterable=False,
                elem_id="learn-method",
            )
            order = gr.Radio([("One sign", 1), ("Two signs", 2)], value=2, label="Signs per weight", min_width=160)
            other = gr.Button("Another piece of the layer", size="sm", min_width=160, elem_id="learn-other")
        block = chart("", no_chart("Computing…"), "learn-block")
        step(2)
        curve = chart("", no_chart("Computing…"), "learn-sparsity")
        step(3)
        weigh = chart("", no_chart("Computing…"), "learn-weighting")
        step(4)
        form = chart("A format of your own", no_chart("Computing…"), "learn-format")
        cost = chart("The chosen run", no_chart("Computing…"), "learn-bits")
        step(5)
        carried = chart("", no_chart("Computing…"), "learn-feedback")
        gr.HTML(closing(), apply_default_css=False)

    place = gr.State(0)

    def draw(selection: Selection, name: str, signs: int, number: int) -> dict[Any, Any]:
        try:
            piece = find_piece(store, selection, number)
            run = version(store.run(selection.run)) if selection.run else ""
        except SabError as error:
            nothing = no_chart("No figure: the note at the top says why.")
            return {said: str(error), **dict.fromkeys((bit, block, curve, weigh, cost), nothing)}
        look = (run, piece, selection.thresholds(), selection.kind)
        made: dict[Any, tuple[Any, Callable[[], dict[str, Any]]]] = {
            bit: (("bit", piece), lambda: bit_chart(store, piece)),
            block: (("block", look, name, signs), lambda: block_chart(store, selection, piece, name, signs)),
            curve: (("curve", selection.sparsity_thr), lambda: sparsity_chart(selection.sparsity_thr)),
            weigh: (("weigh", look), lambda: weighting_chart(store, selection, piece.linear)),
            cost: (("cost", run), lambda: cost_chart(store, selection.run)),
        }
        return {said: ""} | {place: chart_or_reason(drawn, key, make) for place, (key, make) in made.items()}

    def own_format(selection: Selection) -> Any:
        """Every place of five sliders takes seconds to count, once."""
        return drawn.get(("format",), format_chart)

    def carry(selection: Selection, number: int) -> Any:
        """This figure takes seconds as well, so it does not hold up the others."""
        try:
            linear = find_piece(store, selection, number).linear
            weight = layer_weight(store, linear)
        except SabError as error:
            return no_chart(str(error))
        return chart_or_reason(
            drawn,
            ("carried", store.lvlm.fingerprint, linear),
            lambda: feedback_chart(hessians.get(linear), weight, linear),
        )

    def move(selection: Selection, number: int, name: str, signs: int) -> dict[Any, Any]:
        return draw(selection, name, signs, number + 1) | {place: number + 1}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    charts = [said, bit, block, curve, weigh, cost]
    controls = [method.change, order.change]
    on_selection(store, "learn", draw, [method, order, place], charts, also=controls, **quiet)
    on_selection(store, "learn", own_format, [], [form], **quiet)
    on_selection(store, "learn", carry, [place], [carried], **quiet)
    other.click(reading(store, move), [shared.selection, place, method, order], [*charts, place], **quiet)


def step(number: int) -> gr.HTML:
    """Heading, explanation and link of one step."""
    title, text, tab, link = STEPS[number]
    return gr.HTML(
        f'<section class="ln-step"><span class="ln-number">{number + 1}</span><div><h2>{title}</h2><p>{text}</p>'
        f'<button type="button" data-tab="{tab}">{link} →</button></div></section>',
        js_on_load="element.querySelector('button').addEventListener('click', (event) => "
        "SabLens.update({ tab: event.currentTarget.dataset.tab }, { push: true }));",
        apply_default_css=False,
    )


def closing() -> str:
    """Honest limits and glossary."""
    limits = "".join(f"<li>{text}</li>" for text in LIMITS)
    words = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in GLOSSARY)
    return (
        f'<section class="ln-end"><h2>Honest limits</h2><ul>{limits}</ul></section>'
        f'<section class="ln-end"><h2>Glossary</h2><dl>{words}</dl></section>'
    )


def chart_or_reason(drawn: Bounded, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A chart, made once, or the sentence that says why there is none."""
    try:
        return drawn.get(key, make)
    except SabError as error:
        return no_chart(str(error))


def layer_weight(store: Store, linear: str) -> Tensor:
    """Full-precision weight [n, m] of a decoder linear, float32. Raises SabError for an unknown name."""
    module = store.lvlm.decoder_linears.get(linear)
    if module is None:
        raise SabError(f"The model has no layer “{linear}”; choose one in Explore.")
    return module.weight.detach().float().cpu()


def find_piece(store: Store, selection: Selection, number: int) -> Piece:
    """Piece `number` of the layer in Explore, or of the decoder's first linear; numbers run through it and wrap."""
    linear = selection.linear or next(iter(store.lvlm.decoder_linears))
    rows, columns = layer_weight(store, linear).shape
    down, across = max(1, rows // PIECE), max(1, columns // BLOCK)
    at = int(number) % (down * across)
    return Piece(linear, PIECE * (at % down), BLOCK * (at // down % across))


def bit_chart(store: Store, piece: Piece) -> dict[str, Any]:
    """One row of a block in each format, from exact to one sign."""
    import torch

    from sab.binarizers import METHODS, BlockContext
    from sab.packing import count_bits

    block = layer_weight(store, piece.linear)[:, piece.column : piece.column + BLOCK].contiguous()
    width = block.shape[1]
    eye = torch.eye(width)  # inputs taken as uncorrelated: the figure is about storing, not about compensating
    row = block[piece.row].numpy()
    drawn = [(one_bit.info(row, row), "Exact: 16 or 32 bits per weight, every point on the diagonal.", "exact")]
    for name in FORMATS:
        codes = METHODS[name].fit_block(block, BlockContext(eye, eye))
        info = one_bit.info(row, codes.dense()[piece.row].numpy())
        words = (
            f"{METHODS[name].label}: {info.levels} different values in this row, "
            f"{count_bits(codes).all_in:.2f} stored bits per weight in this block; "
            f"{100 * info.lost:.1f} % of the row's energy is lost."
        )
        drawn.append((info, words, METHODS[name].label))
    where = f" Row {piece.row} of {piece.linear}, columns {piece.column} to {piece.column + width - 1}."
    return stepped(
        "one-bit",
        [Control("Stored as", tuple(label for _, _, label in drawn), len(drawn) - 1)],
        lambda places, dark: one_bit.figure(drawn[places[0]][0], dark),
        lambda places: one_bit.traces(drawn[places[0]][0]),
        lambda places: drawn[places[0]][1] + where,
    )


def block_chart(store: Store, selection: Selection, piece: Piece, method: str, signs: int) -> dict[str, Any]:
    """The microscope: one piece of the layer through all rounds of a method."""
    from sab.binarizers import METHODS

    if method not in TRACED or signs not in (1, 2):
        raise SabError("Choose a method and one or two signs per weight.")
    rows, columns = slice(piece.row, piece.row + PIECE), slice(piece.column, piece.column + PIECE)
    weight = layer_weight(store, piece.linear)[rows, columns].contiguous()
    weighted = METHODS[method].uses_significance and bool(selection.run)
    significance = layer_weighting(store, selection, piece.linear)[rows, columns].contiguous() if weighted else None
    rounds = METHODS[method].trace(weight, significance=significance, order=signs)
    columns_scaled = all(state.column_scale is not None for state in rounds)
    info = weight_block.info(
        weight.numpy(),
        np.ones((1, 1)) if significance is None else significance.numpy(),
        [state.signs.numpy() for state in rounds],
        [state.row_scale.numpy() for state in rounds],
        [state.column_scale.numpy() for state in rounds if state.column_scale is not None] if columns_scaled else None,
        [state.row_mean.numpy() for state in rounds if state.row_mean is not None] or None,
        [state.weighted_loss for state in rounds],
    )
    note = "" if significance is not None else " Λ is 1 everywhere: this method does not use the map."

    def words(places: tuple[int, ...]) -> str:
        number = places[0]
        fallen = 100 * (1 - info.loss[number] / info.loss[0]) if info.loss[0] else 0.0
        if number == 0:
            return f"The start: weighted loss {info.loss[0]:.4g}.{note}"
        flips = info.flips[number]
        return (
            f"Round {number}: {flips} {'sign' if flips == 1 else 'signs'} flipped, weighted loss "
            f"{info.loss[number]:.4g}, "
            f"{fallen:.1f} % below the start.{note}"
        )

    return stepped(
        "weight-block",
        [Control("Round", tuple(str(number) for number in range(len(rounds))))],
        lambda places, dark: weight_block.figure(info, places[0], dark),
        lambda places: weight_block.traces(info, places[0]),
        words,
    )


def layer_weighting(store: Store, selection: Selection, linear: str) -> Tensor:
    """Λ [n, m] of a linear under the visitor's thresholds."""
    return store.significance(selection.run, linear, selection.thresholds(), selection.kind).weighting


def sparsity_chart(threshold: float) -> dict[str, Any]:
    """ρ under two sliders; its values come from the function the fits use."""
    import torch

    from sab.significance import hoyer

    ratio = torch.linspace(-14, 14, 141, dtype=torch.float64)
    curve = hoyer(torch.ones_like(ratio), 2.0**ratio).numpy()

    def at(places: tuple[int, ...]) -> sparsity_curve.SparsityCurveInfo:
        language, vision = STRENGTHS[places[0]], STRENGTHS[places[1]]
        rho = float(hoyer(torch.tensor(language, dtype=torch.float64), torch.tensor(vision, dtype=torch.float64)))
        return sparsity_curve.info(language, vision, rho, ratio.numpy(), curve, threshold)

    def words(places: tuple[int, ...]) -> str:
        info = at(places)
        times = max(info.language, info.vision) / min(info.language, info.vision)
        if times == 1:
            return "ρ = 0.000: both modalities need this weight equally."
        who = "language" if info.language > info.vision else "vision"
        side = "above" if info.sparsity > threshold else "below"
        needs = f"{who} needs this weight {times:.3g} times as much"
        return f"ρ = {info.sparsity:.3f}: {needs}; {side} the threshold {threshold:g}."

    steps = tuple(f"{strength:g}" for strength in STRENGTHS)
    return stepped(
        "hoyer-sparsity",
        [Control("S̄ language", steps, 4), Control("S̄ vision", steps, 5)],
        lambda places, dark: sparsity_curve.figure(at(places), dark),
        lambda places: sparsity_curve.traces(at(places)),
        words,
    )


def weighting_chart(store: Store, selection: Selection, linear: str) -> dict[str, Any]:
    """Λ under a slider for r, on the ρ of a real layer."""
    import torch

    from sab.significance import integrate

    if not selection.run:
        return no_chart("Λ of a layer appears here once there is a run: make one in Binarize.")
    chosen = store.significance(selection.run, linear, selection.thresholds(), selection.kind)
    if chosen.switched_off:
        return no_chart(f"The map of this layer is off: {chosen.switched_off}.")
    sparsity = np.linspace(0.0, 1.0, 21)
    own = chosen.unimodal_ratio
    start = min(range(len(RATIOS)), key=lambda place: abs(RATIOS[place] - own))
    infos = [
        weighting.info(
            r, sparsity, r * sparsity + (1 - r) * (1 - sparsity), integrate(chosen.sparsity, r).cpu().numpy()
        )
        for r in RATIOS
    ]
    spread = [float(torch.std(integrate(chosen.sparsity, r))) for r in RATIOS]

    def words(places: tuple[int, ...]) -> str:
        r = RATIOS[places[0]]
        if r == 0.5:
            effect = "every weight counts the same: the map changes nothing"
        else:
            effect = "weights of one modality count more" if r > 0.5 else "shared weights count more"
        return f"r = {r:.2f}: {effect}; Λ spreads by {spread[places[0]]:.2f} around 1. The r of {linear} is {own:.3f}."

    return stepped(
        "weighting",
        [Control("r", tuple(f"{r:.2f}" for r in RATIOS), start)],
        lambda places, dark: weighting.figure(infos[places[0]], dark),
        lambda places: weighting.traces(infos[places[0]]),
        words,
    )


def cost_chart(store: Store, run_id: str) -> dict[str, Any]:
    """Every stored bit of the chosen run."""
    if not run_id:
        return no_chart("The bits of a run appear here once there is one: make one in Binarize.")
    run = store.run(run_id)
    if not run.reports:
        return no_chart("This run holds no finished layer yet.")
    bits, weights = breakdown(run)
    drawn = bit_breakdown.info([run.name], [bits], [weights], [run.bits_nominal])
    words = (
        f"{run.name}: {run.bits_all_in:.2f} bits per weight are stored, {run.bits_nominal:.2f} is what a paper "
        f"would print. "
        f"{run.bytes / 1e6:.2f} MB for {weights / 1e6:.1f} million weights."
    )
    return chart_value("stored-bits", lambda dark: bit_breakdown.figure(drawn, dark), words)
