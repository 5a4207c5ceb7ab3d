"""Planted faults: ways to get a decoder wrong, each as a change of the checkpoint that has the same effect.

A fault is made in the model a runner is given, never in the runner, so that every runner is tried with all of them.
This file knows nothing of runners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from toys import ToyCheckpoint

from kvik.step import Float32

Fault = Callable[[ToyCheckpoint], ToyCheckpoint]


def one_weight(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """One element of one matrix is a tenth too large."""
    down = checkpoint.weights["layers.1.down"].copy()
    at = np.unravel_index(np.abs(down).argmax(), down.shape)
    down[at] *= 1.1
    return checkpoint.with_weights({"layers.1.down": down})


def rope_sign(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Rotate by -p: the same as exchanging the halves of each head's queries and keys."""
    return _per_head(checkpoint, "qk", lambda head, pair: np.roll(head, pair, axis=0))


def keys_one_ahead(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Keys are rotated as if each stood one position later."""
    angle = checkpoint.spec.rope.inv_freq(checkpoint.spec.head_dim).astype(np.float64)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rotate(head: Float32, pair: int) -> Float32:
        first, second = head[:pair], head[pair:]
        turned: Float32 = np.concatenate([first * cos - second * sin, second * cos + first * sin]).astype(np.float32)
        return turned

    return _per_head(checkpoint, "k", rotate)


def swapped_layers(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Layers 1 and 2 change places."""
    other = {"1": "2", "2": "1"}
    moved = {}
    for name, weight in checkpoint.weights.items():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = other.get(parts[1], parts[1])
        moved[".".join(parts)] = weight
    return checkpoint.with_weights(moved)


def interleaved_groups(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Query head h reads kv head h % kv_heads instead of h // group: query heads are dealt out anew."""
    spec = checkpoint.spec
    order = np.arange(spec.num_heads).reshape(spec.group, spec.num_kv_heads).T.reshape(-1)
    rows = (order[:, None] * spec.head_dim + np.arange(spec.head_dim)).reshape(-1)
    changed = {}
    for layer in range(spec.num_layers):
        at = f"layers.{layer}."
        changed |= {at + name: checkpoint.weights[at + name][rows] for name in ("q", "q_bias")}
        changed[at + "o"] = checkpoint.weights[at + "o"][:, rows]
    return checkpoint.with_weights(changed)


def missing_bias(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """The biases of queries, keys and values are forgotten."""
    return checkpoint.with_spec(qkv_bias=False)


def missing_key_bias(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """The bias of one layer's keys alone is forgotten."""
    return checkpoint.with_weights({"layers.1.k_bias": np.zeros_like(checkpoint.weights["layers.1.k_bias"])})


def large_eps(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Norms add 1e-2 to the mean square."""
    return checkpoint.with_spec(rms_norm_eps=1e-2)


def wider_window(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Tokens see one position too many."""
    return _window(checkpoint, +1)


def narrower_window(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Tokens see one position too few."""
    return _window(checkpoint, -1)


def window_of_other_layers(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """The window is on the layers that have none."""
    return checkpoint.with_spec(sliding_window=checkpoint.spec.sliding_window[::-1])


def other_theta(checkpoint: ToyCheckpoint) -> ToyCheckpoint:
    """Rope angles fall a hundredth faster."""
    rope = checkpoint.spec.rope
    return checkpoint.with_spec(rope=replace(rope, theta=rope.theta * 1.01))


def _window(checkpoint: ToyCheckpoint, by: int) -> ToyCheckpoint:
    return checkpoint.with_spec(sliding_window=tuple(w and w + by for w in checkpoint.spec.sliding_window))


def _per_head(checkpoint: ToyCheckpoint, names: str, change: Callable[[Float32, int], Float32]) -> ToyCheckpoint:
    """Apply `change(head [head_dim, inputs], head_dim // 2)` to each head of these projections and their biases."""
    spec, changed = checkpoint.spec, {}
    for layer in range(spec.num_layers):
        for name in (part for letter in names for part in (letter, f"{letter}_bias")):
            weight = checkpoint.weights[f"layers.{layer}.{name}"]
            heads = weight.reshape(-1, spec.head_dim, weight.shape[1] if weight.ndim == 2 else 1)
            turned = np.stack([change(head, spec.head_dim // 2) for head in heads])
            changed[f"layers.{layer}.{name}"] = turned.reshape(weight.shape)
    return checkpoint.with_weights(changed)


FAULTS: tuple[Fault, ...] = (
    one_weight,
    rope_sign,
    keys_one_ahead,
    swapped_layers,
    interleaved_groups,
    missing_bias,
    missing_key_bias,
    large_eps,
    wider_window,
    narrower_window,
    window_of_other_layers,
    other_theta,
)
