"""Service profiles: what kind of service a server is to be, in limits that a measured load keeps or breaks.

The limits are those of the guide this project started from: chat, batch and realtime. Percentiles are the 90th: one
request in ten may be slower. This file knows nothing of how figures are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """Limits of one kind of service."""

    ttft_ms: float
    """The 90th percentile must stay below."""
    tokens_per_s: float
    """Output tokens of all requests together, at least."""
    memory_share: float
    """Of the KV slots in blocks that are given out, so many hold a token, at the best moment of the load."""


PROFILES = {
    "chat": Profile(200.0, 1000.0, 0.70),
    "batch": Profile(1000.0, 5000.0, 0.90),
    "realtime": Profile(50.0, 500.0, 0.80),
}


def judge(profile: Profile, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each limit with what was measured; `passed` is None where nothing was."""
    ttft, server = sample["ttft_ms"], sample.get("server")
    memory = server["most"]["kv_utilisation"] if server else None
    return [
        _verdict("ttft_ms p90", "below", profile.ttft_ms, ttft["p90"] if ttft else None),
        _verdict("tokens_per_s", "at least", profile.tokens_per_s, sample["tokens_per_s"]),
        _verdict("kv_utilisation", "at least", profile.memory_share, memory),
        _verdict("errors", "at most", 0.0, float(sum(sample["errors"].values()))),
    ]


def _verdict(name: str, relation: str, limit: float, measured: float | None) -> dict[str, Any]:
    passed: bool | None = None
    if measured is not None:
        passed = measured >= limit if relation == "at least" else measured <= limit
    return {"name": name, "relation": relation, "limit": limit, "measured": measured, "passed": passed}
