"""Repeat a measurement until its median is known, with the machine's limits measured between the repetitions.

roofline, sample, roofline, sample, roofline, ..: what the machine could do is taken from just before and just after
what was done, so that a noisy neighbour shows in both. This file knows nothing of what a sample measures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.bench import load
from kvik.bench.checks import median_spread_percent
from kvik.bench.machine import roofline

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Repeat:
    """When to stop: as soon as the median is known to `spread_percent`, at the latest after `most` repetitions."""

    warmups: int = 1
    least: int = 5
    most: int = 20
    spread_percent: float = 5.0


def interleaved(
    take: Callable[[], Mapping[str, Any]],
    metric: str,
    repeat: Repeat,
    progress: Progress,
    probe: Callable[[], Mapping[str, Any]] = roofline,
    *,
    known_to: Callable[[Sequence[Mapping[str, Any]]], float | None] | None = None,
) -> list[dict[str, Any]]:
    """Warm up, then samples with `read_bandwidth` and `matrix_peak`, the mean of just before and just after each, and
    `load`, what else the machine did meanwhile.

    `known_to` says to how many percent the samples so far are known; the default asks for the median of `metric`.
    """
    spread = known_to or (lambda taken: median_spread_percent([sample[metric] for sample in taken]))
    for index in range(repeat.warmups):
        progress(f"warm-up {index + 1} of {repeat.warmups}")
        take()
    samples: list[dict[str, Any]] = []
    before = probe()
    while not _enough(len(samples), spread(samples) if samples else None, repeat):
        started = load.now()
        sample = take()
        did = load.between(started, load.now())
        after = probe()
        samples.append({**sample, **_between(before, after), "load": did})
        before = after
        progress(_line([sample[metric] for sample in samples], metric, spread(samples), repeat))
    return samples


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The machine's limits at the time between two measurements of them."""
    peaks = {form: (peak + after["matrix_peak"][form]) / 2 for form, peak in before["matrix_peak"].items()}
    return {"read_bandwidth": (before["read_bandwidth"] + after["read_bandwidth"]) / 2, "matrix_peak": peaks}


def _enough(count: int, spread: float | None, repeat: Repeat) -> bool:
    if count < repeat.least:
        return False
    return count >= repeat.most or (spread is not None and spread <= repeat.spread_percent)


def _line(values: Sequence[float], metric: str, spread: float | None, repeat: Repeat) -> str:
    known = "" if spread is None else f", known to {spread:.1f} %"
    median = statistics.median(values)
    return f"{len(values)} of at most {repeat.most}: {metric} {values[-1]:.2f}, median {median:.2f}{known}"


def describe_repetition(repeat: Repeat) -> str:
    """The repetition rule, for `how_obtained`."""
    return (
        f"{repeat.warmups} warm-up(s) dropped; the machine's limits measured before and after every sample, other load "
        f"on it during each; repeated until the median was known to {repeat.spread_percent:g} % (half the width of its "
        f"93 % interval by the sign test) or {repeat.most} times"
    )
