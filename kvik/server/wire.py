"""Replies as bytes, for the guard, which answers before there is an application to do it.

Also the names of requests: every reply carries one, the client's own if it is sane. Knows nothing of connections.
"""

from __future__ import annotations

import http
import re
import secrets

from kvik.server.protocol.errors import ApiError

_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
Headers = list[tuple[bytes, bytes]]


def request_id(given: bytes | None = None) -> str:
    """The client's name for a request if it is short and plain, otherwise a new one."""
    if given is not None and _SANE.fullmatch(given):
        return given.decode("ascii")
    return "req-" + secrets.token_hex(12)


def error_headers(error: ApiError, body: bytes) -> Headers:
    """The headers of an error reply."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers + [(name.encode("ascii"), value.encode("ascii")) for name, value in error.headers().items()]


def error_reply(error: ApiError) -> bytes:
    """A whole reply after which the connection ends."""
    body = error.body()
    headers = [*error_headers(error, body), (b"x-request-id", request_id().encode()), (b"connection", b"close")]
    line = f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n".encode("ascii")
    return line + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n" + body
