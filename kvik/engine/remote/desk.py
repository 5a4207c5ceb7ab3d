"""The desk: where requests, questions and watchers wait for an engine, and what the engine says about them arrives.

With an engine behind it commands go out at once; without one requests are held for the next. This file knows nothing
of how engines are started, watched or ended.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.flights import Flights
from kvik.engine.remote.frames import Abort, AskStats, Beat, Command, Event, Failed, Moved, Stats, Step, Submit, Watch
from kvik.engine.remote.link import Link
from kvik.engine.remote.watchers import Watchers
from kvik.errors import EngineError, KvikError, OverloadedError
from kvik.request import FinishReason

MAX_BACKLOG_BYTES = 64 * 2**20


class Desk:
    """Requests that are not over, on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._link: Link | None = None
        self._commands = 0
        """Sent to the engine there is now."""
        self._flights = Flights()
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._error: KvikError | None = None
        self.watchers = Watchers(self._tell_watchers)
        """Those who see the engine's steps."""

    def submit(self, submit: Submit) -> Flight:
        """Send a request, or hold it until there is an engine. Raises InvalidRequestError if its id is in use,
        OverloadedError if the engine is far behind, EngineError if there will be no engine.
        """
        self._check_alive()
        if self._link is not None and self._link.backlog > MAX_BACKLOG_BYTES:
            raise OverloadedError(f"the engine has not taken {self._link.backlog} bytes of requests yet; send it later")
        flight = self._flights.open(submit, self._loop.time())
        if self._link is not None:
            self._send_flight(flight)
        return flight

    def abort(self, flight: Flight) -> None:
        """End a request with what it has. Idempotent."""
        if flight.is_over or flight.is_aborting:
            return
        flight.is_aborting = True
        if flight.number is None:
            self._flights.end(flight, FinishReason.ABORT)
        else:
            self._send(Abort(flight.submit.request_id))

    async def stats(self) -> dict[str, Any]:
        """The engine's own snapshot. Raises EngineError if there is none, or it dies before it has answered."""
        self._check_alive()
        if self._link is None:
            raise EngineError("the engine is not ready; ask again when it is")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._questions[number] = answer
        self._send(AskStats(number))
        try:
            return await answer
        finally:
            del self._questions[number]

    def engine_began(self, link: Link) -> None:
        """There is an engine: give it what is held."""
        self._link, self._commands = link, 0
        for flight in self._flights.held():
            self._send_flight(flight)
        if len(self.watchers):
            self._send(Watch(True))

    def engine_died(self, reason: str) -> None:
        """There is none any more; settle what it had."""
        self._link = None
        self._flights.engine_died(reason)
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(EngineError(f"the engine was lost: {reason}"))

    def close(self, error: KvikError) -> None:
        """There will be none any more."""
        self.engine_died(str(error))
        self._error = error
        self._flights.give_up_all(EngineError(f"there is no engine: {error}"))
        self.watchers.put(None)

    def received(self, event: Event) -> None:
        """The engine says this."""
        if isinstance(event, Moved):
            self._flights.move(event.updates)
        elif isinstance(event, Beat):
            if not event.busy:
                self._flights.miss(event.commands)
        elif isinstance(event, Failed):
            self._flights.fail(event)
        elif isinstance(event, Step):
            self.watchers.put(event.values)
        elif isinstance(event, Stats):
            answer = self._questions.get(event.number)
            if answer is not None and not answer.done():
                answer.set_result(event.values)

    def end_overdue(self) -> None:
        """End what is held past its deadline."""
        self._flights.end_overdue(self._loop.time())

    def _check_alive(self) -> None:
        if self._error is not None:
            raise EngineError(f"there is no engine: {self._error}")

    def _send_flight(self, flight: Flight) -> None:
        self._send(flight.due_submit(self._loop.time()))
        flight.number = self._commands

    def _tell_watchers(self, on: bool) -> None:
        if self._link is not None:
            self._send(Watch(on))

    def _send(self, command: Command) -> None:
        assert self._link is not None
        self._commands += 1
        self._link.send(command)
