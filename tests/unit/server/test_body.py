"""Bodies: limits hold before what would break them is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kvik.errors import OverloadedError
from kvik.server.body import BodyBudget, BodyHold, ClientGoneError, read_body
from kvik.server.protocol.errors import ApiError

JSON = {b"content-type": b"application/json"}


class Wire:
    """ASGI's `receive`, which counts what was taken."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self._left, self._gone = len(pieces), gone
        self.taken = 0

    async def __call__(self) -> Any:
        if self._left == 0 and self._gone:
            return {"type": "http.disconnect"}
        self._left -= 1
        piece = next(self._pieces)
        self.taken += len(piece)
        return {"type": "http.request", "body": piece, "more_body": self._left > 0 or self._gone}


def read(wire: Wire, limit: int = 100, budget: BodyBudget | None = None, **headers: bytes) -> bytes:
    given = JSON | {name.replace("_", "-").encode(): value for name, value in headers.items()}
    with BodyHold(budget or BodyBudget(1000)) as hold:
        return asyncio.run(read_body(wire, given, limit, hold))


def test_pieces_are_joined() -> None:
    assert read(Wire(b"a", b"", b"bc")) == b"abc"
    assert read(Wire(b"abc"), content_length=b"3") == b"abc"


def test_the_limit_is_exact() -> None:
    assert len(read(Wire(b"x" * 60, b"x" * 40))) == 100
    with pytest.raises(ApiError) as refused:
        read(Wire(b"x" * 60, b"x" * 41))
    assert refused.value.status == 413


def test_no_more_is_taken_than_shows_that_it_is_too_much() -> None:
    wire = Wire(*[b"x" * 30] * 1000)
    with pytest.raises(ApiError):
        read(wire)
    assert wire.taken == 120


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    wire = Wire(b"x")
    with pytest.raises(ApiError):
        read(wire, content_length=b"101")
    assert wire.taken == 0


def test_a_client_that_has_gone_is_an_end_of_its_own() -> None:
    with pytest.raises(ClientGoneError):
        read(Wire(b"x", gone=True))


def test_all_bodies_together_have_a_limit() -> None:
    budget = BodyBudget(150)
    with BodyHold(budget) as first:
        first.grow(100)
        with pytest.raises(OverloadedError):
            read(Wire(b"x" * 51), budget=budget)
        wire = Wire(b"x" * 60)
        with pytest.raises(OverloadedError):
            read(wire, budget=budget, content_length=b"60")
        assert wire.taken == 0, "what a header promises is held before it comes"
        assert len(read(Wire(b"x" * 50), budget=budget)) == 50
        assert budget.used == 100
    assert budget.used == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": b"text/plain"},
        {"content_type": b""},
        {"content_encoding": b"gzip"},
        {"content_encoding": b"br, identity"},
    ],
)
def test_what_is_no_plain_json_is_415(headers: dict[str, bytes]) -> None:
    with pytest.raises(ApiError) as refused:
        read(Wire(b"{}"), **headers)
    assert refused.value.status == 415
