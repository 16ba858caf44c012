"""A small server that speaks as much of the Hugging Face Hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

CHUNK = 1 << 16


class Hub:
    """`repositories` by id; of a `gated` one nothing but the listing is given away. While `flowing` is not set, weights
    stop coming after their first chunk. `asked` are the paths of all requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.listed: dict[str, dict[str, int]] = {}  # sizes that are told instead of the true ones
        self.broken = False
        self.flowing = threading.Event()
        self.flowing.set()
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def commit(self, name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()

    def files(self, name: str) -> dict[str, Path]:
        return {path.name: path for path in sorted(self.repositories[name].iterdir()) if path.is_file()}

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine, while the context is open."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            hub.asked.append((self.command, path))
            if hub.broken:
                self._say(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "down"})
                return
            if path.startswith("api/models/"):
                name, _, more = path.removeprefix("api/models/").partition("/tree/")
                self._describe("/".join(name.split("/")[:2]), bool(more))
                return
            name, _, file = path.partition("/resolve/")
            self._give(name, file.partition("/")[2], body)

        def _describe(self, name: str, tree: bool) -> None:
            if name not in hub.repositories:
                self._say(HTTPStatus.UNAUTHORIZED, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            sizes = {file: path.stat().st_size for file, path in hub.files(name).items()} | hub.listed.get(name, {})
            if tree:
                listed: Any = [
                    {"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in sizes.items()
                ]
            else:
                siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
                listed = {"id": name, "sha": hub.commit(name), "siblings": siblings}
            self._say(HTTPStatus.OK, listed)

        def _give(self, name: str, file: str, body: bool) -> None:
            if name in hub.gated:
                self._say(HTTPStatus.FORBIDDEN, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
                return
            path = hub.files(name).get(file) if name in hub.repositories else None
            if path is None:
                self._say(HTTPStatus.NOT_FOUND, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
                return
            data = path.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": hub.commit(name)}
            self._head(HTTPStatus.OK, len(data), headers)
            for start in range(0, len(data) if body else 0, CHUNK):
                try:
                    self.wfile.write(data[start : start + CHUNK])
                except OSError:  # whoever asked has gone
                    return
                if file.endswith(".safetensors"):
                    hub.flowing.wait(30)

        def _say(self, status: HTTPStatus, values: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(values).encode()
            self._head(status, len(data), headers or {})
            if self.command == "GET":
                self.wfile.write(data)

        def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(key, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.flowing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def ask_here(monkeypatch: pytest.MonkeyPatch, running: Hub, cache: Path) -> None:
    """Have this process ask that hub and not the real one, whatever the environment says, and keep files in `cache`."""
    here = {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": running.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "DOWNLOAD_CHUNK_SIZE": CHUNK,
    }
    for name, value in here.items():
        monkeypatch.setattr(constants, name, value)
