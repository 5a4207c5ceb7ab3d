"""What /metrics says: it parses, its numbers are the engine's, its identities hold, and its series stay few."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fakes import FakeClock, FakeRunner, fake_engine
from prometheus_client.parser import text_string_to_metric_families

import kvik
from kvik.request import SamplingParams
from kvik.server.app import ROUTES as TABLE
from kvik.server.metrics import GENERATION, REASONS, ROUTES, ServerMetrics
from kvik.server.page import routes

WELL = SimpleNamespace(state="ready", progress_age_s=0.25, restarts=0)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(metrics: ServerMetrics, stats: dict[str, Any] | None = None, health: Any = WELL, queued: int = 0) -> Samples:
    """Every sample by name and labels; each series stands there once."""
    text = metrics.render(stats, health, queued=queued).decode()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            assert (sample.name, frozenset(sample.labels.items())) not in samples
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def buckets(samples: Samples, name: str, **labels: str) -> list[float]:
    """Cumulative counts in the order of their bounds."""
    found = [
        (float(dict(marks)["le"]), count)
        for (series, marks), count in samples.items()
        if series == f"{name}_bucket" and set(labels.items()) <= marks
    ]
    return [count for _, count in sorted(found)]


def worked_engine() -> dict[str, Any]:
    """The stats of an engine on which three requests ended, one was refused and one still waits."""
    clock = FakeClock()

    def second(plan: object) -> None:
        clock.now += 1

    engine = fake_engine(FakeRunner(hook=second), clock=clock)
    for name in "abc":
        engine.add([*range(100)], SamplingParams(max_tokens=4, ignore_eos=True), request_id=name)
        while engine.has_unfinished():
            engine.step()
    try:
        engine.add([], SamplingParams(), request_id="empty")
    except ValueError:
        engine.add([1], SamplingParams(), request_id="waiting")
    return engine.stats().as_dict()


def test_the_engine_s_numbers_stand_under_the_names_of_the_field() -> None:
    samples = read(ServerMetrics(), worked_engine())
    assert value(samples, "kvik_prompt_tokens_total") == 300
    assert value(samples, "kvik_generation_tokens_total") == 12
    assert value(samples, "kvik_prefix_cache_queries_total") == 300
    assert value(samples, "kvik_prefix_cache_hits_total") == 192
    assert value(samples, "kvik_num_requests_running") == 0
    assert value(samples, "kvik_num_requests_waiting") == 1
    assert value(samples, "kvik_num_preemptions_total") == 0
    assert value(samples, "kvik_request_success_total", finished_reason="length") == 3
    assert value(samples, "kvik_requests_refused_total") == 1
    assert value(samples, "kvik_request_queue_time_seconds_count") == 3
    assert value(samples, "kvik_inter_token_latency_seconds_count") == 9
    assert value(samples, "kvik_inter_token_latency_seconds_sum") == 9
    assert value(samples, "kvik_request_time_per_output_token_seconds_sum") == 3
    assert value(samples, "kvik_request_prompt_tokens_sum") == 300
    assert value(samples, "kvik_request_generation_tokens_sum") == 12
    assert value(samples, "kvik_iteration_tokens_total_sum") == 100 + 4 + 4 + 9


def test_the_identities_hold_in_what_is_written() -> None:
    samples = read(ServerMetrics(), worked_engine())
    blocks = [value(samples, "kvik_kv_cache_blocks", state=state) for state in ("used", "cached", "free")]
    assert value(samples, "kvik_kv_cache_usage_perc") == blocks[0] / sum(blocks)
    ended = sum(count for (name, _), count in samples.items() if name == "kvik_request_success_total")
    unfinished = value(samples, "kvik_num_requests_waiting") + value(samples, "kvik_num_requests_running")
    assert value(samples, "kvik_requests_accepted_total") == ended + unfinished
    for name in ("engine_e2e_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
        assert value(samples, f"kvik_{name}_count") == ended
    assert value(samples, "kvik_prefix_cache_hits_total") <= value(samples, "kvik_prefix_cache_queries_total")
    tokens, gaps = value(samples, "kvik_generation_tokens_total"), "kvik_inter_token_latency_seconds_count"
    assert tokens == value(samples, gaps) + value(samples, "kvik_engine_time_to_first_token_seconds_count")


def test_every_histogram_is_cumulative_and_ends_with_its_count() -> None:
    metrics = ServerMetrics()
    metrics.request_started("/v1/models")
    metrics.request_ended("/v1/models", 200, 0.3)
    samples = read(metrics, worked_engine())
    names = {name.removesuffix("_bucket") for name, _ in samples if name.endswith("_bucket")}
    assert len(names) == 13
    for name in names:
        labels = {"route": "/v1/models"} if name == "kvik_http_request_duration_seconds" else {}
        counts = buckets(samples, name, **labels)
        assert counts == sorted(counts)
        assert counts[-1] == value(samples, f"{name}_count", **labels)
        bounds = {dict(marks)["le"] for series, marks in samples if series == f"{name}_bucket"}
        assert math.inf in map(float, bounds)


def test_clients_latencies_are_those_from_the_arrival_of_the_request() -> None:
    metrics = ServerMetrics()
    for route, status in ((GENERATION[0], 200), (GENERATION[0], 503), ("/health", 200)):
        metrics.request_started(route)
        metrics.queued(0.5)
        metrics.first_token(0.75)
        metrics.request_ended(route, status, 2.0)
    samples = read(metrics)
    assert value(samples, "kvik_time_to_first_token_seconds_sum") == 3 * 0.75
    assert value(samples, "kvik_request_admission_time_seconds_sum") == 3 * 0.5
    assert value(samples, "kvik_e2e_request_latency_seconds_count") == 1, "only answers of the model that came whole"


def test_requests_are_counted_by_route_and_status_and_while_they_last() -> None:
    metrics = ServerMetrics()
    for _ in range(3):
        metrics.request_started("/v1/models")
    metrics.request_ended("/v1/models", 200, 0.01)
    metrics.request_ended("/v1/models", 401, 0.01)
    samples = read(metrics)
    assert value(samples, "kvik_http_requests_total", route="/v1/models", status="200") == 1
    assert value(samples, "kvik_http_requests_total", route="/v1/models", status="401") == 1
    assert value(samples, "kvik_http_requests_in_progress") == 1
    assert value(samples, "kvik_http_request_duration_seconds_count", route="/v1/models") == 2


def test_every_route_of_a_server_has_a_label_and_the_files_of_the_page_share_one() -> None:
    metrics = ServerMetrics()
    for entry in (*TABLE, *routes()):
        metrics.request_ended(entry.path, 200, 0.1)
    named = {dict(labels)["route"] for name, labels in read(metrics) if name == "kvik_http_requests_total"}
    assert named == {entry.path for entry in TABLE} | {"/", "/page"}


def test_what_was_turned_away_is_counted_by_reason_from_the_start() -> None:
    metrics = ServerMetrics()
    before = read(metrics)
    assert {value(before, "kvik_http_requests_rejected_total", reason=reason) for reason in REASONS} == {0}
    metrics.rejected("full")
    metrics.refused(431)
    metrics.cut()
    metrics.gone()
    samples = read(metrics)
    assert value(samples, "kvik_http_requests_rejected_total", reason="full") == 1
    assert value(samples, "kvik_http_requests_rejected_total", reason="guard") == 1
    assert value(samples, "kvik_http_connections_cut_total") == 1
    assert value(samples, "kvik_http_clients_gone_total") == 1


def test_nothing_that_a_client_sends_makes_a_series() -> None:
    metrics = ServerMetrics()

    def labels() -> set[Any]:
        return {key for key in read(metrics) if key[0].startswith("kvik_")}

    for route in (*ROUTES, "unknown"):
        metrics.request_started(route)
        metrics.request_ended(route, 200, 0.1)
        metrics.request_ended(route, 999, 0.1)
    metrics.rejected("unknown")
    before = labels()
    for number in range(300):
        metrics.request_ended(f"/v1/models/{number}", 200, 0.1)
        metrics.request_ended('/"\n# EOF', 1000 + number, 0.1)
        metrics.rejected(f"reason {number}")
    assert labels() == before


def test_without_an_engine_its_families_are_left_out_and_its_health_is_not() -> None:
    ill = SimpleNamespace(state="restarting", progress_age_s=3.5, restarts=2)
    samples = read(ServerMetrics(), None, ill)
    assert value(samples, "kvik_ready") == 0
    assert value(samples, "kvik_progress_age_seconds") == 3.5
    assert value(samples, "kvik_engine_restarts_total") == 2
    assert not any(name.startswith("kvik_num_") for name, _ in samples)


def test_who_waits_in_front_of_the_engine_waits_too() -> None:
    assert value(read(ServerMetrics(), worked_engine(), queued=5), "kvik_num_requests_waiting") == 6


def test_the_reference_names_every_family_and_no_other() -> None:
    reference = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(kvik_[a-z0-9_]+)(?:\{[a-z_,]+\})?`", reference)) - {"kvik_"}
    text = ServerMetrics().render(worked_engine(), WELL).decode()
    written = set(re.findall(r"^# TYPE (kvik_\w+)", text, re.M))
    assert named == written


def test_the_process_and_the_version_are_named_and_nothing_is_written_twice() -> None:
    samples = read(ServerMetrics(), worked_engine())
    assert value(samples, "process_resident_memory_bytes") > 0
    assert value(samples, "process_open_fds") > 0
    assert [dict(labels) for name, labels in samples if name == "kvik_build_info"] == [{"version": kvik.__version__}]
    assert not any(name.endswith("_created") for name, _ in samples)
