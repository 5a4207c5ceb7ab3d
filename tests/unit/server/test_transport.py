"""A connection's transport: clients that do not read are cut, clients that still send are heard out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvik.server.transport import LEAST_PROGRESS, LINGER_S, READ_BYTES, GuardedTransport

TIMEOUT = 10.0


class Raw:
    """asyncio's transport, by hand."""

    max_size = 2**18

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.unsent = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        self.unsent += len(data)

    def close(self) -> None:
        self.closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Timer:
    def __init__(self, at: float, work: Callable[[], None]) -> None:
        self.at, self.work, self.live = at, work, True

    def cancel(self) -> None:
        self.live = False


class Loop:
    """Timers that fire when time is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, work: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, work))
        return self.timers[-1]

    def move(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.live and timer.at <= self.now]
        for timer in due:
            timer.live = False
            timer.work()


class Wire:
    def __init__(self, sending: bool = False) -> None:
        self.raw, self.loop, self.cuts = Raw(), Loop(), 0
        self.sending = sending
        anything: Any = self.raw, self.loop
        self.guarded = GuardedTransport(*anything, TIMEOUT, lambda: self.sending, self.count)

    def count(self) -> None:
        self.cuts += 1


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_it_reads_no_more_at_a_time_than_it_says(wire: Wire) -> None:
    assert wire.raw.max_size == READ_BYTES


def test_a_reader_that_stands_still_is_cut(wire: Wire) -> None:
    wire.guarded.write(b"x" * 70_000)
    wire.guarded.stalled()
    wire.loop.move(TIMEOUT - 0.1)
    assert not wire.raw.calls
    wire.loop.move(0.1)
    assert wire.raw.calls == ["abort"]
    assert wire.cuts == 1


def test_a_reader_that_takes_some_is_given_time(wire: Wire) -> None:
    wire.guarded.write(b"x" * 10 * LEAST_PROGRESS)
    wire.guarded.stalled()
    for _ in range(5):
        wire.raw.unsent -= LEAST_PROGRESS
        wire.loop.move(TIMEOUT)
        assert not wire.raw.calls
    wire.raw.unsent -= LEAST_PROGRESS - 1
    wire.loop.move(TIMEOUT)
    assert wire.raw.calls == ["abort"]


def test_a_reader_that_has_caught_up_is_left_alone(wire: Wire) -> None:
    wire.guarded.write(b"x" * 70_000)
    wire.guarded.stalled()
    wire.guarded.flowing()
    wire.loop.move(10 * TIMEOUT)
    assert not wire.raw.calls


def test_closing_waits_for_what_is_unsent_but_not_for_ever(wire: Wire) -> None:
    wire.guarded.write(b"x" * 100)
    wire.guarded.close()
    assert wire.raw.calls == ["close"]
    wire.loop.move(TIMEOUT)
    assert wire.raw.calls == ["close", "abort"]


def test_closing_with_nothing_unsent_sets_no_timer(wire: Wire) -> None:
    wire.guarded.close()
    assert wire.raw.calls == ["close"]
    assert not wire.loop.timers


def test_a_client_that_still_sends_is_heard_out_for_a_moment() -> None:
    wire = Wire(sending=True)
    wire.guarded.close()
    assert wire.raw.calls == ["resume", "eof"]
    assert wire.guarded.is_closing()
    wire.loop.move(LINGER_S)
    assert wire.raw.calls == ["resume", "eof", "abort"]


def test_nothing_is_written_after_the_end(wire: Wire) -> None:
    wire.guarded.close()
    wire.guarded.close()
    wire.guarded.write(b"late")
    assert wire.raw.unsent == 0
    assert wire.raw.calls == ["close"]
