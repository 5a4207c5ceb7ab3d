"""How much the output of a block changes when some of its matrices are rounded: what AWQ chooses its scales by.

    attn    what attention adds, softmax and o included, over some sequences     q, k, v
    o       what o makes, over all calibration tokens                            o
    mlp     what the MLP adds, down included, over some sequences                gate, up
    down    what down makes, over all calibration tokens                         down

This file knows nothing of rounding.
"""

from __future__ import annotations

import numpy as np

from kvik.quantize.forward import LayerForward, Statistics
from kvik.step import Float32

TOKENS = 1024
"""Judged by, in whole sequences."""


class Blocks:
    """The two blocks of one layer over some of the sequences that enter it."""

    def __init__(
        self,
        forward: LayerForward,
        layer: int,
        weights: dict[str, Float32],
        x: Float32,
        seen: dict[str, Statistics],
    ) -> None:
        """`weights` are exact, x [sequences, length, hidden] is what enters the layer, `seen` over all of it."""
        self._forward, self._layer = forward, layer
        self._hessians = {channels: seen[channels].hessian.astype(np.float32) for channels in ("o", "down")}
        entering = {"attn": x, "mlp": x + forward.attention_output(layer, weights, x)}
        self._entering = entering
        self._exact = {channels: self._output(channels, weights) for channels in entering}

    def error(self, channels: str, weights: dict[str, Float32], held: dict[str, Float32]) -> float:
        """Squared error of a block's output when its readers of `channels` are `held` in place of `weights`."""
        if channels in self._entering:
            gap = self._output(channels, weights | held) - self._exact[channels]
            return float(np.square(gap, out=gap).sum(dtype=np.float64))
        # One matrix makes the output: X @ D.T, D its change, has the squares D @ (X.T @ X) @ D.T.
        change = held[channels] - weights[channels]
        return float(np.vdot(change @ self._hessians[channels], change))

    def _output(self, channels: str, weights: dict[str, Float32]) -> Float32:
        x = self._entering[channels]
        if channels == "attn":
            return self._forward.attention_output(self._layer, weights, x)
        return self._forward.mlp_output(weights, x)


def judged_by(x: Float32) -> Float32:
    """A copy of some sequences [n, length, hidden], evenly spread, that together have `TOKENS` tokens or fewer."""
    count = max(1, min(len(x), TOKENS // x.shape[1]))
    some: Float32 = x[:: len(x) // count][:count].copy()
    return some
