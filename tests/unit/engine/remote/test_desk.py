"""The desk, over engines that a test plays: what becomes of requests, questions and watchers, whatever engines do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from fake_links import INFO, World, fate, moved, play

from kvik.engine.remote import desk as desk_module
from kvik.engine.remote.frames import Abort, AskStats, Beat, Failed, Stats, Step, Submit, Watch
from kvik.engine.remote.watchers import MOST_KEPT
from kvik.errors import EngineError, InvalidRequestError, NumericalError, OverloadedError


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "kvik.engine.remote.supervisor"):
        yield


# What the engine had ------------------------------------------------------------------------------------------------


def test_the_death_of_an_engine_settles_each_request_by_what_was_taken_of_it() -> None:
    async def scenario(world: World) -> None:
        untouched, unread, read, aborted, ended = (world.submit(name) for name in ("u", "v", "r", "x", "e"))
        first = world.engine
        for name in ("v", "r"):
            first.say(moved(name, 5))
        assert read.take().token_ids == [5]
        first.say(moved("e", 6, "stop"))
        world.desk.abort(aborted)
        first.lose("killed")
        held = world.submit("h")
        assert await fate(read) == "EngineError"
        assert await fate(aborted) == "abort"
        assert await fate(ended) == [6]
        second = await world.next_engine()
        assert second.sent == [untouched.submit, unread.submit, held.submit]
        for name in ("u", "v", "h"):
            second.say(moved(name, 7, "stop"))
        for flight in (untouched, unread, held):
            assert await fate(flight) == [7]

    play(scenario)


def test_a_request_that_was_there_when_two_engines_died_is_given_up() -> None:
    async def scenario(world: World) -> None:
        poison = world.submit("poison")
        world.engine.lose("killed")
        second = await world.next_engine()
        assert second.sent == [poison.submit]
        later = world.submit("later")
        second.lose("killed again")
        assert await fate(poison) == "EngineError"
        assert "killed again" in str(poison.error)
        third = await world.next_engine()
        assert third.sent == [later.submit]

    play(scenario)


def test_requests_are_held_until_there_is_an_engine_and_lose_the_time_they_waited() -> None:
    async def scenario(world: World) -> None:
        first, second, overdue = world.submit("a"), world.submit("b", deadline_s=60.0), world.submit("c", deadline_s=3)
        gone = world.submit("d")
        world.desk.abort(gone)
        world.desk.abort(gone)
        assert await fate(gone) == "abort"
        assert await fate(overdue) == "deadline"
        assert 3.0 <= world.now() - overdue.opened < 4.0
        await asyncio.sleep(17)
        world.engine.say(INFO)
        sent = world.engine.sent
        assert sent[0] == first.submit
        assert isinstance(sent[1], Submit)
        assert sent[1].request_id == second.submit.request_id
        assert sent[1].params.deadline_s == pytest.approx(40.0, abs=1.0)
        assert len(sent) == 2

    play(scenario, ready=False)


def test_nothing_is_taken_from_an_engine_that_was_given_up() -> None:
    async def scenario(world: World) -> None:
        flight = world.submit()
        old = world.engine
        old.lose("killed")
        old.say(moved("a", 1, "stop"))
        old.say(INFO)
        old.lose("again")
        assert world.state == "restarting"
        new = await world.next_engine()
        old.say(moved("a", 2, "stop"))
        new.say(moved("a", 3, "stop"))
        assert await fate(flight) == [3]
        assert world.supervisor.health.restarts == 1

    play(scenario)


def test_a_request_that_an_idle_engine_does_not_know_is_lost() -> None:
    async def scenario(world: World) -> None:
        first, second = world.submit("a"), world.submit("b")
        world.engine.say(Beat(1, True, 2))
        world.engine.say(Beat(1, False, 1))
        assert (first.is_over, second.is_over) == (True, False)
        assert await fate(first) == "EngineError"
        world.engine.say(moved("b", 1))
        world.engine.say(Beat(1, False, 2))
        second.take()
        assert isinstance(second.error, EngineError)

    play(scenario)


def test_an_abort_is_sent_once_and_the_name_is_free_when_the_engine_has_said_so() -> None:
    async def scenario(world: World) -> None:
        flight = world.submit("a")
        for _ in range(3):
            world.desk.abort(flight)
        assert world.engine.sent == [flight.submit, Abort("a")]
        with pytest.raises(InvalidRequestError, match="'a' belongs to an unfinished request") as caught:
            world.submit("a")
        assert caught.value.param == "request_id"
        world.engine.say(moved("a", 4, "abort"))
        again = world.submit("a")
        world.desk.abort(flight)
        world.engine.say(moved("a", 5, "stop"))
        assert await fate(flight) == [4]
        assert await fate(again) == [5]
        assert world.engine.sent[2:] == [again.submit]

    play(scenario)


def test_an_error_of_the_engine_reaches_its_request_as_it_was() -> None:
    async def scenario(world: World) -> None:
        for name, kind in (("NumericalError", NumericalError), ("Nonsense", EngineError), ("KvikError", Exception)):
            flight = world.submit()
            world.engine.say(Failed("a", name, "why"))
            await flight.wait()
            assert isinstance(flight.error, kind)
            assert str(flight.error) == "why"
        bad = world.submit()
        world.engine.say(Failed("a", "ContextLengthError", "long", "prompt"))
        assert isinstance(bad.error, InvalidRequestError)
        assert bad.error.param == "prompt"
        world.engine.say(Failed("nobody", "EngineError", "why"))
        world.engine.say(moved("nobody", 1, "stop"))

    play(scenario)


def test_an_engine_that_is_far_behind_takes_no_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_BACKLOG_BYTES", 1000)

    async def scenario(world: World) -> None:
        flight = world.submit("a")
        world.engine.backlog = 1001
        with pytest.raises(OverloadedError, match="1001 bytes"):
            world.submit("b")
        world.desk.abort(flight)
        assert world.engine.sent[-1] == Abort("a")
        world.engine.backlog = 1000
        world.submit("b")

    play(scenario)


# Questions and watchers ---------------------------------------------------------------------------------------------


def test_stats_belong_to_who_asked() -> None:
    async def scenario(world: World) -> None:
        asked = [asyncio.ensure_future(world.desk.stats()) for _ in range(3)]
        await asyncio.sleep(0)
        numbers = [command.number for command in world.engine.sent if isinstance(command, AskStats)]
        asked[1].cancel()
        for number in reversed(numbers):
            world.engine.say(Stats(number, {"n": number}))
        assert [(await asked[i])["n"] for i in (0, 2)] == [numbers[0], numbers[2]]
        last = asyncio.ensure_future(world.desk.stats())
        await asyncio.sleep(0)
        world.engine.lose("killed")
        with pytest.raises(EngineError, match="killed"):
            await last
        with pytest.raises(EngineError, match="not ready"):
            await world.desk.stats()

    play(scenario)


def test_the_engine_is_told_to_show_its_steps_only_while_somebody_watches() -> None:
    async def scenario(world: World) -> None:
        one = world.desk.watchers.join()
        two = world.desk.watchers.join()
        world.engine.say(Step({"n": 1}))
        world.desk.watchers.leave(one)
        world.desk.watchers.leave(one)
        assert world.engine.sent == [Watch(True), Watch(True)]
        world.engine.lose("killed")
        second = await world.next_engine()
        assert second.sent == [Watch(True)]
        second.say(Step({"n": 2}))
        world.desk.watchers.leave(two)
        assert second.sent == [Watch(True), Watch(False)]
        assert [one.get_nowait(), two.get_nowait(), two.get_nowait()] == [{"n": 1}, {"n": 1}, {"n": 2}]
        third = world.desk.watchers.join()
        await world.supervisor.close()
        assert third.get_nowait() is None

    play(scenario)


def test_a_slow_watcher_misses_the_oldest() -> None:
    async def scenario(world: World) -> None:
        queue = world.desk.watchers.join()
        for number in range(MOST_KEPT + 5):
            world.engine.say(Step({"n": number}))
        assert queue.qsize() == MOST_KEPT
        assert queue.get_nowait() == {"n": 5}

    play(scenario)
