"""What watchers are told: a snapshot and frames from which the engine's books can be put together again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import NAN, POISON, FakeClock, FakeRunner, fake_engine

from kvik.engine.engine import Engine
from kvik.engine.events import DECODE, PREFILL, WAITING_SHOWN, Event, StepWatcher
from kvik.request import SamplingParams
from kvik.scheduler.view import block_states

GREEDY = SamplingParams(temperature=0, max_tokens=6)


class Watched:
    """An engine whose clock moves by `seconds` in every step, somebody who watches, and what they were told."""

    def __init__(self, seconds: float = 1.0, **options: Any) -> None:
        self.clock = FakeClock()
        self.engine = fake_engine(FakeRunner(hook=self._tick), clock=self.clock, **options)
        self.events: list[Event] = []
        self.watcher = StepWatcher(self.engine, self.events.append, clock=self.clock)
        self._seconds = seconds

    def _tick(self, plan: object) -> None:
        self.clock.now += self._seconds

    def add(self, prompt: list[int], name: str, **fields: Any) -> None:
        self.engine.add(prompt, SamplingParams(**{"temperature": 0, "max_tokens": 6, **fields}), request_id=name)

    def finish(self) -> None:
        while self.engine.has_unfinished():
            self.engine.step()

    @property
    def frames(self) -> list[Event]:
        return [event for event in self.events if event["kind"] == "frame"]

    @property
    def steps(self) -> list[Event]:
        return [step for frame in self.frames for step in frame["steps"]]

    def ended(self) -> dict[int, str]:
        return {key: reason for frame in self.frames for key, reason in frame["ended"]}


class Rebuilt:
    """What a watcher can know: the events, applied one after another as docs/metrics.md says."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.tables: dict[int, list[int]] = {}
        self.requests: dict[int, Event] = {}
        self.seq = -1

    def apply(self, event: Event) -> None:
        if event["kind"] == "snapshot":
            self.__init__()
            self.blocks = [state for state, count in event["runs"] for _ in range(count)]
        else:
            assert event["seq"] == self.seq + 1
            for block, state in event["blocks"]:
                self.blocks[block] = state
        self.seq = event["seq"]
        arrived = event["requests"] if event["kind"] == "snapshot" else event["arrived"]
        self.requests.update((request["key"], request) for request in arrived)
        for key, index, blocks in event["tables"]:
            self.tables[key] = self.tables.get(key, [])[:index] + blocks
        for key, _ in event.get("ended", ()):
            del self.requests[key]
            self.tables.pop(key, None)

    def check(self, engine: Engine) -> None:
        scheduler = engine.scheduler
        assert self.blocks == list(block_states(scheduler.tables.pool))
        held = {key: table for key, table in self.tables.items() if table}
        assert held == {s.request.key: s.request.block_table for s in scheduler.seats.running}
        assert self.requests.keys() == {s.request.key for s in scheduler.sequences.values()}


def test_nothing_is_made_while_nobody_looks() -> None:
    watched = Watched()
    watched.add([1], "a")
    watched.finish()
    watched.watcher.flush()
    assert watched.engine.observer is None
    assert watched.events == []


def test_detached_it_is_silent_again() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.watcher.detach()
    watched.watcher.detach()
    watched.add([1], "a")
    watched.finish()
    assert watched.engine.observer is None
    assert [event["kind"] for event in watched.events] == ["snapshot"]


def test_a_prompt_in_chunks_and_its_answer_are_rows() -> None:
    watched = Watched(max_num_batched_tokens=32)
    watched.watcher.attach()
    watched.add([*range(70)], "a", max_tokens=3)
    watched.finish()
    rows = [step["rows"] for step in watched.steps]
    assert rows == [
        [[0, PREFILL, 32, 0, 70, 0, 0]],
        [[0, PREFILL, 32, 32, 70, 0, 0]],
        [[0, PREFILL, 6, 64, 71, 0, 1]],
        [[0, DECODE, 1, 70, 72, 0, 1]],
        [[0, DECODE, 1, 71, 73, 0, 1]],
    ]
    assert [step["seconds"] for step in watched.steps] == [1.0] * 5
    assert watched.ended() == {0: "length"}


def test_a_request_is_introduced_once_by_its_name_and_arrival() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([1, 2], "chat-7", n=2)
    watched.finish()
    arrived = [request for frame in watched.frames for request in frame["arrived"]]
    assert [(r["key"], r["id"], r["choice"]) for r in arrived] == [(0, "chat-7", 0), (1, "chat-7", 1)]
    assert {r["arrival"] for r in arrived} == {100.0}
    assert (arrived[0]["prompt"], arrived[0]["limit"]) == (2, 8)


def test_one_that_arrives_and_ends_in_a_single_step_is_told_of() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([1], "short", max_tokens=1)
    watched.finish()
    (frame,) = watched.frames
    assert [request["id"] for request in frame["arrived"]] == ["short"]
    assert frame["ended"] == [[0, "length"]]


def test_a_prefix_hit_shows_as_cached_tokens_and_shared_blocks() -> None:
    watched = Watched()
    watched.add([*range(100)], "first", max_tokens=1)
    watched.finish()
    watched.watcher.attach()
    assert watched.events[0]["runs"][0] == [-1, 3]
    for name in "ab":
        watched.add([*range(100)], name)
    watched.engine.step()
    rows = watched.steps[0]["rows"]
    assert [(tokens, position, cached) for _, _, tokens, position, _, cached, _ in rows] == [(4, 96, 96)] * 2
    shared = [block for block, state in watched.frames[0]["blocks"] if state == 2]
    assert len(shared) == 3
    tables = {key: blocks for key, _, blocks in watched.frames[0]["tables"]}
    assert tables[1][:3] == tables[2][:3] == shared


