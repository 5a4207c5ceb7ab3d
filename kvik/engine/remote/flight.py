"""A request on its way through an engine that others run: what has come of it and was not taken yet.

    held > sent > over         and back to held when the engine dies before anything was taken

Updates that pile up are merged per choice (pile.py), so a slow reader costs little more than the request's own text and
tokens; whoever wants that bounded is told when it is more than so many bytes. This file knows nothing of channels; it
lives on one event loop and is used there only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from kvik.engine.remote.frames import Submit, Update
from kvik.engine.remote.pile import Pile
from kvik.errors import KvikError
from kvik.request import FinishReason

SHORTEST_DEADLINE_S = 0.001


class Flight:
    """One request, from `submit` until it is over. `now` is the time of the event loop."""

    __slots__ = (
        "_bound",
        "_is_waited_to_the_end",
        "_pending",
        "_unfinished",
        "_waiter",
        "crashes",
        "error",
        "has_given",
        "is_aborting",
        "is_dropped",
        "number",
        "opened",
        "overflow",
        "submit",
    )

    def __init__(self, submit: Submit, now: float) -> None:
        self.submit = submit
        self.opened = now
        self.number: int | None = None
        """Which command to this engine it was; None while it is held back."""
        self.crashes = 0
        """Engines that died with it."""
        self.has_given = False
        """Whether anything of it has been taken."""
        self.is_aborting = False
        self.is_dropped = False
        """Nobody will read it any more."""
        self.error: KvikError | None = None
        self._unfinished = set(range(submit.params.n))
        self._pending: dict[int, Update | Pile] = {}
        self._bound: int | None = None
        self.overflow: Callable[[], None] = lambda: None
        """Called at every update that comes while more than the bound is kept."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_waited_to_the_end = False

    @property
    def is_finished(self) -> bool:
        """Every choice has its finish reason."""
        return not self._unfinished

    @property
    def is_over(self) -> bool:
        """Nothing further will come."""
        return not self._unfinished or self.error is not None

    @property
    def has_updates(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._pending)

    @property
    def kept_bytes(self) -> int:
        """What has piled up and was not taken, about as large as it is in memory."""
        return sum(each.num_bytes for each in self._pending.values() if isinstance(each, Pile))

    def bound(self, num_bytes: int, overflow: Callable[[], None]) -> None:
        """Call `overflow` at every update that comes while more than so much is kept."""
        self._bound, self.overflow = num_bytes, overflow

    def put(self, update: Update) -> None:
        """The engine has brought this."""
        index = update.index
        if update.finish_reason is not None:
            self._unfinished.discard(index)
        if self.is_dropped:
            return
        waiting = self._pending.get(index)
        if waiting is None:
            self._pending[index] = update
        elif isinstance(waiting, Pile):
            waiting.add(update)
        else:
            self._pending[index] = Pile(waiting, update)
        if self._bound is not None and self.kept_bytes > self._bound:
            self.overflow()
        if not self._is_waited_to_the_end or not self._unfinished:
            self._wake()

    def take(self, *, whole: bool = False) -> Update:
        """What has come of one choice and was not taken: all of it if `whole`, otherwise no more than is sent in one
        go. KeyError if there is nothing.
        """
        index = next(iter(self._pending), None)
        if index is None:
            raise KeyError("nothing has come that was not taken")
        waiting = self._pending.pop(index)
        self.has_given = True
        if not isinstance(waiting, Pile):
            return waiting
        update = waiting.take(whole=whole)
        if waiting:
            self._pending[index] = waiting
        return update

    def fail(self, error: KvikError) -> None:
        """It is over; the reader gets what is there, then this."""
        self.error = error
        self._wake()

    def end(self, reason: FinishReason) -> None:
        """It is over with what it has; no engine has a part in this."""
        for index in sorted(self._unfinished):
            self.put(Update(self.submit.request_id, index, "", [], finish_reason=reason.value))

    def drop(self) -> None:
        """Nobody will read it any more."""
        self.is_dropped = True
        self._pending.clear()

    def rewind(self) -> None:
        """As if it had never been sent. Only while nothing was taken of it."""
        self.number = None
        self._pending.clear()
        self._unfinished = set(range(self.submit.params.n))

    def due_submit(self, now: float) -> Submit:
        """What to send: the request, with what is left of its deadline if it was held back."""
        params = self.submit.params
        if params.deadline_s is None or now <= self.opened:
            return self.submit
        left = max(SHORTEST_DEADLINE_S, params.deadline_s - (now - self.opened))
        command = self.submit
        return Submit(
            command.request_id, command.token_ids, replace(params, deadline_s=left), command.priority, command.salt
        )

    def is_overdue(self, now: float) -> bool:
        """Whether its deadline has passed."""
        deadline = self.submit.params.deadline_s
        return deadline is not None and now - self.opened >= deadline

    async def wait(self, *, to_the_end: bool = False) -> None:
        """Return when there is something to take or nothing further will come; or only then. One caller at a time."""
        if self._waiter is not None:
            raise RuntimeError(f"request {self.submit.request_id!r} is read by two tasks; expected one at a time")
        self._is_waited_to_the_end = to_the_end
        try:
            while not self.is_over and (to_the_end or not self._pending):
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        finally:
            self._waiter = None
            self._is_waited_to_the_end = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
