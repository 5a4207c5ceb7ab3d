"""The supervisor, over engines that a test plays, in simulated time: what it notices, says, repeats and gives up."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator

import pytest
from fake_links import INFO, World, fate, moved, play
from simulated_loop import SimulatedLoop, simulate

from kvik.engine.remote.flight import Flight
from kvik.engine.remote.frames import Beat, Event, LoadFailed, Moved, Stats, Step
from kvik.engine.remote.supervisor import backoff_s
from kvik.errors import CheckpointError, ConfigError, EngineError, NotEnoughMemoryError


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "kvik.engine.remote.supervisor"):
        yield


# States -------------------------------------------------------------------------------------------------------------


def test_it_is_loading_then_ready_then_restarting_then_ready() -> None:
    async def scenario(world: World) -> None:
        assert world.state == "loading"
        assert world.supervisor.info is None
        world.engine.say(INFO)
        assert await world.supervisor.ready() == INFO
        assert (world.state, world.supervisor.health.reason, world.supervisor.pid) == ("ready", None, 77)
        world.engine.lose("it broke")
        health = world.supervisor.health
        assert (health.state, health.restarts) == ("restarting", 0)
        assert "it broke" in str(health.reason)
        assert world.supervisor.info == INFO
        await world.next_engine()
        health = world.supervisor.health
        assert (health.state, health.restarts, health.reason) == ("ready", 1, None)
        assert [link.ends for link in world.links] == [1, 0]

    play(scenario, ready=False)


@pytest.mark.parametrize("kind", [CheckpointError, NotEnoughMemoryError, ConfigError])
def test_a_model_that_cannot_be_loaded_is_not_tried_again(kind: type[Exception]) -> None:
    async def scenario(world: World) -> None:
        held = world.submit()
        world.engine.say(LoadFailed(kind.__name__, "no model"))
        with pytest.raises(kind, match="no model"):
            await world.supervisor.ready()
        assert world.state == "failed"
        assert world.supervisor.health.reason == "no model"
        assert await fate(held) == "EngineError"
        with pytest.raises(EngineError, match="no model"):
            world.submit("b")
        with pytest.raises(EngineError, match="no model"):
            await world.desk.stats()
        await asyncio.sleep(100)
        assert len(world.links) == 1

    play(scenario, ready=False)


def test_what_the_preparation_raises_is_why_there_is_no_engine() -> None:
    async def main() -> None:
        async def prepare() -> None:
            raise CheckpointError("no such directory")

        world = World(prepare=prepare)
        with pytest.raises(CheckpointError):
            await world.supervisor.ready()
        assert (world.state, world.links) == ("failed", [])
        await world.supervisor.close()

    simulate(main())


def test_a_restart_that_fails_is_tried_again_more_and_more_slowly_and_then_given_up() -> None:
    async def scenario(world: World) -> None:
        held: Flight | None = None
        for number in range(7):
            world.engine.say(LoadFailed("NotEnoughMemoryError", "full")) if number else world.engine.lose("died")
            held = held or world.submit()
            if number < 6:
                count = len(world.links)
                while len(world.links) == count:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(10)
        starts = [link.started_at for link in world.links]
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert backoff_s(10**6) == 2.0
        assert gaps == pytest.approx([0.25, 0.5, 1.0, 2.0, 2.0, 2.0], abs=0.05)
        assert (world.state, len(world.links)) == ("failed", 7)
        assert held is not None
        assert await fate(held) == "EngineError"

    play(scenario)


def test_an_engine_that_computed_something_is_followed_at_once() -> None:
    async def scenario(world: World) -> None:
        for _ in range(20):
            flight = world.submit()
            world.engine.say(moved("a", 5, "stop"))
            assert await fate(flight) == [5]
            lost_at = world.now()
            world.engine.lose("killed")
            await world.next_engine()
            assert world.now() - lost_at < 0.05
        assert world.supervisor.health.restarts == 20

    play(scenario)


def test_engines_that_cannot_even_be_started_count_too() -> None:
    async def main() -> None:
        world = World()
        world.cannot_start = True
        with pytest.raises(EngineError, match="no processes left"):
            await world.supervisor.ready()
        assert len(world.links) == 6
        await world.supervisor.close()

    simulate(main())


# The watchdog -------------------------------------------------------------------------------------------------------


def test_an_engine_without_a_sign_of_life_is_dumped_ended_and_replaced_within_the_time() -> None:
    async def scenario(world: World) -> None:
        await world.beating(30)
        first, silent_since = world.engine, world.now()
        while world.state == "ready":
            await asyncio.sleep(0.01)
        assert 9.0 < world.now() - silent_since <= 10.0
        assert "no sign of life for 10 s" in str(world.supervisor.health.reason)
        second = await world.next_engine()
        assert (first.dumps, first.ends) == (1, 1)
        assert second is not first
        assert world.state == "ready"

    play(scenario)


def test_an_engine_that_is_computing_is_given_longer_but_is_not_ready_meanwhile() -> None:
    async def scenario(world: World) -> None:
        first = world.engine
        first.cpu_seconds = lambda: 2.0 * world.now()
        flight = world.submit()
        first.say(Beat(1, True, 1))
        for _ in range(3):
            await asyncio.sleep(100)
            assert (world.state, len(world.links)) == ("failed", 1)
            assert "no sign of life for 100 s" in str(world.supervisor.health.reason)
            first.say(Beat(1, True, 1))
            assert world.state == "ready"
        silent_since = world.now()
        while world.state != "restarting":
            await asyncio.sleep(0.1)
        assert world.now() - silent_since == pytest.approx(120, abs=1)
        second = await world.next_engine()
        assert second.sent == [flight.submit]

    play(scenario)


def test_an_engine_that_hangs_after_hard_work_is_not_taken_for_one_that_computes() -> None:
    async def scenario(world: World) -> None:
        hangs_at = world.now() + 30.3
        world.engine.cpu_seconds = lambda: 64.0 * min(world.now(), hangs_at)
        await world.beating(30)
        while world.state == "ready":
            await asyncio.sleep(0.01)
        assert world.state == "restarting"
        assert world.now() - hangs_at <= 10.0

    play(scenario)


@pytest.mark.parametrize("event", [Beat(1, False, 0), Moved([]), Step({}), Stats(9, {})])
def test_any_event_is_a_sign_of_life(event: Event) -> None:
    async def scenario(world: World) -> None:
        for _ in range(10):
            await asyncio.sleep(8.0)
            world.engine.say(event)
            assert world.supervisor.health.progress_age_s == pytest.approx(0.0, abs=0.01)
        await asyncio.sleep(5.0)
        assert world.supervisor.health.progress_age_s == pytest.approx(5.0, abs=0.1)
        assert world.supervisor.health.restarts == 0

    play(scenario)


def test_time_in_which_nobody_was_awake_is_not_held_against_the_engine() -> None:
    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        for _ in range(5):
            loop.jump(3600)  # this process was stopped; the engine's beats come only after it looks again
            assert world.supervisor.health.progress_age_s <= 1.0
            await asyncio.sleep(0.6)
            assert world.state == "ready"
            world.engine.say(Beat(1, False, 0))
        assert world.supervisor.health.restarts == 0
        await asyncio.sleep(10.0)
        assert world.state == "restarting"

    play(scenario)


def test_loading_may_take_any_time() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(3600)
        assert world.state == "loading"
        assert world.supervisor.health.progress_age_s == pytest.approx(3600, rel=0.01)
        world.engine.say(INFO)
        assert world.state == "ready"

    play(scenario, ready=False)


def test_an_engine_that_cannot_be_killed_is_reported_while_it_stands_still() -> None:
    async def scenario(world: World) -> None:
        world.engine.can_be_killed = False
        flight = world.submit()
        await asyncio.sleep(11)
        health = world.supervisor.health
        assert (health.state, health.restarts) == ("failed", 0)
        assert "no sign of life" in str(health.reason)
        world.engine.say(moved("a", 3, "stop"))
        assert world.state == "ready"
        assert await fate(flight) == [3]
        assert world.engine.ends == 0

    play(scenario)


@pytest.mark.parametrize("watchdog_s", [0, -1, float("nan")])
def test_a_watchdog_needs_a_time(watchdog_s: float) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="watchdog_s"):
            World(watchdog_s=watchdog_s)

    simulate(main())


# The end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [True, False])
def test_close_fails_what_is_unfinished_and_ends_the_engine(ready: bool) -> None:
    async def scenario(world: World) -> None:
        flight = world.submit()
        await asyncio.gather(world.supervisor.close(), world.supervisor.close())
        await world.supervisor.close()
        assert await fate(flight) == "EngineError"
        assert world.engine.ends == 1
        world.engine.lose("it ended, as it was told to")
        assert world.state == "failed"
        with pytest.raises(EngineError, match="closed"):
            world.submit("b")
        await asyncio.sleep(100)
        assert len(world.links) == 1

    play(scenario, ready=ready)


def test_close_while_restarting_starts_no_other() -> None:
    async def scenario(world: World) -> None:
        world.engine.lose("killed")
        await asyncio.sleep(0.1)
        await world.supervisor.close()
        await asyncio.sleep(100)
        assert len(world.links) == 1

    play(scenario)
