"""The pages of the models that are open: one `gr.Blocks` around one `Store` each, all on one port.

The model that was started has the address of the server itself, every other one `/m/<slug>/`; so visitors of
different models share no component, no session and no conversation, and a link says which model it is for. Gradio
serves the first page as usual; this ASGI application, mounted in it at `/m`, hands each request on to the application
of its model, which `gr.mount_gradio_app` makes. Such a page stays when its model has to leave the memory, and loads it
again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from viz.pages import shell
from viz.pages.chooser import Chooser
from viz.pages.offers import History, Offers, slug
from viz.pages.opening import Openings
from viz.pages.store import Store

MOST_PAGES = 24  # beside the first
HISTORY = "opened-models.json"  # beside the runs


class _Served:
    """The application of one page; it starts with the first request, in the server's own loop."""

    def __init__(self, blocks: gr.Blocks, name: str) -> None:
        self._app = FastAPI(openapi_url=None)
        gr.mount_gradio_app(self._app, blocks, f"/{name}", **shell.served_options())
        self._alive = AsyncExitStack()
        self._started = False
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._starting:
            if not self._started:
                await self._alive.enter_async_context(self._app.router.lifespan_context(self._app))
                self._started = True
        await self._app(scope, receive, send)

    async def close(self) -> None:
        """End its background work."""
        await self._alive.aclose()


class Site:
    """All pages of the process. `first` is the store of the model that was started."""

    def __init__(self, first: Store, offers: Offers, run_directories: Sequence[Path] = ()) -> None:
        self.first = first
        self._first_slug = slug(first.model)
        self._pages: OrderedDict[str, _Served] = OrderedDict()  # the least recently used first
        self._guard = threading.Lock()
        self._building = threading.Lock()  # gradio knows of one page at a time that is being built
        history = History(first.new_runs / HISTORY)
        self._openings = Openings(
            offers, first.machine, run_directories, history, publish=self.add, is_open=self.is_open
        )

    def blocks(self, store: Store) -> gr.Blocks:
        """The page around a store, with the dialog that leads to the others."""
        with self._building:
            return shell.page(store, Chooser(self._openings, slug(store.model), self._first_slug))

    def app_options(self) -> dict[str, Any]:
        """What the application of the first page has to be made with, so that it serves the others and ends them."""

        @asynccontextmanager
        async def alive(app: FastAPI) -> AsyncIterator[None]:
            yield
            with self._guard:
                served = list(self._pages.values())
            for each in served:
                await each.close()

        return {"routes": [Mount("/m", app=self)], "lifespan": alive}

    def is_open(self, name: str) -> bool:
        """Whether the model of that slug has a page."""
        with self._guard:
            return name == self._first_slug or name in self._pages

    def add(self, store: Store) -> None:
        """Make the page of another model."""
        served = _Served(self.blocks(store), slug(store.model))
        with self._guard:
            self._pages[slug(store.model)] = served
        store.machine.used(store)
        store.load_in_background()  # the weights are there already, its runs and the kernel come with them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        name, _, rest = path.lstrip("/").partition("/")
        served, surplus = self._find(name)
        for each in surplus:
            await each.close()
        if served is not None:
            await served(scope, receive, send)
            return
        answer: Response = PlainTextResponse("This page is not open any more; reload it.", 404)
        if name and not rest:  # a link: the first page opens the model, or says why not
            query = [(key, value) for key, value in QueryParams(scope["query_string"]).multi_items() if key != "model"]
            home = "../" * path.count("/")
            answer = RedirectResponse(f"{home}?{urlencode([('model', name), *query])}", 307)
        await answer(scope, receive, send)

    def _find(self, name: str) -> tuple[_Served | None, list[_Served]]:
        """The page of a slug, and those that have to go because there are too many."""
        with self._guard:
            served = self._pages.get(name)
            if served is not None:
                self._pages.move_to_end(name)
            surplus = [self._pages.popitem(last=False)[1] for _ in range(max(0, len(self._pages) - MOST_PAGES))]
        return served, surplus
