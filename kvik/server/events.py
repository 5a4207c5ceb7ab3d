"""`/events`: what the engine does, as server-sent events, for whoever looks.

Each event is one snapshot or frame of kvik/engine/events.py, with `queued`, the number of requests that wait in front
of the engine. A reader who was too slow has lost the oldest events; since frames only say what changed, they then
start again from a snapshot. There are only so many readers at a time, and when there is none the engine makes no
events at all. This file knows nothing of what the events say, but their kind and their number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from kvik.server.exchange import Exchange
from kvik.server.protocol.errors import SERVER, ApiError
from kvik.server.protocol.sse import to_json

MOST_READERS = 16
HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"
"""A comment; it finds out whether the reader is still there, and keeps proxies from closing a quiet connection."""
Event = dict[str, Any]


class EventFeed:
    """The readers of one engine's events.

    `watch` begins to iterate over them, `AsyncLLM.watch`; `queued` says how many requests wait in front of the engine.
    """

    def __init__(
        self,
        watch: Callable[[], AsyncIterator[Event]],
        queued: Callable[[], int] = lambda: 0,
        *,
        most_readers: int = MOST_READERS,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._watch, self._queued = watch, queued
        self._most_readers, self._heartbeat_s = most_readers, heartbeat_s
        self._readers = 0

    @property
    def readers(self) -> int:
        """How many look at the moment."""
        return self._readers

    async def serve(self, exchange: Exchange) -> None:
        """Stream to one reader until they leave or the engine ends. Raises ApiError(503) if too many look already, and
        ClientGoneError.
        """
        if self._readers >= self._most_readers:
            message = f"{self._readers} readers watch the engine, which is the limit"
            raise ApiError(503, SERVER, "overloaded", message, retry_after_s=10.0)
        self._readers += 1
        try:
            async with exchange.watched(), aclosing(self._pieces()) as pieces:
                await exchange.begin_stream()
                async for piece in pieces:
                    await exchange.write(piece)
                await exchange.end_stream(b"")
        finally:
            self._readers -= 1

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """What goes over the wire, with a heartbeat through the silence."""
        async with aclosing(self._in_sequence()) as events:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while True:
                    done, _ = await asyncio.wait({coming}, timeout=self._heartbeat_s)
                    if not done:
                        yield HEARTBEAT
                        continue
                    event = coming.result()
                    if event is None:
                        return
                    yield b"data: " + to_json({**event, "queued": self._queued()}) + b"\n\n"
                    coming = asyncio.ensure_future(anext(events, None))
            finally:
                coming.cancel()
                await asyncio.wait({coming})

    async def _in_sequence(self) -> AsyncGenerator[Event, None]:
        """A snapshot and the frames that follow it without a gap; after a gap the same again."""
        while True:
            expected = -1
            async with aclosing(self._watch()) as events:  # type: ignore[type-var]  # AsyncLLM.watch is a generator
                async for event in events:
                    if event["kind"] == "snapshot":
                        expected = event["seq"]
                    if event["seq"] == expected:
                        expected += 1
                        yield event
                    elif expected >= 0:
                        break
                else:
                    return
