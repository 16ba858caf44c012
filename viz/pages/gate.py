"""The queue in front of the device: fair, and everybody hears their place."""

from __future__ import annotations

import threading
import time


class Ticket:
    """A place in the queue, of `sides` workers that enter and leave by themselves; see `Gate`."""

    def __init__(self, now: float, sides: int) -> None:
        self.seen = now
        self.sides = sides
        self.users = 0
        self.left = 0


class Gate:
    """First come, first served: `places` tickets are served at a time, the others hear how many come before.

    Both sides of a question share one ticket, so they start together. A visitor who goes away stops asking `ahead`,
    and after `patience` seconds the ticket no longer holds anybody up.
    """

    def __init__(self, places: int = 1, patience: float = 15.0) -> None:
        self._places = places
        self._patience = patience
        self._line: list[Ticket] = []
        self._guard = threading.Condition()

    def join(self, sides: int = 2) -> Ticket:
        """A ticket at the end of the line, for `sides` workers."""
        with self._guard:
            ticket = Ticket(time.monotonic(), sides)
            self._line.append(ticket)
            return ticket

    def ahead(self, ticket: Ticket) -> int:
        """How many tickets must end before this one may start; 0 also enters, and `leave` must follow."""
        with self._guard:
            now = ticket.seen = time.monotonic()
            self._line = [each for each in self._line if each.users or now - each.seen < self._patience]
            if ticket not in self._line:
                self._line.append(ticket)
            before = max(0, self._line.index(ticket) - self._places + 1)
            if not before:
                ticket.users += 1
            return before

    def leave(self, ticket: Ticket) -> None:
        """One worker has ended; when the last one has, the next ticket is served."""
        with self._guard:
            ticket.users -= 1
            ticket.left += 1
            ticket.seen = time.monotonic()
            if ticket.left >= ticket.sides and ticket in self._line:
                self._line.remove(ticket)
            self._guard.notify_all()

    def wait(self, seconds: float) -> None:
        """Return when a worker has left, or after `seconds`."""
        with self._guard:
            self._guard.wait(seconds)
