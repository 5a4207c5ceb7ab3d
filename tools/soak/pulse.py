"""Times of a server: a control request again and again while something else goes on, and percentiles of what it took.

Knows nothing of what else goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Sequence

from tools.soak.wire import Address, Connection, request_bytes

EVERY_S = 0.005


def percentile(times: Sequence[float], part: float) -> float:
    """The smallest of the times that so many of 100 do not exceed. Raises ValueError if there are none."""
    if not times:
        raise ValueError("no times were taken")
    return sorted(times)[max(0, math.ceil(len(times) * part / 100) - 1)]


@contextlib.asynccontextmanager
async def pulse(address: Address) -> AsyncIterator[list[float]]:
    """Seconds that /health/live took each time, growing as long as the context is open."""
    times, stop = list[float](), asyncio.Event()

    async def beat() -> None:
        connection = Connection(address)
        while not stop.is_set():
            start = time.monotonic()
            await connection.send(request_bytes(address, "GET", "/health/live"))
            await connection.body(await connection.head())
            times.append(time.monotonic() - start)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY_S)
        connection.close()

    beating = asyncio.ensure_future(beat())
    try:
        yield times
    finally:
        stop.set()
        await beating
