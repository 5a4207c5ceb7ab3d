"""Exchange: one request and its reply, as the routes see them.

Reads the body, writes a whole reply or a stream, and adds what every reply carries. While the answer is computed it
watches whether the client is still there: if it leaves, the task that serves it is cancelled, wherever it is. Knows
nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from kvik.server.auth import Caller
from kvik.server.body import BodyHold, ClientGoneError, Receive, read_body
from kvik.server.protocol.errors import ApiError, bad_request
from kvik.server.wire import Headers, error_headers, request_id

Send = Callable[[Any], Awaitable[None]]
JSON = b"application/json"
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
MAX_TIMEOUT_S = 86_400.0


class Exchange:
    """`scope`, `receive` and `send` are ASGI's; `extra` are headers of the reply, whatever it is."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send, now: float) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.started_at = now
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name, value)
        self.request_id = request_id(self.headers.get(b"x-request-id"))
        self.caller = Caller("")
        self.extra: Headers = [(b"x-request-id", self.request_id.encode("ascii"))]
        self.status = 0
        """Of the reply; 0 until it begins."""
        self.streaming = self.complete = False
        """Whether the reply is a stream, and whether it has been handed over whole."""
        self.endless = False
        """Whether it goes on until somebody ends it."""
        self.blocked_since: float | None = None
        """Since when a piece of the stream waits for the client to take more, by the event loop's clock."""
        self.notes: dict[str, Any] = {}
        """For the log line: numbers and names, never text of a prompt or an answer."""
        self._has_body = b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"
        self._ended: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None

    # The request

    @property
    def method(self) -> str:
        """GET, POST, .."""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """As the router sees it."""
        path: str = self.scope["path"]
        return path

    async def body(self, limit: int, hold: BodyHold) -> bytes:
        """All of it. Raises ApiError, OverloadedError, ClientGoneError."""
        data = await read_body(self.receive, self.headers, limit, hold)
        self._has_body = False
        return data

    def timeout(self, limit: float | None) -> float | None:
        """Seconds that this request may take: the server's limit, or what the client asks for if that is less. Raises
        ApiError.
        """
        header = self.headers.get(b"x-request-timeout")
        if header is None:
            return limit
        try:
            asked = float(header)
        except ValueError:
            asked = math.nan
        if not 0 < asked <= MAX_TIMEOUT_S:
            raise bad_request(f"x-request-timeout is not a number of seconds above 0 and at most {MAX_TIMEOUT_S:g}")
        return asked if limit is None else min(asked, limit)

    # The reply

    async def send(self, message: Any) -> None:
        """ASGI's `send`, with what every reply carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self.extra]
            if self._has_body or b"upgrade" in self.headers:
                # What is left of the body would have to be read before the next request; and a client that offers
                # another protocol must not wait for us to speak it.
                headers.append((b"connection", b"close"))
            message = {"type": "http.response.start", "status": self.status, "headers": headers}
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True

    async def reply(self, status: int, body: bytes, kind: bytes = JSON, headers: Sequence[Any] = ()) -> None:
        """A whole reply."""
        own = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": own})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def refuse(self, error: ApiError, headers: Sequence[Any] = ()) -> None:
        """A whole reply that says what is wrong."""
        body = error.body()
        own = [*error_headers(error, body), *headers]
        await self.send({"type": "http.response.start", "status": error.status, "headers": own})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def begin_stream(self) -> None:
        """The head of a reply that comes in pieces."""
        self.streaming = True
        await self.send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})

    async def write(self, data: bytes) -> None:
        """A piece of a stream. Waits while the client has more than it takes."""
        self.blocked_since = asyncio.get_running_loop().time()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            self.blocked_since = None

    async def end_stream(self, data: bytes) -> None:
        """The last piece of a stream."""
        await self.send({"type": "http.response.body", "body": data})

    # Whether anybody is there

    def watched(self) -> Watch:
        """A context in which the current task is cancelled when the client leaves. Only after the body was read."""
        return Watch(self)

    def end(self, reason: BaseException) -> None:
        """Make the task in the `watched` context stop where it is and raise `reason`. Idempotent."""
        if self._task is not None and self._ended is None:
            self._ended = reason
            self._task.cancel()

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGoneError())


class Watch:
    """See `Exchange.watched`. Leaving it turns the cancellation into the reason for it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aenter__(self) -> None:
        exchange = self._exchange
        exchange._task = asyncio.current_task()
        self._watcher = asyncio.get_running_loop().create_task(exchange._until_gone())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        exchange, task = self._exchange, self._exchange._task
        exchange._task = None
        self._watcher.cancel()
        if exchange._ended is None or (kind is not None and not issubclass(kind, asyncio.CancelledError)):
            return
        if kind is None:
            # The work was done before the cancellation came through; it must not hit what follows.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if sys.version_info >= (3, 11) and task is not None:
            task.uncancel()
        raise exchange._ended from None
