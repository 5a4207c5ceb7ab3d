"""The queue of waiting requests: lower priority value first, then order of arrival.

A preempted request keeps its arrival, and everything of its priority that arrived before it was admitted before it, so
it stands at the front of its priority again. The queue does not know why anything waits.
"""

from __future__ import annotations

import heapq

from kvik.scheduler.sequence import Sequence

_SLACK = 64


class WaitingQueue:
    """A heap of sequences; removal from the middle leaves a dead entry that is skipped later."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, Sequence]] = []
        self._live: dict[int, int] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._live)

    def push(self, sequence: Sequence) -> None:
        self._pushed += 1
        self._live[sequence.request.key] = self._pushed
        heapq.heappush(self._heap, (sequence.order, self._pushed, sequence))

    def first(self) -> Sequence:
        """The next to be served. Raises IndexError when nothing waits."""
        while not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2]

    def pop(self) -> Sequence:
        """Take the next to be served. Raises IndexError when nothing waits."""
        sequence = self.first()
        heapq.heappop(self._heap)
        del self._live[sequence.request.key]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out, wherever it stands. Raises KeyError when it does not wait."""
        del self._live[sequence.request.key]
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def ordered(self) -> list[Sequence]:
        """Everything that waits, next to be served first."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2]) if self._is_live(entry)]

    def _is_live(self, entry: tuple[tuple[int, int, int], int, Sequence]) -> bool:
        return self._live.get(entry[2].request.key) == entry[1]
