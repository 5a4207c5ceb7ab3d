"""The figures of one load, computed from its records and from nothing else, so that whoever reads a result can again.

    TTFT  first event with text - when the request was due        E2E   finish - when the request was due
    TPOT  (E2E - TTFT) / (output tokens - 1)                      ITL   an event with text - the one before it
    goodput  requests a second that end well and keep the SLO

This file knows nothing of servers or clocks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
Record = Mapping[str, Any]
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Slo:
    """What a request must keep to be good, in milliseconds; None: nothing is asked."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def asks(self) -> bool:
        """Whether anything is asked."""
        return self.ttft_ms is not None or self.tpot_ms is not None

    def kept(self, record: Record) -> bool:
        """Whether a request that ended well was good."""
        ttft_ok = self.ttft_ms is None or record["ttft_us"] <= 1e3 * self.ttft_ms
        tpot = record["tpot_us"]
        return ttft_ok and (self.tpot_ms is None or tpot is None or tpot <= 1e3 * self.tpot_ms)

    def as_dict(self) -> dict[str, float | None]:
        """For the result file."""
        return {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, interpolated between the two nearest."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(micros: Sequence[float]) -> dict[str, float] | None:
    """Percentiles, mean and most of times in microseconds, as milliseconds; None where there is none."""
    if not micros:
        return None
    ordered = sorted(micros)
    found = {f"p{percent}": percentile(ordered, percent) / 1e3 for percent in PERCENTILES}
    return found | {"mean": sum(ordered) / len(ordered) / 1e3, "max": ordered[-1] / 1e3, "count": len(ordered)}


def gaps(record: Record) -> list[int]:
    """Microseconds between events with text."""
    events = record["events_us"]
    return [later - earlier for earlier, later in itertools.pairwise(events)]


def run_figures(records: Sequence[Record], seconds: float, slo: Slo) -> Figures:
    """All figures of one load that took so many seconds."""
    good = [record for record in records if "error" not in record]
    kept = [record for record in good if slo.kept(record)]
    tokens = sum(record["output_tokens"] for record in good)
    return {
        "sent": len(records),
        "succeeded": len(good),
        "errors": dict(Counter(record["error"] for record in records if "error" in record)),
        "requests_per_s": len(good) / seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "input_tokens": sum(record["input_tokens"] or 0 for record in good),
        "without_usage": sum(not record["counted"] for record in good),
        "text_events": sum(len(record["events_us"]) for record in good),
        "ttft_ms": spread([record["ttft_us"] for record in good]),
        "tpot_ms": spread([record["tpot_us"] for record in good if record["tpot_us"] is not None]),
        "itl_ms": spread([gap for record in good for gap in gaps(record)]),
        "e2e_ms": spread([record["e2e_us"] for record in good]),
        "late_ms": spread([record["late_us"] for record in records]),
        "mean_in_flight": sum(record["e2e_us"] for record in records) / 1e6 / seconds,
        "goodput": _goodput(kept, len(records), seconds) if slo.asks else None,
    }


def _goodput(kept: Sequence[Record], asked: int, seconds: float) -> dict[str, float]:
    return {
        "share": len(kept) / asked,
        "requests_per_s": len(kept) / seconds,
        "tokens_per_s": sum(record["output_tokens"] for record in kept) / seconds,
    }
