"""Who runs: the slots, and the KV blocks and parameters that go with them.

A running sequence has a seat: a slot in the persistent arrays, a block table, a place in the order of service. A
request for n choices takes one seat and reserves n, so that its fork never fails. This file does not know why a
sequence starts, forks or leaves; the scheduler does.
"""

from __future__ import annotations

import bisect
import dataclasses

from kvik.request import RequestState, choice_seed
from kvik.scheduler.block_tables import BlockTables
from kvik.scheduler.plan_builder import PlanBuilder
from kvik.scheduler.sequence import Sequence


class Seats:
    """The running sequences, in order of service: the first is served first, the last is preempted first."""

    def __init__(self, num_seats: int, tables: BlockTables, builder: PlanBuilder) -> None:
        self.num_seats = num_seats
        self.num_reserved = 0
        """Seats that running sequences hold, or will need when they fork."""
        self.running: list[Sequence] = []
        self.leaving: list[Sequence] = []
        """Ended while in flight: they keep their slot and blocks until commit, as the runner may be writing there."""
        self.free_slots = list(range(num_seats - 1, -1, -1))
        self._tables = tables
        self._builder = builder

    def has_seats_for(self, sequence: Sequence) -> bool:
        return self.num_reserved + sequence.num_choices <= self.num_seats

    def start(self, sequence: Sequence, hits: list[int]) -> None:
        """Seat a waiting sequence, with the blocks found for it."""
        self.num_reserved += sequence.num_choices
        self._seat(sequence)
        self._tables.open(sequence, hits)

    def fork(self, parent: Sequence) -> list[Sequence]:
        """Split a sequence of n choices into n that share every block; the first is the parent."""
        choices = [parent]
        for choice in range(1, parent.num_choices):
            child = _copy_choice(parent, choice)
            self._seat(child)
            self._tables.fork(parent, child)
            choices.append(child)
        parent.num_choices = 1
        return choices

    def vacate(self, sequence: Sequence) -> None:
        """Take a sequence's seat and blocks."""
        self.running.remove(sequence)
        self._clear(sequence)

    def vacate_finished(self) -> None:
        """Take the seats of all whose request is finished."""
        finished = [sequence for sequence in self.running if sequence.request.is_finished]
        self.running = [sequence for sequence in self.running if not sequence.request.is_finished]
        for sequence in finished:
            self._clear(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence in flight has ended: it runs no more, and its seat is taken by `vacate_left`."""
        self.running.remove(sequence)
        self.leaving.append(sequence)

    def vacate_left(self) -> None:
        for sequence in self.leaving:
            self._clear(sequence)
        self.leaving.clear()

    def _seat(self, sequence: Sequence) -> None:
        sequence.slot = self.free_slots.pop()
        sequence.request.state = RequestState.RUNNING
        self._builder.seat(sequence)
        bisect.insort(self.running, sequence, key=lambda other: other.order)

    def _clear(self, sequence: Sequence) -> None:
        self._tables.close(sequence)
        self.free_slots.append(sequence.slot)
        self.num_reserved -= sequence.num_choices
        sequence.slot = -1
        sequence.in_flight = False


def _copy_choice(parent: Sequence, choice: int) -> Sequence:
    """A further choice of a request whose prompt is computed: same tokens, own key and seed, no blocks yet."""
    source = parent.request
    request = dataclasses.replace(
        source,
        key=source.key + choice,
        tokens=list(source.tokens),
        seed=choice_seed(source.seed, choice),
        choice=choice,
        parent=source.key,
        block_table=[],
        logprobs=[],
        prompt_logprobs=list(source.prompt_logprobs),
    )
    child = Sequence(request)
    child.num_seen, child.num_scored = parent.num_seen, parent.num_scored
    return child
