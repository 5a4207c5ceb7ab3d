"""Promises 25 to 28 and 32 over HTTP, for a moment: an engine killed, hung, raising, not a number, under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from promises import hold

from tools.soak.crowd import FAILED, FINISHED
from tools.soak.server import OwnServer
from tools.soak.trials import faults, hang, kill


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """With room for all clients."""
    with OwnServer() as running:
        yield running


def test_requests_that_raise_or_turn_into_nan_fail_alone(server: OwnServer) -> None:
    trial = hold(server, faults, 300)
    assert trial.ledger.ends[FAILED] > 30
    assert trial.ledger.ends[FINISHED] > 100


def test_a_killed_engine_is_replaced_and_no_byte_is_wrong(server: OwnServer) -> None:
    trial = hold(server, kill, 2, clients=32)
    assert trial.figures["kills"] == 2
    assert trial.ledger.ends[FINISHED] > 0


def test_a_hang_is_noticed_said_and_repaired(server: OwnServer) -> None:
    trial = hold(server, hang, 1, clients=32)
    assert trial.figures["hangs"] == 1
    assert trial.figures["noticed_s_max"] > 1
