"""A rank's place among those that share a model, and how they exchange tensors; here for one rank that is alone.

Heads, channels of the MLP and the vocabulary are divided evenly. This file knows nothing of processes or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import ConfigError


class Ranks(Protocol):
    """This rank among its peers."""

    @property
    def rank(self) -> int:
        """0 .. size - 1."""

    @property
    def size(self) -> int:
        """How many there are."""

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, the same bytes on each."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """What all ranks have, side by side along the last axis."""


@dataclass(frozen=True)
class Alone:
    """One rank with the whole model."""

    rank: int = 0
    size: int = 1

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        """x itself."""
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """x itself."""
        return x


def share(count: int, ranks: Ranks) -> slice:
    """This rank's part of `count` things that are divided evenly, the last part maybe short."""
    each = -(-count // ranks.size)
    return slice(each * ranks.rank, min(each * (ranks.rank + 1), count))


def check_divisible(spec: DecoderSpec, size: int) -> None:
    """Raises ConfigError for a model that `size` ranks cannot share evenly."""
    counts = {"KV heads": spec.num_kv_heads, "heads": spec.num_heads, "MLP channels": spec.intermediate_size}
    for name, count in counts.items():
        if count % size:
            raise ConfigError(f"tensor_parallel_size is {size}; expected a divisor of the model's {count} {name}")
