"""The dialog behind the model's name: what may be opened, how far an opening is, and the way to another model's page.

Its script (assets/js/models.js) asks the functions below outside gradio's queue; whatever it sends is checked here and
in `viz.pages.offers`. On a page where every model may be opened a request must come from the page itself: what another
website has a browser send is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from sab.errors import SabError
from viz.pages.offers import LOOPBACK, of_slug, slug, title
from viz.pages.opening import ENDED, Openings, view
from viz.pages.progress import TEMPLATE
from viz.pages.shared import script_tags

Sent = Mapping[str, Any]
Answer = dict[str, Any]
FAILED = "This did not work; the log of the program says why."
FORGED = "This request did not come from the page itself, so it was refused."


class Chooser:
    """The dialog of one model's page. `mine` is its slug, `first` that of the model at the server's own address."""

    def __init__(self, openings: Openings, mine: str, first: str) -> None:
        self._openings = openings
        self._offers = openings.offers
        self._mine = mine
        self._first = first

    def build(self) -> gr.HTML:
        """The invisible component that the dialog lives in."""
        return gr.HTML(
            value=TEMPLATE,
            html_template="<div hidden>${value}</div>",
            js_on_load="SabLens.mountModels({element, server});",
            head=script_tags("progress.js", "models.js"),
            server_functions=[
                self._guarded(function) for function in (self.models, self.open, self.progress, self.stop)
            ],
            apply_default_css=False,
            elem_classes="sab-signal",
        )

    def models(self, sent: Sent) -> Answer:
        """What may be opened; `wanted` is the slug of a link that led here, and what became of it."""
        known = self._openings.history.models() if self._offers.free else []
        listed = dict.fromkeys([self._offers.first, None, *self._offers.allowed, *known])
        rows = [self._row(model, model in known) for model in listed if model in self._offers]
        answer: Answer = {"rows": rows, "free": self._offers.free, "wanted": None}
        if isinstance(wanted := sent.get("wanted"), str):
            model = of_slug(wanted, self._offers, known)
            here = model is None or model in known or model in (self._offers.first, *self._offers.allowed)
            # Following a link must not be enough to download anything: a person presses Open.
            answer["wanted"] = {"model": self._offers.name(model), "at_once": here}
        return answer

    def open(self, sent: Sent) -> Answer:
        """Have a model opened: a ticket to ask for its progress, or where its page is."""
        model, ticket = self._openings.ask(sent.get("model"))
        return {"ticket": ticket, "place": self._place(model)}

    def progress(self, sent: Sent) -> Answer:
        """How far an opening is."""
        opening = self._openings.find(sent.get("ticket"))
        if opening is None:
            return {"error": "Nobody knows of this opening any more; open the model again.", "forgotten": True}
        shown = view(opening)  # the state that is shown says whether it has ended: the page asks no more then
        return {"view": shown, "ended": shown["state"] in ENDED, "place": self._place(opening.model)}

    def stop(self, sent: Sent) -> Answer:
        """End an opening for this visitor."""
        self._openings.leave(sent.get("ticket"))
        return {}

    def _row(self, model: str | None, before: bool) -> Answer:
        name = slug(model)
        note = "ships with SAB Lens" if model is None else "opened before" if before else "offered here"
        if model is not None and model == self._offers.first:
            note = "started with this page"
        if self._openings.is_open(name):
            note = "open"
        if name == self._mine:
            note = "this page"
        return {
            "model": self._offers.name(model),
            "title": title(model),
            "where": "" if model is None or title(model) == model or not self._offers.free else model,
            "note": note,
            "here": name == self._mine,
        }

    def _place(self, model: str | None) -> str:
        """Where the page of a model is, seen from the server's own address."""
        name = slug(model)
        return "" if name == self._first else f"m/{name}/"

    def _guarded(self, function: Callable[[Sent], Answer]) -> Callable[[Any, gr.Request], Answer]:
        def call(sent: Any, request: gr.Request) -> Answer:
            try:
                if self._offers.free:
                    check_origin(request.headers, self._offers.local)
                return function(sent if isinstance(sent, Mapping) else {})
            except SabError as error:
                return {"error": str(error)}
            except Exception:
                logging.getLogger(__name__).exception("models: %s failed", function.__name__)
                return {"error": FAILED}

        call.__name__ = function.__name__  # how the browser calls it
        return call


def check_origin(headers: Mapping[str, str], local: bool) -> None:
    """SabError for a request that another website has sent: its origin is not the host that it asks, or, on a `local`
    page, the host is not this machine (a name may be made to lead anywhere)."""
    origin, host = headers.get("origin"), headers.get("host", "")
    asked = (host, headers.get("x-forwarded-host"))  # no website can have a browser set the second
    name = urlsplit(f"//{host}").hostname
    if (origin and urlsplit(origin).netloc not in asked) or (local and name not in LOOPBACK):
        raise SabError(FORGED)
