"""AWQ (Lin et al. 2023): enlarge the channels that matter before rounding, then clip what is not worth its range.

Channels that see large activations are multiplied by mean|x| ** r (and what makes them divided by it), so that their
weights are rounded finer; r is tried from 0 to 0.95, and the one with the least output error is kept. Then every group
of weights is rounded over the part of its range with the least output error; queries and keys are left whole, since
their errors multiply. An output's squared error over all calibration tokens is D @ H @ D.T, D the change of its
weights and H = X.T @ X. This file knows nothing of files or of how activations are made.
"""

from __future__ import annotations

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.quantize.forward import READERS, Statistics
from kvik.quantize.grid import Grid, Rounded, grouped, kept, round_to_nearest
from kvik.quantize.scaling import move, normalized, per_maker, per_reader
from kvik.step import Float32

RATIOS = tuple(step / 20 for step in range(20))
PARTS = tuple(np.float32(1 - 0.05 * step) for step in range(11))
"""Of a group's range, 1 down to a half."""
UNCLIPPED = ("q", "k")
ORDER = ("attn", "o", "mlp", "down")


def quantize_awq(
    spec: DecoderSpec, weights: dict[str, Float32], seen: dict[str, Statistics], grid: Grid, group_size: int
) -> dict[str, Rounded]:
    """All matrices of a layer in levels. `weights` (of one layer) come out scaled: norms and biases are to be stored
    as they then are. `group_size` is -1 for whole rows.
    """
    hessians = {}
    for channels in ORDER:
        size = _size(weights[READERS[channels][0]], group_size)
        scales = search_scales(spec, weights, channels, seen[channels], grid, size)
        columns = move(spec, weights, channels, scales)
        inverse = (1 / columns).astype(np.float64)
        hessians[channels] = (seen[channels].hessian * inverse * inverse[:, None]).astype(np.float32)
    rounded = {}
    for channels in ORDER:
        for name in READERS[channels]:
            size = _size(weights[name], group_size)
            if name in UNCLIPPED:
                rounded[name] = round_to_nearest(weights[name], grid, size)
            else:
                scale, zero = clipped(weights[name], hessians[channels], grid, size)
                rounded[name] = round_to_nearest(weights[name], grid, size, scales=scale, zeros=zero)
    return rounded


def search_scales(
    spec: DecoderSpec, weights: dict[str, Float32], channels: str, seen: Statistics, grid: Grid, size: int
) -> Float32:
    """The scales, one per channel that is made, with the least output error of all matrices that read it."""
    hessian = seen.hessian.astype(np.float32)
    sizes = per_maker(spec, channels, seen.mean_size)
    best, least = np.ones_like(sizes), np.inf
    for ratio in RATIOS:
        scales = normalized(np.maximum(sizes, np.float32(1e-8)) ** np.float32(ratio))
        columns = per_reader(spec, channels, scales)
        error = sum(_error(weights[name], columns, hessian, grid, size) for name in READERS[channels])
        if error < least:
            best, least = scales, error
    return best


def _error(weight: Float32, columns: Float32, hessian: Float32, grid: Grid, size: int) -> float:
    """Squared output error over all tokens of a matrix that is rounded with its columns scaled."""
    change = kept(round_to_nearest(weight * columns, grid, size), size) / columns - weight
    return float(np.vdot(change @ hessian, change))


def clipped(weight: Float32, hessian: Float32, grid: Grid, size: int) -> tuple[Float32, Float32]:
    """Scale and zero [N, groups, 1] of the part of each group's range with the least output error, taking groups for
    independent.
    """
    groups = grouped(weight, size)
    count = groups.shape[1]
    blocks = np.stack([hessian[at * size : (at + 1) * size, at * size : (at + 1) * size] for at in range(count)])
    best_scale, best_zero = grid.spread(groups)
    least = np.full(best_scale.shape, np.inf, np.float32)
    for part in PARTS:
        scale, zero = grid.spread(groups, part)
        change = (grid.values(grid.levels(groups, scale, zero), scale, zero) - groups).transpose(1, 0, 2)
        error = ((change @ blocks) * change).sum(axis=-1).T[..., None]
        better = error < least
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        least = np.where(better, error, least)
    return best_scale, best_zero


def _size(weight: Float32, group_size: int) -> int:
    return weight.shape[1] if group_size == -1 else group_size
