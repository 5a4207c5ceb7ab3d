"""An engine in a thread of this process, spoken to in the same frames as one behind a wall, but handed over as objects.

Cheaper than a process, and less safe: what ends or blocks the process ends or blocks both, and a thread cannot be
killed. This file knows nothing of what frames mean.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

from kvik.engine.engine import Engine
from kvik.engine.remote.channel import ChannelClosedError
from kvik.engine.remote.frames import Close, Command, Event
from kvik.engine.remote.host import serve

MOST_UNDELIVERED = 64
"""Steps that the engine may be ahead of the event loop."""
LEAVE_S = 30.0
"""How long the end of an engine is waited for; it may be loading, or in a long step."""
_LOOK_S = 1.0
logger = logging.getLogger(__name__)


class MemoryChannel:
    """The engine's end of a queue. Sending waits while the event loop is far behind, and fails when it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Event], None]) -> None:
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        """Where the front end puts them."""
        self._loop, self._deliver = loop, deliver
        self._room = threading.Semaphore(MOST_UNDELIVERED)

    def receive(self, timeout_s: float | None = None) -> list[Command]:
        """What has come; waits at most so long for the first (None: for ever)."""
        try:
            commands = [self.commands.get(timeout=timeout_s)]
            while not self.commands.empty():
                commands.append(self.commands.get())
        except queue.Empty:
            return []
        return commands

    def send(self, *events: Event) -> None:
        """Have the event loop deliver these, in order. Raises ChannelClosedError."""
        while not self._room.acquire(timeout=_LOOK_S):
            self._check_open()
        try:
            self._loop.call_soon_threadsafe(self._arrive, events)
        except RuntimeError:
            self._check_open()
            raise

    def _arrive(self, events: tuple[Event, ...]) -> None:
        self._room.release()
        for event in events:
            self._deliver(event)

    def _check_open(self) -> None:
        if self._loop.is_closed():
            raise ChannelClosedError("the event loop is closed")


class ThreadLink:
    """One engine in one thread. `received` gets its events, `lost` the reason when there will be no more; both are
    called on the event loop.
    """

    can_be_killed = False
    pid = None
    backlog = 0

    def __init__(
        self,
        build: Callable[[], Engine],
        received: Callable[[Event], None],
        lost: Callable[[str], None],
        *,
        beat_s: float,
    ) -> None:
        self._build, self._lost, self._beat_s = build, lost, beat_s
        self._loop = asyncio.get_running_loop()
        self._channel = MemoryChannel(self._loop, received)
        self._ended = asyncio.Event()
        self._how = "has ended"
        # A daemon, because a program that ends without closing its engine must not wait for it.
        self._thread = threading.Thread(target=self._run, name="kvik-engine", daemon=True)

    async def start(self) -> None:
        """Start the thread, which loads the model."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Put a command into the engine's queue."""
        self._channel.commands.put(command)

    def cpu_seconds(self) -> float:
        """Not told apart from the rest of this process."""
        return 0.0

    def dump(self) -> None:
        """Nothing: whoever wants the stacks of this process can have them."""

    async def end(self, patience_s: float = 0.0) -> str:
        """Ask the engine to end and wait until its thread has; after LEAVE_S, or `patience_s` if that is longer, leave
        it to itself. Returns how it ended. Idempotent.
        """
        if not self._thread.is_alive():
            return self._how
        self._channel.commands.put(Close())
        try:
            await asyncio.wait_for(self._ended.wait(), max(patience_s, LEAVE_S))
        except asyncio.TimeoutError:
            return "cannot be stopped"
        self._thread.join()
        return self._how

    def _run(self) -> None:
        try:
            serve(self._build, self._channel, beat_s=self._beat_s)
        except ChannelClosedError:
            return
        except BaseException as error:
            logger.exception("the engine thread ends")
            self._how = f"raised {type(error).__name__}: {error}"
        try:
            self._loop.call_soon_threadsafe(self._arrive_at_the_end)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _arrive_at_the_end(self) -> None:
        self._ended.set()
        self._lost("the engine's thread has ended")
