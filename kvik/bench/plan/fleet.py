"""How many replicas a load needs: simulated with one, two, .. until the SLO is kept.

A cost model from a short run on this machine stands for every replica. This file knows nothing of how a simulation
works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.bench.plan.simulate import Site, simulate
from kvik.bench.serve.arrivals import Arrival
from kvik.bench.serve.figures import Slo, run_figures
from kvik.errors import ConfigError


@dataclass(frozen=True)
class Wish:
    """What a service is to keep."""

    slo: Slo
    share: float = 0.9
    """Of the requests, so many must be good."""
    most_replicas: int = 8

    def __post_init__(self) -> None:
        if not self.slo.asks:
            raise ConfigError("a plan looks for what keeps the SLO; expected --slo-ttft or --slo-tpot")


def plan_fleet(
    site: Site, arrivals: Sequence[Arrival], wish: Wish, progress: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """One row for each number of replicas that was tried, the last of which keeps the SLO if any does."""
    rows: list[dict[str, Any]] = []
    for replicas in range(1, wish.most_replicas + 1):
        rows.append(try_fleet(site, arrivals, wish, replicas))
        progress(f"{replicas} replicas: {100 * rows[-1]['goodput']['share']:.0f} % good")
        if rows[-1]["held"]:
            break
    return rows


def try_fleet(site: Site, arrivals: Sequence[Arrival], wish: Wish, replicas: int) -> dict[str, Any]:
    """The figures of so many replicas."""
    played = simulate(site, arrivals, replicas)
    figures = run_figures(played.records, played.seconds, wish.slo)
    shown = ("succeeded", "errors", "tokens_per_s", "requests_per_s", "ttft_ms", "tpot_ms", "e2e_ms", "goodput")
    return {
        "replicas": replicas,
        "held": figures["goodput"]["share"] >= wish.share,
        **{name: figures[name] for name in shown},
        "steps": played.steps,
        "preemptions": played.preemptions,
        "busy_share": played.busy_share,
    }
