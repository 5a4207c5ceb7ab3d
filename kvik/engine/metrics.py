"""Plain counters of an engine, and the times of one request.

Identities that tests hold at every moment:
    accepted = unfinished + sum of ended           every accepted request ends once
    prompt_tokens = cached + computed              of the prompts computed so far; recomputed work is counted apart

Formulas, for a request with k output tokens:
    TTFT = first token - arrival      E2E = end - arrival      TPOT = (E2E - TTFT) / (k - 1)
This file knows nothing of exporters, of clocks or of who counts.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from kvik.request import FinishReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass
class RequestTimes:
    """Moments of one request on a monotonic clock, in seconds."""

    arrival: float
    first_token: float | None = None
    end: float | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token; None before there is one."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def e2e(self) -> float | None:
        """Time from arrival to the end; None before that."""
        return None if self.end is None else self.end - self.arrival

    def tpot(self, num_output_tokens: int) -> float | None:
        """Time per output token after the first; None for fewer than two tokens or an unfinished request."""
        if self.first_token is None or self.end is None or num_output_tokens < 2:
            return None
        return (self.end - self.first_token) / (num_output_tokens - 1)


@dataclass
class Histogram:
    """Counts of values by fixed upper bounds, with their sum; the last count is of values above every bound."""

    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None before there is a value."""
        return self.total / self.count if self.count else None

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class EngineMetrics:
    """What happened since the engine was built. Requests are counted as users send them, tokens over all choices."""

    accepted: int = 0
    refused: int = 0
    """Requests that were never accepted: a bad value, or too long."""
    ended: dict[str, int] = field(default_factory=lambda: {str(reason): 0 for reason in FinishReason})
    steps: int = 0
    step_rows: int = 0
    step_tokens: int = 0
    step_seconds: float = 0.0
    """Time inside steps, the model's included."""
    output_tokens: int = 0
    """Of choices that have ended."""
    steps_isolated: int = 0
    """Steps that raised and were run again row by row."""
    numerical_errors: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    @property
    def finished(self) -> int:
        """Accepted requests that have ended, however they did."""
        return sum(self.ended.values())

    def count_step(self, rows: int, tokens: int, seconds: float) -> None:
        """Count one step."""
        self.steps += 1
        self.step_rows += rows
        self.step_tokens += tokens
        self.step_seconds += seconds

    def end_request(self, reason: FinishReason, times: RequestTimes, longest_output: int) -> None:
        """Count the end of a request whose longest choice has this many tokens."""
        self.ended[reason.value] += 1
        for histogram, seconds in ((self.ttft, times.ttft), (self.tpot, times.tpot(longest_output))):
            if seconds is not None:
                histogram.add(seconds)
        if times.e2e is not None:
            self.e2e.add(times.e2e)
