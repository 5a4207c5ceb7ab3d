"""The KV cache as blocks: two arrays, and slots that say where a position lies in them.

    keys, values: float32 [layers, blocks, block_size, kv_heads, head_dim]
    slot of position p = block_table[p // block_size] * block_size + p % block_size

They hold what the cache's form would keep: all of it, its bf16, or its int8 with one scale per token and head.
A row's positions may lie in any blocks in any order. This file knows nothing of attention, of who owns a block or of
why one is copied; it refuses slots outside the cache, since a wrong table would otherwise read another request.
"""

from __future__ import annotations

import numpy as np

from kvik.runners.reference.quantized import KEPT
from kvik.step import Float32, Int32, Int64


class KVCache:
    """Keys and values of every layer, as a cache of this form (f32, bf16 or int8) keeps them."""

    def __init__(
        self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, *, form: str
    ) -> None:
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        self.num_blocks, self.block_size, self._kept = num_blocks, block_size, KEPT[form]
        self._keys = np.zeros(shape, np.float32)
        self._values = np.zeros(shape, np.float32)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def slots(self, block_table: Int32, seq_len: int) -> Int64:
        """Where positions 0 .. seq_len - 1 lie, int64 [seq_len]. Raises ValueError for a block outside the cache."""
        positions = np.arange(seq_len)
        if seq_len > len(block_table) * self.block_size:
            raise ValueError(f"a row of {seq_len} tokens has {len(block_table)} blocks of {self.block_size}")
        blocks = block_table[positions // self.block_size].astype(np.int64)
        self._check(blocks, "block table")
        return blocks * self.block_size + positions % self.block_size

    def copy_blocks(self, copies: Int32) -> None:
        """Copy whole blocks in all layers; copies is [C, 2] (source, target), and no target is a source."""
        self._check(copies, "copy")
        sources, targets = copies[:, 0], copies[:, 1]
        self._keys[:, targets] = self._keys[:, sources]
        self._values[:, targets] = self._values[:, sources]

    def write(self, layer: int, slots: Int64, keys: Float32, values: Float32) -> None:
        """Store [t, kv_heads, head_dim] keys and values at t slots."""
        block, offset = np.divmod(slots, self.block_size)
        self._keys[layer, block, offset] = self._kept(keys)
        self._values[layer, block, offset] = self._kept(values)

    def read(self, layer: int, slots: Int64) -> tuple[Float32, Float32]:
        """Keys and values [n, kv_heads, head_dim] at n slots, copied together in the order of the slots."""
        block, offset = np.divmod(slots, self.block_size)
        return self._keys[layer, block, offset], self._values[layer, block, offset]

    def _check(self, blocks: Int32 | Int64, what: str) -> None:
        if blocks.size and (blocks.min() < 0 or blocks.max() >= self.num_blocks):
            wrong = blocks[(blocks < 0) | (blocks >= self.num_blocks)][0]
            raise ValueError(f"a {what} names block {wrong}; expected 0 to {self.num_blocks - 1}")
