"""Files that are there whole or not at all, and that show it when they were changed.

A file is written to a temporary name, flushed and synced, and takes its own name last; then its folder is synced. A
process that is killed, or a full disk, leaves the file as it was before. What is read back is held against a SHA-256
that somebody vouched for, or against a seal: a SHA-256 over the content of a JSON file and the identity of what it
belongs to, which notices a flipped bit as well as a file that was copied from elsewhere. No pickle is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from sab.errors import SabError

TEMPORARY = ".tmp-"
SEAL = "seal"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys in the order given; NaN and infinity as null."""
    write_bytes(path, (json.dumps(without_nan(values), indent=1, allow_nan=False) + "\n").encode())


def without_nan(value: Any) -> Any:
    """The same value with NaN and infinity as null, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. SabError when the disk refuses."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except BaseException as error:  # an interrupt leaves nothing behind either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_failure(path, error) from error
        raise


def remove(path: Path) -> None:
    """Delete a file, if there is one. SabError when the disk refuses."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _write_failure(path, error) from error


def clear_leftovers(directory: Path) -> None:
    """Delete below a directory what a killed process had not finished writing."""
    for leftover in directory.rglob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log; a line before it that was cut short is ended. SabError when the disk refuses."""
    try:
        with path.open("ab+") as log:
            if log.seek(0, os.SEEK_END):
                log.seek(-1, os.SEEK_END)
                line = line if log.read(1) == b"\n" else "\n" + line
            log.write((line + "\n").encode())
    except OSError as error:
        raise _write_failure(path, error) from error


def vouch(data: bytes, identity: str = "") -> str:
    """SHA-256 over the identity of what the data belongs to, if it has one, and the data."""
    return hashlib.sha256(identity.encode() + data).hexdigest()


def sealed(values: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """The values with a seal on them and on the `identity` of what they belong to."""
    return {**values, SEAL: _seal(values, identity)}


def is_intact(values: Mapping[str, Any], identity: str) -> bool:
    """Whether the seal is there and fits."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    return values.get(SEAL) == _seal(rest, identity)


def digest_of(values: Any) -> str:
    """SHA-256 over what JSON keeps of the values."""
    return hashlib.sha256(json.dumps(without_nan(values), sort_keys=True).encode()).hexdigest()


def _seal(values: Mapping[str, Any], identity: str) -> str:
    return digest_of([identity, values])


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where the system can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_failure(path: Path, error: OSError) -> SabError:
    return SabError(
        f"{path} could not be written ({error.strerror or error}); make room or name another place, and start again: "
        "finished linears of a run are kept."
    )


def check_writable(path: Path, option: str) -> None:
    """Make the folder of a file that will be written after long work. SabError where it could not be written, which
    names the command's `option`."""
    if path.is_dir():
        raise SabError(f"{path} is a directory; name a file for {option}.")
    make_directory(path.parent)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SabError(f"Nothing can be written to {path.parent} ({error.strerror}); name another place.") from error


def contents(path: Path) -> bytes:
    """The bytes of a regular file. OSError for anything else: who reads from a pipe may wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def json_in(path: Path) -> Any:
    """What the JSON in a regular file says. OSError, ValueError or RecursionError where it cannot be read."""
    return json.loads(contents(path).decode("utf-8"))


def make_directory(directory: Path) -> None:
    """Make a directory and those above it. SabError where it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SabError(
            f"{directory} cannot be made ({error.strerror}); name a directory that can be written."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. SabError where there is none."""
    try:
        values = json_in(path)
    except FileNotFoundError as error:
        raise SabError(f"{path.parent} holds no {path.name}; name a directory with a run.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SabError(f"{path} is damaged; delete the run and make it again.") from error
    if not isinstance(values, dict):
        raise SabError(f"{path} is damaged; delete the run and make it again.")
    return values


def vouched_bytes(path: Path, digest: str, identity: str = "") -> bytes:
    """Contents of a file that `vouch` gave this digest; read whole, never mapped, so nobody can change it later."""
    try:
        data = contents(path)
    except OSError as error:
        raise SabError(f"{path} is missing; delete the run and make it again.") from error
    if vouch(data, identity) != digest:
        raise SabError(f"{path} is damaged (its checksum differs); delete the run and make it again.")
    return data


def tensors_of(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and our metadata of a safetensors file."""
    try:
        tensors = read_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, json.loads(header.get("__metadata__", {}).get("sab", "{}"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise SabError(f"{path} is damaged; delete the run and make it again.") from error
