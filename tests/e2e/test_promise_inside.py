"""Promises 16, 29, 30, 31 and 33 for a moment: books, memory that is refused, a full disk, broken frames, clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from promises import MOMENT_S, hold, hold_alone

from tools.soak import inside
from tools.soak.books import POINTS, fail_at, scheduler
from tools.soak.crowd import FINISHED
from tools.soak.inside import frames, full_disk, jumping_clock, pauses
from tools.soak.server import OwnServer
from tools.soak.trials import Trial


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer() as running:
        yield running


@pytest.mark.parametrize("place", ["an array of the model", "a block of the cache"])
def test_memory_that_is_refused_now_and_then_loses_nothing(place: str) -> None:
    trial = Trial(MOMENT_S, 120, slack_s=20.0)
    assert asyncio.run(fail_at(trial, POINTS[place], 5.0)) > 0
    assert not trial.findings
    assert not trial.ledger.problems(may_fail=True)


def test_a_log_on_a_full_disk_stops_nothing() -> None:
    assert hold_alone(full_disk, 100).ledger.ends[FINISHED] > 50


def test_a_wall_clock_that_jumps_by_hours_makes_nobody_late() -> None:
    assert hold_alone(jumping_clock, 100).ledger.ends[FINISHED] > 50


def test_processes_that_are_stopped_for_a_moment_fail_nobody(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "STOPPED_S", 0.5)
    trial = hold(server, pauses, 800)
    assert trial.figures["restarts"] == 0
    assert trial.figures["stops"] > 0


def test_broken_frames_are_noticed_and_read_as_nothing() -> None:
    ends = hold_alone(frames, 3000).ledger.ends
    assert ends["noticed"] > 2000


def test_a_scheduler_of_random_lives_keeps_its_books() -> None:
    assert hold_alone(scheduler, 300).figures["steps"] >= 300
