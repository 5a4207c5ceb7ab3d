"""Assembly: the one place that knows which parts a server has and how they are connected."""

from __future__ import annotations

from typing import Any

from kvik.server import metrics, page
from kvik.server.app import App, Entry
from kvik.server.events import EventFeed
from kvik.server.exchange import Exchange
from kvik.server.logs import Log
from kvik.server.options import ServerOptions
from kvik.server.service import Service
from kvik.server.traces import open_traces


def make_app(backend: Any, options: ServerOptions, log: Log) -> App:
    """The application in front of a backend, which is an `AsyncLLM`. Raises ConfigError."""
    meter = metrics.ServerMetrics()
    service = Service(backend, options, log, meter, open_traces(options.traces.otlp_endpoint))
    feed = EventFeed(backend.watch, service.waiting)

    async def metrics_page(service: Service, exchange: Exchange) -> None:
        stats = await service.engine_stats()
        body = meter.render(stats, backend.health, queued=service.waiting())
        await exchange.reply(200, body, metrics.CONTENT_TYPE.encode())

    async def events(service: Service, exchange: Exchange) -> None:
        await feed.serve(exchange)

    more = [Entry("/metrics", "GET", metrics_page), Entry("/events", "GET", events, endless=True)]
    return App(service, (*more, *page.routes()) if options.listen.page else more)
