"""Those who watch an engine at work: each gets the events of its steps, of which a slow one loses the oldest.

This file knows nothing of what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

MOST_KEPT = 256
Queue = asyncio.Queue["dict[str, Any] | None"]


class Watchers:
    """`tell` gets True when somebody joins (an engine then sends a snapshot first), False when nobody is left."""

    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell = tell
        self._queues: set[Queue] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def join(self) -> Queue:
        """Where the events come for somebody new; None ends them."""
        queue: Queue = asyncio.Queue(MOST_KEPT)
        self._queues.add(queue)
        self._tell(True)
        return queue

    def leave(self, queue: Queue) -> None:
        """Idempotent."""
        if queue in self._queues:
            self._queues.remove(queue)
            if not self._queues:
                self._tell(False)

    def put(self, values: dict[str, Any] | None) -> None:
        """Give an event to everyone."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(values)
