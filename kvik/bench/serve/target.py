"""Where a server is, and requests to it as bytes.

Any server that speaks OpenAI's API over HTTP/1.1, with or without TLS. This file knows nothing of what is asked, of
connections or of clocks.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kvik.errors import ConfigError

PORTS = {"http": 80, "https": 443}
API = "/v1"


@dataclass(frozen=True)
class Target:
    """A server's address."""

    host: str
    port: int
    tls: bool = False
    root: str = API
    """The path that all paths of the API begin with."""
    key: str | None = None

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> Target:
        """`http://host:port`, with or without the path of the API, which is /v1 unless said. Raises ConfigError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"url is {url!r}: {error}") from None
        if parts.scheme not in PORTS or not host or parts.query or parts.fragment:
            raise ConfigError(f"url is {url!r}; expected one such as http://127.0.0.1:8000")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("api_key: expected printable ASCII characters")
        root = parts.path.rstrip("/") or API
        return cls(host, port or PORTS[parts.scheme], parts.scheme == "https", root, key)

    @property
    def url(self) -> str:
        """The address for people, without the key."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.root}"

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def outside(self) -> str:
        """The path beside the API, where Kvik has /stats and /health: `` for /v1."""
        return self.root.removesuffix(API)

    def context(self) -> ssl.SSLContext | None:
        """What checks the server's certificate; None without TLS."""
        return ssl.create_default_context() if self.tls else None

    def post(self, path: str, body: Any) -> bytes:
        """A request with a JSON body; `path` begins after the API's root."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self._head("POST", self.root + path, "Content-Type: application/json\r\n", len(data)) + data

    def get(self, path: str) -> bytes:
        """A request without a body; `path` is the whole path."""
        return self._head("GET", path, "", 0)

    def _head(self, method: str, path: str, more: str, length: int) -> bytes:
        auth = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        size = f"Content-Length: {length}\r\n" if method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.authority}\r\n{auth}{more}{size}\r\n".encode()
