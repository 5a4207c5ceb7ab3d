"""The scheduler under a random sequence of everything that can happen to it, with every policy and tiny pools.

After each step the books are checked (RELIABILITY I1 .. I8, I10) and every row's attention is compared with its own
history; at the end everything must finish in bounded time (I9) with the tokens it would have had alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from scheduler_simulation import Simulation, new_simulation

from kvik.errors import InvalidRequestError
from kvik.request import FinishReason, SamplingParams
from kvik.scheduler import InvariantError
from kvik.scheduler.block_pool import BlockPool
from kvik.scheduler.block_tables import BlockTables
from kvik.scheduler.prefix_cache import PrefixCache
from kvik.scheduler.queue import WaitingQueue
from kvik.scheduler.scheduler import Scheduler

OPTIONS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(1, 8),
        "block_size": st.integers(1, 4),
        "prefix_caching": st.booleans(),
        "max_model_len": st.sampled_from([12, 64]),
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.integers(1, 9),
        "chunked_prefill": st.booleans(),
        "schedule": st.sampled_from(["mixed", "separate"]),
        "batching": st.sampled_from(["continuous", "static"]),
    }
)
PARAMS = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    max_tokens=st.integers(3, 7),
    min_tokens=st.integers(0, 3),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
)
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class SchedulerMachine(RuleBasedStateMachine):
    """Rules choose what happens; `Simulation` checks it."""

    @initialize(options=OPTIONS)
    def build(self, options: dict[str, Any]) -> None:
        self.simulation = new_simulation(**options)
        self.conversations: list[list[int]] = []

    @rule(prompt=PROMPTS, params=PARAMS, priority=st.integers(0, 1), salt=st.sampled_from([b"", b"", b"x"]))
    def add(self, prompt: list[int], params: SamplingParams, priority: int, salt: bytes) -> None:
        stop = 3 if params.min_tokens else None
        try:
            self.simulation.add(prompt, params, priority=priority, salt=salt, stop=stop)
        except InvalidRequestError:
            return
        self.conversations.append(prompt)

    @precondition(lambda self: self.simulation.ended)
    @rule(data=st.data(), params=PARAMS)
    def continue_conversation(self, data: st.DataObject, params: SamplingParams) -> None:
        ended = self.simulation.ended[data.draw(st.sampled_from(sorted(self.simulation.ended)))]
        self.add([*ended.tokens, 1], params, ended.priority, ended.salt)

    @rule()
    def step(self) -> None:
        self.simulation.step()

    @rule(count=st.integers(2, 6))
    def several_steps(self, count: int) -> None:
        for _ in range(count):
            self.simulation.step()

    @precondition(lambda self: self.simulation.live_keys())
    @rule(data=st.data(), reason=st.sampled_from([FinishReason.ABORT, FinishReason.STOP, FinishReason.DEADLINE]))
    def abort(self, data: st.DataObject, reason: FinishReason) -> None:
        self.simulation.abort(self.pick(data), reason)

    @precondition(lambda self: self.simulation.live_keys())
    @rule(data=st.data(), cancel=st.booleans())
    def abort_in_flight(self, data: st.DataObject, cancel: bool) -> None:
        self.simulation.step(abort_in_flight=(self.pick(data), self.pick(data)), cancel=cancel)

    @rule()
    def cancel(self) -> None:
        self.simulation.step(cancel=True)

    @precondition(lambda self: self.simulation.live_keys())
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.simulation.scheduler.preempt(self.pick(data))

    @precondition(lambda self: self.simulation.live_keys())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.simulation.fail_next(self.pick(data))

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(self.simulation.live_keys()))

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.drain()


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_is_lost_whatever_happens() -> None:
    run_machine(examples=200, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_lost_whatever_happens_at_length() -> None:
    run_machine(examples=5000, steps=80)


# The same in plain random numbers: quick, many, and the ground for planted faults ------------------------------------


def random_life(seed: int) -> Simulation:
    """One scheduler's life, everything drawn from one seed."""
    chance = random.Random(seed)
    simulation = new_simulation(
        num_blocks=chance.randint(2, 12),
        block_size=chance.randint(1, 4),
        prefix_caching=chance.random() < 0.8,
        max_num_seqs=chance.randint(1, 6),
        max_num_batched_tokens=chance.randint(1, 12),
        chunked_prefill=chance.random() < 0.7,
        schedule=chance.choice(["mixed", "separate"]),
        batching=chance.choice(["continuous", "continuous", "static"]),
    )
    for _ in range(chance.randint(2, 10)):
        add_random(simulation, chance)
        for _ in range(chance.randint(0, 4)):
            disturb(simulation, chance)
    simulation.drain()
    return simulation


def random_lives(count: int) -> None:
    for seed in range(count):
        random_life(seed)


