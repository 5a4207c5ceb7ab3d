"""The event stream: in sequence, bounded, quiet when nothing happens, and gone when nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kvik.engine.remote.watchers import MOST_KEPT, Watchers
from kvik.server.body import ClientGoneError
from kvik.server.events import HEARTBEAT, Event, EventFeed
from kvik.server.exchange import Exchange
from kvik.server.protocol.errors import ApiError

SNAPSHOT: Event = {"kind": "snapshot", "seq": 0}


def frame(seq: int, **fields: Any) -> Event:
    return {"kind": "frame", "seq": seq, **fields}


class Source:
    """What an engine and its watchers do: somebody who joins makes it begin again with a snapshot for everyone."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.seq = 0
        self.watchers = Watchers(self._tell)

    def _tell(self, on: bool) -> None:
        self.told.append(on)
        if on:
            self.seq = 0
            asyncio.get_running_loop().call_soon(self.watchers.put, SNAPSHOT)

    def step(self, **fields: Any) -> None:
        self.seq += 1
        self.watchers.put(frame(self.seq, **fields))

    async def watch(self) -> AsyncIterator[Event]:
        queue = self.watchers.join()
        try:
            while (values := await queue.get()) is not None:
                yield values
        finally:
            self.watchers.leave(queue)


class Reader:
    """One client of the feed: what it was sent, and an end to it."""

    def __init__(self, feed: EventFeed) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        scope = {"type": "http", "method": "GET", "path": "/events", "headers": []}
        self.exchange = Exchange(scope, self._receive, self._send, 0.0)
        self.task = asyncio.get_running_loop().create_task(feed.serve(self.exchange))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_send.wait()
        self.messages.put_nowait(message)

    async def piece(self) -> bytes:
        message = await self.messages.get()
        if message["type"] == "http.response.start":
            assert (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
            message = await self.messages.get()
        body: bytes = message["body"]
        return body

    async def event(self) -> Event:
        piece = await self.piece()
        assert piece.startswith(b"data: ")
        assert piece.endswith(b"\n\n")
        assert piece.count(b"\n") == 2
        event: Event = json.loads(piece[6:])
        return event

    async def leave(self) -> None:
        self.gone.set()
        with pytest.raises(ClientGoneError):
            await self.task


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_reader_gets_a_snapshot_and_then_frames_with_the_queue_in_front() -> None:
    async def test() -> None:
        source = Source()
        reader = Reader(EventFeed(source.watch, lambda: 7))
        assert await reader.event() == {**SNAPSHOT, "queued": 7}
        source.step(text="line\u2028break")
        assert await reader.event() == frame(1, text="line\u2028break", queued=7)
        await reader.leave()

    run(test)


def test_the_engine_is_watched_only_while_somebody_reads() -> None:
    async def test() -> None:
        source = Source()
        feed = EventFeed(source.watch)
        assert (source.told, feed.readers) == ([], 0)
        first, second = Reader(feed), Reader(feed)
        await first.event()
        await second.event()
        assert feed.readers == 2
        await first.leave()
        assert source.told == [True, True]
        await second.leave()
        assert (source.told, feed.readers, len(source.watchers)) == ([True, True, False], 0, 0)

    run(test)


def test_who_joins_later_starts_with_a_snapshot_too() -> None:
    async def test() -> None:
        source = Source()
        feed = EventFeed(source.watch)
        early = Reader(feed)
        await early.event()
        source.step()
        assert (await early.event())["seq"] == 1
        late = Reader(feed)
        for reader in (late, early):
            assert (await reader.event())["kind"] == "snapshot"
        source.step()
        assert [(await reader.event())["seq"] for reader in (early, late)] == [1, 1]
        await early.leave()
        await late.leave()

    run(test)


def test_frames_from_before_the_snapshot_are_not_sent() -> None:
    async def watch() -> AsyncIterator[Event]:
        for event in (frame(8), frame(9), SNAPSHOT, frame(1)):
            yield event

    async def test() -> None:
        reader = Reader(EventFeed(watch))
        assert [(await reader.event())["seq"] for _ in range(2)] == [0, 1]
        await reader.task
        assert reader.exchange.complete

    run(test)


def test_a_slow_reader_starts_again_from_a_snapshot_and_holds_up_nobody() -> None:
    async def test() -> None:
        source = Source()
        feed = EventFeed(source.watch)
        quick = Reader(feed)
        await quick.event()
        slow = Reader(feed)
        for reader in (slow, quick):
            await reader.event()
        slow.may_send.clear()
        for _ in range(MOST_KEPT + 50):
            source.step()
            await quick.event()
        slow.may_send.set()
        seen = [await slow.event()]
        while seen[-1]["kind"] != "snapshot":
            seen.append(await slow.event())
        assert [event["seq"] for event in seen] == [*range(1, len(seen)), 0]
        assert len(seen) < 10, "what it missed is not sent after all"
        source.step()
        assert (await slow.event())["seq"] == 1
        await slow.leave()
        await quick.leave()

    run(test)


def test_silence_is_broken_by_a_comment_and_loses_no_event() -> None:
    async def test() -> None:
        source = Source()
        reader = Reader(EventFeed(source.watch, heartbeat_s=0.01))
        await reader.event()
        assert [await reader.piece() for _ in range(3)] == [HEARTBEAT] * 3
        source.step()
        while (piece := await reader.piece()) == HEARTBEAT:
            pass
        assert json.loads(piece[6:])["seq"] == 1
        await reader.leave()

    run(test)


def test_only_so_many_may_read() -> None:
    async def test() -> None:
        source = Source()
        feed = EventFeed(source.watch, most_readers=1)
        reader = Reader(feed)
        await reader.event()
        with pytest.raises(ApiError) as caught:
            await Reader(feed).task
        assert (caught.value.status, feed.readers) == (503, 1)
        await reader.leave()
        again = Reader(feed)
        assert (await again.event())["kind"] == "snapshot"
        await again.leave()

    run(test)


def test_the_stream_ends_when_there_is_no_engine_any_more() -> None:
    async def test() -> None:
        source = Source()
        reader = Reader(EventFeed(source.watch))
        await reader.event()
        source.watchers.put(None)
        await reader.task
        assert reader.exchange.complete

    run(test)
