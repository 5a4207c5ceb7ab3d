"""Spans of requests: one for each, with its times, in the trace that the client named, and none of anybody's words.

Skipped where OpenTelemetry is not installed, but for what must happen then.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from live_server import LiveServer, chat, head_of, post, prompt

from kvik.errors import ConfigError
from kvik.server.traces import Traces, open_traces

SECRET = "xyzzy-a-prompt"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


needs_library = pytest.mark.skipif(not is_installed(), reason="kvik[otel] is not installed")


@contextmanager
def traced(model: str = "fake:length=6,step_ms=2", **options: Any) -> Iterator[tuple[LiveServer, list[Any]]]:
    """A server and its spans, which are there when it has ended."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, spans = InMemorySpanExporter(), list[Any]()
    with LiveServer(model, **options) as server:
        server.service.traces = Traces(exporter)
        yield server, spans
    spans += exporter.get_finished_spans()


@needs_library
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_span_with_its_times(stream: bool) -> None:
    before = time.time()
    with traced() as (server, spans):
        body = prompt("hello", max_tokens=4, ignore_eos=True, stream=stream)
        assert server.send(post(COMPLETIONS, body, x_request_id="mine")).status == 200
    (span,) = spans
    told = dict(span.attributes)
    assert (span.name, span.kind.name) == ("POST /v1/completions", "SERVER")
    assert (told["http.route"], told["http.request.method"]) == (COMPLETIONS, "POST")
    assert (told["http.response.status_code"], told["kvik.request_id"]) == (200, "mine")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 4)
    assert told.get("kvik.stream", False) is stream
    times = [told[f"kvik.{part}_s"] for part in ("queue", "prefill", "decode")]
    assert times[0] >= 0
    assert times[1] >= 0.002
    assert times[2] >= (0.006 if stream else 0)
    assert sum(times) <= (span.end_time - span.start_time) / 1e9 + 1e-6
    assert before - 1e-3 <= span.start_time / 1e9 <= span.end_time / 1e9 <= time.time() + 1e-3
    assert span.resource.attributes["service.name"] == "kvik"


@needs_library
def test_a_span_belongs_to_the_trace_that_the_client_names() -> None:
    with traced() as (server, spans):
        named = f"00-{TRACE}-{PARENT}-01"
        server.send(post(COMPLETIONS, prompt(), traceparent=named, tracestate="a=1"))
        server.send(post(COMPLETIONS, prompt(), traceparent=f"00-{TRACE}-{PARENT}-00"))
        server.send(post(COMPLETIONS, prompt(), traceparent="00-nonsense-01", tracestate="a" * 5000))
        server.send(post(COMPLETIONS, prompt()))
    child, odd, root = spans
    assert f"{child.context.trace_id:032x}" == TRACE
    assert f"{child.parent.span_id:016x}" == PARENT
    assert child.context.trace_state.get("a") == "1"
    for span in (odd, root):
        assert span.parent is None
        assert f"{span.context.trace_id:032x}" != TRACE
        assert len(span.context.trace_state) == 0


@needs_library
def test_what_fails_and_what_is_refused_is_told_so_without_a_word_of_the_client() -> None:
    with traced() as (server, spans):
        for body in (
            prompt("[[nan]]" + SECRET),
            prompt(SECRET, temperature=SECRET),
            prompt(SECRET) | {"model": SECRET},
        ):
            server.send(post(COMPLETIONS, body))
        server.send(post(CHAT, chat(SECRET)))
        server.get("/" + SECRET)
    assert [span.attributes["http.response.status_code"] for span in spans] == [500, 400, 404, 200, 404]
    assert [span.status.status_code.name for span in spans] == ["ERROR", "UNSET", "UNSET", "UNSET", "UNSET"]
    assert spans[0].attributes["error.type"] == "numerical_error"
    assert spans[4].name == "GET other"
    assert SECRET not in "".join(span.to_json() for span in spans)


@needs_library
def test_health_checks_make_no_spans_and_who_leaves_is_known() -> None:
    with traced("fake:length=100000,step_ms=5") as (server, spans):
        for path in ("/health", "/health/ready", "/metrics"):
            assert server.get(path).status == 200
        with server.connect() as sock:
            sock.sendall(post(COMPLETIONS, prompt(max_tokens=10_000, stream=True)))
            assert sock.recv(100)
        server.wait_for(lambda: not server.service.open)
        assert server.send(head_of("GET", "/v1/models"), "GET").status == 200
    gone, models = spans
    assert gone.attributes["kvik.client_gone"] is True
    assert gone.attributes["gen_ai.usage.output_tokens"] >= 1
    assert models.name == "GET /v1/models"
    assert "kvik.client_gone" not in models.attributes


class Collector(HTTPServer):
    """Takes what is sent, or never answers."""

    def __init__(self, answers: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.got: list[tuple[str, bytes]] = []
        self.answers, self.leave = answers, threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.leave.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Taker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        data = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, data))
        if not self.server.answers:
            self.server.leave.wait(30)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@needs_library
@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_spans_reach_a_collector_over_otlp(path: str) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with Collector() as collector, LiveServer(otlp_endpoint=collector.url + path) as server:
        assert server.send(post(COMPLETIONS, prompt())).status == 200
        server.stop()
        server.wait_for(lambda: bool(collector.got))
    ((where, data),) = collector.got
    assert where == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(data).resource_spans
    assert [span.name for span in resource.scope_spans[0].spans] == ["POST /v1/completions"]


@needs_library
def test_a_collector_that_does_not_answer_holds_up_nothing() -> None:
    with Collector(answers=False) as collector:
        with LiveServer(otlp_endpoint=collector.url) as server:
            assert server.send(post(COMPLETIONS, prompt())).status == 200
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert server.failure is None


def test_without_an_endpoint_nothing_is_traced_and_nothing_imported() -> None:
    assert open_traces(None) is None
    with LiveServer() as server:
        assert server.service.traces is None
        assert server.send(post(COMPLETIONS, prompt())).status == 200


def test_an_endpoint_without_the_library_is_refused_by_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("kvik.server.traces._library", missing)
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:4318.*install kvik\[otel\]"):
        open_traces("http://127.0.0.1:4318")
