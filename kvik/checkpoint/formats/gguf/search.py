"""Levels and scales for a weight: the choice that loses least.

For each group the scale is tried at some places around the one that makes the largest weight fit, rounding is done,
and for the levels so found the scale (and minimum) of least weighted squared error follows in closed form; the best of
all tries stays. Large weights count for more: a weight's error counts rms + |x|, as large weights tend to meet what
matters. What is stored of a scale is coarser than what was found, so levels are rounded once more, to the stored one.
This file knows nothing of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvik.step import Float32

Half = NDArray[np.float16]
Levels = NDArray[np.int8] | NDArray[np.uint8]

SHIFTS = tuple(np.float32(step) / 8 for step in range(-7, 8, 2))
"""By how many levels the largest weight is placed beside the end of the range."""
_TINY = 1e-300
SMALLEST = 2.0**-14
"""f16 has all its digits from here on."""


@dataclass(frozen=True)
class Found:
    """Levels [n, 256] or [n, 32] with what their type stores beside them."""

    levels: Levels
    step: Half
    """[n]."""
    factors: Levels | None = None
    """[n, groups]."""
    min_step: Half | None = None
    min_factors: Levels | None = None


def quantize_q8_0(x: Float32) -> Found:
    """[n, 32] to -127 .. 127: at eight bits the largest weight alone decides."""
    step = (np.abs(x).max(axis=1) / np.float32(127)).astype(np.float16)
    return Found(_rounded(x, _over(step), -127, 127).astype(np.int8), step)


def quantize_q4_0(x: Float32) -> Found:
    """[n, 32] to -8 .. 7."""
    step = _symmetric_scales(x, -8, 7).astype(np.float16)
    return Found(_rounded(x, _over(step), -8, 7).astype(np.int8), step)


def quantize_q6_k(x: Float32) -> Found:
    """[n, 256] to -32 .. 31 in groups of 16, whose scales are -128 .. 127 times a step."""
    groups = x.reshape(-1, 16)
    scales = _symmetric_scales(groups, -32, 31).reshape(-1, 16)
    at = np.abs(scales).argmax(axis=1)
    step = _above(np.take_along_axis(scales, at[:, None], axis=1)[:, 0] / np.float32(-128))
    factors = _rounded(scales, _over(step), -128, 127)
    actual = (factors * step.astype(np.float32)[:, None]).reshape(-1)
    levels = _rounded(groups, _over(actual), -32, 31).reshape(x.shape)
    return Found(levels.astype(np.int8), step, factors.astype(np.int8))


def quantize_q4_k(x: Float32) -> Found:
    """[n, 256] to 0 .. 15 in groups of 32, whose scales and minima are 0 .. 63 times a step each."""
    groups = x.reshape(-1, 32)
    scales, mins = (found.reshape(-1, 8) for found in _ranged_scales(groups, 15))
    step, min_step = _above(scales.max(axis=1) / np.float32(63)), _above(mins.max(axis=1) / np.float32(63))
    factors, min_factors = _rounded(scales, _over(step), 0, 63), _rounded(mins, _over(min_step), 0, 63)
    actual = (factors * step.astype(np.float32)[:, None]).reshape(-1)
    taken = (min_factors * min_step.astype(np.float32)[:, None]).reshape(-1)
    levels = _rounded(groups + taken[:, None], _over(actual), 0, 15).reshape(x.shape)
    return Found(levels.astype(np.uint8), step, factors.astype(np.uint8), min_step, min_factors.astype(np.uint8))


def _above(step: Float32) -> Half:
    """What is stored of a step that integers are multiplied by: not less where f16 is coarse (below 2**-14), so that
    the largest integer need not be clipped.
    """
    stored = step.astype(np.float16)
    less = (np.abs(stored) < np.abs(step)) & (np.abs(step) < SMALLEST)
    raised: Half = np.where(less, np.nextafter(stored, np.copysign(np.float16(np.inf), stored)), stored)
    return raised


def _over(step: Half | Float32) -> Float32:
    """1 / step, 0 for a step of 0."""
    wide = step.astype(np.float32)
    inverse: Float32 = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    return inverse


def _rounded(x: Float32, inverse: Float32, low: int, high: int) -> Float32:
    """Levels of rows x [n, m] by 1 / scale [n], as float32."""
    levels: Float32 = x * inverse[:, None]
    np.rint(levels, out=levels)
    np.clip(levels, low, high, out=levels)
    return levels


def _importance(x: Float32) -> Float32:
    rms = np.sqrt(np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1]))
    return np.asarray(np.abs(x) + rms[:, None], np.float32)


def _symmetric_scales(x: Float32, low: int, high: int) -> Float32:
    """The scale of each row of x [n, m] for levels low .. high, [n]; the largest weight is placed near `low`."""
    weight = _importance(x)
    weighted = weight * x
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    over_peak = _over(peak)
    scales, best = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for shift in SHIFTS:
        levels = _rounded(x, over_peak * (np.float32(low) + shift), low, high)
        product = np.einsum("ij,ij->i", weighted, levels)
        square = np.einsum("ij,ij,ij->i", weight, levels, levels)
        scale = product * _over(square)
        gain = product * scale
        better = gain > best
        best[better], scales[better] = gain[better], scale[better]
    return scales


def _ranged_scales(x: Float32, high: int) -> tuple[Float32, Float32]:
    """Scale and minimum, both at least 0, of each row of x [n, m]: x is about level * scale - minimum."""
    weight = _importance(x)
    low = np.minimum(x.min(axis=1), np.float32(0))
    above = x - low[:, None]
    inverse = _over(above.max(axis=1))
    total, first = weight.sum(axis=1), np.einsum("ij,ij->i", weight, x)
    weighted = weight * x
    scales, mins = np.zeros(len(x), np.float32), -low
    best = np.full(len(x), np.inf)
    for shift in SHIFTS:
        levels = _rounded(above, inverse * (np.float32(high) + shift), 0, high)
        sums = _Sums(
            total.astype(np.float64),
            first.astype(np.float64),
            np.einsum("ij,ij->i", weight, levels).astype(np.float64),
            np.einsum("ij,ij,ij->i", weight, levels, levels).astype(np.float64),
            np.einsum("ij,ij->i", weighted, levels).astype(np.float64),
        )
        scale, minimum = sums.fit()
        error = sums.error(scale, minimum)
        better = error < best
        best[better], scales[better], mins[better] = error[better], scale[better], minimum[better]
    return scales, mins


@dataclass(frozen=True)
class _Sums:
    """Weighted sums over a group, [n] each, of 1, x, level, level squared and level times x."""

    one: NDArray[np.float64]
    x: NDArray[np.float64]
    level: NDArray[np.float64]
    square: NDArray[np.float64]
    product: NDArray[np.float64]

    def fit(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and minimum of least error; where the minimum would be negative, 0 and the scale that then is best;
        where all levels are 0, the minimum alone.
        """
        determinant = self.one * self.square - self.level**2
        usable = determinant > 1e-9 * self.one * self.square
        inverse = np.divide(1, determinant, out=np.zeros_like(determinant), where=usable)
        scale = (self.one * self.product - self.x * self.level) * inverse
        minimum = (self.level * self.product - self.square * self.x) * inverse
        alone = np.divide(self.product, self.square, out=np.zeros_like(scale), where=self.square > 0)
        plain = ~usable | (minimum < 0) | (scale < 0)
        constant = np.where(self.square > 0, 0, np.maximum(-self.x / np.maximum(self.one, _TINY), 0))
        return np.where(plain, np.maximum(alone, 0), scale), np.where(plain, constant, minimum)

    def error(self, scale: NDArray[np.float64], minimum: NDArray[np.float64]) -> NDArray[np.float64]:
        """The error, but for what no choice changes."""
        error: NDArray[np.float64] = (
            scale**2 * self.square
            + minimum**2 * self.one
            - 2 * scale * minimum * self.level
            - 2 * scale * self.product
            + 2 * minimum * self.x
        )
        return error
