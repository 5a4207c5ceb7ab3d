"""Repetition: the order of roofline and sample, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvik.bench.machine import describe, last_level_cache_bytes
from kvik.bench.measure import Repeat, interleaved
from kvik.runners.native.machine import cores


class Lab:
    """Takes samples from a list and writes down what was called in which order."""

    def __init__(self, values: Iterator[float]) -> None:
        self.values = values
        self.calls: list[str] = []
        self.said: list[str] = []

    def take(self) -> dict[str, Any]:
        self.calls.append("sample")
        return {"rate": next(self.values)}

    def probe(self) -> dict[str, Any]:
        self.calls.append("roofline")
        return {"read_bandwidth": float(len(self.calls)), "matrix_peak": {"f32": 1.0}}

    def run(self, repeat: Repeat) -> list[dict[str, Any]]:
        return interleaved(self.take, "rate", repeat, self.said.append, probe=self.probe)


def steady() -> Iterator[float]:
    while True:
        yield 10.0


def wild() -> Iterator[float]:
    while True:
        yield from (1.0, 100.0)


def test_the_roofline_is_measured_before_and_after_every_sample() -> None:
    lab = Lab(steady())
    samples = lab.run(Repeat(warmups=2, least=5, most=20))
    assert lab.calls == ["sample"] * 2 + ["roofline"] + ["sample", "roofline"] * 5
    assert [sample["read_bandwidth"] for sample in samples] == [4.0, 6.0, 8.0, 10.0, 12.0]


def test_it_stops_when_the_median_is_known() -> None:
    assert len(Lab(steady()).run(Repeat(most=20))) == 5


def test_it_stops_at_the_cap_when_the_median_is_not() -> None:
    assert len(Lab(wild()).run(Repeat(most=9))) == 9


def test_a_cap_below_five_is_met_exactly() -> None:
    assert len(Lab(wild()).run(Repeat(least=2, most=2))) == 2


def test_progress_names_warm_up_and_median() -> None:
    lab = Lab(steady())
    lab.run(Repeat())
    assert lab.said[0] == "warm-up 1 of 1"
    assert lab.said[-1] == "5 of at most 20: rate 10.00, median 10.00, known to 0.0 %"


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine["cores"] == cores() >= 1
    assert machine["cpu"]
    assert {"isa", "memory_bytes", "accelerator", "architecture"} <= machine.keys()
    cache = last_level_cache_bytes()
    assert cache is None or cache >= 2**15


@pytest.mark.parametrize("field", ["memory_bytes", "available_memory_bytes"])
def test_memory_is_in_bytes(field: str) -> None:
    amount = describe()[field]
    assert amount is None or amount > 2**26
