"""How repetitions of one figure are put together: median, extremes, and how well the median is known.

Functions of plain numbers, so that whoever reads a result can compute them again. This file knows nothing of results.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.93
"""At least this, for the interval of the median; 5 repetitions are the fewest that reach it."""


def summarize(values: Sequence[float], *, metric: str, unit: str) -> dict[str, Any]:
    """Median, min, max and spread of the repetitions of one metric.

    `spread_percent` is (max - min) / median; `median_spread_percent` see there.
    """
    median = statistics.median(values)
    return {
        "metric": metric,
        "unit": unit,
        "repetitions": len(values),
        "median": median,
        "min": min(values),
        "max": max(values),
        "spread_percent": 100 * (max(values) - min(values)) / median if median else 0.0,
        "median_spread_percent": median_spread_percent(values),
    }


def median_spread_percent(values: Sequence[float]) -> float | None:
    """How well the median is known: half the width of its interval, in percent of it.

    The interval lies between two order statistics and holds the true median with CONFIDENCE (sign test). None for
    fewer than 5 values, which cannot give one.
    """
    ordered, count = sorted(values), len(values)
    if 1 - 2 * 0.5**count < CONFIDENCE:
        return None
    dropped, outside = 0, 0.5**count
    while True:
        outside += math.comb(count, dropped + 1) * 0.5**count
        if 1 - 2 * outside < CONFIDENCE:
            break
        dropped += 1
    median = statistics.median(ordered)
    return 100 * (ordered[-1 - dropped] - ordered[dropped]) / (2 * median) if median else 0.0
