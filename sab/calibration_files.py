"""Conversations with pictures from files, for calibration.

A folder holds `name.png` (or .jpg, .jpeg, .webp) beside `name.txt`. The text is a caption, or questions and answers
when its first line begins with `Q:`; lines that begin with `Q:` or `A:` begin a turn. A text without a picture is a
conversation without one. A folder with a `captions.jsonl` (or `metadata.jsonl`) is read from that file alone.

A line of JSON, and likewise a row of a dataset, is one conversation:

    {"messages": [{"role": "user", "content": "…"}, …], "image": "path"}    text, or a list of parts as OpenAI and
                                                                            Hugging Face write them
    {"question": "…", "answer": "…", "image": "path"}
    {"caption": "…", "image": "path"}                                       also "text", and "file_name" for the path

Paths are relative to the file; `data:` addresses are read, web addresses are not: nothing is fetched but a dataset that
was asked for. A conversation has at most one picture, which comes with its first question. Pictures are shrunk to a
megapixel (about 1,300 tokens of Qwen2.5-VL), which bounds memory and the length of samples.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sab.calibration import HUB, Sample
from sab.chat import open_picture
from sab.errors import SabError
from sab.templates import Message

LIST_FILES = ("captions.jsonl", "metadata.jsonl")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_LINE = 64_000_000  # bytes; a line may hold its picture
LONGEST_TEXT = 32_768  # characters of one conversation, some 8,000 tokens
MOST_PIXELS = 2**20
SMALLEST_SIDE = 16
LONGEST_SHAPE = 50  # times as long as wide; processors refuse some shapes
BUFFER = 256  # rows among which a streamed dataset is shuffled
ROWS_PER_SAMPLE = 16  # of a dataset that are looked at before giving up
DESCRIBE, WRITE = "Describe the picture.", "Write a text."  # what a caption and a text without picture answer
TURN = re.compile(r"^(Q|A):", re.MULTILINE)
PICTURE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Entry:
    """A conversation that may be drawn: where it stands, whether it has a picture, and `read`, which raises SabError
    where it cannot be used."""

    place: str
    with_picture: bool
    read: Callable[[], Sample]


def entries(source: str, seed: int, count: int) -> Iterable[Entry]:
    """The entries of a source in seeded order; `count` bounds how many rows of a dataset are looked at.

    Raises SabError where the source is not there, or a dataset cannot be read.
    """
    if hub := HUB.fullmatch(source):
        return _hub_entries(hub["name"], hub["config"], hub["split"] or "train", seed, count * ROWS_PER_SAMPLE)
    path = Path(source)
    try:
        found = _folder_entries(path) if path.is_dir() else _line_entries(path)
    except OSError as error:
        raise SabError(
            f"The calibration samples in {source} cannot be read ({error.strerror}); name another source."
        ) from error
    random.Random(seed).shuffle(found)
    return found


def _folder_entries(folder: Path) -> list[Entry]:
    for name in LIST_FILES:
        if (folder / name).is_file():
            return _line_entries(folder / name)
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    texts = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
    pictures = {file.stem: file for file in reversed(files) if file.suffix.lower() in PICTURE_SUFFIXES}
    if not texts:
        raise SabError(
            f"{folder} holds no texts for calibration: put name.txt beside each name.png, or a captions.jsonl there."
        )
    found = [Entry(picture.name, True, partial(_pair, texts.get(stem), picture)) for stem, picture in pictures.items()]
    found += [
        Entry(text.name, False, partial(_pair, text, None)) for stem, text in texts.items() if stem not in pictures
    ]
    return sorted(found, key=lambda entry: entry.place)


def _pair(text: Path | None, picture: Path | None) -> Sample:
    if text is None:
        raise SabError("it has no text beside it")
    try:
        with text.open(encoding="utf-8-sig") as file:
            said = file.read(LONGEST_TEXT + 1)
    except (OSError, ValueError) as error:
        raise SabError(f"{text.name} is no text in UTF-8") from error
    turns = _written_turns(said) or _caption(said, picture is not None)
    return _sample(turns, picture, None)


def _written_turns(said: str) -> list[Message]:
    """Questions and answers of a text that begins with `Q:`; none of any other."""
    pieces = TURN.split(said)
    if len(pieces) == 1 or pieces[0].strip():
        return []
    roles = {"Q": "user", "A": "assistant"}
    return [
        {"role": roles[letter], "content": text.strip()}
        for letter, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _caption(text: str, with_picture: bool) -> list[Message]:
    return [
        {"role": "user", "content": DESCRIBE if with_picture else WRITE},
        {"role": "assistant", "content": text.strip()},
    ]


def _line_entries(path: Path) -> list[Entry]:
    """One entry per line that is not empty; only where it begins is kept in memory."""
    found = []
    with path.open("rb") as file:
        for number, (start, line) in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                with_picture = bool(_pictures(_row(line)))
            except SabError:  # `read` will say so, should the line be drawn
                with_picture = False
            found.append(Entry(f"line {number}", with_picture, partial(_line_sample, path, start)))
    return found


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line; of one that is too long its beginning."""
    while True:
        start = file.tell()
        line = file.readline(LONGEST_LINE)
        if not line:
            return
        yield start, line
        while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)


def _line_sample(path: Path, start: int) -> Sample:
    with path.open("rb") as file:
        file.seek(start)
        row = _row(file.readline(LONGEST_LINE))
    return _row_sample(row, path.parent)


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SabError("it is not JSON") from error
    if not isinstance(row, dict):
        raise SabError("it is no JSON object")
    return row


