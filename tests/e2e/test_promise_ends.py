"""Promises 22, 23 and 24 for a moment: a server that is told to end, is killed, begins, or cannot begin."""

from __future__ import annotations

from promises import hold_alone

from tools.soak.ends import murder, starts, terminate


def test_sigterm_under_load_cuts_no_stream_without_a_word() -> None:
    trial = hold_alone(terminate, 2)
    assert trial.figures["runs"] == 2
    assert trial.ledger.ends["finished"] + trial.ledger.ends["told"] > 0


def test_after_sigkill_the_next_one_starts_on_the_same_port() -> None:
    assert hold_alone(murder, 2).figures["runs"] == 2


def test_it_is_live_before_it_is_ready_and_what_cannot_start_says_so() -> None:
    assert hold_alone(starts, 1).figures["runs"] == 1
