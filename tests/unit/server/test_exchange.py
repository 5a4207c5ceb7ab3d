"""One request and its reply: what every reply carries, and how the task behind it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kvik.server.body import ClientGoneError
from kvik.server.exchange import Exchange
from kvik.server.protocol.errors import ApiError, aborted


class Wire:
    """ASGI's two ends."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def exchange(wire: Wire, method: str = "POST", **headers: str) -> Exchange:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Exchange({"method": method, "path": "/x", "headers": given}, wire.receive, wire.send, 0.0)


def run(work: Callable[[Wire], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(Wire()), 30)

    asyncio.run(main())


def test_a_client_that_leaves_stops_the_task_where_it_is() -> None:
    async def work(wire: Wire) -> None:
        cleaned = []

        async def compute() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)

        asyncio.get_running_loop().call_soon(wire.gone.set)
        with pytest.raises(ClientGoneError):
            async with exchange(wire).watched():
                await compute()
        assert cleaned
        await asyncio.sleep(0)

    run(work)


def test_the_server_stops_it_with_a_reason_and_only_the_first_counts() -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire)

        def stop() -> None:
            it.end(aborted())
            it.end(ClientGoneError())
            wire.gone.set()

        asyncio.get_running_loop().call_soon(stop)
        with pytest.raises(ApiError) as raised:
            async with it.watched():
                await asyncio.Event().wait()
        assert raised.value.code == "aborted"
        await asyncio.sleep(0)

    run(work)


def test_work_that_was_done_just_before_it_was_stopped_does_not_stop_what_follows() -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire)
        with pytest.raises(ApiError):
            async with it.watched():
                it.end(aborted())
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.current_task() is not None

    run(work)


def test_an_error_of_the_work_itself_is_not_hidden() -> None:
    async def work(wire: Wire) -> None:
        with pytest.raises(KeyError):
            async with exchange(wire).watched():
                raise KeyError("a")
        async with exchange(wire).watched():
            pass
        await asyncio.sleep(0)

    run(work)


def test_stopping_what_is_not_watched_does_nothing() -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire)
        it.end(aborted())
        await asyncio.sleep(0)
        await it.reply(200, b"{}")
        assert it.complete

    run(work)


def test_every_reply_has_the_headers_that_all_have() -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire, x_request_id="mine")
        it.extra.append((b"a", b"b"))
        await it.reply(200, b"{}")
        headers = dict(wire.sent[0]["headers"])
        assert headers[b"x-request-id"] == b"mine"
        assert headers[b"a"] == b"b"
        assert headers[b"content-length"] == b"2"
        assert b"connection" not in headers
        assert (it.status, it.complete) == (200, True)

    run(work)


@pytest.mark.parametrize("headers", [{"content_length": "5"}, {"transfer_encoding": "chunked"}])
def test_a_reply_before_the_body_was_read_ends_the_connection(headers: dict[str, str]) -> None:
    async def work(wire: Wire) -> None:
        await exchange(wire, **headers).refuse(aborted())
        assert dict(wire.sent[0]["headers"])[b"connection"] == b"close"

    run(work)


def test_a_head_request_gets_no_body() -> None:
    async def work(wire: Wire) -> None:
        await exchange(wire, "HEAD").reply(200, b"{}")
        assert wire.sent[1]["body"] == b""
        assert dict(wire.sent[0]["headers"])[b"content-length"] == b"2"

    run(work)


def test_a_stream_is_complete_with_its_last_piece() -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire)
        await it.begin_stream()
        await it.write(b"a")
        assert not it.complete
        await it.end_stream(b"b")
        assert it.complete
        assert [each.get("body") for each in wire.sent[1:]] == [b"a", b"b"]

    run(work)


@pytest.mark.parametrize(
    ("header", "limit", "timeout"),
    [(None, None, None), (None, 5.0, 5.0), ("2.5", 5.0, 2.5), ("9", 5.0, 5.0), ("1e1", None, 10.0)],
)
def test_the_shorter_time_counts(header: str | None, limit: float | None, timeout: float | None) -> None:
    async def work(wire: Wire) -> None:
        it = exchange(wire) if header is None else exchange(wire, x_request_timeout=header)
        assert it.timeout(limit) == timeout

    run(work)
