"""How long an engine has made no progress, as far as whoever watches it was awake to see.

The time between two looks counts up to a limit only. A watcher that was stopped (SIGSTOP, a suspended machine, a
blocked event loop) has seen nothing of the time in between and must not blame the engine for it; and the clock is to
be monotonic, so that setting the date has no effect. This file knows nothing of what progress is.
"""

from __future__ import annotations

from collections.abc import Callable


class Pulse:
    """Age of the last sign of life. It has to be looked at more often than every `longest_gap_s` to be exact."""

    def __init__(self, longest_gap_s: float, clock: Callable[[], float]) -> None:
        self._longest_gap_s = longest_gap_s
        self._clock = clock
        self._looked = clock()
        self._age = 0.0

    def beat(self) -> None:
        """A sign of life."""
        self._age = 0.0
        self._looked = self._clock()

    @property
    def age(self) -> float:
        """Seconds since the last sign of life."""
        now = self._clock()
        self._age += min(now - self._looked, self._longest_gap_s)
        self._looked = now
        return self._age
