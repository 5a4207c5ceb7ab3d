"""A step as tensors: the integers of a StepPlan, laid out for kernels and sent to the device in one copy.

Attention works in *tiles*: some tokens of one row that lie one after another, few enough that they and their heads fill
one matrix tile. Rows of one token and rows of many go to kernels of different sizes, so there are two lists. This file
knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvik.step import Int32, StepPlan


@dataclass(frozen=True)
class Tiles:
    """N tiles: tile i is tokens starts[i] .. starts[i] + counts[i] - 1 of row rows[i]; a count of 0 is nothing."""

    rows: torch.Tensor
    """[N] int32, as the others."""
    starts: torch.Tensor
    counts: torch.Tensor
    size: int
    """The most tokens in a tile."""

    def __len__(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True)
class Batch:
    """T tokens of R rows on the device, all int32."""

    token_ids: torch.Tensor
    """[T]"""
    positions: torch.Tensor
    """[T]"""
    slots: torch.Tensor
    """[T] where a token's key and value go; -1 for padding."""
    block_tables: torch.Tensor
    """[R, W]; rows may be wider apart than W."""
    single: Tiles
    """Rows of one token each."""
    several: Tiles
    """Rows of more."""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.token_ids.shape[0]


def slots_of(plan: StepPlan, block_size: int) -> Int32:
    """[T] the slot of every token of a plan."""
    rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.query_start_loc))
    blocks = plan.block_tables[rows, plan.positions // block_size]
    return (blocks * block_size + plan.positions % block_size).astype(np.int32)


def tile_rows(plan: StepPlan, rows: Int32, size: int) -> Int32:
    """[3, N]: rows, starts and counts of the tiles of these rows, `size` tokens at most in each."""
    starts, counts = plan.query_start_loc[rows], np.diff(plan.query_start_loc)[rows]
    tiles = -(-counts // size)
    index = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    left = np.repeat(counts, tiles) - index * size
    return np.stack([np.repeat(rows, tiles), np.repeat(starts, tiles) + index * size, left.clip(max=size)]).astype(
        np.int32
    )


def pack(arrays: Sequence[Int32], device: torch.device) -> list[torch.Tensor]:
    """The arrays on the device, through one buffer and one copy."""
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    there = flat.to(device, non_blocking=True)
    pieces = torch.split(there, [array.size for array in arrays])
    return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


def batch_of(plan: StepPlan, block_size: int, tile_size: int, device: torch.device) -> Batch:
    """The plan on the device; rows of several tokens in tiles of `tile_size`."""
    counts = np.diff(plan.query_start_loc)
    single, several = (np.flatnonzero(which).astype(np.int32) for which in (counts == 1, counts > 1))
    ones, tiles = tile_rows(plan, single, 1), tile_rows(plan, several, tile_size)
    arrays = (plan.token_ids, plan.positions, slots_of(plan, block_size), plan.block_tables, ones, tiles)
    token_ids, positions, slots, tables, ones_there, tiles_there = pack(arrays, device)
    return Batch(
        token_ids,
        positions,
        slots,
        tables,
        Tiles(ones_there[0], ones_there[1], ones_there[2], 1),
        Tiles(tiles_there[0], tiles_there[1], tiles_there[2], tile_size),
    )
