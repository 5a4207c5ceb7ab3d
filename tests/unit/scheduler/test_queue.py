"""WaitingQueue: order of service, the return of the preempted, removal from the middle."""

from __future__ import annotations

import pytest
from scheduler_toys import new_request

from kvik.scheduler.queue import WaitingQueue
from kvik.scheduler.sequence import Sequence


def new_sequence(key: int, priority: int = 0) -> Sequence:
    return Sequence(new_request(key, 1, priority=priority))


def keys(queue: WaitingQueue) -> list[int]:
    return [sequence.request.key for sequence in queue.ordered()]


def test_priority_then_arrival() -> None:
    queue = WaitingQueue()
    for sequence in (new_sequence(0, priority=1), new_sequence(1), new_sequence(2, priority=-1), new_sequence(3)):
        queue.push(sequence)
    assert keys(queue) == [2, 1, 3, 0]
    assert [queue.pop().request.key for _ in range(4)] == [2, 1, 3, 0]
    assert len(queue) == 0


def test_who_comes_back_stands_at_the_front_of_its_priority() -> None:
    queue = WaitingQueue()
    for key in range(4):
        queue.push(new_sequence(key, priority=key % 2))
    back = queue.pop()
    queue.push(back)
    assert keys(queue) == [0, 2, 1, 3]
    assert queue.first() is back


def test_removal_from_the_middle_and_from_the_front() -> None:
    queue = WaitingQueue()
    sequences = [new_sequence(key) for key in range(3)]
    for sequence in sequences:
        queue.push(sequence)
    queue.remove(sequences[1])
    queue.remove(sequences[0])
    assert len(queue) == 1
    assert queue.pop() is sequences[2]
    with pytest.raises(KeyError):
        queue.remove(sequences[1])
    with pytest.raises(IndexError):
        queue.pop()


def test_a_key_that_was_removed_may_come_again() -> None:
    queue = WaitingQueue()
    old, new = new_sequence(5), new_sequence(5)
    queue.push(old)
    queue.remove(old)
    queue.push(new)
    assert queue.pop() is new
    assert len(queue) == 0


def test_removed_entries_do_not_pile_up() -> None:
    queue = WaitingQueue()
    keep = new_sequence(0)
    queue.push(keep)
    for key in range(1, 5000):
        sequence = new_sequence(key)
        queue.push(sequence)
        queue.remove(sequence)
    assert len(queue._heap) < 200
    assert keys(queue) == [0]