def add_random(simulation: Simulation, chance: random.Random) -> None:
    params = SamplingParams(
        n=chance.choice([1, 1, 2, 3]),
        max_tokens=chance.randint(3, 9),
        min_tokens=chance.randint(0, 3),
        prompt_logprobs=chance.choice([None, None, 0]),
        frequency_penalty=chance.choice([0.0, 0.5]),
    )
    prompt = [1] * chance.randint(1, 10) + [0] * chance.randint(0, 2)
    try:
        simulation.add(prompt, params, priority=chance.randint(0, 1), salt=chance.choice([b"", b"s"]), stop=3)
    except InvalidRequestError:
        return


def disturb(simulation: Simulation, chance: random.Random) -> None:
    keys = simulation.live_keys()
    event = chance.random()
    if not keys or event < 0.6:
        simulation.step()
    elif event < 0.7:
        simulation.step(abort_in_flight=(chance.choice(keys),))
    elif event < 0.75:
        simulation.step(cancel=True)
    elif event < 0.8:
        simulation.abort(chance.choice(keys))
    elif event < 0.85:
        simulation.fail_next(chance.choice(keys))
    else:
        simulation.scheduler.preempt(chance.choice(keys))


def test_random_lives_end_well_and_reach_every_corner() -> None:
    seen: dict[str, int] = dict.fromkeys(["preemptions", "cached_prompt_tokens", "recomputed_tokens"], 0)
    reasons: dict[str, int] = {}
    for seed in range(400):
        counters = random_life(seed).scheduler.counters
        for name in seen:
            seen[name] += getattr(counters, name)
        for reason, count in counters.finished.items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert all(seen.values()), seen
    assert all(reasons[reason] for reason in ("stop", "length", "abort", "error")), reasons


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_lives_end_well() -> None:
    for seed in range(400, 40_000):
        random_life(seed)


# Planted faults: each must be found ----------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def forget_a_reference(patch: pytest.MonkeyPatch) -> None:
    """A fork does not count its new holder."""
    patch.setattr(BlockPool, "hold", lambda self, block: None if self.refs[block] else hold(self, block))


hold = BlockPool.hold


def never_copy(patch: pytest.MonkeyPatch) -> None:
    """Shared blocks are written in place."""
    patch.setattr(BlockTables, "_is_shared", lambda self, table, index: False)


def keep_copies_to_itself(patch: pytest.MonkeyPatch) -> None:
    """The plan does not say which blocks to copy."""
    patch.setattr(BlockTables, "collect_copies", lambda self: [])


def forget_to_evict(patch: pytest.MonkeyPatch) -> None:
    """A reused block is still found under its old content."""
    patch.setattr(PrefixCache, "forget", lambda self, block: None)


def ignore_the_salt(patch: pytest.MonkeyPatch) -> None:
    """Requests of different salts share blocks."""
    patch.setattr(PrefixCache, "extend", lambda self, chain, tokens, count, salt: extend(self, chain, tokens, count))


extend = PrefixCache.extend


def hit_the_whole_prompt(patch: pytest.MonkeyPatch) -> None:
    """A hit on every token leaves nothing to draw from."""

    def find(self: BlockTables, sequence: Any) -> list[int]:
        count = len(sequence.request.tokens) // self.block_size
        self.cache.extend(sequence.chain, sequence.request.tokens, count, sequence.request.salt)
        return self.cache.match(sequence.chain, count)

    patch.setattr(BlockTables, "find", find)


def keep_computed_when_preempted(patch: pytest.MonkeyPatch) -> None:
    """A preempted request believes that its tokens are still in the cache."""

    def preempt(self: Scheduler, sequence: Any) -> None:
        computed = sequence.request.num_computed_tokens
        original(self, sequence)
        sequence.request.num_computed_tokens = computed

    original = Scheduler._preempt
    patch.setattr(Scheduler, "_preempt", preempt)


def free_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A request aborted in flight is forgotten where it should leave its seat."""
    patch.setattr("kvik.scheduler.seats.Seats.vacate_left", lambda self: self.leaving.clear())


def serve_the_newest_first(patch: pytest.MonkeyPatch) -> None:
    """The victim is the first in order."""

    def make_room(self: Scheduler, sequence: Any, count: int, draft: Any) -> bool:
        self.seats.running.reverse()
        try:
            return original(self, sequence, count, draft)
        finally:
            self.seats.running.reverse()

    original = Scheduler._make_room
    patch.setattr(Scheduler, "_make_room", make_room)


def lose_the_preempted(patch: pytest.MonkeyPatch) -> None:
    """A preempted request is not queued again."""

    def push(self: WaitingQueue, sequence: Any) -> None:
        if not sequence.request.num_preemptions:
            original(self, sequence)

    original = WaitingQueue.push
    patch.setattr(WaitingQueue, "push", push)


FAULTS: list[Patch] = [
    forget_a_reference,
    never_copy,
    keep_copies_to_itself,
    forget_to_evict,
    ignore_the_salt,
    hit_the_whole_prompt,
    keep_computed_when_preempted,
    free_in_flight,
    serve_the_newest_first,
    lose_the_preempted,
]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, InvariantError, IndexError, KeyError, ValueError)):
        random_lives(50)
