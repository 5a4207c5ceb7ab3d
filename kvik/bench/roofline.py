"""The machine's own limits as a result: read bandwidth and matrix peak, repeated until the bandwidth is known."""

from __future__ import annotations

from typing import Any

from kvik.bench.evidence import Result, compose
from kvik.bench.machine import roofline, roofline_method
from kvik.bench.measure import Progress, Repeat, describe_repetition, interleaved
from kvik.bench.workbench import machine_with_limits


def measure_roofline(repeat: Repeat, progress: Progress) -> Result:
    """Measure the limits as a result of their own; nothing but the machine bounds them."""

    def take() -> dict[str, Any]:
        return {"gigabytes_per_s": roofline()["read_bandwidth"] / 1e9}

    samples = interleaved(take, "gigabytes_per_s", repeat, progress)
    return compose(
        kind="roofline",
        metric="gigabytes_per_s",
        unit="GB/s",
        machine=machine_with_limits(samples),
        warmups=repeat.warmups,
        samples=samples,
        limits={"capacity_metric": None, "cost": None, "does_not_bind": "this is the limit itself"},
        how_obtained=f"{roofline_method()}. {describe_repetition(repeat)}.",
    )
