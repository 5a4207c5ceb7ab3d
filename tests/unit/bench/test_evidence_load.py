"""Other load on the machine: cores' worth of each from two readings of the kernel's counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvik.bench import load
from kvik.bench.load import Moment, between


def test_cores_are_time_over_wall_time() -> None:
    did = between(Moment(10.0, 1.0, 100.0, 50.0, 5.0), Moment(12.0, 3.0, 103.0, 50.5, 5.5))
    assert did == {"seconds": 2.0, "own_cores": 1.0, "other_cores": 0.5, "idle_cores": 0.25, "stolen_cores": 0.25}


def test_ticks_do_not_make_others_negative() -> None:
    assert between(Moment(0.0, 0.0, 0.0, 0.0, 0.0), Moment(0.1, 0.1, 0.09, 0.0, 0.0))["other_cores"] == 0.0


def test_a_machine_that_does_not_say_is_recorded_as_such(tmp_path: Path) -> None:
    moment = load.now(tmp_path / "nothing")
    assert moment.busy is None
    did = between(moment, load.now(tmp_path / "nothing"))
    assert did["other_cores"] is None
    assert did["own_cores"] >= 0


def test_columns_of_the_kernels_file(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 300 4000 50 6 7 80 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    moment = load.now(tmp_path / "stat")
    assert (moment.busy, moment.idle, moment.stolen) == pytest.approx((4.33, 40.5, 0.8))
