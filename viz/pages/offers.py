"""Which models a visitor may open, what they are called in an address, and which were opened before.

On a page of one's own machine that is any model; a page for others offers a list. The browser shows what is offered and
decides nothing: `Offers.named` does, on the server.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sab.errors import SabError
from sab.hub import HUB_ID

EMBEDDED = "embedded"  # how addresses and requests call the model that ships here
HUB_ADDRESS = re.compile(r"https?://(www\.)?(huggingface\.co|hf\.co)/")
LONGEST = 500  # characters of what a visitor may write
REMEMBERED = 12  # models opened before
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_local(host: str, space: str | None) -> bool:
    """Whether a page served at `host` can only be reached from its own machine; `space`: the Hugging Face Space that it
    runs in, if any."""
    return not space and host.strip("[]") in LOOPBACK


@dataclass(frozen=True)
class Offers:
    """What may be opened beside the model that was started (`first`, None for the embedded one): the embedded model,
    those `allowed` by id or folder, and with `free` every other. `local`: only this machine reaches the page."""

    first: str | None = None
    allowed: tuple[str, ...] = ()
    free: bool = False
    local: bool = False

    def named(self, sent: object) -> str | None:
        """The model that a visitor asks for, None for the embedded one: an id of the hub, or a folder's whole path.
        SabError for everything that is not offered or cannot be a model."""
        if not isinstance(sent, str) or not sent.strip():
            raise SabError("Write a Hugging Face id such as Qwen/Qwen2.5-VL-3B-Instruct, or a folder.")
        if len(sent) > LONGEST or not sent.isprintable():
            raise SabError("This is no name of a model: write a Hugging Face id or a folder.")
        text = HUB_ADDRESS.sub("", sent.strip()).rstrip("/") or "/"
        if text == EMBEDDED:
            return None
        for model in (self.first, *self.allowed):
            if model is not None and text in (model, canonical(model), slug(canonical(model))):
                return canonical(model)
        if not self.free:  # where folders are, and whether they are there, is nobody's business
            offered = ", ".join(("the embedded model", *map(title, self.allowed)))
            raise SabError(f"This page does not offer {text}; it offers {offered}.")
        return model_named(text)

    def name(self, model: str | None) -> str:
        """What `named` takes for a model; it gives no folder away that a visitor has not named."""
        return slug(model) if model is None or (not self.free and Path(model).is_dir()) else model

    def __contains__(self, model: object) -> bool:
        """Whether that model may be opened."""
        try:
            self.named(EMBEDDED if model is None else model)
        except SabError:
            return False
        return True


def canonical(model: str) -> str:
    """A folder as its whole path, anything else as it is."""
    folder = Path(model).expanduser()
    try:
        return str(folder.resolve()) if folder.is_dir() else model
    except (OSError, RuntimeError):  # no such user, a circle of links, a name too long
        return model


def model_named(text: str) -> str:
    """A model that may be there: an id of the hub, or a folder's whole path. SabError for what is neither."""
    model = canonical(text)
    if not Path(model).is_dir() and not HUB_ID.fullmatch(model):
        raise SabError(
            f"There is no folder {text}; write a folder, or a Hugging Face id such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    return model


def slug(model: str | None) -> str:
    """What a model is called in an address: `owner--name`, or a folder's name with a digest of its path."""
    if model is None:
        return EMBEDDED
    if not Path(model).is_dir():
        return model.replace("/", "--")
    name = re.sub(r"[^\w.]+", "-", Path(model).name, flags=re.ASCII).strip("-.") or "model"
    return f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def title(model: str | None) -> str:
    """What a model is called on the page: a folder by its name alone."""
    if model is None:
        return "embedded demo model"
    return Path(model).name if Path(model).is_dir() else model


class History:
    """The models that were opened before, the last one first, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()

    def models(self) -> list[str]:
        """Those that may still be there; none where the file cannot be read."""
        with self._guard:
            return self._read()

    def add(self, model: str) -> None:
        """Remember a model. What cannot be written is not remembered."""
        from sab.files import write_json

        with self._guard:
            kept = [model, *(each for each in self._read() if each != model)][:REMEMBERED]
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {"models": kept})
            except (SabError, OSError):
                return

    def _read(self) -> list[str]:
        from sab.files import read_json

        if not self._path.exists():
            return []
        try:
            listed = read_json(self._path).get("models")
        except SabError:
            return []
        named = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
        return [each for each in named if HUB_ID.fullmatch(each) or _is_whole_path(each)][:REMEMBERED]


def _is_whole_path(text: str) -> bool:
    """Whether a text is the whole path of a folder that is there."""
    return Path(text).is_dir() and canonical(text) == text


def of_slug(wanted: str, offers: Offers, known: Sequence[str]) -> str | None:
    """The model that an address means, among those that are offered or `known`, or an id of the hub; None for
    the embedded one. SabError for one that is not offered, and for a folder that nobody has opened here."""
    if wanted == EMBEDDED:
        return None
    for model in (offers.first, *offers.allowed, *known):
        if model is not None and slug(canonical(model)) == wanted:
            return offers.named(model)
    if "--" in wanted:
        return offers.named(wanted.replace("--", "/", 1))
    raise SabError(f"The link is for a model that was opened on another machine (“{wanted}”): open its folder here.")
