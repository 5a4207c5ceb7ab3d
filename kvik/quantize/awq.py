"""AWQ (Lin et al. 2023): enlarge the channels that matter before rounding, then clip what is not worth its range.

Channels that see large activations are multiplied by mean|x| ** r (and what makes them divided by it), so that their
weights are rounded finer; r is tried from 0 to 0.95, and the one that changes the output of a block least is kept
(`blocks.py`). What o reads stays as it is where query heads share values. Then every group of weights is rounded over
the part of its range with the least output error; queries and keys are left whole, since their errors multiply. This
file knows nothing of files or of how activations are made.
"""

from __future__ import annotations

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.quantize.blocks import Blocks
from kvik.quantize.forward import READERS, Statistics
from kvik.quantize.grid import Grid, Rounded, grouped, kept, round_to_nearest
from kvik.quantize.scaling import move, normalized
from kvik.step import Float32

RATIOS = tuple(step / 20 for step in range(20))
PARTS = tuple(np.float32(1 - 0.05 * step) for step in range(11))
"""Of a group's range, 1 down to a half."""
UNCLIPPED = ("q", "k")


def quantize_awq(
    spec: DecoderSpec,
    weights: dict[str, Float32],
    seen: dict[str, Statistics],
    blocks: Blocks,
    grid: Grid,
    group_size: int,
) -> dict[str, Rounded]:
    """All matrices of a layer in levels. `weights` (of one layer) come out scaled: norms and biases are to be stored
    as they then are. `group_size` is -1 for whole rows.
    """
    hessians = {channels: seen[channels].hessian.astype(np.float32) for channels in READERS}
    for channels in READERS:
        if channels != "o" or spec.group == 1:
            scales = search_scales(weights, channels, seen[channels].mean_size, blocks, grid, group_size)
            inverse = 1 / move(spec, weights, channels, scales)
            hessians[channels] *= inverse * inverse[:, None]
    rounded = {}
    for channels, names in READERS.items():
        for name in names:
            size = _size(weights[name], group_size)
            if name in UNCLIPPED:
                rounded[name] = round_to_nearest(weights[name], grid, size)
            else:
                scale, zero = clipped(weights[name], hessians[channels], grid, size)
                rounded[name] = round_to_nearest(weights[name], grid, size, scales=scale, zeros=zero)
    return rounded


def search_scales(
    weights: dict[str, Float32], channels: str, sizes: Float32, blocks: Blocks, grid: Grid, group_size: int
) -> Float32:
    """The scales, one per channel, with the least error of the block whose matrices read them."""
    best, least = np.ones_like(sizes), np.inf
    for ratio in RATIOS:
        scales = normalized(np.maximum(sizes, np.float32(1e-8)) ** np.float32(ratio))
        held = {name: held_at(weights[name], scales, grid, group_size) for name in READERS[channels]}
        error = blocks.error(channels, weights, held)
        if error < least:
            best, least = scales, error
    return best


def held_at(weight: Float32, columns: Float32, grid: Grid, group_size: int) -> Float32:
    """What is kept of a matrix that is rounded with its columns scaled."""
    size = _size(weight, group_size)
    held: Float32 = kept(round_to_nearest(weight * columns, grid, size), size) / columns
    return held


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
