"""Grids: which levels, scale and zero a group of weights is rounded with, and rounding to them.

    value = (level - zero) * scale      level 0 .. 2**bits - 1, scale as the file will hold it (f16 or bf16)

A scale is rounded to its stored form before any level is chosen, so that what is judged here is what will be read.
All functions take [.., size] and work on each group alone. This file knows nothing of layers or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import float32_to_bf16
from kvik.step import Float32

LEAST = {"f16": 2.0**-24, "bf16": 2.0**-100, "f32": 2.0**-100}
"""The least scale of each stored form."""
PARTS = tuple(np.float32(1 - 0.025 * step) for step in range(13))
"""Of a group's range, tried by `search`: 1 down to 0.7."""


@dataclass(frozen=True)
class Grid:
    """How weights are rounded."""

    bits: int
    symmetric: bool
    stored: str = "f16"
    """Form of the scales in the file: f16, bf16 or f32."""
    lowest_zero: int = 0

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    def spread(self, groups: Float32, part: np.float32 = PARTS[0]) -> tuple[Float32, Float32]:
        """Scale and zero [.., 1] that spread the levels over a part of each group's range, 0 included."""
        low = np.minimum(groups.min(axis=-1, keepdims=True), np.float32(0)) * part
        high = np.maximum(groups.max(axis=-1, keepdims=True), np.float32(0)) * part
        if self.symmetric:
            half = np.float32(1 << (self.bits - 1))
            scale = self.to_stored(np.maximum(-low, high) / (half - np.float32(0.5)))
            return scale, np.full_like(scale, half)
        scale = self.to_stored((high - low) / np.float32(self.top))
        return scale, np.clip(np.rint(-low / scale), self.lowest_zero, self.top)

    def search(self, groups: Float32, importance: Float32 | None = None) -> tuple[Float32, Float32]:
        """Scale and zero [.., 1] of the part of the range with the least squared error, which `importance` [size]
        weighs by input.
        """
        best_scale, best_zero = self.spread(groups)
        best = self._error(groups, best_scale, best_zero, importance)
        for part in PARTS[1:]:
            scale, zero = self.spread(groups, part)
            error = self._error(groups, scale, zero, importance)
            better = error < best
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
            best = np.where(better, error, best)
        return best_scale, best_zero

    def _error(self, groups: Float32, scale: Float32, zero: Float32, importance: Float32 | None) -> Float32:
        gap = self.values(self.levels(groups, scale, zero), scale, zero)
        gap -= groups
        gap *= gap
        if importance is not None:
            gap *= importance
        total: Float32 = gap.sum(axis=-1, keepdims=True)
        return total

    def levels(self, weights: Float32, scale: Float32, zero: Float32) -> Float32:
        """The nearest levels, as whole float32."""
        levels = weights / scale
        np.rint(levels, out=levels)
        levels += zero
        return np.clip(levels, 0, self.top, out=levels)

    def values(self, levels: Float32, scale: Float32, zero: Float32) -> Float32:
        """What levels stand for."""
        values: Float32 = (levels - zero) * scale
        return values

    def to_stored(self, scale: Float32) -> Float32:
        """The nearest scale that the file can hold, and that is not 0."""
        return stored(np.maximum(scale, np.float32(LEAST[self.stored])), self.stored)


def stored(values: Float32, form: str) -> Float32:
    """The nearest values that a form holds, as float32."""
    if form == "bf16":
        return (float32_to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if form == "f16" else values


def grouped(weight: Float32, size: int) -> Float32:
    """[N, K] as [N, groups, size]."""
    return weight.reshape(len(weight), -1, size)


@dataclass(frozen=True)
class Rounded:
    """A matrix [N, K] in levels, with scales and zeros [N, groups]; column i is input `order[i]`, if that is given."""

    levels: NDArray[np.uint8]
    scales: Float32
    zeros: NDArray[np.int16]
    order: NDArray[np.int32] | None = None


def round_to_nearest(
    weight: Float32, grid: Grid, size: int, *, scales: Float32 | None = None, zeros: Float32 | None = None
) -> Rounded:
    """Every weight to its nearest level, over the whole range of its group or with given scales and zeros [N, G, 1]."""
    groups = grouped(weight, size)
    if scales is None or zeros is None:
        scales, zeros = grid.spread(groups)
    levels = grid.levels(groups, scales, zeros).astype(np.uint8).reshape(weight.shape)
    return Rounded(levels, scales[..., 0], zeros[..., 0].astype(np.int16))


def kept(rounded: Rounded, size: int) -> Float32:
    """The values [N, K] of a rounded matrix whose columns are in order."""
    levels = grouped(rounded.levels.astype(np.float32), size)
    values = (levels - rounded.zeros[..., None].astype(np.float32)) * rounded.scales[..., None]
    return np.asarray(values.reshape(rounded.levels.shape), np.float32)
