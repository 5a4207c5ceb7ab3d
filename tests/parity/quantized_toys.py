"""Toys whose matrices are quantized already, as a reader of GPTQ, AWQ, compressed-tensors or GGUF would give them.

Levels are drawn at random and scales such that weights have the size of an ordinary toy's. This file knows nothing of
runners, nor of how the formats pack their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from toys import ToyCheckpoint, random_checkpoint, toy

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.quantized import QuantizedTensor, SuperBlocks
from kvik.checkpoint.spec import DecoderSpec
from kvik.step import Float32

Make = Callable[[np.random.Generator, str, int, int], QuantizedTensor]

SPECS = {
    # Every side a multiple of 256, so that GGUF's super-blocks fit.
    "even": toy("qwen3", hidden=256, heads=4, group=2, head_dim=64, vocab=79, intermediate=512),
    # No side a multiple of 32, and heads that leave some of their last panel empty.
    "tails": toy("llama", hidden=72, heads=3, group=3, head_dim=24, vocab=61, intermediate=180, qkv_bias=True),
}


@dataclass(frozen=True)
class QuantizedToy:
    """A Checkpoint of which some weights are quantized and the others those of a toy."""

    plain: ToyCheckpoint
    records: Mapping[str, QuantizedTensor]
    name: str = "quantized toy"
    directory: Path | None = None

    @property
    def spec(self) -> DecoderSpec:
        return self.plain.spec

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        return self.records.get(name) or self.plain.tensor(name)

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def unpacked(self) -> ToyCheckpoint:
        """The same values as floats."""
        return self.plain.with_weights({name: record.float32() for name, record in self.records.items()})


def quantized_toy(spec: DecoderSpec, makes: Make | Mapping[str, Make], seed: int = 0) -> QuantizedToy:
    """Every matrix by one way of making records, or those whose role is named by theirs."""
    plain, rng = random_checkpoint(spec, seed), np.random.default_rng(seed + 1)
    records = {}
    for name, shape in spec.tensor_shapes().items():
        make = makes.get(name.split(".")[-1]) if isinstance(makes, Mapping) else makes
        if len(shape) == 2 and make is not None:
            records[name] = make(rng, name, *shape)
    return QuantizedToy(plain, records)


def _scales(rng: np.random.Generator, shape: tuple[int, int], inputs: int, spread: float) -> Float32:
    """f16 numbers such that levels of this spread make weights of the size that `random_checkpoint` draws; some are
    negative, neighbours very different.
    """
    size = 1.2 / math.sqrt(inputs) / spread
    drawn = rng.uniform(0.3, 1.7, shape) * rng.choice([1, 1, -1], shape) * size
    return drawn.astype(np.float16).astype(np.float32)


def grouped(
    bits: int,
    group_size: int,
    *,
    zeros: tuple[int, int] | None = None,
    mins: bool = False,
    order: bool = False,
    scale_by: float = 1.0,
) -> Make:
    """Records with groups of this size (0: whole rows), zeros drawn from a range (default: the middle level), or minima
    in their place.
    """

    def make(rng: np.random.Generator, name: str, rows: int, inputs: int) -> QuantizedTensor:
        size = group_size or inputs
        shape = (rows, -(-inputs // size))
        top = 2**bits
        scales = _scales(rng, shape, inputs, top / 3.5) * np.float32(scale_by)
        low, high = zeros or (top // 2, top // 2)
        return QuantizedTensor(
            name,
            f"random int{bits}",
            bits,
            rng.integers(0, top, (rows, inputs)).astype(np.uint8),
            scales,
            size,
            zeros=None if mins else rng.integers(low, high + 1, shape).astype(np.int16),
            mins=np.abs(scales) * np.float32(top / 2) if mins else None,
            order=rng.permutation(inputs).astype(np.int32) if order else None,
        )

    return make


def k_quant(bits: int) -> Make:
    """Q4_K (4) or Q6_K (6) where super-blocks fit, and where they do not what those values are in groups."""

    def make(rng: np.random.Generator, name: str, rows: int, inputs: int) -> QuantizedTensor:
        size, top = (32, 64) if bits == 4 else (16, 128)
        groups, blocks = -(-inputs // size), -(-inputs // 256)
        per_step = 256 // size
        step = np.abs(_scales(rng, (rows, blocks), inputs, 2**bits / 3.5 * top / 2)).astype(np.float16)
        spread = np.arange(groups) // per_step
        if bits == 6:
            factor = rng.integers(-top, top, (rows, groups)).astype(np.int8)
            scales = step.astype(np.float32)[:, spread] * factor
            super_blocks, extra = SuperBlocks(step, factor), {"zeros": np.full(scales.shape, 32, np.int16)}
        else:
            factor, least = rng.integers(0, top, (2, rows, groups)).astype(np.uint8)
            min_step = (step.astype(np.float32) * 7).astype(np.float16)
            scales = step.astype(np.float32)[:, spread] * factor
            super_blocks = SuperBlocks(step, factor, min_step, least)
            extra = {"mins": min_step.astype(np.float32)[:, spread] * least}
        levels = rng.integers(0, 2**bits, (rows, inputs)).astype(np.uint8)
        given: dict[str, Any] = {**extra, "super_blocks": super_blocks if inputs % 256 == 0 else None}
        return QuantizedTensor(name, f"Q{bits}_K", bits, levels, scales.astype(np.float32), size, **given)

    return make


def in_groups_of(record: QuantizedTensor, group_size: int) -> QuantizedTensor:
    """The same weight with every group cut into smaller ones that repeat its scale."""
    inputs = record.shape[1]
    groups = np.arange(-(-inputs // group_size)) * group_size // record.group_size
    spread = {
        name: None if (values := getattr(record, name)) is None else values[:, groups]
        for name in ("scales", "zeros", "mins")
    }
    return replace(record, group_size=group_size, super_blocks=None, **spread)


def in_the_general_form(record: QuantizedTensor) -> QuantizedTensor:
    """The same values with a scale and a minimum for every 16 inputs."""
    size = 16
    small = in_groups_of(record, size)
    zeros = np.zeros(small.scales.shape, np.float32) if small.zeros is None else small.zeros.astype(np.float32)
    mins = small.mins if small.mins is not None else zeros * small.scales
    return replace(small, bits=max(record.bits, 5), zeros=None, mins=mins)
