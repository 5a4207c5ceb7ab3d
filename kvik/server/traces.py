"""Traces: one OpenTelemetry span for every request, sent to a collector over OTLP; off unless an endpoint is given.

A span is made when its request is over, out of what the log says of it: how long it waited for its turn, until its
first token and from there to its end. It belongs to the trace that the client names in a W3C traceparent header. The
libraries (kvik[otel]) are imported when there is somewhere to send to. Knows nothing of prompts or answers.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from kvik import __version__
from kvik.errors import ConfigError
from kvik.server.exchange import Exchange

CLOSE_S = 0.5
"""For the last spans to be sent."""
MAX_TRACESTATE_BYTES = 512
NOTED = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "tokens": "gen_ai.usage.output_tokens",
    "queue_s": "kvik.queue_s",
    "prefill_s": "kvik.prefill_s",
    "decode_s": "kvik.decode_s",
    "stream": "kvik.stream",
    "error": "error.type",
}
"""Notes of a request, and what they are called in a span."""


def open_traces(endpoint: str | None) -> Traces | None:
    """Spans to the collector at a URL such as http://127.0.0.1:4318; none if there is no URL. Raises ConfigError."""
    if endpoint is None:
        return None
    try:
        exporters = _library("exporter.otlp.proto.http.trace_exporter")
        _library("sdk.trace.export")
    except ImportError:
        raise ConfigError(
            f"otlp_endpoint is {endpoint!r}, and OpenTelemetry is not installed; install kvik[otel]"
        ) from None
    path = "" if endpoint.rstrip("/").endswith("/v1/traces") else "/v1/traces"
    return Traces(exporters.OTLPSpanExporter(endpoint=endpoint.rstrip("/") + path))


class Traces:
    """The spans of one server, given to an exporter of OpenTelemetry's a batch at a time, in a thread of its own."""

    def __init__(self, exporter: Any) -> None:
        sdk, export = _library("sdk.trace"), _library("sdk.trace.export")
        resource = _library("sdk.resources").Resource.create({"service.name": "kvik", "service.version": __version__})
        self._api: Any = _library("trace")
        self._context: Any = _library("trace.propagation.tracecontext").TraceContextTextMapPropagator()
        self._provider: Any = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer: Any = self._provider.get_tracer("kvik", __version__)

    def request(self, exchange: Exchange, route: str, status: int, start: float, end: float) -> None:
        """A request is over; `start` and `end` are in seconds since 1970."""
        span = self._tracer.start_span(
            f"{exchange.method} {route}",
            context=self._context.extract(_named(exchange)),
            kind=self._api.SpanKind.SERVER,
            attributes=_attributes(exchange, route, status),
            start_time=int(start * 1e9),
        )
        if status >= 500:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR))
        span.end(end_time=int(end * 1e9))

    def close(self) -> None:
        """Send what is left, for a moment at most: a collector that does not answer holds up nobody's end."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _library(name: str) -> Any:
    """A module of OpenTelemetry. Raises ImportError."""
    return importlib.import_module(f"opentelemetry.{name}")


def _named(exchange: Exchange) -> dict[str, str]:
    """The trace that a client's headers name."""
    headers = exchange.headers
    given = {name: headers[name.encode()] for name in ("traceparent", "tracestate") if name.encode() in headers}
    return {name: value.decode("latin-1") for name, value in given.items() if len(value) <= MAX_TRACESTATE_BYTES}


def _attributes(exchange: Exchange, route: str, status: int) -> dict[str, Any]:
    about = {
        "http.request.method": exchange.method,
        "http.route": route,
        "http.response.status_code": status,
        "kvik.request_id": exchange.request_id,
        "kvik.client_gone": True if not exchange.complete else None,
    }
    noted = {name: exchange.notes.get(note) for note, name in NOTED.items()}
    return {name: value for name, value in (about | noted).items() if value is not None}
