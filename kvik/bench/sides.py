"""Sides of one comparison: the same work under different options, in turn, there and back again.

A round runs every side once in order and once more in reverse, A B C C B A, so that a drift of the machine falls on
both directions alike. Two runs of one side within a round are the A/A control: what they differ by, nothing caused. An
effect counts only where it is larger, up or down, than the largest that the control shows. All arithmetic is on the
stored runs; this file knows nothing of how they were made.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kvik.bench.identities import Check, Run, same, verdict
from kvik.bench.summary import median_spread_percent, summarize

Sample = Mapping[str, Any]


def quantile_of_counts(pairs: Sequence[Sequence[float]], share: float) -> float:
    """The smallest value that at least `share` of the counted values do not exceed; 0 if there are none."""
    total, seen = sum(count for _, count in pairs), 0.0
    for value, count in sorted((float(value), count) for value, count in pairs):
        seen += count
        if seen >= share * total:
            return value
    return 0.0


def _median(column: str) -> Callable[[Run], float]:
    def of(run: Run) -> float:
        values = [float(value) for value in run["requests"][column] if value is not None]
        return statistics.median(values) if values else 0.0

    return of


def _share_cached(run: Run) -> float:
    columns = run["requests"]
    return float(sum(columns["cached_tokens"]) / sum(columns["prompt_tokens"]))


METRICS: dict[str, tuple[str, Callable[[Run], float]]] = {
    "tokens_per_s": ("tokens/s", lambda run: float(run["tokens_per_s"])),
    "ttft_s": ("s", _median("ttft_s")),
    "tpot_s": ("s", _median("tpot_s")),
    "e2e_s": ("s", _median("e2e_s")),
    "itl_p99_s": ("s", lambda run: quantile_of_counts(run["itl_s"], 0.99)),
    "itl_max_s": ("s", lambda run: max((float(value) for value, _ in run["itl_s"]), default=0.0)),
    "kv_utilisation": ("share", lambda run: float(run["kv_cache"]["utilisation"])),
    "peak_running": ("requests", lambda run: float(run["kv_cache"]["peak_running"])),
    "largest_batch": ("requests", lambda run: float(run["kv_cache"]["largest_batch"])),
    "weights_bytes": ("bytes", lambda run: float(run["memory_bytes"]["weights"])),
    "activations_bytes": ("bytes", lambda run: float(run["memory_bytes"]["activations"])),
    "cached_share": ("share", _share_cached),
    "steps": ("steps", lambda run: float(run["steps"])),
}
"""What is summed up of every run: unit and how it is computed. Columns of requests are taken by their median."""


def runs_of(samples: Sequence[Sample], side: str) -> list[Run]:
    """Every run of a side, in the order they were made within rounds: there, back, there, back, .."""
    return [run for sample in samples for run in sample["sides"][side]]


def values_of(samples: Sequence[Sample], side: str, metric: str) -> list[float]:
    """One metric of every run of a side."""
    return [METRICS[metric][1](run) for run in runs_of(samples, side)]


def summarize_side(samples: Sequence[Sample], side: str) -> dict[str, Any]:
    """Every metric of a side over its runs."""
    return {
        metric: summarize(values_of(samples, side, metric), metric=metric, unit=unit)
        for metric, (unit, _) in METRICS.items()
    }


def ratios(samples: Sequence[Sample], pair: Mapping[str, str]) -> list[float]:
    """B over A for both directions of every round, a run never held against one of another round or direction."""
    a, b = values_of(samples, pair["a"], pair["metric"]), values_of(samples, pair["b"], pair["metric"])
    return [_ratio(one, other) for one, other in zip(a, b, strict=True)]


def control_ratios(samples: Sequence[Sample], pair: Mapping[str, str]) -> list[float]:
    """Back over there, of A and of B, in every round: the same side against itself."""
    found = []
    for side in (pair["a"], pair["b"]):
        values = values_of(samples, side, pair["metric"])
        found += [_ratio(there, back) for there, back in zip(values[::2], values[1::2], strict=True)]
    return found


def _ratio(one: float, other: float) -> float:
    if one == other:
        return 1.0
    if one == 0:
        raise ValueError("a figure of 0 has no ratio to another")
    return other / one


def compare_pair(samples: Sequence[Sample], pair: Mapping[str, str]) -> dict[str, Any]:
    """`a`, `b` and `metric` with the ratio B / A, its control A / A, and whether the one lies outside of the other."""
    effect = summarize(ratios(samples, pair), metric="b / a", unit="x")
    control = summarize(control_ratios(samples, pair), metric="a / a", unit="x")
    widest = max(control["max"], 1 / control["min"])
    return {
        "a": pair["a"],
        "b": pair["b"],
        "metric": pair["metric"],
        "ratio": effect,
        "control": control,
        "beyond_control": not 1 / widest <= effect["median"] <= widest,
    }


def known_to(samples: Sequence[Sample], metric: str) -> float | None:
    """To how many percent the median of this metric is known for the side that is known worst; None: not yet."""
    spreads = [median_spread_percent(values_of(samples, side, metric)) for side in samples[0]["sides"]]
    known = [spread for spread in spreads if spread is not None]
    return max(known) if len(known) == len(spreads) else None


def set_capacities(samples: Sequence[Sample]) -> None:
    """Give every run's needs the machine's best limits of the whole measurement; None where they do not bind."""
    for run, needs in _needs_of(samples):
        needs |= _capacities(samples, run["needs"])


def _needs_of(samples: Sequence[Sample]) -> Iterable[tuple[Run, dict[str, Any]]]:
    return ((run, run["needs"]) for sample in samples for side in sample["sides"] for run in sample["sides"][side])


def _capacities(samples: Sequence[Sample], needs: Mapping[str, Any]) -> dict[str, Any]:
    best = max(float(sample["read_bandwidth"]) for sample in samples)
    peak = max(float(rate) for sample in samples for rate in sample["matrix_peak"].values())
    return {"bytes_per_s": best if needs["bytes_bind"] else None, "operations_per_s": peak}


def side_checks(result: Mapping[str, Any]) -> list[Check]:
    """That summaries, pairs, capacities and the sameness of answers follow from the runs."""
    samples = result["samples"]
    return [
        _rounds(samples),
        _summaries(result),
        _pairs(result),
        _limits(samples),
        _answers(result),
    ]


def _rounds(samples: Sequence[Sample]) -> Check:
    names, wrong = list(samples[0]["sides"]), []
    for index, sample in enumerate(samples):
        for side in names:
            count = len(sample["sides"].get(side, []))
            if count != 2:
                wrong.append(f"sample {index + 1} has {count} runs of {side}")
    return verdict("every side ran there and back in every round", wrong, f"{len(names)} sides, {len(samples)} rounds")


def _summaries(result: Mapping[str, Any]) -> Check:
    wrong = []
    for side, stored in result["sides"].items():
        again = summarize_side(result["samples"], side)
        wrong += [f"{side} {metric}" for metric in again if not same(stored["metrics"].get(metric), again[metric])]
    return verdict("summaries of sides follow from their runs", wrong, "as computed again")


def _pairs(result: Mapping[str, Any]) -> Check:
    wrong = []
    for stored in result["pairs"]:
        again = compare_pair(result["samples"], stored)
        wrong += [f"{key} of {stored['b']} over {stored['a']}, {stored['metric']}" for key in again
                  if not same(stored.get(key), again[key])]  # fmt: skip
    return verdict("effects and their controls follow from the runs", wrong, f"{len(result['pairs'])} effects")


def _limits(samples: Sequence[Sample]) -> Check:
    wrong = [
        f"{key} is {needs.get(key)}, measured {value}"
        for run, needs in _needs_of(samples)
        for key, value in _capacities(samples, run["needs"]).items()
        if not same(needs.get(key), value)
    ]
    return verdict("runs are held against the limits measured", wrong, "the best of all rounds")


def _answers(result: Mapping[str, Any]) -> Check:
    """Within each group every run of every side has given the same tokens."""
    wrong = []
    for first, *others in result["same_answers"]:
        digests = {
            side: {run["outputs_sha256"] for run in runs_of(result["samples"], side)} for side in (first, *others)
        }
        expected = runs_of(result["samples"], first)[0]["outputs_sha256"]
        odd = [side for side, found in digests.items() if found != {expected}]
        wrong += [f"{', '.join(odd)} differ from {first}"] if odd else []
    return verdict("answers are the same token for token", wrong, "; ".join(map(" = ".join, result["same_answers"])))
