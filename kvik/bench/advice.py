"""Advice: what limits a load, which option of Kvik to change, and what that should do.

Rules over what was observed and, where steps were measured, a forecast from what they cost. Each piece of advice says
why it is given, in figures. This file measures nothing and changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvik.bench.forecast import Forecast, forecast, largest_chunk, most_rows
from kvik.bench.observed import Observed
from kvik.bench.step_cost import StepCost

FULL = 0.95
"""A share of blocks from which the cache counts as full."""
UNEVEN = 3.0
"""Gaps between tokens that are so many times the usual one come from prompts in the same step."""
NOISE = 0.03
"""A change with a smaller effect than this is not worth telling."""
LAST = "a smaller model, more cores, or a second replica"
BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4.5}
"""Of a weight, scales included."""


@dataclass(frozen=True)
class Goals:
    """What is wanted; None: nothing in particular."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    throughput: float | None = None
    """Output tokens a second, all requests together."""


@dataclass(frozen=True)
class Settings:
    """Options of the engine that advice can change, as they are; None: not known."""

    weights: str | None = None
    kv_dtype: str | None = None
    prefix_caching: bool | None = None
    chunked_prefill: bool | None = None
    batching: str | None = None


@dataclass(frozen=True)
class Advice:
    """One thing to change."""

    metric: str
    """What falls short: ttft_ms, tpot_ms, tokens_per_s, memory."""
    problem: str
    change: str
    why: str
    effect: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Forecast figures before and after, where steps were measured."""

    @property
    def helps(self) -> bool:
        """Whether the forecast, if there is one, moves what falls short by more than NOISE."""
        if self.metric not in self.effect:
            return True
        before, after = self.effect[self.metric]
        return after > before * (1 + NOISE) if self.metric == "tokens_per_s" else after < before * (1 - NOISE)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def advise(
    seen: Observed, goals: Goals, cost: StepCost | None = None, settings: Settings | None = None
) -> list[Advice]:
    """What to change for these goals, the most direct change first; nothing where nothing falls short."""
    adviser = _Adviser(seen, goals, cost, settings or Settings())
    found = [*adviser.memory(), *adviser.ttft(), *adviser.tpot(), *adviser.throughput()]
    helpful = {(each.problem, each.change): each for each in found if each.helps}
    left = {each.problem: each for each in found if not any(problem == each.problem for problem, _ in helpful)}
    last = [
        Advice(each.metric, each.problem, LAST, f"no option is forecast to do much: {each.why}")
        for each in left.values()
    ]
    return [*helpful.values(), *last]


class Problem(NamedTuple):
    """What falls short, and by how much."""

    metric: str
    said: str


class _Adviser:
    """The rules, over one load."""

    def __init__(self, seen: Observed, goals: Goals, cost: StepCost | None, settings: Settings) -> None:
        self.seen, self.goals, self.cost, self.settings = seen, goals, cost, settings
        self.seqs, self.budget = seen.max_num_seqs or 256, seen.max_num_batched_tokens or 2048
        self.now = self._forecast()

    def memory(self) -> Iterator[Advice]:
        """Too little memory: requests give up their blocks, or wait for some."""
        seen, share = self.seen, self.seen.blocks_used_share or 0.0
        if not seen.preemptions and not (share >= FULL and seen.waiting):
            return
        why = f"{seen.preemptions} preemptions, {100 * share:.0f} % of the KV blocks used, {seen.waiting:.0f} waiting"
        problem = Problem("memory", "too little memory")
        yield Advice(*problem, "raise --kv-cache-memory, or lower --max-model-len", f"{why}: work is done twice")
        if self.settings.kv_dtype != "int8":
            yield Advice(*problem, "--kv-dtype int8", f"{why}: the same memory holds about twice the tokens")

    def ttft(self) -> Iterator[Advice]:
        """Too slow a first token."""
        seen, goal = self.seen, self.goals.ttft_ms
        measured = self._figure(seen.ttft_ms, "ttft_ms")
        if goal is None or measured is None or measured <= goal:
            return
        said = f"the first token takes {measured:.0f} ms, {goal:g} are wanted"
        problem = Problem("ttft_ms", said)
        if seen.demand.concurrency > self.seqs or (seen.waiting and seen.demand.concurrency >= self.seqs):
            why = f"{seen.waiting:.0f} requests waited for one of {self.seqs} seats"
            yield self._with(problem, f"--max-num-seqs {self._more_seats()}", why, seqs=self._more_seats())
        yield from self._prompt(problem, goal)

    def _prompt(self, problem: Problem, goal: float) -> Iterator[Advice]:
        demand, cost = self.seen.demand, self.cost
        if self.settings.prefix_caching is False:
            yield Advice(*problem, "--prefix-caching", "prompts that begin alike are computed once")
        if self.settings.chunked_prefill is False:
            yield Advice(*problem, "--chunked-prefill", "a prompt need not wait until a step has room for all of it")
        if self.settings.batching == "static":
            yield Advice(*problem, "--batching continuous", "a request need not wait until all others have ended")
        if cost is None:
            why = f"prompts of {demand.input_len} tokens are computed beside {demand.concurrency - 1} other requests"
            yield Advice(*problem, "a lower rate, a second replica, or shorter prompts that begin alike", why)
            return
        alone = 1e3 * cost.prefill(max(1, demand.input_len - demand.cached), demand.cached)
        if alone > goal:
            why = f"a prompt of {demand.input_len} tokens alone takes {alone:.0f} ms of computing"
            yield from self._lighter(problem, why)
            yield Advice(*problem, "shorter prompts, or prompts that begin alike (--prefix-caching)", why)
        else:
            why = f"a prompt alone takes {alone:.0f} ms; the rest is waiting for other requests"
            fewer = max(1, demand.concurrency // 2)
            yield self._with(problem, f"at most {fewer} requests at once, or a second replica", why, concurrency=fewer)

    def tpot(self) -> Iterator[Advice]:
        """Too slow tokens."""
        seen, goal = self.seen, self.goals.tpot_ms
        measured = self._figure(seen.tpot_ms, "tpot_ms")
        if goal is None or measured is None or measured <= goal:
            return
        problem = Problem("tpot_ms", f"a token takes {measured:.1f} ms, {goal:g} are wanted")
        if seen.itl_p50_ms and seen.itl_p99_ms and seen.itl_p99_ms > UNEVEN * seen.itl_p50_ms:
            yield self._smaller_steps(problem, goal)
        if self.cost is None:
            why = f"{seen.demand.concurrency} requests share every step"
            yield Advice(*problem, f"a lower --max-num-seqs than {self.seqs}, or lighter --weights", why)
            return
        context = seen.demand.input_len + seen.demand.output_len / 2
        rows = most_rows(self.cost, context, goal, self.seqs)
        alone = 1e3 * self.cost.decode(1, context)
        if rows == 0:
            yield from self._lighter(problem, f"a step of one request alone takes {alone:.1f} ms")
        elif rows < seen.demand.concurrency:
            why = f"steps of {rows} requests take at most {goal:g} ms; one alone takes {alone:.1f} ms"
            yield self._with(problem, f"--max-num-seqs {rows}", why, seqs=rows)

    def _smaller_steps(self, problem: Problem, goal: float) -> Advice:
        seen = self.seen
        why = (
            f"gaps between tokens are {seen.itl_p50_ms:.1f} ms and at times {seen.itl_p99_ms:.1f}: prompts in the step"
        )
        context = seen.demand.input_len + seen.demand.output_len / 2
        chunk = largest_chunk(self.cost, seen.demand.concurrency, context, goal) if self.cost else self.budget // 4
        budget = max(32, chunk + seen.demand.concurrency)
        if budget >= self.budget:
            return Advice(*problem, "--schedule mixed with --chunked-prefill", why)
        return self._with(problem, f"--max-num-batched-tokens {budget}", why, budget=budget)

    def throughput(self) -> Iterator[Advice]:
        """Too little throughput."""
        seen, goal = self.seen, self.goals.throughput
        measured = self._figure(seen.throughput, "tokens_per_s")
        if goal is None or measured is None or measured >= goal:
            return
        problem = Problem("tokens_per_s", f"{measured:.0f} tokens/s, {goal:g} are wanted")
        at_once = seen.demand.concurrency
        if at_once < self.seqs:
            more = min(self.seqs, 2 * at_once)
            why = f"{at_once} requests at once on average, where {self.seqs} may share a step: the load is small"
            yield self._with(problem, f"more requests at once, such as {more}", why, concurrency=more)
        else:
            why = f"all {self.seqs} seats are taken"
            more = self._more_seats()
            yield self._with(problem, f"--max-num-seqs {more}", why, seqs=more, concurrency=max(more, at_once))
        yield from self._lighter(problem, "a step reads every weight once, whatever the number of requests")

    def _lighter(self, problem: Problem, why: str) -> Iterator[Advice]:
        """Weights that take less to read."""
        held = self.settings.weights
        lighter = {"int8": "int4", "int4": None}.get(held or "", "int8")
        if lighter is None:
            yield Advice(*problem, LAST, why)
            return
        if self.cost is None or held not in BITS:
            yield Advice(*problem, f"--weights {lighter}", why)
            return
        share = BITS[lighter] / BITS[held]
        cost = dataclasses.replace(self.cost, fixed=self.cost.fixed * share)
        said = f"{why}; {lighter} weights take {100 * share:.0f} % of {held}, at best that much of a step's fixed cost"
        yield self._with(problem, f"--weights {lighter}", said, cost=cost)

    def _figure(self, observed: float | None, name: str) -> float | None:
        """What was observed; where nothing was, what is forecast."""
        if observed is not None or self.now is None:
            return observed
        return float(getattr(self.now, name))

    def _more_seats(self) -> int:
        return max(2 * self.seqs, self.seen.demand.concurrency)

    def _with(
        self,
        problem: Problem,
        change: str,
        why: str,
        *,
        seqs: int | None = None,
        budget: int | None = None,
        concurrency: int | None = None,
        cost: StepCost | None = None,
    ) -> Advice:
        """Advice with its forecast effect."""
        after = self._forecast(seqs, budget, concurrency, cost)
        if self.now is None or after is None:
            return Advice(*problem, change, why)
        return Advice(*problem, change, why, effects(self.now, after))

    def _forecast(
        self,
        seqs: int | None = None,
        budget: int | None = None,
        concurrency: int | None = None,
        cost: StepCost | None = None,
    ) -> Forecast | None:
        used = cost or self.cost
        if used is None:
            return None
        demand = dataclasses.replace(self.seen.demand, concurrency=concurrency or self.seen.demand.concurrency)
        return forecast(used, demand, seqs or self.seqs, budget or self.budget)


def effects(before: Forecast, after: Forecast) -> dict[str, list[float]]:
    """Forecast figures before and after a change."""
    names: list[tuple[str, Callable[[Forecast], float]]] = [
        ("ttft_ms", lambda f: f.ttft_ms),
        ("tpot_ms", lambda f: f.tpot_ms),
        ("tokens_per_s", lambda f: f.tokens_per_s),
    ]
    return {name: [figure(before), figure(after)] for name, figure in names}
