"""Who may wait, for how long, and who is told to come back: on a clock that moves when told."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable

import pytest
from fakes import FakeClock

from kvik.errors import OverloadedError
from kvik.server.admission import DOOR, MAX_WAITING_TOKENS, Admission, Place, Window
from kvik.server.options import FlowOptions
from kvik.server.pace import LEAST_S, Pace
from kvik.server.protocol.errors import ApiError

STEP = 100


def admission(clock: FakeClock, seats: int = 8, **flow: object) -> Admission:
    return Admission(FlowOptions(**flow), Window(seats, STEP), clock)  # type: ignore[arg-type]


def fill(queue: Admission, caller: str = "a", tokens: int = 10) -> list[Place]:
    """Take every seat."""
    places = [Place(caller, tokens) for _ in range(queue.window.capacity)]
    for place in places:
        queue.enter(place)
        queue.first_token(place)
        assert place.inside
    return places


class Engine:
    """Computes prompts at a steady speed, in order, then answers of a given length."""

    def __init__(self, queue: Admission, clock: FakeClock, tokens_per_s: float) -> None:
        self.queue, self.clock, self.speed = queue, clock, tokens_per_s
        self.inside: deque[Place] = deque()
        self.waits: list[float] = []
        self.credit = 0.0

    def send(self, place: Place) -> None:
        entered = self.clock()
        granted: Callable[[], None] = lambda: self.inside.append(place)  # noqa: E731
        place.granted = granted
        self.queue.enter(place)
        place.entered = entered  # type: ignore[attr-defined]

    def step(self, seconds: float) -> None:
        """Compute for so long."""
        end = self.clock.now + seconds
        while self.inside:
            place = self.inside[0]
            done_at = self.clock.now + (place.tokens - self.credit) / self.speed
            if done_at > end:
                self.credit += (end - self.clock.now) * self.speed
                break
            self.inside.popleft()
            self.clock.now, self.credit = done_at, 0.0
            self.queue.first_token(place)
            self.waits.append(self.clock() - place.entered)  # type: ignore[attr-defined]
            self.queue.leave(place)
        self.clock.now = end


def test_an_empty_server_lets_anybody_in_at_once() -> None:
    queue = admission(FakeClock())
    place = Place("a", 10**6)
    queue.enter(place)
    assert place.inside
    assert (queue.waiting, queue.inside) == (0, 1)


def test_the_engine_gets_its_seats_and_a_few_more() -> None:
    queue = admission(FakeClock(), seats=64)
    places = [Place("a", 1) for _ in range(100)]
    for place in places:
        queue.enter(place)
    assert sum(place.inside for place in places) == 64 + 4
    queue.leave(places[0])
    assert places[68].inside


def test_choices_take_a_seat_each() -> None:
    queue = admission(FakeClock(), seats=8)
    first, second, third = Place("a", 1, seats=6), Place("a", 1, seats=5), Place("a", 1, seats=1)
    for place in (first, second, third):
        queue.enter(place)
    assert first.inside
    assert not second.inside
    assert not third.inside, "there is room for it, but then the large one might wait for ever"
    queue.leave(first)
    assert second.inside
    assert third.inside


def test_more_choices_than_there_are_seats_run_alone() -> None:
    queue = admission(FakeClock(), seats=4)
    large = Place("a", 1, seats=100)
    queue.enter(large)
    other = Place("b", 1)
    queue.enter(other)
    assert large.inside
    assert not other.inside


def test_leaving_twice_is_leaving_once() -> None:
    queue = admission(FakeClock(), seats=1)
    places = [Place("a", 5) for _ in range(6)]
    for place in places:
        queue.enter(place)
    for place in places * 2:
        queue.leave(place)
    assert (queue.waiting, queue.waiting_tokens, queue.inside) == (0, 0, 0)
    assert queue._prefilling == 0


def test_one_caller_may_not_have_more_than_its_limit() -> None:
    queue = admission(FakeClock(), max_concurrent=2)
    places = [Place("a", 1) for _ in range(2)]
    for place in places:
        queue.enter(place)
    with pytest.raises(ApiError) as refused:
        queue.enter(Place("a", 1))
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after_s is not None
    queue.enter(Place("b", 1))
    queue.leave(places[0])
    queue.enter(Place("a", 1))


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    queue = admission(FakeClock(), seats=1, max_queued_requests=5)
    fill(queue)
    for _ in range(5):
        queue.enter(Place("a", 1))
    with pytest.raises(OverloadedError) as refused:
        queue.enter(Place("a", 1))
    assert 1.0 <= refused.value.retry_after_s <= 2.0


def test_a_full_queue_gives_a_newcomer_the_last_place_of_whoever_has_most() -> None:
    queue = admission(FakeClock(), seats=1, max_queued_requests=5)
    fill(queue)
    dropped: list[OverloadedError] = []
    flood = [Place("a", 1, dropped=dropped.append) for _ in range(5)]
    for place in flood:
        queue.enter(place)
    newcomer = Place("b", 1)
    queue.enter(newcomer)
    assert newcomer.waiting
    assert [place.waiting for place in flood] == [True] * 4 + [False]
    assert len(dropped) == 1
    queue.leave(flood[-1])
    assert queue.waiting == 5
    queue.enter(Place("b", 1))
    with pytest.raises(OverloadedError):
        queue.enter(Place("b", 1))


def test_what_waits_is_bounded_in_tokens_whatever_the_pace() -> None:
    queue = admission(FakeClock(), seats=1, max_queued_requests=10**6)
    fill(queue)
    queue.enter(Place("a", MAX_WAITING_TOKENS - 10))
    with pytest.raises(OverloadedError):
        queue.enter(Place("b", 11))
    queue.enter(Place("b", 10))


def saturated(clock: FakeClock, speed: float, target: float, requests: int = 400) -> tuple[Engine, int]:
    """Far more is asked for than can be done, for a long time; how much was refused."""
    queue = admission(clock, seats=4, target_ttft=target)
    engine = Engine(queue, clock, speed)
    rng = random.Random(1)
    refused = 0
    later: list[float] = []
    for _ in range(requests):
        for _ in range(10):
            try:
                engine.send(Place("a", rng.randint(50, 150)))
            except OverloadedError as error:
                refused += 1
                later.append(error.retry_after_s)
        engine.step(0.5)
    assert all(each >= 1.0 for each in later)
    return engine, refused


@pytest.mark.parametrize("speed", [200.0, 1000.0])
@pytest.mark.parametrize("target", [5.0, 20.0])
def test_nobody_who_is_let_in_waits_longer_than_the_target(speed: float, target: float) -> None:
    """Ten requests of 100 tokens every half second are 2000 tokens a second."""
    engine, refused = saturated(FakeClock(), speed, target)
    later = engine.waits[len(engine.waits) // 2 :]
    assert refused > 0
    assert max(later) <= 1.1 * target + STEP / speed
    assert max(later) >= 0.9 * DOOR * target, "the queue is not refused before it is long"


def test_overload_costs_no_throughput() -> None:
    clock = FakeClock()
    engine, _ = saturated(clock, 1000.0, 5.0)
    assert len(engine.waits) * 100 >= 0.95 * 1000.0 * (clock() - 100.0)


def flood(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.send(Place("flood", 100))


def test_another_caller_is_let_in_while_one_floods() -> None:
    clock = FakeClock()
    queue = admission(clock, seats=1, target_ttft=20.0)
    engine = Engine(queue, clock, 100.0)
    for _ in range(50):
        with contextlib.suppress(OverloadedError):
            flood(engine, 50)
        engine.step(1.0)
    with pytest.raises(OverloadedError):
        flood(engine, 50)
    single = Place("single", 100)
    engine.send(single)
    before = len(engine.waits)
    while not single.prefilled:
        engine.step(1.0)
    assert len(engine.waits) - before <= queue.window.capacity + 2


def test_a_small_backlog_is_never_refused_however_slow_the_engine() -> None:
    clock = FakeClock()
    queue = admission(clock, target_ttft=1.0)
    engine = Engine(queue, clock, 10.0)
    for _ in range(20):
        engine.send(Place("a", STEP))
        engine.step(10.0)
    assert queue._token_pace.rate() is not None
    for _ in range(3):
        engine.send(Place("a", STEP))


def test_requests_that_wait_for_seats_count_even_if_they_are_short() -> None:
    """Tiny prompts, but each answer keeps its seat for 10 s."""
    clock = FakeClock()
    queue = admission(clock, seats=4, target_ttft=30.0)
    inside: deque[Place] = deque()
    refused = 0
    for _ in range(400):
        place = Place("a", 1)
        place.granted = lambda place=place: inside.append(place)  # type: ignore[misc]
        try:
            queue.enter(place)
        except OverloadedError:
            refused += 1
        clock.now += 1.0
        if int(clock.now) % 2 == 0 and inside:
            done = inside.popleft()
            queue.first_token(done)
            queue.leave(done)
    assert refused > 0
    assert queue.waiting <= 20, "30 s at one every 2 s, and a little"


def test_pace_counts_only_while_there_is_a_backlog() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    pace.done(1000)
    clock.now += 10
    assert pace.rate() is None
    pace.backlogged(True)
    clock.now += 10
    pace.done(500)
    assert pace.rate() == pytest.approx(50)
    pace.backlogged(False)
    clock.now += 1000
    pace.done(10**6)
    assert pace.rate() == pytest.approx(50)


def test_pace_falls_while_nothing_moves_and_follows_a_change() -> None:
    clock = FakeClock()
    pace = Pace(clock, half_life_s=10.0)
    pace.backlogged(True)
    clock.now += 10
    pace.done(1000)
    clock.now += 30
    stuck = pace.rate()
    assert stuck is not None
    assert stuck < 15
    for _ in range(100):
        clock.now += 1
        pace.done(20)
    assert pace.rate() == pytest.approx(20, rel=0.05)


def test_pace_says_nothing_before_it_has_seen_enough() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    pace.backlogged(True)
    clock.now += LEAST_S / 2
    pace.done(100)
    assert pace.rate() is None
