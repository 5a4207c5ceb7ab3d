"""Admission: which requests may wait, whose turn it is, and how many are in the engine.

The engine gets as many requests as it has seats, and a few to take their place, so that the order is settled here,
where callers are known. A request that would wait longer for its first token than `target_ttft`, at the pace measured,
is refused and told when to come back; so is what would make one caller's queue too long. Nobody is refused while the
backlog is small. Who is let in shall not be given up later, so the estimate must leave room for its own error.

Pure bookkeeping: `granted` and `dropped` of a ticket are called when its turn comes or its place is taken away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kvik.errors import OverloadedError
from kvik.server.fair_queue import FairQueue, Ticket
from kvik.server.options import FlowOptions
from kvik.server.pace import Pace
from kvik.server.protocol.errors import ApiError

MAX_WAITING_TOKENS = 2**22
"""Prompt tokens that may wait whatever the pace: what they take in memory is bounded."""
SMALL_BACKLOG_STEPS = 4
MAX_RETRY_AFTER_S = 120.0
HEADROOM = 0.9
"""Share of the target that may be spent waiting for a turn; a prompt takes time too."""
DOOR = 0.5
"""Share of the target that a wait may be expected to take. A queue so long keeps the engine busy just as well, and an
engine that pauses for a while, or becomes slower by a third, makes nobody wait too long who was let in before."""
TURNS_KNOWN = 8
"""Turns of one caller after which its own pace says something."""
OWN_HALF_LIFE_S = 10.0
"""A caller's share changes with what others send, faster than the engine's speed."""


@dataclass(frozen=True)
class Window:
    """What the engine takes: seats in a step, and tokens in a step."""

    seats: int
    step_tokens: int

    @property
    def capacity(self) -> int:
        """Seats, and requests at hand to take those that become free."""
        return self.seats + max(2, self.seats // 16)


@dataclass(eq=False)
class Place(Ticket):
    """A ticket and what becomes of it."""

    granted: Callable[[], None] = lambda: None
    dropped: Callable[[OverloadedError], None] = lambda error: None
    waiting: bool = field(default=False, init=False)
    inside: bool = field(default=False, init=False)
    """Its turn has come, and it has not ended."""
    prefilled: bool = field(default=False, init=False)
    """Its first token has."""


class Admission:
    """The queue in front of one engine. `clock` is monotonic, in seconds."""

    def __init__(self, flow: FlowOptions, window: Window, clock: Callable[[], float]) -> None:
        self._flow, self.window = flow, window
        self._queue = FairQueue()
        self._seats_taken = 0
        self._prefilling = 0
        """Prompt tokens in the engine without a first token yet."""
        self._token_pace = Pace(clock)
        self._turn_pace = Pace(clock)
        self._own_paces: dict[str, Pace] = {}
        """Turns of each caller that has requests waiting: others who are served less come before it again and again."""
        self._clock = clock

    @property
    def patience(self) -> float:
        """Seconds that a request may wait for its turn."""
        return HEADROOM * self._flow.target_ttft

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Their prompt tokens."""
        return self._queue.tokens

    @property
    def inside(self) -> int:
        """Seats that are taken in the engine."""
        return self._seats_taken

    def estimate(self, caller: str, tokens: int) -> float:
        """Seconds until the first token of a new request, as far as is known."""
        requests, ahead = self._queue.ahead(caller, tokens)
        wait = 0.0
        token_rate, turn_rate = self._token_pace.rate(), self._turn_pace.rate()
        backlog = self._prefilling + ahead + tokens
        if token_rate is not None and backlog > SMALL_BACKLOG_STEPS * self.window.step_tokens:
            wait = backlog / token_rate
        if turn_rate is not None and requests > self.window.seats // 4:
            wait = max(wait, (requests + 1) / turn_rate)
        own = self._own_paces.get(caller)
        own_rate = own.rate(TURNS_KNOWN) if own is not None else None
        return wait if own_rate is None else max(wait, (self._queue.waiting(caller) + 1) / own_rate)

    def check(self, caller: str, tokens: int = 1) -> None:
        """Whether a request of this caller and size might be let in now. Raises OverloadedError, or ApiError(429) if
        the caller itself has too many.
        """
        limit = self._flow.max_concurrent
        if limit is not None and self._queue.present(caller) >= limit:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                "rate_limit_exceeded",
                f"this API key has {limit} requests here, which is the limit",
                retry_after_s=1.0,
            )
        wait = self.estimate(caller, tokens)
        if wait > DOOR * self._flow.target_ttft:
            raise self._refusal(wait)
        if self._queue.tokens and self._queue.tokens + tokens > MAX_WAITING_TOKENS:
            raise self._refusal(wait)
        if len(self._queue) >= self._flow.max_queued_requests and not self._may_push_out(caller):
            raise self._refusal(wait)

    def enter(self, place: Place) -> None:
        """Wait for a turn, which may come at once. Raises what `check` does."""
        self.check(place.caller, place.tokens)
        if len(self._queue) >= self._flow.max_queued_requests:
            self._push_out()
        self._queue.add(place)
        place.waiting = True
        if place.caller not in self._own_paces:
            self._own_paces[place.caller] = Pace(self._clock, OWN_HALF_LIFE_S)
            self._own_paces[place.caller].backlogged(True)
        self._advance()

    def first_token(self, place: Place) -> None:
        """The prompt of a place is computed. Idempotent."""
        if place.inside and not place.prefilled:
            place.prefilled = True
            self._prefilling -= place.tokens
            self._token_pace.done(place.tokens)
            self._pace()

    def charge(self, place: Place, answer_tokens: int) -> None:
        """Tokens were generated for a place."""
        self._queue.charge(place, answer_tokens)

    def leave(self, place: Place) -> None:
        """The request has ended, or is given up while it waits. Idempotent."""
        if place.waiting:
            place.waiting = False
            self._queue.remove(place)
            self._forget(place.caller)
        elif place.inside:
            place.inside = False
            self._seats_taken -= place.seats
            if not place.prefilled:
                self._prefilling -= place.tokens
            self._queue.leave(place)
        self._advance()

    def _may_push_out(self, caller: str) -> bool:
        """Whether somebody has so much more waiting that a place of theirs may be given away."""
        last = self._queue.last_of_most()
        return last is not None and self._queue.waiting(last.caller) > 2 * self._queue.waiting(caller) + 1

    def _push_out(self) -> None:
        last = self._queue.last_of_most()
        assert isinstance(last, Place)
        last.waiting = False
        self._queue.remove(last)
        self._forget(last.caller)
        last.dropped(self._refusal(self.estimate(last.caller, last.tokens)))

    def _advance(self) -> None:
        """Let in whoever is next, while there are seats. A request with more seats than there are gets all of them."""
        while (place := self._queue.next()) is not None:
            if self._seats_taken and self._seats_taken + place.seats > self.window.capacity:
                break
            assert isinstance(place, Place)
            self._queue.admit(place)
            place.waiting, place.inside = False, True
            self._seats_taken += place.seats
            self._prefilling += place.tokens
            self._turn_pace.done(1)
            self._own_paces[place.caller].done(1)
            self._forget(place.caller)
            place.granted()
        self._pace()

    def _forget(self, caller: str) -> None:
        """A caller's own pace, once it has nothing waiting."""
        if not self._queue.waiting(caller):
            self._own_paces.pop(caller, None)

    def _pace(self) -> None:
        self._token_pace.backlogged(self._prefilling + self._queue.tokens >= self.window.step_tokens)
        self._turn_pace.backlogged(len(self._queue) > 0)

    def _refusal(self, wait: float) -> OverloadedError:
        """Come back when the wait will be half of what is let in, and not all at once."""
        after = max(1.0, wait - DOOR * self._flow.target_ttft / 2) * random.uniform(1.0, 1.25)
        return OverloadedError(
            "the server is full: a new request would wait too long for its first token",
            retry_after_s=min(MAX_RETRY_AFTER_S, after),
        )
