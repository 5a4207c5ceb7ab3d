"""Who is calling: API keys, names in Host, origins of browsers.

Whatever is not on the public list needs a key; the list is of exact paths, looked at as the router will see them, so
that no spelling of a path leads around it. Keys are kept as digests and compared in constant time, all of them each
time. Each key has a queue, a share and a prefix cache of its own. Knows nothing of requests beyond their headers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvik.server.protocol.errors import INVALID, ApiError

PUBLIC = frozenset(("/health", "/health/live", "/health/ready"))
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
WRONG_KEY = "Incorrect API key provided: it is not one of this server's; expected the header Authorization: Bearer KEY"
"""Programs that speak OpenAI's API know this failure by the first words, so these are OpenAI's."""
NO_KEY = "the API key is missing; expected the header Authorization: Bearer KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    name: str
    """For queues and logs; says nothing about the key itself."""
    salt: bytes = b""
    """Prefix blocks are shared only between requests of equal salt."""


class KeyRing:
    """The API keys of a server, perhaps none."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in dict.fromkeys(keys)]
        self._callers = [
            Caller(f"key-{hashlib.sha256(b'name' + digest).hexdigest()[:8]}", hashlib.sha256(b"salt" + digest).digest())
            for digest in self._digests
        ]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, authorization: bytes | None) -> Caller | None:
        """The caller whose key an Authorization header holds; None if it holds none of ours."""
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        found = None
        for digest, caller in zip(self._digests, self._callers, strict=True):
            if hmac.compare_digest(digest, given):
                found = caller
        return found if scheme.lower() == b"bearer" else None


class Door:
    """Lets a request in or says why not. `public` are further paths that need no key."""

    def __init__(self, keys: KeyRing, public: Collection[str] = ()) -> None:
        self._keys = keys
        self._public = PUBLIC | frozenset(public)

    def caller(self, path: str, authorization: bytes | None, address: str) -> Caller:
        """Whose request this is. Without keys everybody is who their address says. Raises ApiError(401)."""
        if not self._keys:
            return Caller(address)
        caller = self._keys.find(authorization)
        if caller is not None:
            return caller
        if path in self._public:
            return Caller("public")
        raise ApiError(401, INVALID, "invalid_api_key", WRONG_KEY if authorization else NO_KEY)


class Hosts:
    """Which names in Host are ours. On this machine's own address only known ones are, since a page from anywhere may
    make its own name lead there (DNS rebinding). `names` empty: all.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(name.lower() for name in names)

    @classmethod
    def on_loopback(cls, host: str, allowed: Collection[str]) -> Hosts:
        """The names of this machine to itself, and those allowed beside them."""
        bound = f"[{host}]" if ":" in host else host
        return cls((*LOOPBACK_NAMES, bound, *allowed))

    def check(self, header: bytes | None) -> None:
        """Hold a Host header against the list; a missing one is HTTP/1.0's. Raises ApiError(400)."""
        if header is None:
            return
        match = _HOST.fullmatch(header.decode("latin-1"))
        if match is None:
            raise ApiError(400, INVALID, None, "the Host header is not a name with or without a port")
        if self._names and match[1].lower() not in self._names:
            raise ApiError(
                400, INVALID, None, "the name in the Host header is not one of this server's; see --allowed-host"
            )


class Origins:
    """What browsers are told about calls from other pages (CORS). Nothing, unless origins were named."""

    ALLOWED = (
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", b"authorization, content-type, x-request-id, x-request-timeout"),
        (b"access-control-max-age", b"600"),
    )

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.rstrip("/").encode("latin-1", "replace") for origin in origins)

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """Headers of a reply to this origin."""
        if origin is None or not (origin in self._origins or b"*" in self._origins):
            return []
        return [
            (b"access-control-allow-origin", b"*" if b"*" in self._origins else origin),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]
