"""INT8 after training: a scale per output row, and the migration of SmoothQuant (Xiao et al. 2022) where it helps.

Kernels for int8 round activations too, one scale per token, and a few large channels then leave the rest few levels.
A channel is divided by max|x| ** a / max|w| ** (1 - a) where it is made and its weights multiplied by it; for each
input of a layer several a are tried on calibration tokens with weights and activations both rounded, and nothing is
moved unless that lowers the output error. This file knows nothing of files or of how activations are made.
"""

from __future__ import annotations

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.quantize.forward import READERS, Statistics
from kvik.quantize.grid import Grid, Rounded, kept, round_to_nearest
from kvik.quantize.scaling import move, normalized, per_maker, per_reader
from kvik.step import Float32

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7)


def quantize_int8(
    spec: DecoderSpec, weights: dict[str, Float32], seen: dict[str, Statistics], grid: Grid
) -> dict[str, Rounded]:
    """All matrices of a layer in levels. `weights` (of one layer) come out scaled: norms and biases are to be stored
    as they then are.
    """
    for channels in READERS:
        scales = search_migration(spec, weights, channels, seen[channels], grid)
        if scales is not None:
            move(spec, weights, channels, scales)
    names = [name for readers in READERS.values() for name in readers]
    return {name: round_to_nearest(weights[name], grid, weights[name].shape[1]) for name in names}


def search_migration(
    spec: DecoderSpec, weights: dict[str, Float32], channels: str, seen: Statistics, grid: Grid
) -> Float32 | None:
    """The scales, one per channel that is made, with the least output error; None if none is better without."""
    readers = [weights[name] for name in READERS[channels]]
    exact = [seen.sample @ weight.T for weight in readers]
    largest_weight = np.max([np.abs(weight).max(axis=0) for weight in readers], axis=0)
    x, w = (per_maker(spec, channels, each) for each in (seen.max_size, largest_weight))
    best, least = None, output_error(readers, exact, seen.sample, np.ones_like(seen.max_size), grid)
    for strength in STRENGTHS:
        wanted = np.maximum(x, 1e-5) ** strength / np.maximum(w, 1e-5) ** (1 - strength)
        scales = normalized(wanted.astype(np.float32))
        error = output_error(readers, exact, seen.sample, per_reader(spec, channels, scales), grid)
        if error < least:
            best, least = scales, error
    return best


def output_error(readers: list[Float32], exact: list[Float32], x: Float32, columns: Float32, grid: Grid) -> float:
    """Squared error of all outputs with activations [m, K] and weights both rounded to int8."""
    rounded = round_tokens(x / columns)
    error = 0.0
    for weight, wanted in zip(readers, exact, strict=True):
        held = kept(round_to_nearest(weight * columns, grid, weight.shape[1]), weight.shape[1])
        error += float(np.square(rounded @ held.T - wanted).sum(dtype=np.float64))
    return error


def round_tokens(x: Float32) -> Float32:
    """Activations as int8 with a scale per token keeps them."""
    step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30)) / np.float32(127)
    return np.asarray(np.rint(x / step) * step, np.float32)
