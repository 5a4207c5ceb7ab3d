"""Server-sent events: how the objects of a stream become lines.

One event is `data: `, one line of JSON, and an empty line. What all events of a stream have in common is encoded once;
a piece of text costs its own encoding and two joins. Knows nothing of what the objects mean.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from kvik.server.protocol.errors import ApiError

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
_LINE_BREAKS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ESCAPES = {char.encode(): escape.encode() for char, escape in _LINE_BREAKS.items()}


def to_json(value: Any) -> bytes:
    """A value as one line of JSON, also for clients that break lines wherever Unicode does."""
    data = _encode(value)
    if b"\xe2\x80" in data or b"\xc2\x85" in data:
        for char, escape in _ESCAPES.items():
            data = data.replace(char, escape)
    return data


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed. Nothing follows it, not even [DONE]: the stream did not end well."""
    return b"data: " + to_json(error.as_dict()) + b"\n\n"


@dataclass(frozen=True)
class ReplyHead:
    """What a reply and all chunks of a stream say about themselves."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    fingerprint: str | None = None
    """What computes the answers: equal fingerprints and seeds give equal bytes."""

    @classmethod
    def new(cls, prefix: str, model: str, fingerprint: str | None = None) -> ReplyHead:
        """A head of now, with a name that no other reply has. Prefixes are chatcmpl and cmpl."""
        return cls(f"{prefix}-{secrets.token_hex(16)}", int(time.time()), model, fingerprint)

    def as_dict(self, kind: str) -> dict[str, Any]:
        """The first keys of a reply."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | ({"system_fingerprint": self.fingerprint} if self.fingerprint else {})


class Chunks:
    """Makes the events of one stream. With usage, every event but the last says that it has none yet."""

    def __init__(self, head: ReplyHead, kind: str, with_usage: bool) -> None:
        self._begin = b"data: " + to_json(head.as_dict(kind))[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def event(self, choice: dict[str, Any]) -> bytes:
        """An event of one choice."""
        return self._begin + to_json(choice) + self._end

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The event that has usage and no choice."""
        return self._begin + b'],"usage":' + to_json(usage) + b"}\n\n"

    def around(self, choice: dict[str, Any], text: str) -> tuple[bytes, bytes]:
        """An event of one choice, cut before and after the one place where `text` stands in it."""
        before, after = self.event(choice).split(to_json(text))
        return before, after
