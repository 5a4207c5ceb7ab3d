"""A ramp: rising rates of arrival until the SLO breaks, then the largest rate that keeps it, found by halving.

A rate keeps the SLO if a given share of the requests that were sent at it are good. Every step is a whole load with
its records; the result is that of the largest rate that held. This file knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from kvik.bench.evidence import Result
from kvik.bench.serve.arrivals import draw_lengths, poisson
from kvik.bench.serve.load import Ended
from kvik.bench.serve.measure import Client, LoadPlan, load_result
from kvik.bench.workload import Range
from kvik.errors import ConfigError, KvikError

MOST_STEPS = 16


@dataclass(frozen=True)
class Ramp:
    """Where to begin, how to rise, and when a rate counts as kept."""

    start: float
    """Requests a second."""
    factor: float = 2.0
    halvings: int = 2
    """Steps between the last rate that held and the first that did not."""
    share: float = 0.9
    """Of the requests, so many must be good."""

    def __post_init__(self) -> None:
        if self.start <= 0:
            raise ConfigError(f"ramp is {self.start:g}; expected a rate above 0")


@dataclass(frozen=True)
class Step:
    """One rate and whether it held."""

    rate: float
    held: bool


async def climb(ramp: Ramp, hold: Callable[[float], Awaitable[bool]]) -> list[Step]:
    """Try rates: rising until one does not hold, then halving the gap. `hold` says whether a rate does."""
    steps: list[Step] = []
    rate, low, high = ramp.start, 0.0, 0.0
    while len(steps) < MOST_STEPS and not high:
        steps.append(Step(rate, await hold(rate)))
        low, high = (rate, 0.0) if steps[-1].held else (low, rate)
        rate *= ramp.factor
    for _ in range(ramp.halvings if high else 0):
        middle = (low + high) / 2
        steps.append(Step(middle, await hold(middle)))
        low, high = (middle, high) if steps[-1].held else (low, middle)
    return steps


async def measure_ramp(
    plan: LoadPlan,
    ramp: Ramp,
    lengths: tuple[Range, Range],
    progress: Callable[[str], None] = lambda line: None,
    ended: Ended | None = None,
) -> Result:
    """Climb with loads as long as the plan's. Raises KvikError if not even the first rate and its halves hold."""
    if not plan.slo.asks:
        raise ConfigError("a ramp rises until the SLO breaks; expected --slo-ttft or --slo-tpot")
    client = Client(plan, ended or (lambda record: None))
    count, seed = len(plan.arrivals), plan.form.seed
    samples: dict[float, dict[str, Any]] = {}

    async def hold(rate: float) -> bool:
        arrivals = poisson(draw_lengths(count, *lengths, seed), rate, seed)
        client.plan = replace(client.plan, arrivals=arrivals, concurrency=None)
        samples[rate] = sample = await client.run(len(samples))
        good = sample["goodput"]["share"]
        progress(f"{rate:.3g} requests/s: {100 * good:.0f} % good, {sample['tokens_per_s']:.0f} tokens/s")
        return bool(good >= ramp.share)

    try:
        await client.prepare()
        steps = await climb(ramp, hold)
    finally:
        client.close()
    return ramp_result(client.plan, ramp, steps, samples)


def ramp_result(plan: LoadPlan, ramp: Ramp, steps: list[Step], samples: dict[float, dict[str, Any]]) -> Result:
    """The evidence of the largest rate that held, with all the others beside it."""
    best = max((step.rate for step in steps if step.held), default=None)
    if best is None:
        tried = ", ".join(f"{step.rate:.3g}" for step in steps)
        raise KvikError(f"no rate kept the SLO; tried {tried} requests/s: begin lower, or ask for less")
    result = load_result(replace(plan, shape={"arrivals": "poisson", "rate": best}), [samples[best]], "serve-ramp")
    result["ramp"] = {
        "share": ramp.share,
        "largest_rate": best,
        "broke": any(not step.held for step in steps),
        "steps": [{"rate": step.rate, "held": step.held, **_short(samples[step.rate])} for step in steps],
    }
    return result


def _short(sample: dict[str, Any]) -> dict[str, Any]:
    names = ("requests_per_s", "tokens_per_s", "ttft_ms", "tpot_ms", "goodput", "errors")
    return {name: sample[name] for name in names}
