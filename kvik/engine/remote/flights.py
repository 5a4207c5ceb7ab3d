"""All requests that are not over, by id: who gets which update, and what the death of an engine means for each.

    never sent                  held for the next engine
    sent, nothing taken yet     sent again to the next engine, unless this was the second that died with it
    sent and read from          fails: what was given out cannot be taken back
    aborted                     over

This file knows nothing of how an engine is reached or watched.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Failed, Submit, Update, rebuilt
from kvik.errors import EngineError, InvalidRequestError, KvikError
from kvik.request import FinishReason

RETRIES = 1
"""How often a request is sent again after an engine died with it: one that kills engines must not do so for ever."""


class Flights:
    """Requests that are not over. Ids are free again when the engine has said the last of a request."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def open(self, submit: Submit, now: float) -> Flight:
        """A new request, held. Raises InvalidRequestError if its id belongs to one that is not over."""
        if submit.request_id in self._flights:
            raise InvalidRequestError(
                f"request_id {submit.request_id!r} belongs to an unfinished request", param="request_id"
            )
        flight = self._flights[submit.request_id] = Flight(submit, now)
        return flight

    def held(self) -> list[Flight]:
        """Those that no engine has, in the order they came."""
        return [flight for flight in self._flights.values() if flight.number is None]

    def move(self, updates: Iterable[Update]) -> None:
        """The engine has brought these. Of a request that is over or unknown there is nobody to tell."""
        flights = self._flights
        for update in updates:
            flight = flights.get(update.request_id)
            if flight is not None:
                flight.put(update)
                if flight.is_finished:
                    del flights[update.request_id]

    def fail(self, failed: Failed) -> None:
        """The engine has given a request up."""
        flight = self._flights.pop(failed.request_id, None)
        if flight is not None:
            flight.fail(rebuilt(failed.kind, failed.message, failed.param))

    def end(self, flight: Flight, reason: FinishReason) -> None:
        """A request is over that no engine has."""
        del self._flights[flight.submit.request_id]
        flight.end(reason)

    def end_overdue(self, now: float) -> None:
        """End what is held past its deadline, as an engine would."""
        for flight in self.held():
            if flight.is_overdue(now):
                self.end(flight, FinishReason.DEADLINE)

    def miss(self, taken: int) -> None:
        """The engine has nothing to do after so many commands: what it was sent with them and is not over, it lost."""
        for flight in list(self._flights.values()):
            if flight.number is not None and flight.number <= taken:
                self._give_up(flight, EngineError("the engine has lost this request; send it again"))

    def engine_died(self, reason: str) -> None:
        """Settle what the engine had."""
        for flight in list(self._flights.values()):
            if flight.number is None:
                continue
            flight.crashes += 1
            if flight.is_aborting:
                self.end(flight, FinishReason.ABORT)
            elif flight.has_given or flight.crashes > RETRIES:
                self._give_up(flight, EngineError(f"the engine was lost with this request: {reason}"))
            else:
                flight.rewind()

    def give_up_all(self, error: KvikError) -> None:
        """No engine will come."""
        for flight in list(self._flights.values()):
            self._give_up(flight, error)

    def _give_up(self, flight: Flight, error: KvikError) -> None:
        del self._flights[flight.submit.request_id]
        flight.fail(error)
