"""Promises 34, 36, 37, 42 and 43 over HTTP, for a moment: rubbish, limits, large requests, keys, and the log."""

from __future__ import annotations

import pytest
from promises import hold

from tools.soak.guarded import KEY, KEY_FLAGS, doors, lines, timed_keys
from tools.soak.hostile import (
    FUZZ_FLAGS,
    LIMIT_FLAGS,
    check_part,
    fuzz,
    large_ones,
    limits,
)
from tools.soak.replies import WrongError
from tools.soak.server import SOUND, OwnServer


def test_no_rubbish_gets_a_5xx_or_a_long_reply() -> None:
    with OwnServer(SOUND, *FUZZ_FLAGS) as server:
        statuses = hold(server, fuzz, 500).figures["statuses"]
    assert {200, 400} <= set(statuses)


def test_a_5xx_and_an_error_without_its_keys_are_found() -> None:
    for part in (b"500 Internal Server Error\r\n\r\n", b'400 Bad Request\r\nx-request-id: a\r\n\r\n{"error": "no"}'):
        with pytest.raises((WrongError, TypeError)):
            check_part(b"", part)


def test_each_side_of_a_limit_gets_its_own_reply() -> None:
    with OwnServer(SOUND, *LIMIT_FLAGS) as server:
        ends = hold(server, limits, 120).ledger.ends
    assert {"whole 413", "whole 200", "chunks 413", "chunks 200", "gzip 415", "head 431"} <= set(ends)


def test_large_requests_hold_up_no_small_one() -> None:
    with OwnServer() as server:
        assert hold(server, large_ones, 7).ledger.ends["refused"] == 7


def test_no_spelling_of_a_path_and_no_wrong_key_lets_anybody_in() -> None:
    with OwnServer(SOUND, *KEY_FLAGS, key=KEY) as server:
        assert hold(server, doors, 300).ledger.ends["401"] > 100


def test_the_timing_of_keys_finds_a_comparison_that_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    class Early:
        """Compares character by character, slowly."""

        def __init__(self, keys: tuple[str, ...]) -> None:
            self.key = f"Bearer {keys[0]}".encode()

        def find(self, given: bytes) -> None:
            for ours, theirs in zip(self.key, given, strict=False):
                if ours != theirs:
                    return
                sum(range(200))

    monkeypatch.setattr("tools.soak.guarded.KeyRing", Early)
    assert timed_keys(2000, 0)["time_of_key_r"] > 0.5


def test_nothing_a_client_writes_is_in_the_log_or_makes_a_series() -> None:
    with OwnServer() as server:
        assert hold(server, lines, 60).figures["lines"] == 60
