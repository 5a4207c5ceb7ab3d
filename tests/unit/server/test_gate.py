"""How many connections there are, and who goes first."""

from __future__ import annotations

from kvik.server.gate import Gate


class Connection:
    def __init__(self) -> None:
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def admitted(gate: Gate, count: int) -> list[Connection]:
    connections = [Connection() for _ in range(count)]
    assert all(gate.admit(each) for each in connections)
    return connections


def test_the_longest_idle_one_makes_room() -> None:
    gate = Gate(3)
    first, second, third = admitted(gate, 3)
    assert gate.admit(Connection())
    assert (first.dropped, second.dropped, third.dropped) == (True, False, False)
    assert len(gate) == 3


def test_one_that_was_served_meanwhile_has_not_idled_the_longest() -> None:
    gate = Gate(2)
    first, second = admitted(gate, 2)
    gate.works(first)
    gate.waits(first)
    admitted(gate, 1)
    assert (first.dropped, second.dropped) == (False, True)


def test_nobody_is_dropped_in_the_middle_of_a_request() -> None:
    gate = Gate(2)
    for each in admitted(gate, 2):
        gate.works(each)
    assert not gate.admit(Connection())
    assert (len(gate), gate.idle) == (2, 0)


def test_room_is_there_again_when_one_leaves() -> None:
    gate = Gate(1)
    (first,) = admitted(gate, 1)
    gate.works(first)
    gate.leaves(first)
    gate.leaves(first)
    assert len(gate) == 0
    admitted(gate, 1)


def test_what_was_turned_away_or_dropped_does_not_come_back() -> None:
    gate = Gate(1)
    (first,) = admitted(gate, 1)
    gate.works(first)
    stranger = Connection()
    assert not gate.admit(stranger)
    for step in (gate.works, gate.waits, gate.leaves):
        step(stranger)
    assert (len(gate), gate.idle) == (1, 0)
