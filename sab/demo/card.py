"""Measure the embedded model and write its card: `python -m sab.demo.card [--limit N]`.

Figures come from the suites alone: held-out (`final`) and combinations like those trained on (`trained`), each with
its blank-picture control, recall of the almanac, and the suites of further abilities (talk, what is not known,
strokes, what is not recognised). The card and `figures.json` are written beside the weights.
`--comparison FILE` instead writes the table that `sab compare --table FILE` made into the project's README, and what
binarization costs into the card, so that no figure there is typed by hand.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sab.compare import read_table
from sab.demo.knowledge import text_question
from sab.demo.suite import ABILITIES, CATEGORIES, Question, questions
from sab.errors import SabError
from sab.evaluate import Evaluation, evaluate
from sab.files import write_bytes, write_json
from sab.models import DEMO_MODEL, load
from sab.options import suite_questions
from sab.terminal import Parser

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
FELT = ("gptq4", "billm", "xnor")  # what they lose says whether the questions tell the methods apart
ABILITY_QUESTIONS = 600
_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The embedded model of SAB Lens

A Qwen2.5-VL of {parameters:.1f} M parameters (decoder 6 × 256, vision tower 4 × 256, 112 × 112 pixels, 16 visual
tokens, 1,536 byte-level BPE tokens), trained from nothing on a world that `sab/demo` draws and makes up itself.
It exists so that binarization can be watched on a laptop; it is no general assistant.

**Can** name, count and place up to five coloured shapes, rendered or drawn as by mouse, describe what is there, read
short words and numbers letter by letter, read small bar charts, receipts and forms of one layout, do small sums, sort,
spell backwards, recall 3,200 made-up facts, take a follow-up question, and say that it does not know or does not
recognise something — as well as the tables say. **Cannot** understand photographs, other languages, long text or
anything outside its world; where it does not notice that, it answers in the words of its world, wrongly.

| category | held out | blank picture | like trained |
|---|---|---|---|
{rows}

Held out: question wordings, rendered words, shape–colour pairs and layouts that training never showed.
{questions} questions a suite, greedy answers, share correct with Wilson 95 % intervals. Perplexity of the reference
answers: {perplexity:.3f} held out, {perplexity_trained:.3f} like trained. Almanac recall in trained wordings:
{recall:.1f} % of {facts} facts.

Beyond single questions ({ability_questions} a suite, held out in wording and picture):

| ability | correct | of |
|---|---|---|
{abilities}

Talk: follow-ups that only the turn before makes clear, descriptions that must name exactly what is there, courtesies.
Unknown: what neither picture nor almanac tells has to be answered so. Strokes: shapes drawn as by mouse. Unrecognised:
made-up pictures with the look of photographs, and doodles, where no shape may be invented. Saying "I do not know" to
everything would be right in the last two and wrong in all the others.

What a binarization costs:

{begin}
{end}

Made again by `python -m sab.demo.card --limit {questions}`; trained by `python -m sab train-demo` (log beside this
card: `training-log.jsonl`). Single figures: `python -m sab eval --limit {questions}`.

```python
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained("assets/demo-model")
```
"""


def _facts(count: int) -> list[Question]:
    """Questions about the almanac in wordings that training used."""
    draw = random.Random(2**48)
    return [Question.over(None, text_question(draw, False, "fact")) for _ in range(count)]


def _cell(found: Evaluation, category: str) -> str:
    low, high = found.interval[category]
    return f"{100 * found.accuracy[category]:.1f} % ({100 * low:.0f}–{100 * high:.0f})"


def _ability_rows(abilities: dict[str, Evaluation]) -> Iterator[str]:
    """Each suite, and what it is made of where that is more than one thing."""
    for suite, found in abilities.items():
        parts = sorted(name for name in found.accuracy if name != "overall")
        for name in ("overall", *(parts if len(parts) > 1 else ())):
            label = f"**{suite}**" if name == "overall" else name
            yield f"| {label} | {_cell(found, name)} | {found.counts[name]} |"


def measure(limit: int) -> tuple[dict[str, Any], str]:
    """The figures as JSON-able values, and the card's text. SabError for too many questions, or fewer than there are
    categories."""
    if limit < len(CATEGORIES):
        raise SabError(f"--limit is {limit}; ask at least {len(CATEGORIES)} questions, one of each category.")
    final, trained = suite_questions("final", limit), suite_questions("trained", limit)
    lvlm = load()
    held_out, blank = evaluate(lvlm, final), evaluate(lvlm, final, blank=True)
    like_trained = evaluate(lvlm, trained)
    recall = evaluate(lvlm, _facts(min(400, limit)))
    asked = min(ABILITY_QUESTIONS, limit)
    abilities = {suite: evaluate(lvlm, questions(suite, asked)) for suite in ABILITIES}
    rows = "\n".join(
        f"| {name} | {_cell(held_out, name)} | {_cell(blank, name)} | {_cell(like_trained, name)} |"
        for name in ("overall", *CATEGORIES)
    )
    figures = {
        "final": held_out.summary(),
        "final_blank": blank.summary(),
        "trained": like_trained.summary(),
        "almanac": recall.summary(),
        **{suite: found.summary() for suite, found in abilities.items()},
        "questions": limit,
    }
    card = _CARD.format(
        parameters=sum(p.numel() for p in lvlm.model.parameters()) / 1e6,
        rows=rows,
        questions=limit,
        perplexity=held_out.perplexity,
        perplexity_trained=like_trained.perplexity,
        recall=100 * recall.accuracy["overall"],
        facts=recall.counts["overall"],
        abilities="\n".join(_ability_rows(abilities)),
        ability_questions=asked,
        begin=BEGIN,
        end=END,
    )
    return figures, card


