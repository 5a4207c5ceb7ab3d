"""What the engine's steps did, as plain data, for those who watch.

A `StepWatcher` sits on `Engine.observer`. `attach` gives out one snapshot of everything, and frames follow it: what
changed since the frame before. Steps come faster than anyone can look, so a frame gathers those of `INTERVAL_S`, and
making frames takes a small share of the engine's time at most. What changes without a step (an abort while nothing
else runs) is given out by `flush`. Detached it costs nothing. docs/metrics.md describes the events field by field. No
text and no token of any request is in them.

This file knows nothing of who watches, of encodings or of HTTP.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from kvik.engine.engine import Engine
from kvik.request import Request
from kvik.scheduler.view import block_states, waits
from kvik.step import StepPlan

Event = dict[str, Any]
INTERVAL_S = 0.04
LARGEST_SHARE = 0.05
"""Of the engine's time that making frames may take; the interval grows with their cost."""
WAITING_SHOWN = 64
PREFILL, DECODE = 0, 1


class _Known:
    """A request that the watchers have heard of, as they were told last."""

    __slots__ = ("preemptions", "request", "table")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.table: list[int] = []
        self.preemptions = request.num_preemptions


class StepWatcher:
    """Turns the steps of one engine into events for `emit`, which is called on the engine's thread.

    `clock` is the engine's own: monotonic, in seconds.
    """

    def __init__(
        self, engine: Engine, emit: Callable[[Event], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._emit = emit
        self._clock = clock
        self._forget()

    def attach(self) -> None:
        """Start to watch and emit a snapshot. When attached already: only emit a new snapshot."""
        self._forget()
        self._engine.observer = self._observe
        self._emit(self._snapshot())

    def detach(self) -> None:
        """Stop to watch. Idempotent."""
        self._engine.observer = None
        self._forget()

    def flush(self) -> None:
        """Emit what has changed and was not given out yet, if anything. For whoever has no further step to make."""
        if self._engine.observer is not None:
            self._give_out(self._clock())

    def _forget(self) -> None:
        self._seq = 0
        self._known: dict[int, _Known] = {}
        self._states: array[int] = array("i")
        self._counts: dict[str, int] = {}
        self._arrived: list[Event] = []
        self._steps: list[Event] = []
        self._preemptions = self._engine.scheduler.counters.preemptions
        self._due = 0.0

    # What is seen ---------------------------------------------------------------------------------------------------

    def _observe(self, plan: StepPlan, moved: list[Request], seconds: float) -> None:
        now = self._clock()
        for request in moved:
            self._learn(request)
        if plan.num_rows:
            self._steps.append(self._step(plan, moved, now, seconds))
        if now >= self._due or not self._engine.scheduler.has_unfinished():
            self._give_out(now)

    def _step(self, plan: StepPlan, moved: list[Request], now: float, seconds: float) -> Event:
        drew = {request.key for request in moved if request.error is None}
        counts = np.diff(plan.query_start_loc)
        columns = (plan.keys.tolist(), counts.tolist(), (plan.seq_lens - counts).tolist())
        rows = []
        for key, count, position in zip(*columns, strict=True):
            request = self._find(key)
            if request is not None:
                rows.append(_row(request, count, position, key in drew))
        return {"step": plan.step, "t": now, "seconds": seconds, "rows": rows, "preempted": self._newly_preempted()}

    def _newly_preempted(self) -> list[int]:
        """Keys of those that lost their blocks since the last call."""
        if self._engine.scheduler.counters.preemptions == self._preemptions:
            return []
        self._preemptions = self._engine.scheduler.counters.preemptions
        self._learn_all()
        found = [key for key, known in self._known.items() if known.request.num_preemptions > known.preemptions]
        for key in found:
            self._known[key].preemptions = self._known[key].request.num_preemptions
        return found

    def _find(self, key: int) -> Request | None:
        """The request of a row, also of one that failed in its first step."""
        if key not in self._known:
            answer = self._engine.answer_of(key)
            request = answer.choices[key - answer.keys[0]].request if answer else None
            if request is None:
                return None
            self._learn(request)
        return self._known[key].request

    def _learn(self, request: Request) -> None:
        if request.key not in self._known:
            self._known[request.key] = _Known(request)
            self._arrived.append(self._describe(request))

    def _learn_all(self) -> None:
        for key, sequence in self._engine.scheduler.sequences.items():
            if key not in self._known and sequence.request.key == key:
                self._learn(sequence.request)

    def _describe(self, request: Request) -> Event:
        answer = self._engine.answer_of(request.key)
        return {
            "key": request.key,
            "id": answer.request_id if answer else "",
            "choice": request.choice,
            "arrival": answer.times.arrival if answer else self._clock(),
            "prompt": request.num_prompt_tokens,
            "limit": request.max_total_tokens,
            "length": request.num_tokens,
            "cached": request.num_cached_tokens,
            "preemptions": request.num_preemptions,
        }

    # What is given out ----------------------------------------------------------------------------------------------

    def _snapshot(self) -> Event:
        engine = self._engine
        options = engine.config.scheduler
        self._learn_all()
        self._states = block_states(engine.scheduler.tables.pool)
        self._counts = self._count()
        event = {
            "kind": "snapshot",
            "seq": self._seq,
            "t": self._clock(),
            "block_size": engine.memory.block_size,
            "max_num_seqs": options.max_num_seqs,
            "max_num_batched_tokens": options.max_num_batched_tokens,
            "max_model_len": engine.memory.max_model_len,
            "requests": self._arrived,
            "tables": list(self._changed_tables()),
            "runs": [[state, sum(1 for _ in run)] for state, run in groupby(self._states)],
            "waiting": self._waiting(),
            "counts": self._counts,
        }
        self._arrived = []
        return event

    def _give_out(self, now: float) -> None:
        """Emit a frame, unless there is nothing to say."""
        self._learn_all()
        tables = list(self._changed_tables())
        ended = list(self._take_ended())
        counts = self._count()
        if not (self._steps or self._arrived or tables or ended or counts != self._counts):
            return
        self._seq += 1
        self._counts = counts
        event = {
            "kind": "frame",
            "seq": self._seq,
            "t": now,
            "steps": self._steps,
            "arrived": self._arrived,
            "ended": ended,
            "tables": tables,
            "blocks": self._changed_blocks(),
            "waiting": self._waiting(),
            "counts": counts,
        }
        self._steps, self._arrived = [], []
        self._emit(event)
        self._due = now + max(INTERVAL_S, (self._clock() - now) / LARGEST_SHARE)

    def _changed_tables(self) -> Iterator[list[Any]]:
        """[key, index, blocks]: from this index on, the table of this request is these blocks."""
        for key, known in self._known.items():
            old, new = known.table, known.request.block_table
            if old != new:
                pairs = enumerate(zip(old, new, strict=False))
                same = next((i for i, (was, now) in pairs if was != now), min(len(old), len(new)))
                known.table = list(new)
                yield [key, same, new[same:]]

    def _take_ended(self) -> Iterator[list[Any]]:
        """[key, finish reason] of those that have ended; they are forgotten."""
        sequences = self._engine.scheduler.sequences
        for key in [key for key in self._known if key not in sequences]:
            request = self._known.pop(key).request
            yield [key, str(request.finish_reason or "error")]

    def _changed_blocks(self) -> list[list[int]]:
        """[block, state]"""
        before, self._states = self._states, block_states(self._engine.scheduler.tables.pool)
        old, new = np.frombuffer(before, np.int32), np.frombuffer(self._states, np.int32)
        changed = np.nonzero(old != new)[0]
        pairs: list[list[int]] = np.stack([changed, new[changed]], axis=1).tolist()
        return pairs

    def _waiting(self) -> list[list[Any]]:
        """[key, reason, needed, available], next to be served first."""
        return [[w.key, w.reason, w.needed, w.available] for w in waits(self._engine.scheduler, WAITING_SHOWN)]

    def _count(self) -> dict[str, int]:
        scheduler = self._engine.scheduler
        pool, did = scheduler.tables.pool, scheduler.counters
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "blocks_used": pool.num_held,
            "blocks_cached": pool.num_idle,
            "blocks_free": pool.num_free,
            "steps": did.steps,
            "prompt_tokens": did.prompt_tokens,
            "prompt_tokens_cached": did.cached_prompt_tokens,
            "generated_tokens": did.generated_tokens,
            "preemptions": did.preemptions,
        }


def _row(request: Request, count: int, position: int, drew: bool) -> list[int]:
    """[key, kind, tokens, position, length, cached, drew] of one row of a step."""
    kind = DECODE if count == 1 and position >= request.num_prompt_tokens else PREFILL
    return [request.key, kind, count, position, request.num_tokens, request.num_cached_tokens, int(drew)]
