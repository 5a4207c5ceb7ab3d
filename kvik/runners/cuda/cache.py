"""The KV cache on the device: blocks of tokens, in the layout that attention reads.

    data    [layers, 2 (keys, values), num_blocks, kv_heads, block_size, head_dim]      in the cache's form
    scales  [layers, 2, num_blocks, kv_heads, block_size]                float32, int8 only: one per token and head

    slot of position p = block_table[p // block_size] * block_size + p % block_size

A KV head's tokens of a block lie together, so that a program that attends with one head reads whole lines. This file
knows nothing of who owns a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvik.runners.cuda.heads import Heads
from kvik.step import Int32

FORMS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.int8} | (
    {"fp8": torch.float8_e4m3fn} if hasattr(torch, "float8_e4m3fn") else {}
)
"""What keys and values can be held as."""


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, [num_blocks, kv_heads, block_size, head_dim], and their scales without the last axis
    (empty unless the form is int8).
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor
    value_scales: torch.Tensor

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.keys.shape[2]

    @property
    def scaled(self) -> bool:
        """Whether values are whole numbers with a scale."""
        return self.keys.dtype == torch.int8


class KVCache:
    """Keys and values of every layer, zeroed."""

    def __init__(
        self, num_layers: int, num_blocks: int, block_size: int, heads: Heads, *, form: str, device: torch.device
    ) -> None:
        shape = (num_layers, 2, num_blocks, heads.kv, block_size)
        self.num_blocks, self.block_size = num_blocks, block_size
        self._data = torch.zeros(*shape, heads.dim, dtype=FORMS[form], device=device)
        self._scales = torch.zeros(shape if form == "int8" else (num_layers, 2, 0), device=device)
        self._layers = [
            LayerCache(data[0], data[1], scales[0], scales[1])
            for data, scales in zip(self._data, self._scales, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self._data.nbytes + self._scales.nbytes

    def layer(self, index: int) -> LayerCache:
        """Views of one layer."""
        return self._layers[index]

    def copy_blocks(self, copies: Int32) -> None:
        """Copy whole blocks in all layers; copies is [C, 2] (source, target), and no target is a source."""
        if len(copies):
            source, target = torch.from_numpy(copies.T.astype("int64")).to(self._data.device)
            self._data[:, :, target] = self._data[:, :, source]
            if self._scales.numel():
                self._scales[:, :, target] = self._scales[:, :, source]


def kv_bytes_per_token(num_layers: int, heads: Heads, form: str) -> int:
    """Bytes that one token takes over all layers."""
    head = heads.dim * FORMS[form].itemsize + (4 if form == "int8" else 0)
    return 2 * num_layers * heads.kv * head
