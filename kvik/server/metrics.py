"""What `/metrics` says: the engine's counters and the server's own, in Prometheus' text format.

Names and meanings are those that the field knows from vLLM, under the prefix `kvik_`, wherever the meanings agree;
docs/metrics.md has the table. Every label takes its values from a list that is fixed here, so nothing that a client
sends can make a new time series. This file measures nothing of the engine: it reads `EngineStats.as_dict()`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

import kvik
from kvik.engine.metrics import Histogram
from kvik.server.meter import CALLER_FULL, CLIENT_GONE, DRAINING, GUARD, NOT_READY, SERVER_FULL, Meter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
PAGE = "/page"
"""Stands for every file of the page."""
ROUTES = (
    "/",
    PAGE,
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{id:path}",
    "/tokenize",
    "/detokenize",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/stats",
    "/events",
)
GENERATION = ("/v1/chat/completions", "/v1/completions")
"""Routes whose replies are answers of the model."""
REASONS = (SERVER_FULL, CALLER_FULL, DRAINING, NOT_READY, GUARD)
_STATUSES = frozenset(status.value for status in HTTPStatus) | {CLIENT_GONE}

_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Prompt tokens taken into the KV cache, each once, found there or computed."),
    ("generation_tokens", "generated_tokens", "Tokens generated."),
    ("prefix_cache_queries", "prompt_tokens", "Prompt tokens that were looked for in the prefix cache."),
    ("prefix_cache_hits", "prompt_tokens_cached", "Prompt tokens found in the prefix cache and not computed."),
    ("num_preemptions", "preemptions", "Times that a running request gave up its KV blocks and waited again."),
    ("recomputed_tokens", "recomputed_tokens", "Tokens computed again after a preemption."),
    ("requests_accepted", "requests_accepted", "Requests that the engine accepted."),
    ("requests_refused", "requests_refused", "Requests that the engine refused for a bad value or their length."),
    ("engine_steps", "steps", "Steps of the engine."),
    ("engine_steps_isolated", "steps_isolated", "Steps that raised and were run again row by row."),
    ("numerical_errors", "numerical_errors", "Choices ended because the model produced NaN or infinity."),
)
_HISTOGRAMS = (
    ("inter_token_latency_seconds", "itl", "From one token of a choice to its next."),
    ("request_time_per_output_token_seconds", "tpot", "Mean time per token of a request after its first."),
    ("request_queue_time_seconds", "queue", "From a request's arrival in the engine to the start of its first step."),
    ("engine_time_to_first_token_seconds", "ttft", "From a request's arrival in the engine to its first token."),
    ("engine_e2e_latency_seconds", "e2e", "From a request's arrival in the engine to its end."),
    ("request_prompt_tokens", "prompt_length", "Prompt tokens of a request that has ended."),
    ("request_generation_tokens", "output_length", "Tokens generated for a request that has ended, over all choices."),
    ("iteration_tokens_total", "step_size", "Tokens computed in a step."),
    ("step_time_seconds", "step_time", "Time of a step."),
)


class EngineHealth(Protocol):
    """How an engine is, at one moment."""

    @property
    def state(self) -> str:
        """`ready`, or something else."""

    @property
    def progress_age_s(self) -> float:
        """Seconds since its last sign of life."""

    @property
    def restarts(self) -> int:
        """Engines that were started after the first."""


class ServerMetrics(Meter):
    """Counts what happens to HTTP requests, and writes everything down when asked. For one event loop.

    `routes` are the values that the label `route` may take; what stands in none of them counts as `other`.
    """

    def __init__(self, routes: Iterable[str] = ROUTES) -> None:
        self._durations = {route: Histogram() for route in (*routes, OTHER)}
        self._admission, self._ttft, self._e2e = Histogram(), Histogram(), Histogram()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._rejected: Counter[str] = Counter(dict.fromkeys((*REASONS, OTHER), 0))
        self._in_progress = self._cut = self._gone = 0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def request_started(self, route: str) -> None:
        """A request has come. Every call is followed by one of `request_ended`."""
        self._in_progress += 1

    def request_ended(self, route: str, status: int, duration: float) -> None:
        """Its reply is complete or given up, after so many seconds."""
        route = PAGE if route.startswith(f"{PAGE}/") else route if route in self._durations else OTHER
        self._in_progress -= 1
        self._requests[route, str(status) if status in _STATUSES else OTHER] += 1
        self._durations[route].add(duration)
        if route in GENERATION and status == HTTPStatus.OK:
            self._e2e.add(duration)

    def queued(self, duration: float) -> None:
        """A request's turn to enter the engine has come after so many seconds."""
        self._admission.add(duration)

    def first_token(self, duration: float) -> None:
        """The first token of a request, so many seconds after it came."""
        self._ttft.add(duration)

    def rejected(self, reason: str) -> None:
        """A request was turned away; `reason` is one of REASONS, or counts as `other`."""
        self._rejected[reason if reason in self._rejected else OTHER] += 1

    def refused(self, status: int) -> None:
        """The guard of a connection said so and closed it."""
        self._rejected[GUARD] += 1

    def cut(self) -> None:
        """A client that did not read was cut."""
        self._cut += 1

    def gone(self) -> None:
        """A client left before its answer was complete."""
        self._gone += 1

    def render(self, stats: Mapping[str, Any] | None, health: EngineHealth, *, queued: int = 0) -> bytes:
        """The whole page. `stats` is None while there is no engine to ask: its families are then left out, not zero.
        `queued` requests wait in front of the engine.
        """
        return generate_latest(self._registry) + generate_latest(_Snapshot(self._families(stats, health, queued)))

    def _families(self, stats: Mapping[str, Any] | None, health: EngineHealth, queued: int) -> Iterator[Metric]:
        yield _info()
        yield from _health(health)
        yield from self._http()
        yield from self._latencies()
        if stats is not None:
            yield from _engine_gauges(stats, queued)
            yield from _engine_counters(stats)
            for name, field, text in _HISTOGRAMS:
                family = HistogramMetricFamily(f"kvik_{name}", text, labels=())
                yield _with(family, (), stats["histograms"][field])

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("kvik_http_requests", "Requests answered.", labels=("route", "status"))
        for (route, status), count in sorted(self._requests.items()):
            requests.add_metric((route, status), count)
        yield requests
        durations = HistogramMetricFamily(
            "kvik_http_request_duration_seconds", "From a request's arrival to the end of its reply.", labels=("route",)
        )
        for route, histogram in self._durations.items():
            if histogram.count:
                _with(durations, (route,), histogram.as_dict())
        yield durations
        rejected = CounterMetricFamily("kvik_http_requests_rejected", "Requests turned away.", labels=("reason",))
        for reason, count in self._rejected.items():
            rejected.add_metric((reason,), count)
        yield rejected
        yield GaugeMetricFamily("kvik_http_requests_in_progress", "Requests being answered.", self._in_progress)
        yield CounterMetricFamily("kvik_http_connections_cut", "Clients cut because they did not read.", self._cut)
        yield CounterMetricFamily("kvik_http_clients_gone", "Clients that left before the answer's end.", self._gone)

    def _latencies(self) -> Iterator[Metric]:
        """As clients see them: from the arrival of their request."""
        for name, histogram, text in (
            ("request_admission_time_seconds", self._admission, "From a request's arrival to its turn for the engine."),
            ("time_to_first_token_seconds", self._ttft, "From a request's arrival to its first token."),
            ("e2e_request_latency_seconds", self._e2e, "From a request's arrival to the end of its whole answer."),
        ):
            yield _with(HistogramMetricFamily(f"kvik_{name}", text, labels=()), (), histogram.as_dict())


