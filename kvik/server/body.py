"""Reading a request's body within its limits.

A body is JSON, uncompressed, no longer than one limit, and all bodies that are in memory at a time no larger than
another; each limit holds before the bytes that would break it are kept. When a body has to have arrived is the guard's
business (guard.py). Knows nothing of what bodies mean.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

from kvik.errors import OverloadedError
from kvik.server.protocol.errors import INVALID, ApiError

Receive = Callable[[], Awaitable[Any]]


class ClientGoneError(Exception):
    """The client has closed the connection; nobody reads an answer."""


class BodyBudget:
    """Memory for bodies, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class BodyHold:
    """A share of the budget, given back when the context is left."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow(self, size: int) -> None:
        """Hold `size` bytes in all. Raises OverloadedError."""
        more = size - self._held
        if more > 0:
            if self._budget.used + more > self._budget.limit:
                raise OverloadedError("the server has no memory for another large body right now")
            self._budget.used += more
            self._held = size

    def __enter__(self) -> BodyHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.used -= self._held
        self._held = 0


def check_headers(headers: Mapping[bytes, bytes], limit: int) -> int:
    """What the headers say of the body: its length, or 0 if they do not say. Raises ApiError(413, 415)."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(
            415, INVALID, None, "the body's Content-Type is not what is taken here; expected application/json"
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ApiError(415, INVALID, None, "the body is compressed; expected it without Content-Encoding")
    length = int(headers.get(b"content-length", b"0"))
    if length > limit:
        raise too_large(limit)
    return length


def too_large(limit: int) -> ApiError:
    """413: more bytes than are taken."""
    return ApiError(413, INVALID, "content_too_large", f"the body has more than {limit} bytes, which is the limit")


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int, hold: BodyHold) -> bytes:
    """The whole body. Raises ApiError(413, 415), OverloadedError, ClientGoneError."""
    hold.grow(check_headers(headers, limit))
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        hold.grow(size)
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
