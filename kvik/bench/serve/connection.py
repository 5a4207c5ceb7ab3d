"""A connection of the client: HTTP/1.1 read as it arrives, one request at a time, kept open in between.

Written on asyncio's protocols, without streams: at tens of thousands of events a second a read, a time and a split is
all there is time for. This file knows nothing of what is asked, or of load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvik.bench.serve.replies import LoadError, Reply, error_of
from kvik.bench.serve.target import Target

MAX_HEAD = 1 << 16
CONNECT_S = 30.0


class Connection(asyncio.Protocol):
    """One connection. Not for two requests at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._future: asyncio.Future[None] | None = None
        self._reply = Reply()
        self._buffer = b""
        self._reading_head = True
        self._status = 0
        self._chunked = self._stream = self._closes = False
        self._left: int | None = None
        """Bytes of the body, or of the current chunk with its line break, that are to come; None: until the end."""
        self._body: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing() and not self._closes

    async def ask(self, request: bytes, reply: Reply, timeout_s: float) -> None:
        """Send a request and read its reply to the end. Raises LoadError; the connection is closed then."""
        assert self._transport is not None, "a connection that was opened"
        assert self._future is None, "one request at a time"
        self._reply, self._buffer, self._reading_head, self._body = reply, b"", True, []
        self._future = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await asyncio.wait_for(self._future, timeout_s)
        except asyncio.TimeoutError:
            self.close()
            raise LoadError("timeout", f"no end within {timeout_s:g} s") from None
        except BaseException:
            self.close()
            raise
        finally:
            self._future = None

    def close(self) -> None:
        """Leave. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._left is None and not self._reading_head and error is None:
            self._finish()
        else:
            self._fail(LoadError("cut", f"the connection ended within the reply ({error or 'closed by the server'})"))

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        now = self._clock()
        if self._future is None or self._future.done():
            self.close()
            return
        try:
            if self._reading_head:
                data = self._head(data)
            if not self._reading_head:
                self._take(data, now)
        except LoadError as error:
            self._fail(error)
        except (ValueError, IndexError) as error:
            self._fail(LoadError("malformed", f"not HTTP: {error}"))

    # The reply ------------------------------------------------------------------------------------------------------

    def _head(self, data: bytes) -> bytes:
        """Read the head if it is whole; what follows it."""
        head, found, rest = (self._buffer + data).partition(b"\r\n\r\n")
        if not found:
            self._buffer = head
            if len(head) > MAX_HEAD:
                raise LoadError("malformed", "a head without end")
            return b""
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._status = int(first.split()[1])
        self._chunked = "chunked" in fields.get("transfer-encoding", "")
        self._stream = fields.get("content-type", "").startswith("text/event-stream") and self._status == 200
        self._closes = fields.get("connection", "") == "close" or first.startswith("http/1.0")
        self._left = 0 if self._chunked else int(fields["content-length"]) if "content-length" in fields else None
        self._closes |= self._left is None
        self._reading_head, self._buffer = False, b""
        return rest

    def _take(self, data: bytes, now: float) -> None:
        if self._chunked:
            data = self._unchunk(data)
        elif self._left is not None:
            self._left -= len(data)
        if data:
            if self._stream:
                self._reply.feed(data, now)
            else:
                self._body.append(data)
        if self._left is not None and self._left < (0 if self._chunked else 1):
            self._finish(now)

    def _unchunk(self, data: bytes) -> bytes:
        """The payload of chunks. Sets `_left` to -1 once the last one was seen."""
        data, payload = self._buffer + data, []
        place, end = 0, len(data)
        while place < end:
            line = data.find(b"\r\n", place)
            if line < 0:
                break
            size = int(data[place:line].split(b";")[0], 16)
            if line + 4 + size > end:
                break
            if size == 0:
                self._left = -1
                break
            payload.append(data[line + 2 : line + 2 + size])
            place = line + 4 + size
        self._buffer = data[place:]
        return b"".join(payload)

    def _finish(self, now: float | None = None) -> None:
        """The reply is whole."""
        body, now = b"".join(self._body), self._clock() if now is None else now
        try:
            if self._status != 200:
                raise error_of(self._status, body)
            if not self._stream:
                self._reply.whole(body, now)
            if self._reply.finish_time is None:
                raise LoadError("cut", "the stream ended without a finish reason")
        except LoadError as error:
            self._fail(error)
            return
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _fail(self, error: LoadError) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)


class Pool:
    """Connections to one server, opened as they are needed and used again, the latest first."""

    def __init__(self, target: Target, clock: Callable[[], float], timeout_s: float) -> None:
        self.target, self.clock, self.timeout_s = target, clock, timeout_s
        self.opened = 0
        self._context = target.context()
        self._idle: list[Connection] = []

    async def ask(self, request: bytes, reply: Reply | None = None) -> Reply:
        """One request to its end, into `reply` if one is given. Raises LoadError."""
        reply = reply or Reply()
        connection = await self._take()
        try:
            await connection.ask(request, reply, self.timeout_s)
        finally:
            if connection.is_open:
                self._idle.append(connection)
            else:
                connection.close()
        return reply

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop, target = asyncio.get_running_loop(), self.target
        opening = loop.create_connection(
            lambda: Connection(self.clock), target.host, target.port, ssl=self._context, happy_eyeballs_delay=0.25
        )
        try:
            _, connection = await asyncio.wait_for(opening, CONNECT_S)
        except (OSError, asyncio.TimeoutError) as error:
            raise LoadError("connect", f"{target.authority}: {error or 'no answer'}") from None
        self.opened += 1
        return connection

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()
