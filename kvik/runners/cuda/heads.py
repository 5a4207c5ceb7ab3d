"""The shape of attention on one rank, and what is done to queries and keys before they meet.

Frozen data for kernels and their twins. This file knows nothing of layers or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvik.checkpoint.spec import DecoderSpec


@dataclass(frozen=True)
class Heads:
    """How many heads of what size; query head h reads KV head h // group."""

    query: int
    kv: int
    dim: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query // self.kv

    @property
    def projected(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.query + 2 * self.kv) * self.dim


@dataclass(frozen=True)
class Rotary:
    """Norms of one layer's queries and keys (None where the family has none), then the rotation by position."""

    heads: Heads
    q_norm: torch.Tensor | None
    """[dim]."""
    k_norm: torch.Tensor | None
    eps: float
    cos: torch.Tensor
    """[max_position, dim / 2] float32, shared by all layers."""
    sin: torch.Tensor


def rotation(spec: DecoderSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position and pair, float32 [max_position, head_dim / 2]: the angle is the float32 product
    that models are trained with, its cosine and sine are exact (as in the reference decoder).
    """
    positions = np.arange(spec.max_position, dtype=np.float32)
    angles = (positions[:, None] * spec.rope.inv_freq(spec.head_dim)).astype(np.float64)
    factor = np.float32(spec.rope.attention_factor)
    cos, sin = (function(angles).astype(np.float32) * factor for function in (np.cos, np.sin))
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)
