"""Where results lie under the roofline: operations per byte, and operations per second that were reached.

Runs that say what they needed are taken at their word (their identities were checked); for others a token takes two
operations per parameter, as many bytes as the result's cost says, and a prompt's bytes are its weights. A peer with
wider weights reads as many times the bytes. This file knows nothing of how a point is drawn.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from kvik.bench.report.charts import Point

FORM_BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 4.75 / 8}
OURS, PEERS = 1, 2
"""Colours of points."""


def points_of(name: str, result: Mapping[str, Any]) -> list[Point]:
    """The points of one result; none if it says too little."""
    if "sides" in result:
        return list(_of_runs(name, result))
    cost, model = result["limits"].get("cost"), result.get("model")
    if not cost or not model:
        return []
    intensity, operations = _per_token(result, float(cost), model)
    found = [Point(name, intensity, operations * result["summary"]["median"], OURS)]
    for label, peer in result.get("comparison", {}).items():
        narrower = FORM_BYTES[model["weights"]] / _peer_bytes(result, label)
        found.append(Point(f"{name}, {label}", narrower * intensity, operations * peer["speed"]["median"], PEERS))
    return found


def _peer_bytes(result: Mapping[str, Any], label: str) -> float:
    """Bytes of one of a peer's weights; as many as ours where its form is not told."""
    form = result["options"].get("engines", {}).get(label, {}).get("form", result["model"]["weights"])
    return FORM_BYTES.get(form, FORM_BYTES[result["model"]["weights"]])


def _of_runs(name: str, result: Mapping[str, Any]) -> Iterator[Point]:
    for side in result["sides"]:
        runs = [run for sample in result["samples"] for run in sample["sides"][side]]
        needs = runs[0]["needs"]
        rate = statistics.median(run["needs"]["operations"] / run["seconds"] for run in runs)
        yield Point(f"{name}, {side}", needs["operations"] / needs["bytes"], rate, OURS)


def _per_token(result: Mapping[str, Any], cost: float, model: Mapping[str, Any]) -> tuple[float, float]:
    """(operations per byte, operations per token)"""
    if result["limits"]["capacity_metric"] == "matrix_rate":
        workload = result["workload"]
        tokens = workload.get("input_len", workload.get("input_tokens", 1)) * workload.get("batch", 1)
        return cost * tokens / (model["parameters"] * FORM_BYTES[model["weights"]]), cost
    operations = 2.0 * model["parameters"]
    return operations / cost, operations


def machine_of(results: Mapping[str, Mapping[str, Any]]) -> tuple[float, dict[str, float], str] | None:
    """(bytes/s, operations/s by form, processor): the best measured on the first result's machine."""
    measured = [result["machine"] for result in results.values() if result["machine"].get("read_bandwidth")]
    if not measured:
        return None
    cpu = measured[0]["cpu"]
    alike = [machine for machine in measured if machine["cpu"] == cpu]
    peaks: dict[str, float] = {}
    for machine in alike:
        for form, rate in machine["matrix_peak"].items():
            peaks[form] = max(rate, peaks.get(form, 0.0))
    return max(machine["read_bandwidth"] for machine in alike), peaks, cpu
