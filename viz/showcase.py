"""Find, by measurement, which sample question shows what: `python -m viz.showcase`.

Every sample question of the Chat tab is answered greedily by the full-precision model and by every shipped run, and
three pairs are written to assets/chat-examples.json for the tab's one-click examples:

    agreement   the same tokens, of an answer of some length, with the smallest mean KL
    subtle      the answers differ in as few words as possible, one at least, and are of one length
    gross       the answers have the least in common

One run each, and no run twice where it can be helped. The file names the weights by their fingerprint and the run by
its version, and the tab offers an example only where both are those that are there: after new weights or runs, make
the file anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab.errors import SabError
from viz.pages.samples import Samples, samples
from viz.pages.shared import ASSETS
from viz.pages.store import Store, version

if TYPE_CHECKING:
    from PIL import Image

EXAMPLES = ASSETS / "chat-examples.json"
KINDS = ("agreement", "subtle", "gross")
LONG = 6  # tokens of an answer in which an agreement means something
MOST_TOKENS = 64


@dataclass(frozen=True)
class Pair:
    """One question answered by full precision and by a run: `picture` is the number of the sample, None without;
    `words` the number of words that differ where both answers have as many, else None; `common` the share of words in
    common, in order; `kl` the mean KL(full ‖ run) in nats along the full-precision answer, `tokens` its length."""

    run: str
    version: str
    picture: int | None
    question: str
    full: str
    binarized: str
    same: bool
    words: int | None
    common: float
    kl: float
    tokens: int


def questions(found: Samples) -> list[tuple[int | None, Image.Image | None, str]]:
    """Every sample question with its picture's number and the picture."""
    shown = [
        (number, sample.picture, question)
        for number, sample in enumerate(found.pictures)
        for question in sample.suggestions.questions
    ]
    return [*shown, *((None, None, question) for question in found.without.questions)]


def measured(store: Store, found: Samples, tell: Callable[[str], None] = lambda words: None) -> list[Pair]:
    """Every question answered by every run of the open model."""
    from sab.attribution import token_kl
    from sab.chat import answer_logprobs
    from sab.evaluate import greedy

    asked = questions(found)
    full = store.lvlm
    prepared = [full.prepare(question, picture) for _, picture, question in asked]
    references = [greedy(full, row, MOST_TOKENS)[0] for row in prepared]
    likely = [
        answer_logprobs(full, question, picture, tokens)
        for (_, picture, question), tokens in zip(asked, references, strict=True)
    ]
    pairs = []
    for run in store.runs():
        if not store.made_from(run) or not run.finished:
            continue
        tell(run.name)
        other = store.binarized(run.id)
        for (number, picture, question), row, tokens, wanted in zip(asked, prepared, references, likely, strict=True):
            answer = greedy(other, row, MOST_TOKENS)[0]
            kl = token_kl(wanted, answer_logprobs(other, question, picture, tokens))
            one, two = (full.tokenizer.decode(each, skip_special_tokens=True).strip() for each in (tokens, answer))
            left, right = one.split(), two.split()
            differing = sum(a != b for a, b in zip(left, right, strict=True)) if len(left) == len(right) else None
            common = SequenceMatcher(None, left, right, autojunk=False).ratio()
            pairs.append(
                Pair(
                    run.id, version(run), number, question, one, two, tokens == answer, differing, common,
                    float(kl.mean()), len(tokens),
                )
            )  # fmt: skip
    return pairs


def chosen(pairs: Sequence[Pair]) -> dict[str, Pair]:
    """The pair of each kind that shows it best; a kind that nothing shows is left out."""
    found: dict[str, Pair] = {}
    ranked: dict[str, list[Pair]] = {
        "gross": sorted((each for each in pairs if each.common < 0.5), key=lambda each: (each.common, -each.kl)),
        "subtle": sorted(
            (each for each in pairs if each.words and each.words < 3 and each.common >= 0.5),
            key=lambda each: (each.words or 0, -each.tokens, each.kl),
        ),
        "agreement": sorted(
            (each for each in pairs if each.same and each.tokens >= LONG), key=lambda each: (each.kl, -each.tokens)
        ),
    }
    for kind, candidates in ranked.items():
        used = {pair.run for pair in found.values()}
        fresh = [pair for pair in candidates if pair.run not in used and pair.picture is not None]
        if best := next(iter(fresh or candidates), None):
            found[kind] = best
    return {kind: found[kind] for kind in KINDS if kind in found}


def read(store: Store, found: Samples, path: Path = EXAMPLES) -> list[dict[str, Any]]:
    """The stored examples that hold for the weights, runs and samples of this page; none where the file is missing
    or of other weights."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        entries = [(kind, Pair(**stored["examples"][kind])) for kind in KINDS if kind in stored["examples"]]
        fingerprint = stored["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    here = {run.id: run for run in store.runs() if store.made_from(run) and run.fingerprint == fingerprint}
    known = {(number, question) for number, _, question in questions(found)}
    return [
        asdict(pair) | {"kind": kind, "name": here[pair.run].name}
        for kind, pair in entries
        if pair.run in here and version(here[pair.run]) == pair.version and (pair.picture, pair.question) in known
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and write; the last line on stdout is the file's content on one line."""
    parser = argparse.ArgumentParser(prog="python -m viz.showcase", description="find the Chat tab's examples")
    parser.add_argument("--out", type=Path, default=EXAMPLES)
    options = parser.parse_args(arguments)
    try:
        from sab import runs
        from sab.files import write_json

        store = Store(None, [runs.ASSET_RUNS / "none"])  # the shipped runs alone
        found = chosen(measured(store, samples(), lambda words: print(words, file=sys.stderr)))
        content = {
            "fingerprint": store.lvlm.fingerprint,
            "examples": {kind: asdict(pair) for kind, pair in found.items()},
        }
        write_json(options.out, content)
    except SabError as error:
        print(f"viz.showcase: {error}", file=sys.stderr)
        return 2
    for kind, pair in found.items():
        print(f"{kind}: {pair.run}: {pair.question} — {pair.full} | {pair.binarized}", file=sys.stderr)
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
