"""Every state a small scheduler can reach, searched to the end.

A world is at most three requests, four blocks and sequences of four tokens under one policy. In every state the
search tries everything the outside can do (let the next request arrive, take a step, abort, force a preemption), checks
the books and the histories, and merges states that differ only in the names of blocks. Then it follows steps alone from
every state found: all must reach the end, within a bound. So there is no deadlock, no livelock and no starvation in
these worlds. `pytest -rP` shows how many states there were.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pytest
from scheduler_simulation import Simulation, new_simulation

from kvik.request import SamplingParams
from kvik.scheduler import Scheduler
from kvik.scheduler.prefix_cache import Prefix
from kvik.scheduler.sequence import Sequence


@dataclass(frozen=True)
class Arrival:
    """A request: prompt length, answer length, choices, priority. Prompts are beginnings of one another."""

    prompt: int
    answer: int
    n: int = 1
    priority: int = 0


@dataclass(frozen=True)
class World:
    """What may arrive, how much there is, and by which policy it is dealt out."""

    arrivals: tuple[Arrival, ...]
    num_blocks: int
    block_size: int
    budget: int
    max_num_seqs: int = 3
    prefix_caching: bool = True
    chunked_prefill: bool = True
    schedule: str = "mixed"
    batching: str = "continuous"
    aborts: int = 1
    preemptions: int = 1

    def begin(self) -> Simulation:
        return new_simulation(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            prefix_caching=self.prefix_caching,
            max_model_len=8,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            chunked_prefill=self.chunked_prefill,
            schedule=self.schedule,
            batching=self.batching,
        )

    def bound(self) -> int:
        """Steps within which everything must end: each token of each sequence in a step of its own, and all of it once
        more for every preemption that was forced. What the scheduler preempts by itself must fit in that, too.
        """
        tokens = sum(arrival.n * (arrival.prompt + arrival.answer) for arrival in self.arrivals)
        return tokens * (1 + self.preemptions)


@dataclass
class Node:
    """One state: the simulation in it, and what the outside may still do."""

    simulation: Simulation
    arrived: int
    aborts: int
    preemptions: int

    def branch(self, arrived: int = 0, aborts: int = 0, preemptions: int = 0) -> Node:
        return Node(
            copy.deepcopy(self.simulation), self.arrived + arrived, self.aborts - aborts, self.preemptions - preemptions
        )

    def key(self) -> Hashable:
        return (self.arrived, self.aborts, self.preemptions, canonical(self.simulation))


def canonical(simulation: Simulation) -> Hashable:
    """A scheduler's state with blocks named in order of appearance and without what never influences a decision."""
    scheduler = simulation.scheduler
    cached = scheduler.tables.cache.blocks()
    names: dict[int, int] = {}
    sequences = []
    for sequence in sorted(set(scheduler.sequences.values()), key=lambda one: one.request.key):
        table = tuple(names.setdefault(block, len(names)) for block in sequence.request.block_table)
        sequences.append((describe(sequence), table))
    idle = tuple(contents(cached[block]) for block in scheduler.tables.pool.idle_blocks())
    held = tuple(contents(cached[block]) if block in cached else () for block in names)
    return tuple(sequences), held, idle


def describe(sequence: Sequence) -> Hashable:
    request = sequence.request
    return (
        *(request.key, tuple(request.tokens), request.num_computed_tokens, sequence.slot >= 0, sequence.num_choices),
        # Whether it was preempted and what it has seen are counted, but decide nothing.
        *(sequence.num_registered, sequence.num_scored),
    )


def contents(prefix: Prefix | None) -> tuple[bytes, ...]:
    """All tokens of a prefix, as its identity."""
    parts = []
    while prefix is not None:
        parts.append(prefix.content)
        prefix = prefix.parent
    return tuple(parts)


@dataclass
class Search:
    """All states of a world, and where a step leads from each."""

    world: World
    after_step: dict[int, int] = field(default_factory=dict)
    """State number to state number; a state in which nothing is unfinished leads nowhere."""
    numbers: dict[Hashable, int] = field(default_factory=dict)
    num_transitions: int = 0

    def run(self) -> Search:
        start = Node(self.world.begin(), 0, self.world.aborts, self.world.preemptions)
        self.numbers[start.key()] = 0
        frontier = deque([(0, start)])
        while frontier:
            number, node = frontier.popleft()
            for is_step, successor in self.successors(node):
                self.num_transitions += 1
                key = successor.key()
                is_new = key not in self.numbers
                target = self.numbers.setdefault(key, len(self.numbers))
                if is_step:
                    self.after_step[number] = target
                if is_new:
                    frontier.append((target, successor))
        return self

    def successors(self, node: Node) -> Iterator[tuple[bool, Node]]:
        if node.arrived < len(self.world.arrivals):
            yield False, self.arrive(node)
        live = node.simulation.live_keys()
        if live:
            after = node.branch()
            after.simulation.step()
            yield True, after
        for key in live if node.aborts else []:
            after = node.branch(aborts=1)
            after.simulation.abort(key)
            yield False, after
            after = node.branch(aborts=1)
            after.simulation.step(abort_in_flight=(key,))
            yield False, after
        for key in live if node.preemptions else []:
            after = node.branch(preemptions=1)
            if after.simulation.scheduler.preempt(key):
                yield False, after

    def arrive(self, node: Node) -> Node:
        arrival = self.world.arrivals[node.arrived]
        after = node.branch(arrived=1)
        params = SamplingParams(n=arrival.n, max_tokens=arrival.answer)
        after.simulation.add([1] * arrival.prompt, params, priority=arrival.priority, seed=0)
        return after

    def longest(self) -> int:
        """Most steps that any state needs to the end. Fails on a cycle of steps, from which there is no end."""
        steps: dict[int, int] = {}
        for number in self.numbers.values():
            path = []
            while number in self.after_step and number not in steps:
                path.append(number)
                assert len(path) <= len(self.numbers), "livelock: steps lead in a circle"
                number = self.after_step[number]
            for back, passed in enumerate(reversed(path), 1):
                steps[passed] = steps.get(number, 0) + back
        return max(steps.values())


