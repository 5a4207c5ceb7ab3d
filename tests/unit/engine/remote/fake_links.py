"""Engines that a test plays, behind a supervisor, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from simulated_loop import simulate

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Beat, Command, Event, ModelInfo, Moved, Submit, Update
from kvik.engine.remote.supervisor import Supervisor
from kvik.errors import EngineError
from kvik.request import SamplingParams

INFO = ModelInfo("m", 512, 256, 10, 32, 4, 64, "fake")


class FakeLink:
    """An engine that does what the test says."""

    def __init__(self, received: Callable[[Event], None], lost: Callable[[str], None], world: World) -> None:
        self.say, self.lose = received, lost
        self.sent: list[Command] = []
        self.backlog, self.pid = 0, 77
        self.cpu_seconds: Callable[[], float] = lambda: 0.0
        self.dumps = self.ends = 0
        self.can_be_killed = world.can_be_killed
        self.started_at = world.now()
        self.cannot_start = world.cannot_start

    async def start(self) -> None:
        if self.cannot_start:
            raise EngineError("no processes left")

    def send(self, command: Command) -> None:
        self.sent.append(command)

    def dump(self) -> None:
        self.dumps += 1

    async def end(self, patience_s: float = 0.0) -> str:
        self.ends += 1
        return "was ended"


class World:
    """A supervisor and the engines it has had."""

    def __init__(self, *, watchdog_s: float = 10.0, **options: Any) -> None:
        self.can_be_killed = True
        self.cannot_start = False
        self.links: list[FakeLink] = []
        self.supervisor = Supervisor(self._connect, watchdog_s=watchdog_s, **options)
        self.desk = self.supervisor.desk

    def _connect(self, received: Callable[[Event], None], lost: Callable[[str], None]) -> FakeLink:
        self.links.append(FakeLink(received, lost, self))
        return self.links[-1]

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def engine(self) -> FakeLink:
        return self.links[-1]

    @property
    def state(self) -> str:
        return self.supervisor.health.state

    async def next_engine(self) -> FakeLink:
        """The engine that is started after those there were."""
        count = len(self.links)
        while len(self.links) == count:
            await asyncio.sleep(0.01)
        self.engine.say(INFO)
        return self.engine

    def submit(self, name: str = "a", **params: Any) -> Flight:
        return self.desk.submit(Submit(name, [1, 2], SamplingParams(**params)))

    async def beating(self, seconds: float) -> None:
        """An engine that is well."""
        for _ in range(int(seconds)):
            await asyncio.sleep(1.0)
            self.engine.say(Beat(1, True, 0))


Scenario = Callable[[World], Coroutine[Any, Any, None]]


def play(scenario: Scenario, *, ready: bool = True, **options: Any) -> None:
    """Run a scenario with a supervisor that is closed afterwards; with `ready`, its first engine is ready."""

    async def main() -> None:
        world = World(**options)
        while not world.links:
            await asyncio.sleep(0)
        if ready:
            world.engine.say(INFO)
            await world.supervisor.ready()
        await scenario(world)
        await world.supervisor.close()

    simulate(main())


def moved(name: str, token: int, end: str | None = None, index: int = 0) -> Moved:
    return Moved([Update(name, index, "", [token], finish_reason=end)])


async def fate(flight: Flight) -> list[int] | str:
    """The tokens of a request that ended well, or its finish reason if it has none, or its error's name."""
    await flight.wait(to_the_end=True)
    if flight.error is not None:
        return type(flight.error).__name__
    update = flight.take()
    return update.token_ids or str(update.finish_reason)
