"""Writers: what becomes of the updates of a call, a stream of events or one whole reply.

A stream begins with the first event there is, so that whatever fails before has a status of its own; what fails later
is its last event. An encoder of kvik/server/protocol/ makes the bytes; this file knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvik.engine.remote.frames import Update
from kvik.server.exchange import Exchange
from kvik.server.protocol.errors import ApiError


class StreamEncoder(Protocol):
    """`ChatStream` and `CompletionStream`, but for `push`."""

    def end(self) -> bytes:
        """What follows the last update."""

    def fail(self, error: ApiError) -> bytes:
        """What ends a stream that cannot go on."""


class ReplyEncoder(Protocol):
    """`ChatReply` and `CompletionReply`, but for `push`."""

    def body(self) -> bytes:
        """The reply, when every choice has ended."""


class EventWriter:
    """A stream. `encode` makes events of an update for one of the prompts, perhaps none."""

    whole = False

    def __init__(self, exchange: Exchange, encoder: StreamEncoder, encode: Callable[[int, Update], bytes]) -> None:
        self._exchange, self._encoder, self._encode = exchange, encoder, encode
        self.begun = False

    async def push(self, prompt: int, update: Update) -> None:
        """Send what an update adds. Waits for a slow client; updates are merged meanwhile."""
        data = self._encode(prompt, update)
        if data:
            if not self.begun:
                self.begun = True
                await self._exchange.begin_stream()
            await self._exchange.write(data)

    async def finish(self) -> None:
        """Every choice has ended."""
        if not self.begun:
            await self._exchange.begin_stream()
        await self._exchange.end_stream(self._encoder.end())

    async def fail(self, error: ApiError) -> None:
        """It cannot go on. Raises the error if nothing was sent yet."""
        if not self.begun:
            raise error
        await self._exchange.end_stream(self._encoder.fail(error))


class ReplyWriter:
    """One whole reply. `take` takes in an update for one of the prompts."""

    whole = True

    def __init__(self, exchange: Exchange, encoder: ReplyEncoder, take: Callable[[int, Update], None]) -> None:
        self._exchange, self._encoder, self._take = exchange, encoder, take

    async def push(self, prompt: int, update: Update) -> None:
        """Take in an update."""
        self._take(prompt, update)

    async def finish(self) -> None:
        """Every choice has ended."""
        await self._exchange.reply(200, self._encoder.body())

    async def fail(self, error: ApiError) -> None:
        """It cannot go on. Raises the error."""
        raise error


Writer = EventWriter | ReplyWriter