def test_steps_are_gathered_into_frames_and_the_last_is_not_held_back() -> None:
    watched = Watched(seconds=0.015)
    watched.watcher.attach()
    watched.add([1], "a", max_tokens=10)
    watched.finish()
    assert [len(frame["steps"]) for frame in watched.frames] == [1, 3, 3, 3]
    assert [frame["seq"] for frame in watched.frames] == [1, 2, 3, 4]
    assert [step["step"] for step in watched.steps] == [*range(10)]
    assert watched.frames[-1]["counts"]["running"] == 0


def test_frames_become_rarer_when_making_them_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(seconds=0.05)
    watched.watcher.attach()
    count = watched.watcher._count

    def slow_count() -> dict[str, int]:
        watched.clock.now += 0.01
        return count()

    monkeypatch.setattr(watched.watcher, "_count", slow_count)
    watched.add([1], "a", max_tokens=40)
    watched.finish()
    assert len(watched.steps) == 40
    assert 0.01 * len(watched.frames) < 0.06 * 40 * 0.05


def test_an_abort_without_a_step_is_given_out_by_flush() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([1], "a", max_tokens=50)
    watched.engine.step()
    watched.engine.abort("a")
    watched.watcher.flush()
    assert watched.frames[-1]["ended"] == [[0, "abort"]]
    assert watched.frames[-1]["steps"] == []
    told = len(watched.events)
    watched.watcher.flush()
    assert len(watched.events) == told


def test_who_waits_is_listed_with_the_reason_first_in_line_first() -> None:
    watched = Watched(max_num_seqs=1)
    watched.watcher.attach()
    for name in "abc":
        watched.add([1], name)
    watched.engine.step()
    assert watched.frames[-1]["waiting"] == [[1, "seats", 1, 0], [2, "line", 1, 0]]
    assert watched.frames[-1]["counts"]["waiting"] == 2


def test_a_long_queue_is_listed_in_part_and_counted_whole() -> None:
    watched = Watched(max_num_seqs=1)
    watched.watcher.attach()
    for number in range(WAITING_SHOWN + 40):
        watched.add([1], f"r{number}")
    watched.engine.step()
    assert len(watched.frames[-1]["waiting"]) == WAITING_SHOWN
    assert watched.frames[-1]["counts"]["waiting"] == WAITING_SHOWN + 39


def test_a_preemption_is_named_in_the_step_it_happened_in() -> None:
    watched = Watched(num_blocks=4, max_model_len=128)
    watched.watcher.attach()
    watched.add([1] * 60, "a", max_tokens=20)
    watched.add([2] * 60, "b", max_tokens=20)
    watched.finish()
    (preempted,) = [step["preempted"] for step in watched.steps if step["preempted"]]
    assert preempted == [1]
    assert watched.ended() == {0: "length", 1: "length"}


def test_a_request_that_fails_ends_with_an_error() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([POISON], "raises")
    watched.add([NAN], "not a number")
    watched.add([1], "good")
    watched.finish()
    assert watched.ended() == {0: "error", 1: "error", 2: "length"}


def test_no_token_of_a_prompt_or_an_answer_is_given_out() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([211, 223, 227, 229], "secret", max_tokens=3)
    watched.finish()
    numbers = {int(word) for word in json.dumps(watched.frames, allow_nan=False).replace("]", " ").replace(",", " ")
               .replace("[", " ").split() if word.isdigit()}  # fmt: skip
    assert not numbers & {211, 223, 227, 229}


def test_a_second_attach_starts_again_from_a_snapshot() -> None:
    watched = Watched()
    watched.watcher.attach()
    watched.add([*range(40)], "a", max_tokens=4)
    watched.engine.step()
    watched.watcher.attach()
    watched.finish()
    again = watched.events[2:]
    assert again[0]["kind"] == "snapshot"
    (request,) = again[0]["requests"]
    assert (request["id"], request["length"], request["prompt"]) == ("a", 41, 40)
    assert [event["seq"] for event in again] == [*range(len(again))]


@pytest.mark.parametrize("seconds", [1.0, 0.013, 0.0])
@pytest.mark.parametrize("num_blocks", [6, 40])
def test_the_books_can_be_put_together_from_the_events(seconds: float, num_blocks: int) -> None:
    """Arrivals, forks, sharing, preemption, aborts and failures, watched from the middle of the run on."""
    watched = Watched(seconds, num_blocks=num_blocks, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=180)
    rebuilt = Rebuilt()
    for number in range(60):
        kind = number % 7
        prompt = [*range(1 + 37 * kind % 90)] if kind < 4 else [number] * (1 + 13 * kind)
        if kind == 6:
            prompt[0] = (NAN, POISON)[number % 2]
        watched.add(prompt, f"r{number}", max_tokens=1 + 11 * (number % 5), n=1 + (number % 3), seed=1)
        watched.engine.step()
        if number % 9 == 4:
            watched.engine.abort(f"r{number - 2}")
        if number == 11:
            watched.watcher.attach()
    while watched.engine.has_unfinished():
        watched.engine.step()
        watched.watcher.flush()
        for event in watched.events:
            rebuilt.apply(json.loads(json.dumps(event)))
        watched.events.clear()
        rebuilt.check(watched.engine)
    assert watched.engine.scheduler.counters.preemptions > 0 or num_blocks > 6