def _hub_entries(name: str, config: str | None, split: str, seed: int, most: int) -> Iterator[Entry]:
    """The first rows of a dataset, streamed and shuffled; pictures stay as they are stored until they are drawn."""
    try:
        import datasets
    except ImportError as error:
        raise SabError(
            "Calibration with a dataset of the hub needs the datasets library; pip install datasets, or name a folder "
            "or a file of JSON lines."
        ) from error
    try:
        stream = datasets.load_dataset(name, config, split=split, streaming=True)
        rows = stream.decode(False).shuffle(seed=seed, buffer_size=BUFFER)
        for number, row in enumerate(islice(rows, most), 1):
            yield Entry(f"row {number} as shuffled", bool(_pictures(row)), partial(_row_sample, row, None))
    except Exception as error:  # of the network, of the hub, of any file format
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SabError(
            f"The dataset {name} could not be read ({reason}); check its name, split and your network."
        ) from error


def _row_sample(row: Mapping[str, Any], folder: Path | None) -> Sample:
    """The conversation of a line or row; `folder`: where its paths begin, None where paths are not followed."""
    pictures = _pictures(row)
    if len(pictures) > 1:
        raise SabError("it has several pictures")
    return _sample(_turns(row, bool(pictures)), pictures[0] if pictures else None, folder)


def _pictures(row: Mapping[str, Any]) -> list[Any]:
    """What a row says its pictures are: paths, addresses, stored bytes or pictures."""
    found = [row[key] for key in ("image", "file_name") if row.get(key)]
    if isinstance(row.get("images"), list):
        found += [entry for entry in row["images"] if entry]
    for _, part in _picture_parts(row):
        value = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key)), None)
        if isinstance(value, dict) and "url" in value:
            value = value["url"]
        if value is not None:
            found.append(value)
    return found


def _picture_parts(row: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The picture parts of a chat, with the number of their turn."""
    messages = row.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") in PICTURE_PARTS:
                yield number, part


def _turns(row: Mapping[str, Any], with_picture: bool) -> list[Message]:
    if "messages" in row:
        return _chat_turns(row, with_picture)
    question, answer = _text_of(row, "question"), _text_of(row, "answer", "answers")
    if question and answer:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if caption := _text_of(row, "caption", "text"):
        return _caption(caption, with_picture)
    raise SabError("it has neither messages, nor question and answer, nor a caption")


def _text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first text under one of the names; of a list its first."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def _chat_turns(row: Mapping[str, Any], with_picture: bool) -> list[Message]:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise SabError("its messages are no list of turns")
    turns: list[Message] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise SabError(f"it has a turn of {role!r}")
        text = content if isinstance(content, str) else _joined(content)
        if with_picture:
            text = text.replace("<image>", "")  # some data sets mark the place of the picture so
        turns.append({"role": ROLES[role], "content": text.strip()})
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), 0)
    if any(number != first for number, _ in _picture_parts(row)):
        raise SabError("its picture does not come with the first question")
    return turns


def _joined(parts: Any) -> str:
    """The texts of a turn's parts."""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise SabError("the content of a turn is neither a text nor a list of parts")
    found = []
    for part in parts:
        if part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
            found.append(part["text"])
        elif part.get("type") not in PICTURE_PARTS:
            raise SabError(f"it has a part of type {part.get('type')!r}")
    return "\n".join(found)


def _sample(turns: list[Message], picture: Any, folder: Path | None) -> Sample:
    """A sample of turns that every chat template takes: a system turn perhaps, then questions and answers in turn."""
    talk = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if any(turn["role"] != ("user", "assistant")[place % 2] for place, turn in enumerate(talk)) or len(talk) < 2:
        raise SabError("it is no conversation of questions and answers in turn")
    if not all(turn["content"] for turn in turns):
        raise SabError("one of its turns is empty")
    if sum(len(turn["content"]) for turn in turns) > LONGEST_TEXT:
        raise SabError(f"it is longer than {LONGEST_TEXT:,} characters")
    return Sample(turns, None if picture is None else _fitting(_opened(picture, folder)))


def _opened(picture: Any, folder: Path | None) -> Image.Image:
    if isinstance(picture, dict):  # as the datasets library stores it
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str) and picture.startswith("data:"):
        try:
            picture = base64.b64decode(picture.partition(",")[2], validate=True)
        except ValueError as error:
            raise SabError("its picture is no base64") from error
    if isinstance(picture, bytes | Image.Image | Path):
        return open_picture(picture)
    if not isinstance(picture, str) or "://" in picture or folder is None:
        raise SabError("its picture is neither a file nor stored in it, and nothing is fetched")
    try:
        there = (folder / picture).is_file()  # no pipe, no device
    except (OSError, ValueError) as error:
        raise SabError("its picture is no path") from error
    if not there:
        raise SabError(f"there is no picture {picture[:100]!r}")
    return open_picture(folder / picture)


def _fitting(picture: Image.Image) -> Image.Image:
    """The picture at most a megapixel large. SabError for shapes that some processor refuses."""
    short, long = sorted(picture.size)
    if short < SMALLEST_SIDE or long > LONGEST_SHAPE * short:
        raise SabError(f"its picture of {picture.width}×{picture.height} pixels is too narrow")
    scale = (MOST_PIXELS / (short * long)) ** 0.5
    if scale >= 1:
        return picture
    size = max(SMALLEST_SIDE, int(picture.width * scale)), max(SMALLEST_SIDE, int(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
