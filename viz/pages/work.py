"""Background work that is done once, and how far it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sab.errors import SabError


class Work:
    """One piece of background work that is done once: how far it is, and what went wrong."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.state = "none"  # none, running, done or failed
        self.share = 0.0
        self.message = ""

    def start(self, task: Callable[[], None], name: str) -> None:
        """Run `task` in a thread, unless it runs or is done; a failed one may be started again."""
        with self._guard:
            if self.state in ("running", "done"):
                return
            self.state, self.share, self.message = "running", 0.0, ""

        def work() -> None:
            try:
                task()
            except SabError as error:
                self.state, self.message = "failed", str(error)
            except Exception:
                logging.getLogger(__name__).exception("background work %s failed", name)
                self.state, self.message = "failed", "The computation stopped unexpectedly: try it again."
            else:
                self.state, self.share = "done", 1.0

        threading.Thread(target=work, name=name, daemon=True).start()

    def advance(self, share: float) -> None:
        """Tell how much is done, 0 to 1."""
        self.share = min(max(float(share), 0.0), 1.0)
