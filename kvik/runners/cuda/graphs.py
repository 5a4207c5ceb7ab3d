"""Captured decode steps: one CUDA graph for each number of rows, replayed instead of launched kernel by kernel.

A step of R rows with one token each runs in the smallest bucket that holds it. The rows that fill a bucket up are
padding: they have slot -1, so they write nowhere, and a tile of no tokens, so they read nothing. Inputs are copied to
fixed places before a replay; all graphs share one pool of memory, since only one runs at a time. The head is left out:
its rows of logits would be kept once for each graph. This file knows nothing of what the decoder computes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvik.runners.cuda.batch import Batch, Tiles, slots_of
from kvik.runners.cuda.cache import KVCache
from kvik.runners.cuda.decoder import Decoder
from kvik.step import Int32, StepPlan

MOST_ROWS = 256
PADDING_SLOT = -1
FIELDS = ("token_ids", "positions", "slots", "counts")


def buckets(most: int) -> list[int]:
    """Sizes of the graphs for up to `most` rows: powers of two to 16, then steps of 16 to 64, of 32 beyond."""
    sizes = [1, 2, 4, 8, *range(16, 64, 16), *range(64, most + 31, 32)]
    return [size for size in sizes if size < most] + [most]


def bucket_of(rows: int, sizes: list[int]) -> int | None:
    """The smallest size that holds this many rows; None if none does."""
    return next((size for size in sizes if size >= rows), None)


def padded_inputs(plan: StepPlan, block_size: int, size: int) -> Int32:
    """[4, size] the rows of FIELDS for a step of single tokens: padding has token 0 at position 0, no slot, count 0."""
    inputs = np.zeros((len(FIELDS), size), np.int32)
    inputs[2] = PADDING_SLOT
    rows = plan.num_rows
    inputs[:, :rows] = plan.token_ids, plan.positions, slots_of(plan, block_size), np.ones(rows, np.int32)
    return inputs


@dataclass(frozen=True)
class Graph:
    """A captured step: replay it, then read `hidden` [size, hidden_size]."""

    recorded: torch.cuda.CUDAGraph
    hidden: torch.Tensor


class Inputs:
    """The fixed places that graphs read: integers [4, most], and block tables [most, width]."""

    def __init__(self, most: int, width: int, device: torch.device) -> None:
        self._most = most
        self.numbers = torch.zeros(len(FIELDS) * most, dtype=torch.int32, device=device)
        self.tables = torch.zeros(most, width, dtype=torch.int32, device=device)
        self._rows = torch.arange(most, dtype=torch.int32, device=device)

    def batch(self, size: int) -> Batch:
        """The places of a bucket as a batch; those of all buckets overlap."""
        token_ids, positions, slots, counts = self.numbers[: len(FIELDS) * size].view(len(FIELDS), size)
        rows, nothing = self._rows[:size], self._rows[:0]
        single = Tiles(rows, rows, counts, size=1)
        return Batch(token_ids, positions, slots, self.tables[:size], single, Tiles(nothing, nothing, nothing, size=1))

    def fill(self, plan: StepPlan, block_size: int, size: int) -> None:
        """Put a plan into the places of a bucket."""
        numbers = self._pinned(padded_inputs(plan, block_size, size).reshape(-1))
        self.numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        width = min(plan.block_tables.shape[1], self.tables.shape[1])
        tables = self._pinned(np.ascontiguousarray(plan.block_tables[:, :width]))
        self.tables[: plan.num_rows, :width].copy_(tables, non_blocking=True)

    def _pinned(self, values: Int32) -> torch.Tensor:
        there = torch.from_numpy(values)
        return there.pin_memory() if self.numbers.is_cuda else there


class Graphs:
    """The captured decode steps of one decoder over one cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, width: int, device: torch.device) -> None:
        """Captures every bucket, the largest first, so that the others find their memory in its pool."""
        self._block_size, self._sizes = cache.block_size, buckets(MOST_ROWS)
        self._inputs = Inputs(MOST_ROWS, width, device)
        started, before = time.monotonic(), torch.cuda.mem_get_info(device)[0]
        pool = torch.cuda.graph_pool_handle()
        self._graphs = {size: self._capture(decoder, cache, size, pool) for size in reversed(self._sizes)}
        torch.cuda.synchronize(device)
        self.seconds = time.monotonic() - started
        self.nbytes = max(0, before - torch.cuda.mem_get_info(device)[0])

    def report(self) -> str:
        """What was captured, in how long and how much memory."""
        return f"{len(self._graphs)} graphs captured in {self.seconds:.1f} s, {self.nbytes / 2**20:.0f} MiB"

    def serves(self, plan: StepPlan) -> bool:
        """Whether a step is one token for each row, with no more rows than the largest graph."""
        return plan.num_tokens == plan.num_rows and 0 < plan.num_rows <= MOST_ROWS

    def replay(self, plan: StepPlan) -> torch.Tensor:
        """Residuals [R, hidden_size] after the final norm of a step that it `serves`; valid until the next replay."""
        size = bucket_of(plan.num_rows, self._sizes)
        assert size is not None
        self._inputs.fill(plan, self._block_size, size)
        graph = self._graphs[size]
        graph.recorded.replay()
        return graph.hidden[: plan.num_rows]

    def _capture(self, decoder: Decoder, cache: KVCache, size: int, pool: Any) -> Graph:
        batch = self._inputs.batch(size)
        batch.slots.fill_(PADDING_SLOT)
        batch.positions.zero_()
        batch.single.counts.zero_()

        # What is compiled or chosen at first use must be so before the capture.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            decoder.hidden(batch, cache)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, pool=pool):
            hidden = decoder.hidden(batch, cache)
        return Graph(recorded, hidden)
