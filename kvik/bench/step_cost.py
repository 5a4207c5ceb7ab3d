"""What a step of this engine on this machine costs: a small linear model, fitted to steps that were taken.

    seconds = fixed + per_token * tokens + per_kv * KV reads + per_row * rows

tokens: computed in the step. KV reads: for every token, the positions it attends to. rows: requests in the step. The
model is made to explain and to predict, with its error beside it: half of the steps fit it, the other half judge it.
This file knows nothing of engines or clocks.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvik.errors import KvikError
from kvik.step import StepPlan

TERMS = ("fixed", "per_token", "per_kv", "per_row")
BIN = 1.25
"""Steps whose KV reads differ by less than this factor count as repetitions of one step."""


class Step(NamedTuple):
    """One step that was taken."""

    rows: int
    tokens: int
    kv_reads: int
    seconds: float

    @classmethod
    def of_plan(cls, plan: StepPlan, seconds: float) -> Step:
        """What a plan asks for."""
        return cls(plan.num_rows, plan.num_tokens, int(plan.positions.sum()) + plan.num_tokens, seconds)


@dataclass(frozen=True)
class StepCost:
    """The model: seconds for a step, for each token, for each position attended to, for each row."""

    fixed: float
    per_token: float
    per_kv: float
    per_row: float
    error: float = 0.0
    """Median of |predicted - measured| / measured, over steps that were not used to fit."""
    steps: int = 0
    """Steps of different size that were used or judged."""

    def seconds(self, rows: float, tokens: float, kv_reads: float) -> float:
        """Of one step."""
        return self.fixed + self.per_token * tokens + self.per_kv * kv_reads + self.per_row * rows

    def decode(self, rows: float, context: float) -> float:
        """Seconds of a step in which so many rows decode at so many tokens of context."""
        return self.seconds(rows, rows, rows * context)

    def prefill(self, tokens: float, start: float = 0.0) -> float:
        """Seconds of a step that computes only the next tokens of one prompt, after `start` of it."""
        return self.seconds(1, tokens, tokens * start + tokens * (tokens + 1) / 2)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def fit(steps: Sequence[Step]) -> StepCost:
    """The model that fits these steps. Raises KvikError if there are too few of different sizes.

    Repetitions of a step count as one with their lower quartile: what others on the machine take falls on the slow
    ones. Residuals are relative, so that a small step counts as much
    as a large one, and no term is negative.
    """
    points = condense(steps)
    if len(points) < 2 * len(TERMS):
        raise KvikError(f"{len(points)} steps of different size cannot fit a cost; expected at least {2 * len(TERMS)}")
    used, judged = points[::2], points[1::2]
    half = _solve(used)
    error = statistics.median(_miss(half, point) for point in judged)
    return dataclasses.replace(_solve(points), error=error, steps=len(points))


def condense(steps: Sequence[Step]) -> list[Step]:
    """Steps of different size, each with the lower quartile of its repetitions' times, in order of size."""
    alike: dict[tuple[int, int, int], list[Step]] = defaultdict(list)
    for step in steps:
        alike[step.rows, step.tokens, round(float(np.log(step.kv_reads + 1) / np.log(BIN)))].append(step)
    points = [
        Step(
            group[0].rows,
            group[0].tokens,
            round(statistics.mean(step.kv_reads for step in group)),
            sorted(step.seconds for step in group)[(len(group) - 1) // 4],
        )
        for group in alike.values()
    ]
    return sorted(points)


def _miss(cost: StepCost, step: Step) -> float:
    return abs(cost.seconds(step.rows, step.tokens, step.kv_reads) - step.seconds) / step.seconds


def _solve(points: Sequence[Step]) -> StepCost:
    """Least squares of the relative residuals; while a term comes out negative, the most negative one is left out."""
    seconds = np.array([point.seconds for point in points])
    columns = np.array([[1.0, point.tokens, point.kv_reads, point.rows] for point in points]) / seconds[:, None]
    scale: NDArray[np.float64] = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    kept = list(range(len(TERMS)))
    while True:
        found, *_ = np.linalg.lstsq(columns[:, kept] / scale[kept], np.ones(len(points)), rcond=None)
        if found.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    terms = [0.0] * len(TERMS)
    for place, value in zip(kept, found / scale[kept], strict=True):
        terms[place] = max(float(value), 0.0)
    return StepCost(terms[0], terms[1], terms[2], terms[3])
