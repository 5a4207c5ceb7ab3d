"""Promises 13, 19 and 21 over HTTP, for a moment: clients that stop reading, leave, or have no time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from promises import hold

from tools.soak.server import OwnServer
from tools.soak.slow import ENDLESS, STEPPED, deadlines, leave, stalled


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer(STEPPED) as running:
        yield running


def test_clients_that_stop_reading_are_cut_and_their_blocks_freed() -> None:
    with OwnServer(ENDLESS, "--write-timeout", "1") as server:
        assert hold(server, stalled, 4, except_for="memory grew").figures["clients"] == 4


def test_clients_that_leave_at_any_point_are_gone_soon(server: OwnServer) -> None:
    assert hold(server, leave, 33).figures["gone_ms_p50_p99_max"][0] < 500


def test_deadlines_end_requests_in_time(server: OwnServer) -> None:
    ends = hold(server, deadlines, 30).ledger.ends
    assert ends["504"] > 0
    assert ends["length deadline"] > 0
