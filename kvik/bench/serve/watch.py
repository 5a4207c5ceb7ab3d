"""What a server says of itself while it is under load, if it is one that does: Kvik's /stats.

Before, after, and twice a second in between; other servers have no such page and are measured from outside only. This
file knows nothing of what the figures are used for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from kvik.bench.serve.connection import Pool
from kvik.bench.serve.replies import Document, LoadError
from kvik.bench.serve.target import Target
from kvik.errors import KvikError

LOOK_S = 0.5
PATIENCE_S = 30.0
COUNTED = (
    "generated_tokens",
    "prompt_tokens",
    "prompt_tokens_cached",
    "preemptions",
    "recomputed_tokens",
    "steps",
    "step_seconds",
    "requests_accepted",
)


async def look(pool: Pool) -> dict[str, Any] | None:
    """One snapshot; None if the server has none, or no engine."""
    document = Document()
    try:
        await pool.ask(pool.target.get(f"{pool.target.outside}/stats"), document)
    except LoadError:
        return None
    value = document.value
    return value if isinstance(value, dict) and value.get("engine") and value.get("model") else None


@dataclass
class Watch:
    """Snapshots of one load. `async with` around it."""

    pool: Pool
    seen: list[dict[str, Any]] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        first = await look(self.pool)
        if first is not None:
            self.seen.append(first)
            self._task = asyncio.get_running_loop().create_task(self._go_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            last = await look(self.pool)
            if last is not None:
                self.seen.append(last)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            snapshot = await look(self.pool)
            if snapshot is not None:
                self.seen.append(snapshot)

    def summary(self, asked: int) -> dict[str, Any] | None:
        """What it held at most and what it did, during a load of so many requests; None for a server of another kind.

        `alone`: it accepted as many requests as were sent, and ran none before or after.
        """
        if len(self.seen) < 2:
            return None
        first, last = self.seen[0]["engine"], self.seen[-1]["engine"]
        did = {name: last[name] - first[name] for name in COUNTED}
        idle = all(each["requests_running"] + each["requests_waiting"] == 0 for each in (first, last))
        return {
            "model": self.seen[-1]["model"],
            "did": did,
            "alone": idle and did["requests_accepted"] == asked,
            "held_bytes": {f"{part}_bytes": size for part, size in last["memory_bytes"].items()},
            "most": {
                "running": self._most("engine", "requests_running"),
                "waiting": self._most("engine", "requests_waiting"),
                "queued": self._most("server", "requests_queued"),
                "kv_utilisation": self._most("engine", "kv_utilisation"),
                "blocks_used_share": max(
                    each["engine"]["blocks_used"] / max(each["engine"]["blocks_total"], 1) for each in self.seen
                ),
            },
        }

    def _most(self, part: str, name: str) -> float:
        return float(max(each[part][name] for each in self.seen))


async def fetch(target: Target) -> dict[str, Any]:
    """One snapshot of a Kvik server. Raises KvikError if there is none to be had."""
    pool = Pool(target, time.perf_counter, PATIENCE_S)
    try:
        snapshot = await look(pool)
    finally:
        pool.close()
    if snapshot is None:
        raise KvikError(f"{target.url} has no statistics; expected a Kvik server that is ready")
    return snapshot
