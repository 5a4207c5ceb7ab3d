"""Server options: where `kvik serve` listens, what it lets in, and how long it waits.

One frozen dataclass per concern, as in kvik/config.py; the flags of `kvik serve` are derived from these fields. Times
are in seconds. This file knows nothing of the environment, of files or of models.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from kvik.config import option
from kvik.errors import ConfigError

_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _check(options: Any) -> None:
    """Hold every field of a concern against the limits declared beside it. Raises ConfigError."""
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if value is None or isinstance(value, (tuple, bool)):
            continue
        choices, low = f.metadata["choices"], f.metadata["low"]
        if choices and value not in choices:
            raise ConfigError(f"{f.name} is {value!r}; expected one of {', '.join(choices)}")
        if low is not None and not value >= low:
            raise ConfigError(f"{f.name} is {value!r}; expected at least {low}")


def seconds(default: float | None, help: str, *, low: int = 0) -> Any:
    """A field that holds a time."""
    return option(default, help, low=low)


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens and who may speak to it."""

    host: str = option("127.0.0.1", "Address to listen on. Any other than this machine's own needs an API key.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", low=0)
    api_key: tuple[str, ...] = option(
        (), "Key that clients must present; may be given several times. Each key has its own queue and prefix cache."
    )
    insecure: bool = option(False, "Listen on an address that others can reach without an API key.")
    allowed_host: tuple[str, ...] = option(
        (), "Further name that requests to a server on this machine may carry in Host; may be given several times."
    )
    cors_origin: tuple[str, ...] = option(
        (), "Origin whose pages may call this server from a browser, or *; may be given several times."
    )
    served_model_name: tuple[str, ...] = option(
        (), "Name under which the model is served; may be given several times. Default: the model as it was given."
    )
    page: bool = option(True, "Serve the page at /.")

    def __post_init__(self) -> None:
        _check(self)
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}; expected at most 65535")
        for key in self.api_key:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("api_key: expected at least 8 printable ASCII characters without spaces")
        if not self.on_loopback and not self.api_key and not self.insecure:
            raise ConfigError(
                f"host is {self.host!r}, which others can reach, and there is no api_key; give one, or say --insecure"
            )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class ConnectionOptions:
    """Limits of a connection and of a request while it is read and answered."""

    max_connections: int = option(
        4096, "Most connections at a time; the one that has idled longest makes room for a new one.", low=1
    )
    max_url_bytes: int = option(8192, "Longest URL.", low=64)
    max_header_bytes: int = option(32768, "Most bytes of a request's line and headers together.", low=256)
    max_headers: int = option(100, "Most headers of a request.", low=8)
    max_body_bytes: int = option(16 * 2**20, "Largest body of a request, such as 16MiB.", low=1, size=True)
    max_body_memory: int = option(
        256 * 2**20, "Memory for all bodies that are being read or parsed, such as 256MiB.", low=1, size=True
    )
    header_timeout: float = seconds(10.0, "Time for a request's headers to arrive.")
    body_timeout: float = seconds(30.0, "Longest pause while a request's body arrives.")
    body_total_timeout: float = seconds(60.0, "Time for a whole body to arrive.")
    keep_alive: float = seconds(75.0, "How long a connection may idle between requests.")
    write_timeout: float = seconds(30.0, "How long a client may stop reading before its connection is cut.")

    def __post_init__(self) -> None:
        _check(self)
        if self.max_body_memory < self.max_body_bytes:
            raise ConfigError(
                f"max_body_memory is {self.max_body_memory}; expected at least max_body_bytes, {self.max_body_bytes}"
            )


@dataclass(frozen=True)
class FlowOptions:
    """How much waits, for how long, and how the server ends."""

    target_ttft: float = seconds(
        60.0,
        "Longest wait for a first token. Requests that would wait longer, at the speed measured, are refused with 503 "
        "and told when to come back.",
    )
    max_queued_requests: int = option(2048, "Most requests that wait for their turn, whatever their length.", low=1)
    max_concurrent: int | None = option(
        None, "Most requests of one API key, waiting or running; more are refused with 429. Default: no limit.", low=1
    )
    request_timeout: float | None = seconds(
        None,
        "Time from arrival to the end of an answer; the header x-request-timeout may ask for less. Default: no limit.",
    )
    drain_timeout: float = seconds(30.0, "How long running requests may go on after SIGTERM.")
    log_level: str = option("info", "Least level of the log lines on stderr.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class TraceOptions:
    """Where OpenTelemetry's spans go."""

    otlp_endpoint: str | None = option(
        None,
        "Send a span for every request to the OpenTelemetry collector at this URL, such as http://127.0.0.1:4318; "
        "needs kvik[otel]. Default: no spans.",
    )

    def __post_init__(self) -> None:
        if self.otlp_endpoint is not None and not _URL.fullmatch(self.otlp_endpoint):
            raise ConfigError(f"otlp_endpoint is {self.otlp_endpoint!r}; expected a URL such as http://127.0.0.1:4318")


SERVER_CONCERNS: dict[str, type] = {
    "listen": ListenOptions,
    "connection": ConnectionOptions,
    "flow": FlowOptions,
    "traces": TraceOptions,
}


@dataclass(frozen=True)
class ServerOptions:
    """All options of one server. Built once, never edited."""

    listen: ListenOptions = field(default_factory=ListenOptions)
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)
    flow: FlowOptions = field(default_factory=FlowOptions)
    traces: TraceOptions = field(default_factory=TraceOptions)

    @classmethod
    def from_options(cls, **options: Any) -> ServerOptions:
        """Sort flat options into their concerns. Raises TypeError for an unknown name, ConfigError for a bad value."""
        parts: dict[str, dict[str, Any]] = {concern: {} for concern in SERVER_CONCERNS}
        for name, value in options.items():
            parts[concern_of(name)][name] = value
        return cls(**{concern: kind(**parts[concern]) for concern, kind in SERVER_CONCERNS.items()})


def concern_of(name: str) -> str:
    """The concern that an option belongs to. Raises TypeError for an unknown name."""
    known = {f.name: concern for concern, kind in SERVER_CONCERNS.items() for f in dataclasses.fields(kind)}
    if name not in known:
        raise TypeError(f"unknown option {name!r}; known options: {', '.join(sorted(known))}")
    return known[name]
