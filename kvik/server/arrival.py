"""Arrival: when the rest of a request has to be there.

A head has one time limit; a body has one for the pause between two pieces and one for the whole. Nothing is set up for
what comes at once, as most requests do. Knows nothing of what arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvik.server.options import ConnectionOptions


class Arrival:
    """The timers of one connection. `late_head` and `late_body` are called when one has run out."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: ConnectionOptions,
        late_head: Callable[[], None],
        late_body: Callable[[], None],
    ) -> None:
        self._loop, self._limits = loop, limits
        self._late_head, self._late_body = late_head, late_body
        self._head: asyncio.TimerHandle | None = None
        self._body: asyncio.TimerHandle | None = None
        self._since = self._last = 0.0

    def expect_head(self) -> None:
        """A head has to be whole within its time, counted from the first call."""
        if self._head is None:
            self._head = self._loop.call_later(self._limits.header_timeout, self._late_head)

    def expect_body(self) -> None:
        """Some of a body has come, and more is to come."""
        self._last = self._loop.time()
        if self._body is None:
            self._since = self._last
            self._wait()

    def stop(self) -> None:
        """What was expected has come, or will not."""
        for timer in (self._head, self._body):
            if timer is not None:
                timer.cancel()
        self._head = self._body = None

    def _due(self) -> float:
        return min(self._last + self._limits.body_timeout, self._since + self._limits.body_total_timeout)

    def _wait(self) -> None:
        self._body = self._loop.call_at(self._due(), self._look)

    def _look(self) -> None:
        """Overdue, unless something has come since the timer was set."""
        if self._loop.time() >= self._due():
            self._late_body()
        else:
            self._wait()
