"""The supervisor: keeps an engine alive behind a link, and says how it is.

    loading > ready > restarting > ready > ...        failed, if it cannot be loaded

An engine is lost when its channel ends or is damaged, when its process dies, or when it has shown no sign of life for
the time of the watchdog. Then what it had is settled, it is ended for sure, and the next one is started. One that keeps
computing is given longer, because a step of a large model on a small machine may take longer, and one that cannot be
killed (a thread) is waited for; both are not ready meanwhile. This file knows nothing of processes, threads or
requests; it lives on one event loop and never blocks it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvik.engine.remote.desk import Desk
from kvik.engine.remote.frames import Event, LoadFailed, ModelInfo, Moved, rebuilt
from kvik.engine.remote.link import Connect, Link
from kvik.engine.remote.pulse import Pulse
from kvik.errors import ConfigError, EngineError, KvikError

LOADING, READY, RESTARTING, FAILED = "loading", "ready", "restarting", "failed"
WATCHDOG_S = 10.0
COMPUTING_FACTOR = 12
"""Times the watchdog's patience, for an engine that is computing."""
COMPUTING_SHARE = 0.05
"""Of one core: an engine that uses less once half of the watchdog's patience is over does not compute, it hangs."""
ATTEMPTS = 6
"""Engines in a row that could not be loaded before no further one is tried."""
BACKOFF_S, MAX_BACKOFF_S = 0.25, 2.0
"""Before the engine after one that computed nothing; doubled each time. After any other there is no wait."""
GRACE_S = 2.0
"""For an engine that is asked to leave."""
LAST_BREATH_S = 0.5
"""For an engine that has closed its channel: it says how it ended if it is not killed."""
DUMP_S = 0.3
"""For a hung engine to write its stacks."""
_LOOKS = 20
"""At the pulse, in the time of the watchdog."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    """How an engine is, at one moment."""

    state: str
    """loading, ready, restarting or failed."""
    progress_age_s: float
    """Since its last sign of life, as far as this process was awake to see."""
    restarts: int
    reason: str | None
    """Why it is not ready."""


@dataclass(frozen=True)
class _Loss:
    reason: str
    is_hung: bool = False
    error: KvikError | None = None
    """Why it could not be loaded."""


async def _nothing() -> None:
    """What has to be done before the first engine."""


def backoff_s(barren: int) -> float:
    """How long to wait after so many engines in a row that computed nothing."""
    return 0.0 if barren == 0 else min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(barren - 1, 10))


class Supervisor:
    """One engine after another; `desk` is where requests for them are left.

    `prepare` is awaited before the first; what it raises means that there will be none. Raises ConfigError.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        watchdog_s: float = WATCHDOG_S,
        prepare: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        if not watchdog_s > 0:
            raise ConfigError(f"watchdog_s is {watchdog_s!r}; expected a number of seconds above 0")
        self._connect, self._prepare = connect, prepare
        self._watchdog_s, self._look_s = watchdog_s, watchdog_s / _LOOKS
        self._state = LOADING
        self._reason: str | None = None
        self._restarts = 0
        self._error: KvikError | None = None
        self.info: ModelInfo | None = None
        """Of the engine that was ready last."""
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(2 * self._look_s, self._loop.time)
        self.desk = Desk(self._loop)
        self._is_settled = asyncio.Event()
        """Ready for the first time, or failed."""
        self._link: Link | None = None
        self._lost: asyncio.Future[_Loss] = self._loop.create_future()
        """Of the engine there is now."""
        self._cpu_s = 0.0
        """What it had used of the processor when half of the watchdog's patience was not over yet."""
        self._has_loaded = self._has_moved = False
        self._closing: asyncio.Task[None] | None = None
        self._task = self._loop.create_task(self._keep_alive())
        self._timer = self._loop.call_later(self._look_s, self._look)

    @property
    def health(self) -> Health:
        """How the engine is now. One that shows no sign of life is not ready, whatever it was."""
        age = self._pulse.age
        if self._state == READY and age > self._watchdog_s:
            return Health(FAILED, age, self._restarts, self._no_sign_of_life())
        return Health(self._state, age, self._restarts, self._reason)

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none."""
        return self._link.pid if self._link else None

    async def ready(self) -> ModelInfo:
        """Wait until the first engine is ready. Raises why it could not be loaded, or EngineError."""
        await self._is_settled.wait()
        if self._error is not None or self.info is None:
            raise self._error or EngineError("there is no engine")
        return self.info

    async def close(self) -> None:
        """End the engine; whatever is unfinished fails. Idempotent."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _keep_alive(self) -> None:
        try:
            await self._prepare()
            unloaded = barren = 0
            while True:
                loss = await self._live()
                await self._bury(loss)
                unloaded = 0 if self._has_loaded else unloaded + 1
                barren = 0 if self._has_moved else barren + 1
                if (loss.error is not None and self.info is None) or unloaded >= ATTEMPTS:
                    self._fail(loss.error or EngineError(f"the engine cannot be started: {self._reason}"))
                    return
                self._restarts += 1
                await asyncio.sleep(backoff_s(barren))
        except KvikError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the supervisor of the engine ends")
            self._fail(EngineError(f"{type(error).__name__}: {error}"))

    async def _live(self) -> _Loss:
        """Start an engine and return when it is lost."""
        lost: asyncio.Future[_Loss] = self._loop.create_future()
        self._lost = lost
        self._has_loaded = self._has_moved = False
        self._pulse.beat()
        self._link = self._connect(
            lambda event: self._received(lost, event), lambda reason: self._lose(lost, _Loss(reason))
        )
        try:
            await self._link.start()
        except EngineError as error:
            self._lose(lost, _Loss(str(error)))
        return await lost

    async def _bury(self, loss: _Loss) -> None:
        """See to it that a lost engine has gone."""
        assert self._link is not None
        if loss.is_hung:
            self._link.dump()
            await asyncio.sleep(DUMP_S)
        how = await self._link.end(0.0 if loss.is_hung else LAST_BREATH_S)
        self._reason = f"the engine was lost ({loss.reason}); it {how}"
        logger.warning("%s", self._reason)

    def _received(self, lost: asyncio.Future[_Loss], event: Event) -> None:
        """From an engine that is lost already nothing is taken: what it had is settled."""
        if lost.done():
            return
        self._pulse.beat()
        if isinstance(event, ModelInfo):
            self._begin(event)
        elif isinstance(event, LoadFailed):
            self._lose(lost, _Loss(event.message, error=rebuilt(event.kind, event.message)))
        else:
            self._has_moved = self._has_moved or isinstance(event, Moved)
            self.desk.received(event)

    def _begin(self, info: ModelInfo) -> None:
        assert self._link is not None
        self.info, self._state, self._reason = info, READY, None
        self._has_loaded = True
        self._cpu_s = self._link.cpu_seconds()
        self.desk.engine_began(self._link)
        self._is_settled.set()

    def _lose(self, lost: asyncio.Future[_Loss], loss: _Loss) -> None:
        """The engine of this future is of no use any more."""
        if lost.done():
            return
        lost.set_result(loss)
        self._state = RESTARTING if self.info else LOADING
        self._reason = f"the engine was lost ({loss.reason})"
        self.desk.engine_died(loss.reason)

    def _look(self) -> None:
        """Now and then: is it alive, and what is overdue of the requests that are held."""
        self._timer = self._loop.call_later(self._look_s, self._look)
        self.desk.end_overdue()
        age = self._pulse.age
        if self._state != READY or self._link is None or not self._link.can_be_killed:
            return
        if age < self._watchdog_s / 2:
            self._cpu_s = self._link.cpu_seconds()
        elif age > self._patience(self._link, age) - self._look_s:
            self._lose(self._lost, _Loss(self._no_sign_of_life(), is_hung=True))

    def _patience(self, link: Link, age: float) -> float:
        """How old the last sign of life of an engine may become, in seconds."""
        if age <= self._watchdog_s - self._look_s:
            return self._watchdog_s
        used_s = link.cpu_seconds() - self._cpu_s
        is_computing = used_s > COMPUTING_SHARE * (age - self._watchdog_s / 2)
        return self._watchdog_s * (COMPUTING_FACTOR if is_computing else 1)

    def _no_sign_of_life(self) -> str:
        return f"no sign of life for {max(self._pulse.age, self._watchdog_s):.3g} s"

    def _fail(self, error: KvikError) -> None:
        """There will be no engine."""
        self._state, self._reason, self._error = FAILED, str(error), error
        self.desk.close(error)
        self._is_settled.set()

    async def _close(self) -> None:
        was_ready = self._state == READY
        self._timer.cancel()
        self._task.cancel()
        await asyncio.wait({self._task})
        self._lost.cancel()
        if self._error is None:
            self._fail(EngineError("it was closed"))
        if self._link is not None:
            await self._link.end(GRACE_S if was_ready else 0.0)