THREE = (Arrival(3, 1), Arrival(2, 2), Arrival(1, 3))
FORKING = (Arrival(1, 3, n=2), Arrival(2, 2))
URGENT = (Arrival(2, 2, priority=1), Arrival(3, 1), Arrival(1, 2, priority=1))
POLICIES: list[dict[str, Any]] = [
    {"schedule": schedule, "chunked_prefill": chunked, "batching": batching}
    for schedule in ("mixed", "separate")
    for chunked in (True, False)
    for batching in ("continuous", "static")
]


def check_worlds(worlds: Iterable[World]) -> None:
    """Search every world, and say how much there was to search."""
    states = transitions = worst = 0
    for world in worlds:
        search = Search(world).run()
        longest = search.longest()
        assert longest <= world.bound(), f"{longest} steps to the end, more than {world.bound()}, in {world}"
        worst = max(worst, longest)
        states += len(search.numbers)
        transitions += search.num_transitions
    assert transitions > states > 100
    print(f"{states} states, {transitions} transitions, at most {worst} steps to the end")


@pytest.mark.parametrize("arrivals", [THREE, FORKING, URGENT], ids=["three", "forking", "urgent"])
def test_every_state_of_a_small_world_leads_to_the_end(
    arrivals: tuple[Arrival, ...],
) -> None:
    pools = [(4, 1, False), (2, 2, True)]
    worlds = (
        World(arrivals, blocks, size, budget=2, prefix_caching=caching, **policy)
        for blocks, size, caching in pools
        for policy in POLICIES
    )
    check_worlds(worlds)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("arrivals", sorted(set(permutations(THREE)) | {FORKING, FORKING[::-1], URGENT}, key=repr))
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: "-".join(map(str, policy.values())))
def test_every_state_of_every_small_world_leads_to_the_end(
    arrivals: tuple[Arrival, ...], policy: dict[str, Any]
) -> None:
    worlds = (
        World(arrivals, *pool, budget, prefix_caching=caching, preemptions=2, **policy)
        for pool in [(4, 1), (2, 2), (3, 2), (1, 4)]
        for budget in (1, 2, 4)
        for caching in (True, False)
    )
    check_worlds(worlds)


# The search itself must find what it is for --------------------------------------------------------------------------


def test_a_planted_deadlock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def room(scheduler: Scheduler, sequence: Sequence, count: int, draft: object) -> bool:
        """Without preemption: a sequence that lacks a block waits for one."""
        end = sequence.request.num_computed_tokens + count
        if scheduler.tables.num_lacking(sequence, end) > scheduler.tables.pool.num_available:
            return False
        scheduler.tables.grow(sequence, end)
        return True

    monkeypatch.setattr(Scheduler, "_make_room", room)
    with pytest.raises(AssertionError, match="deadlock"):
        Search(World((Arrival(1, 3, n=3),), 4, 1, budget=3, preemptions=0)).run()


def test_a_circle_of_steps_is_found() -> None:
    search = Search(World(THREE, 4, 1, budget=2), after_step={0: 1, 1: 2, 2: 1}, numbers={"a": 0, "b": 1, "c": 2})
    with pytest.raises(AssertionError, match="livelock"):
        search.longest()


def test_states_that_differ_only_in_block_names_are_one() -> None:
    simulations = [World(THREE, 4, 1, budget=4).begin() for _ in range(2)]
    simulations[1].scheduler.tables.pool._insert(*rotate_free(simulations[1]))
    for simulation in simulations:
        simulation.add([1, 1], SamplingParams(max_tokens=2), seed=0)
        simulation.step()
    tables = [simulation.scheduler.seats.running[0].request.block_table for simulation in simulations]
    assert tables[0] != tables[1]
    assert canonical(simulations[0]) == canonical(simulations[1])


def rotate_free(simulation: Simulation) -> tuple[int, int]:
    """Take the first free block out of its list; where it goes back is at the end."""
    pool = simulation.scheduler.tables.pool
    block = next(pool.free_blocks())
    pool._unlink(block)
    return block, pool._free
