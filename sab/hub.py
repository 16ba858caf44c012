"""A model on the way to this machine: what a hub repository holds, its download, and how far its loading is.

Only what `models.load` reads is downloaded: safetensors weights, configurations, tokenizer and picture processor files
from the top of the repository. Nothing that runs is among them. A download goes into the hub's own cache, so that the
command line and the page share it; whole files stay there when it is stopped.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sab.errors import SabError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
BESIDE = re.compile(r"[\w.-]+\.(json|jinja|txt|model)")
PATIENCE = 15.0  # seconds in which the hub has to answer
AT_ONCE = 2  # files; what a stopped download loses are those that are not whole
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Somebody has stopped a download or a loading."""


class Unreachable(SabError):
    """The hub does not answer, so only what is on this machine can be opened."""


@dataclass(frozen=True)
class Plan:
    """What is to be downloaded: sizes in bytes by file name, and how many bytes of them are not on this machine yet."""

    repository: str
    sizes: Mapping[str, int]
    missing: int

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def plan(repository: str) -> Plan:
    """What a repository holds now, asked from the hub. SabError where it is unknown, gated or holds no safetensors
    weights, and `Unreachable` where the hub does not answer."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    with _in_words(repository):
        found = HfApi().model_info(repository, files_metadata=True, timeout=PATIENCE)
    sizes = {
        each.rfilename: each.size or 0
        for each in found.siblings or ()
        if WEIGHTS.fullmatch(each.rfilename) or BESIDE.fullmatch(each.rfilename)
    }
    if not any(WEIGHTS.fullmatch(name) for name in sizes) or "config.json" not in sizes:
        raise SabError(f"{repository} holds no safetensors weights with a config.json; choose a checkpoint that does.")
    here = {name for name in sizes if isinstance(try_to_load_from_cache(repository, name, revision=found.sha), str)}
    return Plan(repository, sizes, sum(size for name, size in sizes.items() if name not in here))


def configuration(planned: Plan) -> Path:
    """Download the configuration alone; the folder that it lies in."""
    from huggingface_hub import hf_hub_download

    with _in_words(planned.repository):
        return Path(hf_hub_download(planned.repository, "config.json")).parent


def check_disk(planned: Plan) -> None:
    """SabError where the disk of the hub's cache has no room for what is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE).expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if planned.missing > free:
        raise SabError(
            f"{planned.repository} needs {gigabytes(planned.missing)} more on the disk and {gigabytes(free)} are free; "
            "make room, or let HF_HOME name a larger disk."
        )


def fetch(planned: Plan, progress: Progress, stop: threading.Event) -> Path:
    """Download what is missing; the folder of the model. `progress` hears bytes done and in all. Raises Stopped when
    the next piece has come after `stop`, and SabError where the hub fails or the disk is full."""
    from huggingface_hub import snapshot_download
    from tqdm import tqdm

    guard = threading.Lock()
    counted: dict[int, int] = {}  # the hub counts bytes that came and bytes that were written in two bars

    class Meter(tqdm):
        """Counts for `progress` and draws nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._bytes = options.get("unit") == "B"
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise Stopped
            if self._bytes:
                with guard:
                    counted[id(self)] = counted.get(id(self), 0) + int(n or 0)
                    done = max(counted.values())
                progress(planned.total - planned.missing + min(done, planned.missing), planned.total)
            return None

    progress(planned.total - planned.missing, planned.total)
    with _in_words(planned.repository):
        return Path(
            snapshot_download(
                planned.repository,
                allow_patterns=list(planned.sizes),
                tqdm_class=Meter,
                max_workers=AT_ONCE,
            )
        )


def on_this_machine(repository: str) -> Path | None:
    """The folder of a repository that was downloaded whole before, without asking the hub; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    from sab.files import json_in  # its safetensors bring torch, which the page does not wait for

    found = try_to_load_from_cache(repository, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    index = folder / "model.safetensors.index.json"
    try:
        weights = json_in(index)["weight_map"].values() if index.exists() else ("model.safetensors",)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if all((folder / str(name)).exists() for name in weights) else None


@contextmanager
def watched_loading(progress: Progress, stop: threading.Event) -> Iterator[None]:
    """While the context is open, `models.load` in this thread tells `progress` weights done and in all, and raises once
    `stop` is set (what it raises is wrapped: look at `stop`)."""
    from transformers.utils import logging as transformers_logging

    mine = threading.get_ident()

    def counted(items: Iterable[Any]) -> Iterator[Any]:
        listed = list(items)
        for place, item in enumerate(listed):
            if stop.is_set():
                raise Stopped
            progress(place, len(listed))
            yield item

    def bar(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ours = threading.get_ident() == mine and options.get("desc") == "Loading weights"
        return counted(arguments[0]) if ours else factory(*arguments, **options)

    before = transformers_logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def gigabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextmanager
def _in_words(repository: str) -> Iterator[None]:
    """Whatever the hub's library raises becomes one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except (Stopped, SabError):
        raise
    except HFValidationError as error:
        raise SabError(f"{repository!r} is no name of a model on the Hugging Face Hub; write owner/name.") from error
    except GatedRepoError as error:
        raise SabError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository} and log in with "
            "`hf auth login`, then open it again."
        ) from error
    except RepositoryNotFoundError as error:
        raise SabError(
            f"There is no model {repository} on the Hugging Face Hub, or it is private; check the name, or log in "
            "with `hf auth login`."
        ) from error
    except Exception as error:  # a dozen kinds from three libraries, whose names differ by version
        answer = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and answer is not None:
            code = answer.status_code
            raise SabError(f"The Hugging Face Hub answers with an error ({code}); try again later.") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SabError(
                f"The disk is full; whole files of {repository} are kept. Make room and open it again."
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise SabError(f"{error.filename} cannot be written; let HF_HOME name a folder that can.") from error
        log.warning("the hub could not be asked about %s: %r", repository, error)
        raise Unreachable(
            f"The Hugging Face Hub cannot be reached ({type(error).__name__}), so {repository} cannot be downloaded; "
            "check the connection, or open a folder of this machine."
        ) from error