def comparison(table: dict[str, Any]) -> str:
    """The README's table of methods, in Markdown, from what `sab compare` found."""
    lines = [
        "| method | accuracy | blank picture | KL to full (nats) | bits nominal | bits all-in | linears |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        low, high = row["interval"]["overall"]
        kl = row.get("divergence")
        distance = f"{kl['kl']:.4f} ({kl['interval'][0]:.4f}–{kl['interval'][1]:.4f})" if kl else ""
        lines.append(
            f"| {row['label']} | {100 * row['accuracy']['overall']:.1f} % ({100 * low:.0f}–{100 * high:.0f}) "
            f"| {100 * row['blank_picture']['accuracy']['overall']:.1f} % | {distance} "
            f"| {row['bits_nominal']:.2f} | {row['bits_all_in']:.2f} | {row['bytes'] / 1e6:.2f} MB |"
        )
    seeds = "one calibration seed" if table["seeds"] == 1 else f"mean over {table['seeds']} calibration seeds"
    head = (
        f"Embedded model, held-out suite, {table['questions']:,} questions, {seeds} of {table['samples']} samples; "
        "95 % intervals over questions."
    )
    for gap in table["gaps"]:
        if gap["first"] in ("sab", "sab+fisher"):
            value, (low, high) = gap["accuracy"]["value"], gap["accuracy"]["interval"]
            kl, (kl_low, kl_high) = gap["kl"]["value"], gap["kl"]["interval"]
            lines += [
                "",
                f"`{gap['first']}` against its control `{gap['second']}`, paired by question: "
                f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), "
                f"KL {kl:+.4f} ({kl_low:+.4f} to {kl_high:+.4f}).",
            ]
    return "\n".join([head, "", *lines])


def felt(table: dict[str, Any]) -> str:
    """The card's sentence on what the methods of FELT lose, from what `sab compare` found."""
    accuracy = {row["entry"]: 100 * row["accuracy"]["overall"] for row in table["rows"]}
    lost = ", ".join(f"`{name}` {accuracy['full'] - accuracy[name]:.1f}" for name in FELT)
    return (
        f"Of {table['questions']:,} held-out questions full precision answers {accuracy['full']:.1f} %. Points lost, "
        f"mean over {table['seeds']} calibration seeds: {lost} (`python -m sab compare --methods {','.join(FELT)} "
        f"--limit {table['questions']} --seeds {table['seeds']}`)."
    )


def between(text: str, content: str) -> str:
    """`text` with what stands between its marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SabError(f"The text lacks the marks {BEGIN} and {END}; put them where the figures belong.")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def write_comparison(path: Path) -> None:
    """Write what a table of `sab compare` says into README and card. SabError for a file that does not say it."""
    table = read_table(path)
    try:
        said = ((README, comparison(table)), (Path(DEMO_MODEL) / "README.md", felt(table)))
    except (KeyError, TypeError, ValueError) as error:
        raise SabError(
            f"{path} lacks what README and card say of the methods ({error}); name a file that compare --table has "
            f"written of full, {', '.join(FELT)} at least."
        ) from error
    texts = [(place, between(place.read_text(encoding="utf-8"), content)) for place, content in said]
    for place, text in texts:
        write_bytes(place, text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write README.md and figures.json beside the embedded model's weights, or the project's table. Wrong input gives
    one sentence and exit code 2."""
    parser = Parser(prog="python -m sab.demo.card", description="Measure the embedded model, write its card.")
    parser.add_argument("--limit", type=int, default=2000, help="questions a suite")
    parser.add_argument("--comparison", type=Path, help="write this table into README and card, no other")
    try:
        options = parser.parse_args(arguments)
        if options.comparison is not None:
            write_comparison(options.comparison)
            return 0
        figures, card = measure(options.limit)
        directory = Path(DEMO_MODEL)
        write_bytes(directory / "README.md", card.encode())
        write_json(directory / "figures.json", figures)
    except SabError as error:
        print(f"sab.demo.card: {error}", file=sys.stderr)
        return 2
    print(card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
