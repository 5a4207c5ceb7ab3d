"""Plans on paper: a simulation takes as long as the engine itself would, and finds how many replicas are enough."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kvik.bench.plan.fleet import Wish, plan_fleet
from kvik.bench.plan.simulate import TOO_LONG, Site, simulate
from kvik.bench.serve.arrivals import Arrival, draw_lengths, poisson
from kvik.bench.serve.figures import Slo
from kvik.bench.step_cost import StepCost
from kvik.checkpoint.fake import FakeCheckpoint
from kvik.cli.main import run
from kvik.config import EngineConfig, SchedulerOptions
from kvik.engine.engine import Engine
from kvik.errors import ConfigError
from kvik.request import SamplingParams
from kvik.runners.fake import FakeRunner

COST = StepCost(fixed=2e-3, per_token=2e-4, per_kv=0.0, per_row=5e-4)
MODEL = "fake:step_ms=2,token_us=200,row_us=500"
"""A model of the same cost."""


def site(blocks: int = 64, **options: int) -> Site:
    return Site(SchedulerOptions(**options), blocks, 32, 1024, COST)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def engine_times(lengths: list[tuple[int, int]], seats: int, budget: int) -> list[tuple[float, float]]:
    """TTFT and E2E of requests that come at once to a real engine whose model takes the time it is set to."""
    config = EngineConfig.from_options(
        model=MODEL, max_num_seqs=seats, max_num_batched_tokens=budget, max_model_len=1024, prefix_caching=False
    )
    checkpoint, clock = FakeCheckpoint(MODEL), Clock()
    runner = FakeRunner(clock=clock.read, sleep=clock.sleep)
    runner.load(checkpoint)
    engine = Engine(config, checkpoint, runner, None, clock=clock.read)
    answers = []
    for number, (tokens_in, tokens_out) in enumerate(lengths):
        params = SamplingParams(temperature=0.0, max_tokens=tokens_out, ignore_eos=True)
        answers.append(engine.add([number] * tokens_in, params, request_id=str(number)))
    while engine.has_unfinished():
        engine.step()
    times = [(answer.times.ttft or 0.0, answer.times.e2e or 0.0) for answer in answers]
    engine.close()
    return times


@pytest.mark.parametrize(("seats", "budget"), [(256, 2048), (3, 2048), (8, 64), (1, 16)])
def test_a_simulation_takes_as_long_as_the_engine(seats: int, budget: int) -> None:
    lengths = draw_lengths(12, (5, 200), (1, 30), 4)
    expected = engine_times(lengths, seats, budget)
    arrivals = [Arrival(None, *each) for each in lengths]
    played = simulate(site(2048, max_num_seqs=seats, max_num_batched_tokens=budget), arrivals, 1)
    for record, (ttft, e2e) in zip(played.records, expected, strict=True):
        assert record["ttft_us"] == pytest.approx(1e6 * ttft, abs=2)
        assert record["e2e_us"] == pytest.approx(1e6 * e2e, abs=2)


def test_a_request_that_comes_within_a_step_waits_for_its_end() -> None:
    arrivals = [Arrival(0.0, 100, 2), Arrival(0.010, 10, 1), Arrival(5.0, 10, 1)]
    played = simulate(site(), arrivals, 1)
    first, second, third = played.records
    assert first["ttft_us"] == 22_500, "2 ms, 100 tokens of 0.2 ms, a row of 0.5 ms"
    assert second["ttft_us"] == 12_500 + 2_000 + 11 * 200 + 2 * 500, "then a step together with the first one's decode"
    assert third["ttft_us"] == 4_500, "an idle replica starts at once"
    assert played.steps == 3
    assert played.seconds == pytest.approx(5.0045)
    assert played.busy_share < 0.01


def test_replicas_share_the_load_and_small_memory_shows() -> None:
    arrivals = poisson(draw_lengths(60, (50, 150), (10, 40), 1), 60.0, 1)
    one, four = (simulate(site(512), arrivals, replicas) for replicas in (1, 4))
    assert max(r["e2e_us"] for r in four.records) < max(r["e2e_us"] for r in one.records)
    assert one.preemptions == 0
    tight = simulate(site(10), arrivals, 1)
    assert tight.preemptions > 0
    assert all("error" not in record for record in tight.records)


def test_what_can_never_run_is_an_error_of_its_own() -> None:
    records = simulate(site(blocks=4), [Arrival(0.0, 10, 5), Arrival(0.1, 2000, 5)], 1).records
    assert [record.get("error") for record in records] == [None, TOO_LONG]


def test_a_plan_ends_with_the_first_number_that_is_enough() -> None:
    arrivals = poisson(draw_lengths(80, (50, 150), (10, 40), 1), 40.0, 1)
    wish = Wish(Slo(ttft_ms=60.0), share=0.9, most_replicas=10)
    said: list[str] = []
    rows = plan_fleet(site(512), arrivals, wish, said.append)
    assert [row["held"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert len(rows) == len(said) > 1
    assert rows[-1]["goodput"]["share"] >= 0.9 > rows[-2]["goodput"]["share"]
    hopeless = plan_fleet(site(512), arrivals, dataclasses.replace(wish, slo=Slo(ttft_ms=1.0), most_replicas=2))
    assert [row["held"] for row in hopeless] == [False, False]
    with pytest.raises(ConfigError, match="looks for what keeps the SLO"):
        Wish(Slo())


def test_the_command_plans_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["plan", "--model", "fake:step_ms=1,max_model_len=256", "--num-prompts", "20", "--slo-ttft", "60000"]
    assert run([*args, "--rate", "50", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["held"] for row in report["replicas"]] == [True]
    assert report["workload"] == {"arrivals": "poisson", "rate": 50.0, "requests": 20}
    assert run([*args, "--rate", "50"]) == 0
    assert "replicas that keep the SLO for 90 % of the requests (simulated): 1" in capsys.readouterr().out
    assert run(args) == 2
    assert "no load is described" in capsys.readouterr().err
