"""What was seen of a load: read from the result of a measured one, or from a server's own statistics.

The two sources fill one record, which advice is given on. This file knows nothing of goals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvik.bench.forecast import Demand
from kvik.errors import ConfigError


@dataclass(frozen=True)
class Observed:
    """A load and what was seen of it. None: not known. Times in milliseconds, 90th percentiles unless said."""

    demand: Demand
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    throughput: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None
    waiting: float = 0.0
    """Requests that waited for a seat at most."""
    blocks_used_share: float | None = None
    preemptions: int = 0
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


def observe(result: Mapping[str, Any]) -> Observed:
    """What the result of `kvik bench serve` shows. Raises ConfigError for a result of another kind."""
    if not str(result.get("kind", "")).startswith("serve"):
        raise ConfigError(f"the result is of the kind {result.get('kind')!r}; expected one of kvik bench serve")
    sample, server = result["samples"][-1], result["samples"][-1]["server"] or {}
    most, model = server.get("most", {}), server.get("model", {})
    good = max(1, sample["succeeded"])
    cached = server.get("did", {}).get("prompt_tokens_cached", 0)
    demand = Demand(
        max(1, round(sample["mean_in_flight"])),
        max(1, round(sample["input_tokens"] / good)),
        max(1, round(sample["tokens"] / good)),
        round(cached / good),
    )
    return Observed(
        demand,
        _of(sample, "ttft_ms", "p90"),
        _of(sample, "tpot_ms", "p90"),
        sample["tokens_per_s"],
        _of(sample, "itl_ms", "p50"),
        _of(sample, "itl_ms", "p99"),
        most.get("waiting", 0) + most.get("queued", 0),
        most.get("blocks_used_share"),
        server.get("did", {}).get("preemptions", 0),
        model.get("max_num_seqs"),
        model.get("max_num_batched_tokens"),
    )


def observe_stats(snapshot: Mapping[str, Any]) -> Observed:
    """What a Kvik server's /stats shows of all its requests since it started; times are bounds of histograms.

    Raises ConfigError if it has answered none.
    """
    engine, model = snapshot["engine"], snapshot["model"]
    histograms = engine["histograms"]
    requests = sum(histograms["e2e"]["counts"])
    if not requests:
        raise ConfigError("the server has answered no request yet; expected some to learn from")
    busy = engine["step_seconds"]
    demand = Demand(
        max(1, round(histograms["e2e"]["total"] / busy)) if busy else 1,
        max(1, round(histograms["prompt_length"]["total"] / requests)),
        max(1, round(histograms["output_length"]["total"] / requests)),
        round(engine["prompt_tokens_cached"] / requests),
    )
    return Observed(
        demand,
        _bound(histograms["ttft"], 0.9),
        _bound(histograms["tpot"], 0.9),
        engine["output_tokens_per_s"],
        _bound(histograms["itl"], 0.5),
        _bound(histograms["itl"], 0.99),
        engine["requests_waiting"] + snapshot["server"]["requests_queued"],
        engine["blocks_used"] / max(1, engine["blocks_total"]),
        engine["preemptions"],
        model["max_num_seqs"],
        model["max_num_batched_tokens"],
    )


def _bound(histogram: Mapping[str, Any], share: float) -> float | None:
    """The bound, in milliseconds, that so large a share of the values does not exceed; None above every bound."""
    total, seen = sum(histogram["counts"]), 0
    for bound, count in zip(histogram["bounds"], histogram["counts"], strict=False):
        seen += count
        if total and seen >= share * total:
            return float(1e3 * bound)
    return None


def _of(sample: Mapping[str, Any], name: str, which: str) -> float | None:
    times = sample[name]
    return None if times is None else float(times[which])
