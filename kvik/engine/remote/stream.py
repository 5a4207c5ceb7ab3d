"""Stream: one request as whoever sent it follows it, update after update.

Leaving it before its end, in whichever way, ends the request in the engine too. This file knows nothing of engines or
of text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Update


class Stream:
    """An async iterator of `Update`, and an async context manager that aborts what is unfinished when it is left.

    Updates that pile up while the reader is slow come merged, per choice. Raises InvalidRequestError,
    ContextLengthError, NumericalError or EngineError at the point where the request failed. Cancelling a task that
    waits for the next update aborts the request; `wait` does not.
    """

    def __init__(self, flight: Flight, abort: Callable[[Flight], None], loop: asyncio.AbstractEventLoop) -> None:
        self._flight, self._abort, self._loop = flight, abort, loop

    @property
    def request_id(self) -> str:
        """As it was submitted."""
        return self._flight.submit.request_id

    @property
    def finished(self) -> bool:
        """Whether each of the n choices has given out its finish reason."""
        return self._flight.is_finished and not self._flight.has_updates

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Update:
        """What is new in one choice."""
        flight = self._flight
        if not flight.has_updates and not flight.is_over:
            await self._wait()
        if flight.has_updates:
            return flight.take()
        if flight.error is not None:
            raise flight.error
        raise StopAsyncIteration

    def bound(self, num_bytes: int, overflow: Callable[[], None]) -> None:
        """Call `overflow`, on the event loop, at every update that comes while more than so many bytes have piled up
        for a reader that does not take them.
        """
        self._flight.bound(num_bytes, overflow)

    async def wait(self, timeout_s: float) -> bool:
        """Wait so long at most; whether the next update, or the end, can be had without waiting."""
        try:
            await asyncio.wait_for(self._flight.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def whole(self) -> list[Update]:
        """The rest of the request at once: one update for each choice, in order.

        Nothing is given out before the end, so that the request survives the death of an engine (once). Raises what
        iterating would.
        """
        await self._wait(to_the_end=True)
        flight = self._flight
        if flight.error is not None:
            raise flight.error
        updates = []
        while flight.has_updates:
            updates.append(flight.take(whole=True))
        return sorted(updates, key=lambda update: update.index)

    def abort(self) -> None:
        """End the request with what it has; its last updates have the finish reason "abort". Idempotent."""
        self._abort(self._flight)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        flight = self._flight
        if not flight.is_over and not flight.is_dropped and not self._loop.is_closed():
            # Garbage may be collected in any thread.
            self._loop.call_soon_threadsafe(_leave, flight, self._abort)

    def _leave(self) -> None:
        _leave(self._flight, self._abort)

    async def _wait(self, *, to_the_end: bool = False) -> None:
        try:
            await self._flight.wait(to_the_end=to_the_end)
        except asyncio.CancelledError:
            self.abort()
            raise


def _leave(flight: Flight, abort: Callable[[Flight], None]) -> None:
    flight.drop()
    abort(flight)
