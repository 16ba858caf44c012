"""A cache of bounded size for what visitors share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Bounded:
    """A least-recently-used cache; a value is built once even when two visitors ask at the same time.

    `limit` bounds the sum of `cost(value)` (by default: the number of values); the newest value always stays.
    """

    def __init__(self, limit: float, cost: Callable[[Any], float] = lambda value: 1) -> None:
        self._limit = limit
        self._cost = cost
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._building: dict[Hashable, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The value under `key`, built by `build()` when it is not there."""
        with self._guard:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            turn = self._building.setdefault(key, threading.Lock())
        with turn:
            with self._guard:
                if key in self._values:
                    return self._values[key]
            try:
                value = build()
            finally:
                with self._guard:
                    self._building.pop(key, None)
            with self._guard:
                self._values[key] = value
                spent = sum(self._cost(kept) for kept in self._values.values())
                while spent > self._limit and len(self._values) > 1:
                    _, dropped = self._values.popitem(last=False)
                    spent -= self._cost(dropped)
            return value

    def clear(self) -> None:
        """Forget everything; what is being built is kept when it is done."""
        with self._guard:
            self._values.clear()