class _Snapshot(CollectorRegistry):
    """Families that are made already, as a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _info() -> Metric:
    family = GaugeMetricFamily("kvik_build_info", "Always 1; the label says which version runs.", labels=("version",))
    family.add_metric((kvik.__version__,), 1)
    return family


def _health(health: EngineHealth) -> Iterator[Metric]:
    yield GaugeMetricFamily("kvik_ready", "1 if the engine takes requests.", int(health.state == "ready"))
    yield GaugeMetricFamily(
        "kvik_progress_age_seconds", "Since the engine's last sign of life.", max(0.0, health.progress_age_s)
    )
    yield CounterMetricFamily("kvik_engine_restarts", "Engines started after the first.", health.restarts)


def _engine_gauges(stats: Mapping[str, Any], queued: int) -> Iterator[Metric]:
    waiting = stats["requests_waiting"] + queued
    yield GaugeMetricFamily(
        "kvik_num_requests_running", "Requests with a seat in the batch.", stats["requests_running"]
    )
    yield GaugeMetricFamily("kvik_num_requests_waiting", "Requests that wait, here or in the engine.", waiting)
    usage = stats["blocks_used"] / stats["blocks_total"]
    yield GaugeMetricFamily("kvik_kv_cache_usage_perc", "Share of KV blocks held by requests; 1 is all.", usage)
    blocks = GaugeMetricFamily(
        "kvik_kv_cache_blocks", "KV blocks: held, kept for the prefix cache, free.", labels=("state",)
    )
    for state in ("used", "cached", "free"):
        blocks.add_metric((state,), stats[f"blocks_{state}"])
    yield blocks
    memory = GaugeMetricFamily("kvik_memory_bytes", "Memory that the runner holds.", labels=("component",))
    for component, count in stats["memory_bytes"].items():
        memory.add_metric((component,), count)
    yield memory


def _engine_counters(stats: Mapping[str, Any]) -> Iterator[Metric]:
    for name, field, text in _COUNTERS:
        yield CounterMetricFamily(f"kvik_{name}", text, stats[field])
    ended = CounterMetricFamily(
        "kvik_request_success", "Requests ended, however they did.", labels=("finished_reason",)
    )
    for reason, count in stats["requests_ended"].items():
        ended.add_metric((reason,), count)
    yield ended
    yield CounterMetricFamily("kvik_engine_step_seconds", "Time inside steps.", stats["step_seconds"])


def _with(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Mapping[str, Any]) -> Metric:
    """A family with one more histogram, as `Histogram.as_dict()` gives it; Prometheus counts cumulatively."""
    bounds = [*(repr(float(bound)) for bound in histogram["bounds"]), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram["counts"]), strict=True)), histogram["total"])
    return family
