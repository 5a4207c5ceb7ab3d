"""Outlier channels, as large models have them, put into a small model without changing what it computes.

A channel of a norm's output is made `FACTOR` times larger, and the matrices that read it take that much less of it; a
row of v (of up) likewise, undone in the columns of o (of down). This file knows nothing of runners or of forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.step import Float32

FACTOR = np.float32(50)
FRACTION = 0.01


def outlier_channels(width: int, seed: int) -> np.ndarray:
    """1 % of the channels, at least one."""
    return np.random.default_rng(seed).choice(width, max(1, round(FRACTION * width)), replace=False)


@dataclass
class OutlierCheckpoint:
    """The same function as `sound`, with outliers in what its linear layers read. Stored as f32."""

    sound: Checkpoint

    @property
    def spec(self) -> DecoderSpec:
        return self.sound.spec

    @property
    def name(self) -> str:
        return f"{self.sound.name} with outliers"

    @property
    def directory(self) -> Path | None:
        return None

    def tensor(self, name: str) -> Tensor:
        values = self.sound.tensor(name).float32().copy()
        if "." in name:
            _, layer, role = name.split(".")
            self._rescale(values, int(layer), role)
        return Tensor(name, "f32", values)

    def release(self, name: str) -> None:
        self.sound.release(name)

    def _rescale(self, values: Float32, layer: int, role: str) -> None:
        spec, hidden = self.spec, self.spec.hidden_size
        attn, mlp = outlier_channels(hidden, 4 * layer), outlier_channels(hidden, 4 * layer + 1)
        if role in ("attn_norm", "mlp_norm"):
            values[attn if role == "attn_norm" else mlp] *= FACTOR
        elif role in "qkv":
            values[:, attn] /= FACTOR
        elif role in ("gate", "up"):
            values[:, mlp] /= FACTOR
        self._rescale_inside(values, spec, layer, role)

    def _rescale_inside(self, values: Float32, spec: DecoderSpec, layer: int, role: str) -> None:
        """Rows of v and up, and the columns of o and down that read them."""
        v = outlier_channels(spec.num_kv_heads * spec.head_dim, 4 * layer + 2)
        up = outlier_channels(spec.intermediate_size, 4 * layer + 3)
        if role in ("v", "up"):
            values[v if role == "v" else up] *= FACTOR
        elif role == "down":
            values[:, up] /= FACTOR
        elif role == "o":
            head, channel = np.divmod(v[:, None], spec.head_dim)
            readers = (head * spec.group + np.arange(spec.group)) * spec.head_dim + channel
            values[:, readers.reshape(-1)] /= FACTOR
