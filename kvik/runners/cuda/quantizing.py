"""Plain matrices quantized on load, on the device: the definition of `reference/quantized.py` in torch.

    int8   one scale per row:                  value = (level - 128) * scale
    int4   a scale and a zero per group:       value = (level - zero) * scale

The steps, their order and their roundings are the reference's, so the integers are the same; what they mean and why is
said there. This file knows nothing of packing or of products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.runners.cuda.plain import quantized_int8
from kvik.runners.reference.quantized import LANES, LARGEST_STEP, LEAST_STEP, PARTS

CHUNK = 1 << 24
"""Weights quantized at a time, which bounds the memory that takes."""
OFFSET = 128
"""Takes int8's -127 .. 127 to levels that are not negative."""


@dataclass(frozen=True)
class Rounding:
    """How matrices are quantized: the form int8 or int4, and for int4 its groups."""

    form: str
    group_size: int
    symmetric: bool

    def quantized(self, tensor: Tensor, device: torch.device) -> QuantizedTensor:
        """The matrix in this form."""
        rows, inputs = tensor.shape
        step = max(1, CHUNK // inputs)
        parts = [self._rows(tensor, slice(start, start + step), device) for start in range(0, rows, step)]
        levels, zeros, scales = (np.concatenate(each) for each in zip(*parts, strict=True))
        return QuantizedTensor(
            name=tensor.name,
            dtype=self.form,
            bits=8 if self.form == "int8" else 4,
            levels=levels,
            scales=scales,
            group_size=inputs if self.form == "int8" else self.group_size,
            zeros=zeros,
        )

    def _rows(self, tensor: Tensor, part: slice, device: torch.device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = Tensor(tensor.name, tensor.dtype, tensor.data[part]).float32()
        rows = torch.from_numpy(values).to(device)
        if self.form == "int8":
            q, scale = quantized_int8(rows)
            level, zero = q + OFFSET, torch.full_like(scale, OFFSET)
        else:
            level, zero, scale = quantized_int4(rows, self.group_size, symmetric=self.symmetric)
        return (
            level.to(torch.uint8).cpu().numpy(),
            zero.to(torch.int16).cpu().numpy(),
            scale.cpu().numpy(),
        )


@dataclass(frozen=True)
class Fit:
    """Groups in one step and zero each: `q` [..., size] counts from the zero; the others are [..., 1]."""

    q: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor
    error: torch.Tensor

    def or_better(self, other: Fit) -> Fit:
        """Of each group the fit with the smaller error, this one where they are equal."""
        better = other.error < self.error
        pairs = ((self.q, other.q), (self.zero, other.zero), (self.step, other.step), (self.error, other.error))
        return Fit(*(torch.where(better, theirs, ours) for ours, theirs in pairs))


def quantized_int4(
    rows: torch.Tensor, group_size: int, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels [m, n], zeros and scales [m, groups] of float32 rows [m, n]; a group that is not finite has scale NaN."""
    count = rows.shape[1]
    padded = torch.nn.functional.pad(rows, (0, -count % group_size)).view(len(rows), -1, group_size)
    sound = padded.isfinite().all(dim=-1, keepdim=True)
    nothing = torch.zeros((), device=rows.device)
    x = torch.where(sound, padded, nothing)
    low, high = x.amin(dim=-1, keepdim=True).clamp(max=0), x.amax(dim=-1, keepdim=True).clamp(min=0)
    choose: Callable[..., Fit] = centred if symmetric else search
    best = choose(x, low, high)
    level, zero = torch.where(sound, best.q + best.zero, nothing), torch.where(sound, best.zero, nothing)
    step = torch.where(sound, best.step, torch.full_like(best.step, float("nan")))
    return level.view(len(rows), -1)[:, :count], zero[..., 0], step[..., 0]


def ordered_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums [..., 1], added in the reference's order."""
    lanes = values.view(*values.shape[:-1], -1, LANES)
    sums: torch.Tensor = reduce(torch.add, lanes.unbind(dim=-2))
    for width in (8, 4, 2, 1):
        sums = sums[..., :width] + sums[..., width:]
    return sums


def to_step(wanted: torch.Tensor) -> torch.Tensor:
    """The nearest f16 that can be a step."""
    return wanted.clamp(float(LEAST_STEP), float(LARGEST_STEP)).half().float()


def fit(x: torch.Tensor, step: torch.Tensor, zero: torch.Tensor) -> Fit:
    """Groups rounded to multiples -zero .. 15 - zero of the step."""
    scaled = x * (1 / step)
    q = torch.minimum(torch.maximum(scaled.round(), -zero), 15 - zero)
    return Fit(q, zero, step, ordered_sum((q - scaled) * (q - scaled)) * (step * step))


def centred(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Fit:
    """Zero is the level 8; steps are negative where the weight of largest magnitude is positive."""
    negative = -low >= high
    size = to_step(torch.where(negative, -low, high) * 0.125)
    return fit(x, torch.where(negative, size, -size), torch.full_like(low, 8))


def search(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Fit:
    """The best of all parts of the range and both zeros beside the exact one; then with the step that suits it best."""
    best = reduce(Fit.or_better, _fits_of_parts(x, low, high))
    squares = ordered_sum(best.q * best.q).clamp(min=1)
    return best.or_better(fit(x, to_step(ordered_sum(x * best.q) / squares), best.zero))


def _fits_of_parts(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Iterator[Fit]:
    for part in map(float, PARTS):
        step = to_step((high - low) * float(np.float32(part) / np.float32(15)))
        exact = (-low * part * (1 / step)).clamp(max=15)
        yield fit(x, step, exact.floor())
        yield fit(x, step, exact.ceil())
