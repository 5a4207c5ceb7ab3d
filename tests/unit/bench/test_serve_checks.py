"""Results of loads: identities that hold, and that catch a figure that was changed; profiles and ramps."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_serve_load import ask_of, reply_of

from kvik.bench.checks import EvidenceError, run_checks
from kvik.bench.evidence import verify, write
from kvik.bench.serve import measure as measuring
from kvik.bench.serve.arrivals import closed
from kvik.bench.serve.asks import Form
from kvik.bench.serve.figures import Slo, run_figures
from kvik.bench.serve.load import record_of
from kvik.bench.serve.measure import LoadPlan, load_result
from kvik.bench.serve.profiles import PROFILES, judge
from kvik.bench.serve.ramp import Ramp, climb, measure_ramp
from kvik.bench.serve.target import Target
from kvik.errors import ConfigError

SLO = Slo(ttft_ms=200.0, tpot_ms=100.0)


def server_of(tokens: int, *, alone: bool = True) -> dict[str, Any]:
    most = {"running": 2, "waiting": 0, "queued": 0, "kv_utilisation": 0.8, "blocks_used_share": 0.1}
    return {"model": {}, "did": {"generated_tokens": tokens}, "alone": alone, "most": most}


def plan_of() -> LoadPlan:
    arrivals = closed([(8, 4)] * 2)
    return LoadPlan(Target("h", 1), Form("m"), arrivals, {"arrivals": "closed"}, concurrency=2, slo=SLO)


def sample_of() -> dict[str, Any]:
    records = [
        record_of(ask_of(0), 0.0, 0.0, reply_of(0.1, 0.2, 0.3, finish=0.3, tokens=3), 0.0),
        record_of(ask_of(1), 0.0, 0.0, reply_of(0.3, 0.5, finish=0.6, tokens=4), 0.0),
    ]
    figures = run_figures(records, 0.6, SLO)
    client = {"share": 0.1, "is_bottleneck": False, "ceiling_tokens_per_s": 9.0}
    return {"seconds": 0.6, **figures, "client": client, "server": server_of(7), "records": records}


@pytest.fixture
def result() -> dict[str, Any]:
    return load_result(plan_of(), [sample_of()])


def test_a_result_is_complete_and_can_be_verified(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write(result, path)
    names = {check["name"] for check in verify(path)}
    assert {"TTFT + TPOT x (tokens - 1) = E2E", "tokens = sum of usages", "moments are in order"} <= names
    assert all(check["passed"] for check in result["checks"])
    assert result["workload"]["slo"] == {"ttft_ms": 200.0, "tpot_ms": 100.0}
    assert result["samples"][0]["goodput"]["share"] == 0.5


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change to one field, named by its way."""

    def edit(sample: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = sample
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (change("records.0.tpot_us", 90_000.0), "TTFT + TPOT x (tokens - 1) = E2E"),
        (change("records.0.output_tokens", 4), "tokens = sum of usages"),
        (change("records.0.events_us", [100_000, 400_000, 300_000]), "moments are in order"),
        (change("records.0.ttft_us", 90_000), "moments are in order"),
        (change("records.1.output_tokens", 5), "no answer is longer than asked"),
        (change("records.0.id", 1), "every request has one record"),
        (change("ttft_ms.p99", 1.0), "figures follow from the records"),
        (change("goodput.requests_per_s", 10.0), "figures follow from the records"),
        (change("mean_in_flight", 3.0), "no more in flight than clients"),
        (change("server.did.generated_tokens", 9), "the server counts the same tokens"),
    ],
)
def test_a_changed_figure_is_caught(result: dict[str, Any], edit: Callable[[dict[str, Any]], None], name: str) -> None:
    changed = copy.deepcopy(result)
    edit(changed["samples"][0])
    failed = {check["name"] for check in run_checks(changed) if not check["passed"]}
    assert name in failed


def test_a_server_that_others_use_as_well_is_not_counted_against() -> None:
    sample = sample_of() | {"server": server_of(99, alone=False)}
    assert load_result(plan_of(), [sample])["checks"]
    with pytest.raises(EvidenceError, match="the server made 99, clients got 7"):
        load_result(plan_of(), [sample_of() | {"server": server_of(99)}])


def test_a_profile_passes_fails_or_says_that_it_does_not_know() -> None:
    sample = sample_of()
    verdicts = {each["name"]: each["passed"] for each in judge(PROFILES["chat"], sample)}
    assert verdicts == {"ttft_ms p90": False, "tokens_per_s": False, "kv_utilisation": True, "errors": True}
    unknown = judge(PROFILES["batch"], sample | {"server": None, "errors": {"cut": 2}})
    assert {each["name"]: each["passed"] for each in unknown} == {
        "ttft_ms p90": True,
        "tokens_per_s": False,
        "kv_utilisation": None,
        "errors": False,
    }


@pytest.mark.parametrize("limit", [0.7, 3.0, 11.0, 50.0])
def test_a_ramp_finds_the_rate_at_which_it_breaks(limit: float) -> None:
    async def hold(rate: float) -> bool:
        return rate <= limit

    steps = asyncio.run(climb(Ramp(1.0, halvings=4), hold))
    held = [step.rate for step in steps if step.held]
    assert held
    assert max(held) <= limit < 1.2 * max(held) + 0.1
    assert any(not step.held for step in steps)


def test_a_ramp_ends_where_nothing_breaks_or_nothing_holds() -> None:
    async def always(rate: float) -> bool:
        return True

    async def never(rate: float) -> bool:
        return False

    assert len(asyncio.run(climb(Ramp(1.0), always))) == 16
    assert [step.rate for step in asyncio.run(climb(Ramp(8.0), never))] == [8.0, 4.0, 2.0]
    with pytest.raises(ConfigError, match="ramp is 0"):
        Ramp(0.0)


def test_a_ramp_wants_an_slo() -> None:
    plan = LoadPlan(Target("h", 1), Form("m"), closed([(8, 4)]), {})
    with pytest.raises(ConfigError, match="rises until the SLO breaks"):
        asyncio.run(measure_ramp(plan, Ramp(1.0), ((8, 8), (4, 4))))


def test_as_many_connections_as_the_system_lets_us(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(measuring.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(measuring.resource, "setrlimit", lambda which, limits: asked.append(limits))
    for count in (10, 2000, 100_000):
        measuring.allow_connections(count)
    assert asked == [(2064, 4096), (4096, 4096)]
