"""Opening a model: looked up, downloaded, loaded, its page made; how far that is, and how it is stopped.

An opening belongs to a model and not to a visitor: who asks for the same model follows the same opening, and it ends
early only when everybody who asked has stopped it. Models are loaded one after the other.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sab import hub
from sab.errors import SabError
from viz.pages.jobs import RUNNING, WAITING
from viz.pages.machine import Machine
from viz.pages.offers import History, Offers, slug, title
from viz.pages.progress import about
from viz.pages.store import Store
from viz.pages.worker import DONE, FAILED, STOPPED

if TYPE_CHECKING:
    from sab.models import LVLM

MOST_AT_ONCE = 4  # openings
MOST_FOLLOWERS = 1000  # tickets that are remembered
ENDED = (DONE, FAILED, STOPPED)
SETTLED = 2.0  # seconds after which a rate says something about the rest

log = logging.getLogger(__name__)


@dataclass
class Opening:
    """One model on its way. `done` and `total` are bytes while it is downloaded, weights while it is loaded."""

    model: str | None
    state: str = WAITING
    stage: str = "Looking it up"
    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""
    since: tuple[float, int] = (0.0, 0)  # when the stage began, and what had been done by then
    followers: set[str] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def end(self, state: str, message: str = "") -> None:
        """End it. The state comes last, for whoever sees that asks no more."""
        self.message = message
        self.state = state

    def begin(self, stage: str, unit: str = "") -> None:
        """Go on to another stage. `unit` is "bytes" or ""."""
        self.stage, self.unit, self.done, self.total, self.since = stage, unit, 0, 0, (0.0, 0)

    def advance(self, done: int, total: int) -> None:
        """How much of the stage is done."""
        if not self.since[0]:
            self.since = (time.monotonic(), done)
        self.done, self.total = done, total

    def remaining(self) -> float | None:
        """Seconds that the stage still takes, going by its speed so far; None while that says nothing."""
        began, before = self.since
        elapsed = time.monotonic() - began
        if not began or elapsed < SETTLED or self.done <= before:
            return None
        return elapsed * (self.total - self.done) / (self.done - before)


class Openings:
    """All openings of the process. `publish(store)` makes the page of a model that is loaded; `is_open(slug)` tells
    whether there is one."""

    def __init__(
        self,
        offers: Offers,
        machine: Machine,
        run_directories: Sequence[Path],
        history: History,
        publish: Callable[[Store], None],
        is_open: Callable[[str], bool],
    ) -> None:
        self.offers = offers
        self.history = history
        self.is_open = is_open
        self._machine = machine
        self._run_directories = run_directories
        self._publish = publish
        self._openings: dict[str, Opening] = {}  # by slug; ended ones until somebody asks again
        self._tickets: OrderedDict[str, Opening] = OrderedDict()
        self._guard = threading.Lock()

    def ask(self, sent: object) -> tuple[str | None, str]:
        """Have a model opened; the model and a ticket to follow that with, "" where its page is there already.
        SabError for a model that is not offered, and while too many are being opened."""
        model = self.offers.named(sent)
        name = slug(model)
        if self.is_open(name):
            return model, ""
        with self._guard:
            opening = self._openings.get(name)
            if opening is None or opening.ended or opening.stop.is_set():
                if sum(not each.ended for each in self._openings.values()) >= MOST_AT_ONCE:
                    raise SabError(f"{MOST_AT_ONCE} models are being opened already; try again when one is there.")
                opening = self._openings[name] = Opening(model)
                threading.Thread(target=self._work, args=(opening,), name=f"open-{name}", daemon=True).start()
            ticket = secrets.token_urlsafe(12)
            opening.followers.add(ticket)
            self._tickets[ticket] = opening
            while len(self._tickets) > MOST_FOLLOWERS:
                self._tickets.popitem(last=False)
            return model, ticket

    def find(self, ticket: object) -> Opening | None:
        """The opening that a ticket is for; None for an unknown or long forgotten one."""
        with self._guard:
            return self._tickets.get(ticket) if isinstance(ticket, str) else None

    def leave(self, ticket: object) -> Opening | None:
        """Stop an opening for the one who holds the ticket; it ends when nobody else follows it."""
        opening = self.find(ticket)
        if opening is None:
            return None
        with self._guard:
            opening.followers.discard(str(ticket))
            if not opening.followers and not opening.ended:
                opening.stop.set()
        return opening

    def _work(self, opening: Opening) -> None:
        try:
            self._open(opening)
        except (SabError, hub.Stopped) as error:
            stopped = opening.stop.is_set()
            opening.end(STOPPED if stopped else FAILED, "" if stopped else str(error))
        except Exception:
            log.exception("%s could not be opened", title(opening.model))
            opening.end(FAILED, "The model could not be opened; the log of the program says why.")
        else:
            opening.end(DONE)

    def _open(self, opening: Opening) -> None:
        opening.state = RUNNING
        model = opening.model
        place = model if model is None or Path(model).is_dir() else self._download(opening, model)
        opening.begin("Waiting until another model is loaded")
        with self._machine.loading:
            self._halt_if(opening)
            lvlm = self._load(opening, place)
            opening.begin("Making its page")
            self._publish(Store(model, self._run_directories, lvlm, self._machine, place))
        if model is not None:
            self.history.add(model)

    def _download(self, opening: Opening, repository: str) -> str:
        """The folder of a hub repository, downloaded where it is not here yet; without the hub, what is here."""
        try:
            planned = hub.plan(repository)
            self._halt_if(opening)
            self._check_fits(repository, str(hub.configuration(planned)))
            hub.check_disk(planned)
        except hub.Unreachable:
            here = hub.on_this_machine(repository)
            if here is None:
                raise
            return str(here)
        self._halt_if(opening)
        opening.begin("Downloading", "bytes")
        return str(hub.fetch(planned, opening.advance, opening.stop))

    def _load(self, opening: Opening, place: str | None) -> LVLM:
        from sab import models

        name = title(opening.model)
        opening.begin("Loading")
        if place is not None:
            self._check_fits(name, place)
        try:
            with hub.watched_loading(opening.advance, opening.stop):
                lvlm = models.load(place)
        except SabError as error:
            raise _named(error, name, place) from error
        self._halt_if(opening)
        if opening.model is not None:
            lvlm.source = opening.model
        return lvlm

    def _check_fits(self, name: str, place: str) -> None:
        try:
            self._machine.make_room(name, place)
        except SabError as error:
            raise _named(error, name, place) from error

    @staticmethod
    def _halt_if(opening: Opening) -> None:
        if opening.stop.is_set():
            raise hub.Stopped


def _named(error: SabError, name: str, place: str | None) -> SabError:
    """The same sentence with the model's name for the folder that it lies in."""
    return SabError(str(error).replace(place, name) if place else str(error))


def view(opening: Opening) -> dict[str, Any]:
    """What the dialog shows of an opening, as `progress_value` does of a job."""
    state = opening.state  # it may end meanwhile
    running = state == RUNNING
    share = min(1.0, opening.done / opening.total) if running and opening.total else None
    remaining = opening.remaining() if running else None
    stage = {WAITING: opening.stage, RUNNING: opening.stage, STOPPED: "Stopped", FAILED: "Not opened", DONE: "Open"}
    amount = f": {hub.gigabytes(opening.done)} of {hub.gigabytes(opening.total)}" if running and opening.unit else ""
    return {
        "state": state,
        "title": title(opening.model),
        "stage": stage[state] + amount,
        "share": share,
        "left": f"{about(remaining)} left" if remaining is not None else "",
        "message": opening.message,
        "facts": [],
    }
