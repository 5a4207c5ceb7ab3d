"""Generation: one call's prompts through the queue and the engine, their updates to a sink.

Each prompt waits for its own turn. Whatever ends the call early (the client leaves, a deadline, a failure, the server's
end) gives back its place in the queue and ends what is in the engine, at once.

A deadline counts for the first token as it is seen here: if it comes too late, even in the step during which the
deadline passed, the call has got nothing in time and fails. Later the deadline only ends the answer. Knows nothing of
what updates become.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kvik.engine.remote.frames import Update
from kvik.errors import KvikError, OverloadedError
from kvik.request import SamplingParams
from kvik.server.admission import Place
from kvik.server.backend import Stream
from kvik.server.exchange import Exchange
from kvik.server.meter import CALLER_FULL, SERVER_FULL
from kvik.server.protocol.errors import SERVER, ApiError, client_too_slow, deadline_exceeded
from kvik.server.service import Loaded, Service

LONG_S = 86_400.0
MAX_KEPT_BYTES = 160 * 1024
"""Of an answer, for a client that takes nothing. With what its connection holds (64 KiB and a piece) it is 256 KiB."""
STUCK_S = 1.0
"""A client that takes nothing for so long does not read, or reads too slowly; a shorter pause may be our own."""
LEAST_S = 0.001


class Sink(Protocol):
    """Takes the updates of a call."""

    whole: bool
    """Only the end is of interest: each choice comes as one update."""

    async def push(self, prompt: int, update: Update) -> None:
        """What is new in one choice of one prompt. Raises ApiError if it says that the request failed."""


@dataclass(frozen=True)
class Job:
    """What is to be generated."""

    prompts: Sequence[list[int]]
    params: SamplingParams
    """For each prompt."""
    rank: int = 0
    """Among the caller's own requests; lower is served first."""
    deadline: float | None = None
    """By the service's clock."""


