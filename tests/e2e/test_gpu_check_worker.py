"""tools/gpu_check ends in time whatever a section does, and one that fails takes no other with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_check.__main__ import run_all
from tools.gpu_check.sections import SECTIONS, Section
from tools.gpu_check.table import table
from tools.gpu_check.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def toy(name: str) -> str:
    return f"gpu_check_toys:{name}"


def test_one_process_serves_until_a_section_fails(worker: Worker) -> None:
    first, second = (worker.run(toy("whose"), {"a": {}}, 60) for _ in range(2))
    assert first["before"] == ["a"]
    assert first["pid"] == second["pid"] != os.getpid()
    assert worker.run(toy("raises"), {}, 60)["error"] == "ValueError: told to"
    after = worker.run(toy("whose"), {}, 60)
    assert after["pid"] != first["pid"]
    assert worker.run(toy("dies"), {}, 60)["error"] == "its process died with exit status 7"


def test_a_section_that_hangs_is_ended_at_its_limit(worker: Worker) -> None:
    assert worker.run(toy("hangs"), {}, 0.2)["error"] == "ran past its limit of 0.2 s and was ended"
    assert "error" not in worker.run(toy("whose"), {}, 60)


def test_what_a_section_started_ends_with_its_process(worker: Worker) -> None:
    left = worker.run(toy("leaves_one_behind"), {}, 60)["left"]
    assert Path(f"/proc/{left}").exists()
    worker.close()
    assert gone(left)


def gone(pid: int) -> bool:
    """Whether a process ends, or is but waiting to be buried, within seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
    return False


def test_past_the_budget_none_starts_and_no_limit_goes_beyond_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, limits = [0.0], []

    def run(self: Worker, where: str, results: dict[str, Any], limit_s: float) -> dict[str, Any]:
        limits.append(limit_s)
        now[0] += 150
        return {"seconds": 150.0}

    monkeypatch.setattr(Worker, "run", run)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    target = tmp_path / "out.json"
    results = run_all({name: Section(name, 200) for name in "abcd"}, target, 400, 470)
    assert limits == [200, 200, 170]
    assert results["d"] == {"skipped": "450 s of 400 s were spent"}
    assert json.loads(target.read_text()) == results
    assert "skipped" in table(results)


def test_limits_leave_room_for_what_matters_most() -> None:
    assert all(section.limit_s <= 200 for section in SECTIONS.values())
    for section in SECTIONS.values():
        module, _, function = section.where.partition(":")
        source = Path(__file__).resolve().parents[2] / f"{module.replace('.', '/')}.py"
        assert f"\ndef {function}(" in source.read_text(encoding="utf-8")
