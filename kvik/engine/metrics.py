"""Plain counters of an engine, and the times of one request.

Identities that tests hold at every moment:
    accepted = unfinished + sum of ended           every accepted request ends once
    prompt_tokens = cached + computed              of the prompts computed so far; recomputed work is counted apart
    ended = count of e2e, of prompt and of output lengths
    generated tokens = count of ITL + choices that have a token

Formulas, for a request with k output tokens:
    queue time = start of its first step - arrival     TTFT = first token - arrival     E2E = end - arrival
    ITL = a token - the one before it in the same choice                                TPOT = (E2E - TTFT) / (k - 1)
This file knows nothing of exporters, of clocks or of who counts.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from kvik.request import FinishReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass
class RequestTimes:
    """Moments of one request on a monotonic clock, in seconds."""

    arrival: float
    scheduled: float | None = None
    """Start of the step that first gave it a seat."""
    first_token: float | None = None
    end: float | None = None

    @property
    def queue(self) -> float | None:
        """Time from arrival to the first step; None before that, and for ever if it ended in the queue."""
        return None if self.scheduled is None else self.scheduled - self.arrival

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

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, once or several times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def as_dict(self) -> dict[str, Any]:
        """Plain data: bounds, counts (one more than bounds, not cumulative) and total; a copy."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "total": self.total}


def _lengths() -> Histogram:
    return Histogram(TOKENS)


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
    queue: Histogram = field(default_factory=Histogram)
    """Counted when a request first gets a seat."""
    ttft: Histogram = field(default_factory=Histogram)
    """Counted at the first token of a request, whichever choice draws it."""
    itl: Histogram = field(default_factory=Histogram)
    """Counted at every token of a choice after its first."""
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    prompt_length: Histogram = field(default_factory=_lengths)
    output_length: Histogram = field(default_factory=_lengths)
    """Tokens over all choices; like E2E, TPOT and prompt_length counted when a request ends."""
    step_time: Histogram = field(default_factory=Histogram)
    step_size: Histogram = field(default_factory=_lengths)
    """Tokens computed in a step that computes any."""

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
        if rows:
            self.step_time.add(seconds)
            self.step_size.add(tokens)

    def end_request(self, reason: FinishReason, times: RequestTimes, prompt: int, outputs: list[int]) -> None:
        """Count the end of a request with so many prompt tokens, and so many output tokens in each choice."""
        self.ended[reason.value] += 1
        self.prompt_length.add(prompt)
        self.output_length.add(sum(outputs))
        for histogram, seconds in ((self.tpot, times.tpot(max(outputs))), (self.e2e, times.e2e)):
            if seconds is not None:
                histogram.add(seconds)

    def histograms(self) -> dict[str, dict[str, Any]]:
        """Every histogram as plain data, by its name here."""
        found = ((name, value) for name, value in vars(self).items() if isinstance(value, Histogram))
        return {name: histogram.as_dict() for name, histogram in found}
