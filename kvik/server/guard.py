"""Guard: uvicorn's HTTP protocol behind limits that hold before anything is allocated.

uvicorn waits for ever for the rest of a header, keeps any number of them, and answers a broken request in the middle
of another's reply. Here a request's line and headers have a size and a time to arrive in, a connection that cannot be
understood is told so once and then only heard out, and a client that does not read is cut. What is in a request is the
application's business.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kvik.server.arrival import Arrival
from kvik.server.gate import Gate
from kvik.server.options import ConnectionOptions
from kvik.server.protocol.errors import INVALID, SERVER, ApiError
from kvik.server.transport import GuardedTransport
from kvik.server.wire import error_reply

BETWEEN, HEAD, BODY = 0, 1, 2
"""Where in a request the bytes that come next belong."""
MAX_PIPELINED = 16
TLS_HANDSHAKE = 0x16

MALFORMED = (400, "the request is not valid HTTP/1.1")
WRONG_VERSION = (400, "the request is not HTTP/1.1, which is all that is spoken here")
NO_HOST = (400, "the request has no Host header, or several; expected one")
WEBSOCKET = (400, "there are no WebSockets here")
ENCODED = (400, "the request's Transfer-Encoding is not chunked, which is the only one taken")
PIPELINED = (400, "too many requests were sent before the first was answered")
CONNECT = (405, "CONNECT is not allowed here")
LATE_HEAD = (408, "the request's headers did not arrive in time")
LATE_BODY = (408, "the request's body did not arrive in time")
LONG_URL = (414, "the request's URL is longer than the limit")
LARGE_HEAD = (431, "the request's headers are larger or more than the limit")
FULL = (503, "the server has as many connections as it can hold")


class Refusal(Exception):  # noqa: N818  # not an error of ours
    """Raised inside the parser to stop it; says what the client is told."""

    def __init__(self, what: tuple[int, str]) -> None:
        super().__init__(what[1])
        self.what = what


class Guard(HttpToolsProtocol):
    """One connection. Made by uvicorn's server, with `limits` and `gate` bound before."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionOptions,
        gate: Gate,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.timeout_keep_alive = limits.keep_alive  # type: ignore[assignment]  # any number of seconds does
        self._limits, self._gate = limits, gate
        self._stage = BETWEEN
        self._head_bytes = 0
        self._field_bytes = 0
        self._fields = 0
        self._arrival = Arrival(self.loop, limits, self._head_overdue, lambda: self._refuse(LATE_BODY))
        self._refusal = MALFORMED
        self._deaf = False
        """Nothing that still comes is looked at."""
        self._silent = False
        """Callbacks are fed what they know already."""
        self._running: RequestResponseCycle | None = None
        """The request that the application is at; `cycle` is the one read last."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._guarded = GuardedTransport(
            transport, self.loop, self._limits.write_timeout, self._may_send, self._gate.cut
        )
        super().connection_made(self._guarded)
        if self._gate.admit(self):
            self._arrival.expect_head()
        else:
            self._answer(FULL)
            self._guarded.close_now()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection has ended, from whichever side."""
        self._arrival.stop()
        self._unset_keepalive_if_required()
        self._gate.leaves(self)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self._guarded.flowing()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._stage != BODY:
            if self._head_bytes == 0 and self._running is None and data[0] == TLS_HANDSHAKE:
                self._guarded.close_now()
                return
            self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
        except Refusal as refusal:
            self._refuse(refusal.what)

    def pause_writing(self) -> None:
        """asyncio: the client takes less than it is sent."""
        super().pause_writing()
        self._guarded.stalled()

    def resume_writing(self) -> None:
        """asyncio: the client has caught up."""
        super().resume_writing()
        self._guarded.flowing()

    # The gate's and the server's side

    def drop(self) -> None:
        """The gate: make room for another connection."""
        self._guarded.close_now()

    def shutdown(self) -> None:
        """The server: end when the request at hand is answered."""
        if self._busy:
            super().shutdown()
        else:
            self._guarded.close_now()

    # The parser's side

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        if self._stage == HEAD:
            if self._head_bytes > self._limits.max_url_bytes + self._limits.max_header_bytes:
                raise Refusal(LONG_URL if not self.url else LARGE_HEAD)
            if self.url and data.endswith(b"\n") and self.parser.get_http_version() == "0.0":
                raise Refusal(WRONG_VERSION)
        if self._stage == HEAD or (self._stage == BETWEEN and not self._busy):
            self._arrival.expect_head()
        elif self._stage == BODY:
            self._arrival.expect_body()

    def _fail(self, what: tuple[int, str]) -> None:
        """Stop the parser, from inside one of its callbacks."""
        self._refusal = what
        raise Refusal(what)

    def on_message_begin(self) -> None:
        """The parser: the first byte of a request."""
        if not self._silent:
            self._stage = HEAD
            self._fields = self._field_bytes = 0
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """The parser: a piece of the URL."""
        if not self._silent:
            super().on_url(url)
            if len(self.url) > self._limits.max_url_bytes:
                self._fail(LONG_URL)

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser: a whole header, or a trailer, which nobody reads."""
        if self._silent:
            return
        self._fields += 1
        self._field_bytes += len(name) + len(value) + 4
        if self._fields > self._limits.max_headers or self._field_bytes > self._limits.max_header_bytes:
            self._fail(LARGE_HEAD)
        if self._stage == HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The parser: everything but the body is there."""
        if self._silent:
            return
        self._check_head()
        busy = self._busy
        if busy and len(self.pipeline) >= MAX_PIPELINED:
            self._fail(PIPELINED)
        self._arrival.stop()
        self._stage, self._head_bytes = BODY, 0
        super().on_headers_complete()
        self.cycle.keep_alive &= not self.parser.should_upgrade()
        if busy:
            # Reading goes on: that is how we learn that the client has gone.
            self.flow.resume_reading()
        else:
            self._running = self.cycle
            self._gate.works(self)

    def _check_head(self) -> None:
        """What uvicorn lets through and nobody should send."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._fail(WRONG_VERSION)
        if self.parser.get_method() == b"CONNECT":
            self._fail(CONNECT)
        named = [name for name, _ in self.headers]
        if named.count(b"host") != 1 and (b"host" in named or self.parser.get_http_version() == "1.1"):
            self._fail(NO_HOST)
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                self._fail(ENCODED)
            if name == b"upgrade" and b"websocket" in value.lower():
                self._fail(WEBSOCKET)

    def on_body(self, body: bytes) -> None:
        """The parser: a piece of the body."""
        super().on_body(body)
        if self._running is not self.cycle and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self._fail(PIPELINED)

    def on_message_complete(self) -> None:
        """The parser: the end of a request, or of the head of one whose upgrade is declined."""
        if not self._silent and not self.parser.should_upgrade():
            self._stage = BETWEEN
            self._arrival.stop()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """uvicorn: the application has answered."""
        self._running = self.pipeline[-1][0] if self.pipeline else self.cycle
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._stage == BODY and not self.pipeline and self.cycle.response_complete:
            self.transport.close()
        elif not self._busy:
            self._gate.waits(self)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Some clients offer HTTP/2 with every request. The parser stops there, so another one takes the body: it is
        told of the head only how the body is framed.
        """
        framing = [(n, v) for n, v in self.headers if n in (b"content-length", b"transfer-encoding") and v != b"0"]
        self.parser = httptools.HttpRequestParser(self)
        self._silent = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing))
        if framing:
            self.parser.feed_data(b"\r\n")
            self._silent = False
            self.parser.feed_data(rest)
        else:
            self._silent = False
            self.on_message_complete()
            self._deaf = True

    # Limits

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self._running is not None and not self._running.response_complete

    def _may_send(self) -> bool:
        return self._deaf or self._stage != BETWEEN

    def _head_overdue(self) -> None:
        if self._stage == BETWEEN and self._head_bytes == 0:
            self._guarded.close_now()
        else:
            self._refuse(LATE_HEAD)

    def _refuse(self, what: tuple[int, str]) -> None:
        """Say once what is wrong, unless a reply is under way, and hear no more."""
        self._deaf = True
        self._arrival.stop()
        running = self._running
        if running is not None and not running.response_complete:
            broken = running is self.cycle and self._stage == BODY and not running.response_started
            if not broken:
                running.keep_alive = False
                self.pipeline.clear()
                self.flow.resume_reading()
                return
            running.disconnected = True
            running.message_event.set()
        self._answer(what)
        self.transport.close()

    def _answer(self, what: tuple[int, str]) -> None:
        status, message = what
        self._gate.refused(status)
        full = status == 503
        error = ApiError(
            status,
            SERVER if full else INVALID,
            "overloaded" if full else None,
            message,
            retry_after_s=1.0 if full else None,
        )
        self.transport.write(error_reply(error))
