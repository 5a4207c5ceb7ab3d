"""Promises 1, 2, 7, 11 and 20 over HTTP, for a moment: every request ends once, every byte is right, nothing stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from promises import hold

from tools.soak.crowd import FINISHED, LATE, LEFT, REFUSED
from tools.soak.server import SOUND, OwnServer
from tools.soak.trials import SMALL, mixed, overload, vanish


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """Seats for a quarter of the clients, and blocks for fewer."""
    with OwnServer(SOUND, "--max-num-seqs", "16", "--kv-cache-memory", "64KiB") as running:
        yield running


def test_any_requests_of_64_clients_end_once_and_are_exact_to_the_last_byte_and_count(server: OwnServer) -> None:
    trial = hold(server, mixed, 500, seed=1)
    assert trial.ledger.sent == 500
    assert trial.ledger.ends[FINISHED] > 300
    assert trial.ledger.ends[LEFT] > 20
    assert trial.ledger.ends[LATE] > 0
    assert trial.figures["preemptions"] > 0


def test_clients_that_connect_send_and_vanish_leave_no_block_file_or_thread(server: OwnServer) -> None:
    assert hold(server, vanish, 500).ledger.ends == {LEFT: 500}


def test_memory_does_not_grow_from_one_overload_to_the_next() -> None:
    """A queue of 40 and 64 clients: some are refused, each with Retry-After."""
    with OwnServer(SOUND, *SMALL) as small:
        trial = hold(small, overload, 6)
    assert trial.ledger.ends[REFUSED] > 0
    assert trial.figures["rounds"] == 6