class Generation:
    """One job of one exchange."""

    def __init__(self, service: Service, loaded: Loaded, exchange: Exchange, job: Job) -> None:
        self._service, self._exchange, self._job = service, exchange, job
        self._admission, self._meter = loaded.admission, service.meter
        self._number = service.next_number()
        self._turn: tuple[float, float] | None = None
        """How long the first turn of the call was waited for, and when it came, counted from the request's arrival."""
        self._first_token: float | None = None
        self._in_time = False
        """Something of the answer has come before the deadline."""
        self._tokens = 0
        self._whole: list[tuple[int, Update]] = []
        """For a sink that wants only the end: what has ended, with the number of its prompt."""

    async def run(self, sink: Sink) -> None:
        """Until every prompt has its answer. Raises KvikError, ApiError, and what the sink does."""
        try:
            if len(self._job.prompts) == 1:
                await self._answer(0, sink)
            else:
                await together([self._answer_of(number, sink) for number in range(len(self._job.prompts))])
            # Those with tokens first: a choice that got none in time fails a call that has nothing else.
            for number, update in sorted(self._whole, key=lambda each: not each[1].token_ids):
                await sink.push(number, update)
        finally:
            self._take_notes()

    def _take_notes(self) -> None:
        """For the log and the trace: tokens, and the time before the first turn, up to the first token, and after."""
        notes, first = self._exchange.notes, self._first_token
        notes["tokens"] = self._tokens
        if self._turn is not None:
            notes["queue_s"], turn_at = self._turn
            if first is not None:
                notes["ttft_s"], notes["prefill_s"] = first, first - turn_at
                notes["decode_s"] = self._service.clock() - self._exchange.started_at - first

    def _answer_of(self, number: int, sink: Sink) -> Callable[[], Awaitable[None]]:
        return lambda: self._answer(number, sink)

    async def _answer(self, number: int, sink: Sink) -> None:
        """One prompt, from the queue to the last token."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        place = Place(
            self._exchange.caller.name,
            len(self._job.prompts[number]),
            self._job.params.n,
            self._job.rank,
            granted=lambda: settle(turn),
            dropped=lambda error: settle(turn, error),
        )
        entered = self._service.clock()
        self._enter(place)
        try:
            if not place.inside:
                await self._wait(turn)
            self._note_turn(entered)
            async with self._submit(number, place) as stream:
                if sink.whole:
                    await self._take_whole(number, stream, place)
                else:
                    stream.bound(MAX_KEPT_BYTES, self._cut_if_stuck)
                    async for update in stream:
                        self._check_in_time()
                        self._note(place, update)
                        await sink.push(number, update)
        finally:
            self._admission.leave(place)

    def _enter(self, place: Place) -> None:
        try:
            self._admission.enter(place)
        except OverloadedError:
            self._meter.rejected(SERVER_FULL)
            raise
        except ApiError:
            self._meter.rejected(CALLER_FULL)
            raise

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        """For the turn, until the deadline or as long as anybody may wait for a first token."""
        loop = asyncio.get_running_loop()
        deadline = self._job.deadline
        left = None if deadline is None else deadline - self._service.clock()
        patience = self._admission.patience
        error: Exception = ApiError(
            503, SERVER, "overloaded", "the request waited too long for its turn", retry_after_s=patience / 2
        )
        if left is not None and left < patience:
            patience, error = left, deadline_exceeded()
        timer = loop.call_later(max(0.0, patience), settle, turn, error)
        try:
            await turn
        finally:
            timer.cancel()

    def _submit(self, number: int, place: Place) -> Stream:
        params = self._job.params
        if self._job.deadline is not None:
            left = self._job.deadline - self._service.clock()
            if left <= LEAST_S:
                raise deadline_exceeded()
            params = replace(params, deadline_s=left)
        return self._service.backend.submit(
            self._job.prompts[number],
            params,
            request_id=f"{self._exchange.request_id}.{self._number}.{number}",
            priority=place.start,
            salt=self._exchange.caller.salt,
        )

    async def _take_whole(self, number: int, stream: Stream, place: Place) -> None:
        await stream.wait(LONG_S)
        self._check_in_time()
        self._admission.first_token(place)
        came = self._service.clock()
        updates = await stream.whole()
        self._note_first_token(came)
        for update in updates:
            self._note(place, update)
            self._whole.append((number, update))

    def _cut_if_stuck(self) -> None:
        """Too much is kept for the client: end the request if that is because it does not read."""
        since = self._exchange.blocked_since
        if since is not None and asyncio.get_running_loop().time() - since >= STUCK_S:
            self._exchange.end(client_too_slow())

    def _check_in_time(self) -> None:
        """Something has come. Raises ApiError(504) if it is the first of the call and too late."""
        deadline = self._job.deadline
        if not self._in_time and deadline is not None and self._service.clock() > deadline:
            raise deadline_exceeded()
        self._in_time = True

    def _note_turn(self, entered: float) -> None:
        now = self._service.clock()
        self._meter.queued(now - entered)
        if self._turn is None:
            self._turn = now - entered, now - self._exchange.started_at

    def _note(self, place: Place, update: Update) -> None:
        count = len(update.token_ids)
        self._tokens += count
        if not place.prefilled:
            self._admission.first_token(place)
            self._note_first_token(self._service.clock())
        self._admission.charge(place, count)

    def _note_first_token(self, when: float) -> None:
        if self._first_token is None:
            self._first_token = when - self._exchange.started_at
            self._meter.first_token(self._first_token)


def settle(turn: asyncio.Future[None], error: Exception | None = None) -> None:
    """Decide a turn, unless it is decided."""
    if turn.done():
        return
    if error is None:
        turn.set_result(None)
    else:
        turn.set_exception(error)


async def together(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """All of them side by side. When one fails the others are cancelled; its failure is raised."""
    loop = asyncio.get_running_loop()

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        await work()

    tasks = [loop.create_task(run(work)) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


FAILURES = (KvikError, ApiError)
"""What ends a call with an error for the client."""
