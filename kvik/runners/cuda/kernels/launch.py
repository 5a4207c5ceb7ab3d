"""How the work of attention is cut for a launch, and the launches of a step.

Adaptive: single tokens get as many parts of their keys as fill the device, and prompts large tiles. Fixed: every token
is a tile of its own with parts divided in one way, so that its bytes depend on nothing but its own row; prompts are
slower for it. This file knows nothing of how a tile is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from kvik.runners.cuda.batch import Batch
from kvik.runners.cuda.cache import LayerCache
from kvik.runners.cuda.heads import Heads
from kvik.runners.cuda.kernels.attention import TileShape, attend_tiles

LEAST_ROWS = 16
"""Of a matrix product in Triton."""
KEYS = 64
MOST_PARTS = 32


class Shapes(Protocol):
    """How launches are cut."""

    @property
    def several_rows(self) -> int:
        """Rows of a tile of a row of several tokens; at least one token is in it."""

    def single(self, tiles: int, heads: Heads) -> TileShape:
        """For rows of one token."""

    def several(self, tiles: int, heads: Heads) -> TileShape:
        """For rows of more."""


@dataclass(frozen=True)
class AdaptiveShapes:
    """By how many programs there are beside how many processors."""

    processors: int
    several_rows: int = 128

    def single(self, tiles: int, heads: Heads) -> TileShape:
        """As many parts as give every processor two programs, in powers of two so that few kernels are compiled."""
        wanted = 2 * self.processors // max(1, tiles * heads.kv)
        parts = min(MOST_PARTS, 1 << max(0, wanted.bit_length() - 1))
        return TileShape(rows_for(heads, 1), KEYS, parts, warps=4)

    def several(self, tiles: int, heads: Heads) -> TileShape:
        """One part: prompts have tokens enough to fill the device."""
        return TileShape(rows_for(heads, self.several_rows), KEYS, 1, warps=8 if heads.dim > 64 else 4)


@dataclass(frozen=True)
class FixedShapes:
    """The same for every launch."""

    several_rows: int = 1
    parts: int = 8

    def single(self, tiles: int, heads: Heads) -> TileShape:
        """One token with its group."""
        return TileShape(rows_for(heads, 1), KEYS, self.parts, warps=4)

    def several(self, tiles: int, heads: Heads) -> TileShape:
        """The same."""
        return self.single(tiles, heads)


def rows_for(heads: Heads, rows: int) -> int:
    """Rows that a tile needs so that a token and its padded group fit."""
    return max(LEAST_ROWS, rows, 1 << (heads.group - 1).bit_length())


def attend(
    shapes: Shapes, queries: torch.Tensor, cache: LayerCache, heads: Heads, batch: Batch, window: int
) -> torch.Tensor:
    """Attention [T, heads * dim] of all tokens of a batch, in at most two launches."""
    out = torch.zeros_like(queries) if len(batch.single) + len(batch.several) == 0 else torch.empty_like(queries)
    for tiles, shape in (
        (batch.single, shapes.single(len(batch.single), heads)),
        (batch.several, shapes.several(len(batch.several), heads)),
    ):
        attend_tiles(queries, cache, heads, batch, tiles, window, shape, out)
    return out
