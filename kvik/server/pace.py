"""Pace: how fast a queue moves while it cannot move faster.

What a server gets done in a second says how long a queue will take only if there was enough to do all the time; at
other times it says how much was asked for. So amounts and time count only while whoever owns the pace says that there
is a backlog. Older measurements fade. Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Callable

HALF_LIFE_S = 20.0
LEAST_S = 0.25
"""Backlogged time before there is an estimate."""


class Pace:
    """An amount per second of backlogged time; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], half_life_s: float = HALF_LIFE_S) -> None:
        self._clock, self._half_life = clock, half_life_s
        self._amount = self._time = 0.0
        self._since: float | None = None

    def backlogged(self, is_backlogged: bool) -> None:
        """There is a backlog, or none, from now on."""
        self._settle()
        self._since = self._clock() if is_backlogged else None

    def done(self, amount: float) -> None:
        """So much was got done just now."""
        if self._since is not None:
            self._settle()
            self._amount += amount

    def rate(self, least: float = 0.0) -> float | None:
        """Amount per second, or None while nothing is known, or less than `least` has been done lately. A backlog that
        does not move lowers it.
        """
        self._settle()
        known = self._time >= LEAST_S and self._amount > 0 and self._amount >= least
        return self._amount / self._time if known else None

    def _settle(self) -> None:
        """Take in the time until now."""
        if self._since is None:
            return
        now = self._clock()
        passed, self._since = now - self._since, now
        kept = 0.5 ** (passed / self._half_life)
        self._amount *= kept
        self._time = self._time * kept + passed
