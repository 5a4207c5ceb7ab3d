"""Gate: how many connections there are, and which one goes when another wants in.

A connection on which no request is being served can be dropped at no loss; the one that has been so the longest goes
first. Where there is none, newcomers are turned away. Knows nothing of sockets or of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Droppable(Protocol):
    """A connection as the gate sees it."""

    def drop(self) -> None:
        """Close at once; the gate has forgotten it already."""


class Gate:
    """At most `capacity` connections. `refused` and `cut` count what the guard turned away (by status) and cut off."""

    def __init__(
        self,
        capacity: int,
        refused: Callable[[int], None] = lambda status: None,
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        self.capacity = capacity
        self.refused, self.cut = refused, cut
        self._waiting: dict[Droppable, None] = {}
        """Connections without a request, the longest first."""
        self._working: set[Droppable] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    @property
    def idle(self) -> int:
        """Connections without a request."""
        return len(self._waiting)

    def admit(self, connection: Droppable) -> bool:
        """Take in a new connection if there is room or room can be made."""
        if len(self) >= self.capacity:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            del self._waiting[oldest]
            oldest.drop()
        self._waiting[connection] = None
        return True

    def works(self, connection: Droppable) -> None:
        """A request of this connection is being served."""
        if self._waiting.pop(connection, self) is None:
            self._working.add(connection)

    def waits(self, connection: Droppable) -> None:
        """No request of this connection is being served any more."""
        if connection in self._working:
            self._working.remove(connection)
            self._waiting[connection] = None

    def leaves(self, connection: Droppable) -> None:
        """The connection is closed. Idempotent."""
        self._waiting.pop(connection, None)
        self._working.discard(connection)
