"""The application: every request through the door, to its route, and into the log.

`ROUTES` is the route table, all of it. A request comes in here from uvicorn and nothing leaves here as an exception:
what goes wrong becomes a reply in the API's form, with our own words only. Knows nothing of what the routes do.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from kvik.errors import KvikError
from kvik.server import answers, lookups
from kvik.server.auth import Door, Hosts, KeyRing, Origins
from kvik.server.body import ClientGoneError, Receive
from kvik.server.exchange import Exchange, Send
from kvik.server.logs import where
from kvik.server.meter import CLIENT_GONE
from kvik.server.protocol.errors import INVALID, ApiError, from_exception
from kvik.server.protocol.sse import error_event
from kvik.server.service import Service

Serve = Callable[[Service, Exchange], Awaitable[None]]
OTHER = "other"
QUIET = frozenset(("/health", "/health/live", "/health/ready", "/metrics"))
"""Routes that something asks all the time; their lines are for debugging."""


@dataclass(frozen=True)
class Entry:
    """A row of the route table."""

    path: str
    method: str
    serve: Serve
    public: bool = False
    """Needs no API key."""
    endless: bool = False
    """Its replies go on until somebody ends them."""


ROUTES = (
    Entry("/v1/chat/completions", "POST", answers.chat),
    Entry("/v1/completions", "POST", answers.completion),
    Entry("/v1/models", "GET", lookups.models),
    Entry("/v1/models/{id:path}", "GET", lookups.model),
    Entry("/tokenize", "POST", lookups.tokenize),
    Entry("/detokenize", "POST", lookups.detokenize),
    Entry("/health", "GET", lookups.ready, public=True),
    Entry("/health/live", "GET", lookups.live, public=True),
    Entry("/health/ready", "GET", lookups.ready, public=True),
    Entry("/stats", "GET", lookups.stats),
)


class Endpoint:
    """One route as an ASGI application."""

    def __init__(self, service: Service, serve: Serve) -> None:
        self._service, self._serve = service, serve

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await self._serve(self._service, scope["kvik.exchange"])


class App:
    """All routes of one server, as an ASGI application. `more` are routes beside the table's."""

    def __init__(self, service: Service, more: Sequence[Entry] = ()) -> None:
        self.service = service
        self.entries = (*ROUTES, *more)
        listen = service.options.listen
        self._routes = [
            Route(e.path, Endpoint(service, e.serve), methods=[e.method], name=e.path) for e in self.entries
        ]
        self._endless = frozenset(entry.path for entry in self.entries if entry.endless)
        self._door = Door(KeyRing(listen.api_key), [entry.path for entry in self.entries if entry.public])
        names = listen.allowed_host
        self._hosts = Hosts.on_loopback(listen.host, names) if listen.on_loopback else Hosts()
        self._origins = Origins(listen.cors_origin)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        service = self.service
        exchange = Exchange(scope, receive, send, service.clock())
        exchange.extra.append((b"date", http_date(int(service.wall_clock()))))
        route = self._find(scope)
        path = route.path if route is not None else OTHER
        exchange.endless = path in self._endless
        service.meter.request_started(path)
        service.open.add(exchange)
        try:
            await self._serve(exchange, route)
        finally:
            service.open.discard(exchange)
            self._note(exchange, path)

    def _find(self, scope: Any) -> Route | None:
        """The route of a path, if there is one, whatever the method."""
        found = None
        for route in self._routes:
            match, matched = route.matches(scope)
            if match is not Match.NONE and (found is None or match is Match.FULL):
                found = route
                scope.update(matched)
                if match is Match.FULL:
                    break
        return found

    async def _serve(self, exchange: Exchange, route: Route | None) -> None:
        """The reply, whatever happens."""
        try:
            await self._enter(exchange, route)
        except ClientGoneError:
            exchange.notes["gone"] = True
        except Exception as error:
            await self._refuse(exchange, error)

    async def _enter(self, exchange: Exchange, route: Route | None) -> None:
        """Past the door to the route. Raises whatever goes wrong."""
        headers = exchange.headers
        self._hosts.check(headers.get(b"host"))
        allowed = self._origins.headers(headers.get(b"origin"))
        exchange.extra += allowed
        if allowed and exchange.method == "OPTIONS" and b"access-control-request-method" in headers:
            await exchange.reply(204, b"", headers=Origins.ALLOWED)
            return
        address = (exchange.scope.get("client") or ("unknown",))[0]
        exchange.caller = self._door.caller(exchange.path, headers.get(b"authorization"), address)
        scope = exchange.scope
        scope["app"], scope["kvik.exchange"] = self, exchange
        if route is None:
            raise ApiError(404, INVALID, None, "there is nothing at this path")
        await route.handle(scope, exchange.receive, exchange.send)

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        """Say what is wrong, if there is still a reply to say it in."""
        told, headers = translated(error)
        if told.status >= 500 and not isinstance(error, (ApiError, KvikError)):
            self.service.log.error("internal_error", id=exchange.request_id, raised=where(error))
        if told is not error:
            self.service.failed(exchange, told)
        exchange.notes["error"] = told.code or exchange.notes.get("error")
        if exchange.status == 0:
            await exchange.refuse(told, headers)
        elif exchange.streaming and not exchange.complete:
            await exchange.end_stream(error_event(told))

    def _note(self, exchange: Exchange, route: str) -> None:
        """Count and log what became of it."""
        service = self.service
        gone = exchange.notes.pop("gone", False) or not exchange.complete
        status = exchange.status or CLIENT_GONE
        duration = service.clock() - exchange.started_at
        if gone:
            service.meter.gone()
        service.meter.request_ended(route, status, duration)
        if service.traces is not None and route not in QUIET:
            now = service.wall_clock()
            service.traces.request(exchange, route, status, now - duration, now)
        log = service.log.debug if route in QUIET and status < 500 else service.log.info
        log(
            "request",
            id=exchange.request_id,
            caller=exchange.caller.name or None,
            method=exchange.method,
            path=exchange.path if route == OTHER else route,
            status=status,
            seconds=duration,
            gone=gone or None,
            **exchange.notes,
        )


def translated(error: Exception) -> tuple[ApiError, list[tuple[bytes, bytes]]]:
    """What a client is told, and further headers."""
    if not isinstance(error, HTTPException):
        return from_exception(error), []
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    return ApiError(405, INVALID, None, "this method is not allowed here; the header Allow says which is"), headers


@functools.lru_cache(maxsize=2)
def http_date(second: int) -> bytes:
    """The Date header."""
    return formatdate(second, usegmt=True).encode("ascii")
