"""Load: requests sent when they are due, and a record of what became of each.

Every time in a record counts from the moment at which its request was meant to be sent, not from when the client got
round to it: a server (or a client) that falls behind is charged for it. This file knows nothing of what is asked and
of what the records are used for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.bench.serve.asks import Ask
from kvik.bench.serve.connection import Pool
from kvik.bench.serve.replies import LoadError, Reply

Record = dict[str, Any]
Ended = Callable[[Record], None]
LEAD_S = 0.05
"""Between the decision to start and the first request, so that the first is not late."""


@dataclass(frozen=True)
class Played:
    """A load that is over: a record for each request, in the order of the requests."""

    records: list[Record]
    seconds: float
    """From the moment the first request was due to the end of the last one."""


def micros(seconds: float) -> int:
    """Whole microseconds: finer than the clock of a client is worth."""
    return round(seconds * 1e6)


def record_of(ask: Ask, intended: float, sent: float, reply: Reply, start: float) -> Record:
    """What became of a request that ended well."""
    finish = reply.finish_time or intended
    events = [micros(time - intended) for time in reply.text_times]
    tokens = reply.output_tokens if reply.output_tokens is not None else len(events)
    ttft = events[0] if events else micros(finish - intended)
    e2e = micros(finish - intended)
    return {
        "id": ask.index,
        "due_us": micros(intended - start),
        "late_us": micros(sent - intended),
        "asked": ask.output_len,
        "input_tokens": reply.input_tokens,
        "output_tokens": tokens,
        "counted": reply.output_tokens is not None,
        "events_us": events,
        "ttft_us": ttft,
        "e2e_us": e2e,
        "tpot_us": (e2e - ttft) / (tokens - 1) if tokens > 1 else None,
        "finish_reason": reply.finish_reason,
    }


def failure_of(ask: Ask, intended: float, sent: float, now: float, start: float, error: LoadError) -> Record:
    """What became of a request that did not."""
    return {
        "id": ask.index,
        "due_us": micros(intended - start),
        "late_us": micros(sent - intended),
        "asked": ask.output_len,
        "e2e_us": micros(now - intended),
        "error": error.kind,
        "said": str(error),
    }


class Load:
    """Sends requests through a pool of connections. `ended` is called with each record as it is made."""

    def __init__(self, pool: Pool, ended: Ended = lambda record: None) -> None:
        self._pool, self._ended = pool, ended
        self._start = self._end = 0.0
        self._records: dict[int, Record] = {}

    async def closed(self, asks: Sequence[Ask], concurrency: int) -> Played:
        """So many clients, each with one request at a time; a request is due when its client is free."""
        self._begin(self._pool.clock())
        waiting = iter(asks)

        async def client() -> None:
            for ask in waiting:
                await self._one(ask, self._pool.clock())

        await asyncio.gather(*(client() for _ in range(min(concurrency, len(asks)))))
        return self._played(asks)

    async def open(self, asks: Sequence[Ask]) -> Played:
        """Each request at its own time, however many are unanswered."""
        loop = asyncio.get_running_loop()
        self._begin(self._pool.clock() + LEAD_S)
        ends: list[asyncio.Task[None]] = []
        for ask in asks:
            due = self._start + (ask.offset_s or 0.0)
            wait = due - self._pool.clock()
            # Also when nothing is to be waited for: what has come must be read, however fast requests are sent.
            await asyncio.sleep(max(0.0, wait))
            ends.append(loop.create_task(self._one(ask, due)))
        await asyncio.gather(*ends)
        return self._played(asks)

    def _begin(self, start: float) -> None:
        self._start = self._end = start
        self._records = {}

    async def _one(self, ask: Ask, due: float) -> None:
        sent = self._pool.clock()
        try:
            reply = await self._pool.ask(ask.data)
        except LoadError as error:
            now = self._pool.clock()
            record = failure_of(ask, due, sent, now, self._start, error)
        else:
            now = reply.finish_time or self._pool.clock()
            record = record_of(ask, due, sent, reply, self._start)
        self._end = max(self._end, now)
        self._records[ask.index] = record
        self._ended(record)

    def _played(self, asks: Sequence[Ask]) -> Played:
        return Played([self._records[ask.index] for ask in asks], self._end - self._start)
