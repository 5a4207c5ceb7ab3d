"""The arithmetic of results: summaries, limits, and that a result which breaks an identity is refused."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvik.bench.checks import (
    CONFIDENCE,
    EvidenceError,
    limits_of,
    median_spread_percent,
    refuse_failed,
    run_checks,
    summarize,
)
from kvik.bench.evidence import compose


def sample(tokens: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "read_bandwidth": bandwidth}


SAMPLES = [sample(80, seconds, 30e9) for seconds in (4.0, 4.1, 3.9, 4.2, 4.05)]
LIMITS = {"capacity_metric": "read_bandwidth", "cost": 1.2e9, "does_not_bind": None}


def result(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "kind": "decode",
        "metric": "tokens_per_s",
        "unit": "tokens/s",
        "machine": {"cpu": "a processor"},
        "samples": SAMPLES,
        "limits": LIMITS,
        "how_obtained": "by hand",
        "workload": {"tokens_per_sample": 80},
    }
    return compose(**{**arguments, **changes})


def failed(checked: dict[str, Any]) -> set[str]:
    return {check["name"] for check in run_checks(checked) if not check["passed"]}


def test_summary_of_known_values() -> None:
    summary = summarize([2.0, 1.0, 4.0], metric="m", unit="u")
    assert summary == {
        "metric": "m",
        "unit": "u",
        "repetitions": 3,
        "median": 2.0,
        "min": 1.0,
        "max": 4.0,
        "spread_percent": 150.0,
        "median_spread_percent": None,
    }


@pytest.mark.parametrize("count", range(5, 16))
def test_interval_of_the_median_is_the_narrowest_that_is_confident(count: int) -> None:
    """Against a count over every way in which values can fall on either side of the true median."""
    values = [100.0 + index for index in range(count)]
    median = values[count // 2] if count % 2 else (values[count // 2 - 1] + values[count // 2]) / 2
    half_width = median_spread_percent(values)
    assert half_width is not None
    dropped = round((values[-1] - values[0] - 2 * median * half_width / 100) / 2)

    def coverage(drop: int) -> float:
        inside = sum(drop < sum(sides) < count - drop for sides in itertools.product((0, 1), repeat=count))
        return inside / 2**count

    assert coverage(dropped) >= CONFIDENCE > coverage(dropped + 1)


def test_fewer_than_five_values_give_no_interval() -> None:
    assert median_spread_percent([1.0] * 4) is None
    assert median_spread_percent([1.0] * 5) == 0.0


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30))
def test_summary_orders_its_figures(values: list[float]) -> None:
    summary = summarize(values, metric="m", unit="u")
    assert summary["min"] <= summary["median"] <= summary["max"]
    assert summary["median_spread_percent"] is None or 0 <= 2 * summary["median_spread_percent"] <= max(
        summary["spread_percent"] * (1 + 1e-9), 1e-9
    )


def test_roof_is_capacity_over_cost() -> None:
    samples = [{"c": 10.0, "m": 4.0}, {"c": 30.0, "m": 3.0}, {"c": 20.0, "m": 6.0}]
    limits = limits_of(samples, {"metric": "m", "median": 4.0}, {"capacity_metric": "c", "cost": 2.0})
    assert (limits["capacity"], limits["roof"], limits["best_roof"]) == (20.0, 10.0, 15.0)
    assert limits["fraction"] == 0.6  # of 0.8, 0.2 and 0.6: each against the capacity measured around it


def test_a_sound_result_passes_every_check() -> None:
    sound = result()
    assert not failed(sound)
    assert sound["limits"]["fraction"] == pytest.approx(80 / 4.05 / 25)


def test_a_figure_beyond_the_physical_limit_is_refused() -> None:
    with pytest.raises(EvidenceError, match="within the physical limit"):
        result(limits={**LIMITS, "cost": 2e9})


def test_a_limit_that_does_not_bind_refuses_nothing() -> None:
    fast = result(limits={**LIMITS, "cost": 2e9, "does_not_bind": "all in cache"})
    assert fast["limits"]["fraction"] > 1


def test_a_sample_that_lost_tokens_is_refused() -> None:
    with pytest.raises(EvidenceError, match="workload's tokens"):
        result(samples=[*SAMPLES[1:], sample(79, 4.0, 30e9)])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_an_impossible_sample_is_refused(wrong: float) -> None:
    with pytest.raises(EvidenceError):
        result(samples=[*SAMPLES[1:], {**SAMPLES[0], "tokens_per_s": wrong}])


@pytest.mark.parametrize("key", ["median", "min", "max", "spread_percent", "median_spread_percent", "repetitions"])
def test_a_summary_that_was_edited_is_caught(key: str) -> None:
    edited = copy.deepcopy(result())
    edited["summary"][key] *= 1.01
    assert "summary follows from the samples" in failed(edited)


@pytest.mark.parametrize("key", ["capacity", "roof", "best_roof", "fraction"])
def test_limits_that_were_edited_are_caught(key: str) -> None:
    edited = copy.deepcopy(result())
    edited["limits"][key] *= 1.01
    assert "limits follow from the samples" in failed(edited)


@pytest.mark.parametrize("key", ["tokens", "seconds", "tokens_per_s"])
def test_a_sample_that_was_edited_is_caught(key: str) -> None:
    edited = copy.deepcopy(result())
    edited["samples"][2][key] *= 1.01
    assert "tokens_per_s = tokens / seconds" in failed(edited)


@pytest.mark.parametrize("change", [{"samples": []}, {"samples": [{}]}, {"summary": {}}, {"limits": None}])
def test_a_malformed_result_is_an_error_not_a_crash(change: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="malformed"):
        run_checks({**result(), **change})


def test_refusal_names_each_failed_check() -> None:
    checks = [{"name": "a", "passed": True, "detail": ""}, {"name": "b", "passed": False, "detail": "why"}]
    with pytest.raises(EvidenceError, match=r"refused: b: why$"):
        refuse_failed(checks)
