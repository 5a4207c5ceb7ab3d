"""Tiny random models of every family: the checkpoints that runners are compared on.

Weights are drawn so that every part of the decoder matters to the logits: matrices keep unit scale, norms vary about
one, biases are as large as what they are added to. This file knows nothing of runners or of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvik.checkpoint.checkpoint import Tensor, float32_to_bf16
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.step import Float32


@dataclass(frozen=True)
class ToyCheckpoint:
    """A Checkpoint in memory; bf16 specs round their weights, so that all forms hold the same values."""

    spec: DecoderSpec
    weights: dict[str, Float32] = field(repr=False)
    name: str = "toy"
    directory: Path | None = None

    def tensor(self, name: str) -> Tensor:
        values = self.weights[name]
        if self.spec.dtype == "bf16":
            return Tensor(name, "bf16", float32_to_bf16(values))
        return Tensor(name, "f32", values)

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def with_weights(self, changed: dict[str, Float32]) -> ToyCheckpoint:
        """A copy in which these weights are others."""
        return replace(self, weights=self.weights | changed)

    def with_spec(self, **changed: Any) -> ToyCheckpoint:
        """A copy whose spec says something else about the same weights."""
        return replace(self, spec=replace(self.spec, **changed))


def random_checkpoint(spec: DecoderSpec, seed: int = 0) -> ToyCheckpoint:
    """Random weights for this spec."""
    rng = np.random.default_rng(seed)
    weights = {name: _draw(rng, name, shape) for name, shape in spec.tensor_shapes().items()}
    return ToyCheckpoint(spec, weights)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Float32:
    noise = rng.standard_normal(shape, np.float32)
    if name.endswith("norm"):
        return np.float32(1) + np.float32(0.2) * noise
    if name.endswith("_bias"):
        return np.float32(0.5) * noise
    return noise * np.float32(1.2 / math.sqrt(shape[-1]))


def toy(
    family: str,
    *,
    hidden: int,
    heads: int,
    group: int,
    head_dim: int,
    vocab: int,
    rope: RopeSpec | None = None,
    **more: Any,
) -> DecoderSpec:
    """A spec of few layers; what the family always has (biases, norms) is filled in."""
    declared = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}.get(family, {})
    layers = more.pop("layers", 2)
    window = more.pop("window", ())
    return DecoderSpec(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=more.pop("intermediate", hidden * 2 + 4),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // group,
        head_dim=head_dim,
        rms_norm_eps=more.pop("eps", 1e-5),
        rope=rope or RopeSpec(),
        max_position=more.pop("max_position", 64),
        dtype=more.pop("dtype", "f32"),
        sliding_window=(window,) * layers if isinstance(window, int) else window,
        **(declared | more),
    )


LINEAR = RopeSpec(kind="linear", factor=2.5)
LLAMA3 = RopeSpec(theta=500.0, kind="llama3", factor=8.0, original_max_position=64, high_freq_factor=6.0)
YARN = RopeSpec(
    theta=1000.0, kind="yarn", factor=4.0, original_max_position=16, attention_factor=0.1 * math.log(4.0) + 1.0
)

TOYS: dict[str, DecoderSpec] = {
    "llama-d8-g1-tied": toy("llama", hidden=40, heads=4, group=1, head_dim=8, vocab=97, tied_head=True),
    "llama-d16-g2-linear": toy("llama", hidden=54, heads=6, group=2, head_dim=16, vocab=131, rope=LINEAR, layers=3),
    "llama-d64-g4-llama3": toy("llama", hidden=96, heads=4, group=4, head_dim=64, vocab=203, rope=LLAMA3),
    "llama-d80-g1-biases": toy("llama", hidden=72, heads=2, group=1, head_dim=80, vocab=89, qkv_bias=True, o_bias=True),
    "llama-d128-g8-yarn": toy("llama", hidden=64, heads=8, group=8, head_dim=128, vocab=101, rope=YARN),
    "qwen2-d8-g8-tied": toy("qwen2", hidden=64, heads=8, group=8, head_dim=8, vocab=151, tied_head=True),
    "qwen2-d16-g4": toy("qwen2", hidden=33, heads=4, group=4, head_dim=16, vocab=77, eps=1e-6),
    "qwen2-d64-g2-window": toy(
        "qwen2", hidden=256, heads=4, group=2, head_dim=64, vocab=79, layers=3, window=(0, 7, 7)
    ),
    "qwen2-d128-g4-yarn": toy("qwen2", hidden=128, heads=4, group=4, head_dim=128, vocab=83, rope=YARN),
    "qwen3-d16-g4-tied": toy("qwen3", hidden=56, heads=8, group=4, head_dim=16, vocab=127, tied_head=True, layers=3),
    "qwen3-d128-g2-theta1e6": toy(
        "qwen3", hidden=100, heads=4, group=2, head_dim=128, vocab=211, rope=RopeSpec(theta=1e6), eps=1e-6
    ),
    "qwen3-d80-g8-window": toy("qwen3", hidden=80, heads=8, group=8, head_dim=80, vocab=73, window=(0, 5)),
    "qwen3-d64-g1-yarn": toy("qwen3", hidden=64, heads=3, group=1, head_dim=64, vocab=105, rope=YARN),
    "mistral-d8-g2-window": toy("mistral", hidden=42, heads=4, group=2, head_dim=8, vocab=91, window=6, layers=3),
    "mistral-d16-g8": toy("mistral", hidden=48, heads=8, group=8, head_dim=16, vocab=115),
    "mistral-d80-g4-window16": toy("mistral", hidden=90, heads=4, group=4, head_dim=80, vocab=119, window=16),
    "mistral-d128-g1-tied": toy("mistral", hidden=60, heads=2, group=1, head_dim=128, vocab=93, tied_head=True),
}

LONG: dict[str, DecoderSpec] = {
    "llama-long": toy("llama", hidden=48, heads=4, group=2, head_dim=16, vocab=61, max_position=512),
    "mistral-long-window": toy(
        "mistral", hidden=48, heads=4, group=4, head_dim=32, vocab=61, window=75, max_position=512
    ),
}
"""For prompts of several hundred tokens: over any boundary at which a kernel may divide the cache."""


def full_grid() -> dict[str, DecoderSpec]:
    """Every family with every head_dim and every group size, larger than the toys."""
    sizes = [(d, g) for d in (8, 16, 64, 80, 128) for g in (1, 2, 4, 8)]
    return {
        f"{family}-d{d}-g{g}": toy(family, hidden=26 * g, heads=2 * g, group=g, head_dim=d, vocab=251 + 2 * g)
        for family in ("llama", "qwen2", "qwen3", "mistral")
        for d, g in sizes
    }


def token_ids(spec: DecoderSpec, length: int, seed: int = 0) -> list[int]:
    """Random token ids, the first and the last id of the vocabulary among them."""
    ids = np.random.default_rng(1000 + seed).integers(0, spec.vocab_size, length)
    ids[:2] = (spec.vocab_size - 1, 0)[:length]
    return [int(i) for i in ids]
