"""GPTQ (Frantar et al. 2022): round a matrix one input at a time, each time moving the error onto those to come.

With H = X.T @ X of the calibration activations and U the upper Cholesky factor of its inverse (H^-1 = U.T @ U), the
weights of input i are rounded, and of every later input j the error (w_i - q_i) / U_ii times U_ij is taken off. Inputs
are worked through in blocks, so that the rest of the matrix is touched once per block, by one product. Scales are set
when a group is reached, from weights that carry all errors so far. Work is in [K, N], where an input is a row. This
file knows nothing of layers or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvik.quantize.grid import Grid, Rounded
from kvik.step import Float32

BLOCK = 128
Float64 = NDArray[np.float64]


def quantize_gptq(
    weight: Float32, hessian: Float64, grid: Grid, size: int, *, damp: float = 0.01, act_order: bool = False
) -> Rounded:
    """A matrix [N, K] in levels that suit inputs with this Hessian [K, K]. `size` divides K.

    act_order rounds inputs with large activations first and gives `order`.
    """
    hessian = hessian.copy()
    silent = np.diag(hessian) <= 0
    hessian[silent, silent] = 1.0
    order = np.argsort(-np.diag(hessian), kind="stable").astype(np.int32) if act_order else None
    work = weight.T.copy() if order is None else weight.T[order]
    if order is not None:
        hessian = hessian[np.ix_(order, order)]
    importance = np.diag(hessian).astype(np.float32)
    factor = inverse_factor(hessian, damp).astype(np.float32)
    levels, scales, zeros = _round_columns(work, factor, importance, grid, size)
    return Rounded(levels, scales, zeros, order)


def inverse_factor(hessian: Float64, damp: float) -> Float64:
    """U, upper triangular with H^-1 = U.T @ U, of the Hessian damped by a part of its mean diagonal; where that is not
    positive definite, of one damped ten times more, and so on.
    """
    mean = float(np.mean(np.diag(hessian)))
    while True:
        damped = hessian + np.eye(len(hessian)) * (damp * mean)
        try:
            # Of the reversed matrix, so that the factor comes out on the side that is wanted: H = R @ R.T, U = R^-1.
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            damp *= 10
            continue
        return upper_inverse(np.ascontiguousarray(lower[::-1, ::-1]))


def upper_inverse(upper: Float64) -> Float64:
    """The inverse of an upper triangular matrix, by halves."""
    size = len(upper)
    if size <= 64:
        return np.asarray(np.triu(np.linalg.inv(upper)))
    half = size // 2
    out = np.zeros_like(upper)
    out[:half, :half], out[half:, half:] = upper_inverse(upper[:half, :half]), upper_inverse(upper[half:, half:])
    out[:half, half:] = -(out[:half, :half] @ upper[:half, half:]) @ out[half:, half:]
    return out


def block_length(size: int) -> int:
    """Inputs in a block: groups begin at the beginnings of blocks, or blocks are whole groups."""
    if size <= BLOCK:
        return size * (BLOCK // size)
    return next(length for length in range(BLOCK, 0, -1) if size % length == 0)


def _round_columns(
    work: Float32, factor: Float32, importance: Float32, grid: Grid, size: int
) -> tuple[NDArray[np.uint8], Float32, NDArray[np.int16]]:
    """Levels [N, K], scales and zeros [N, groups] of work [K, N], which is used up."""
    inputs, outputs = work.shape
    levels = np.empty((inputs, outputs), np.uint8)
    scales, zeros = np.empty((inputs // size, outputs), np.float32), np.empty((inputs // size, outputs), np.float32)
    step = block_length(size)
    for begin in range(0, inputs, step):
        end = min(begin + step, inputs)
        errors = np.empty((end - begin, outputs), np.float32)
        for i in range(begin, end):
            group = i // size
            if i % size == 0:
                members = slice(i, i + size)
                found = grid.search(np.ascontiguousarray(work[members].T), importance[members])
                scales[group], zeros[group] = (each[:, 0] for each in found)
            level = grid.levels(work[i], scales[group], zeros[group])
            error = (work[i] - grid.values(level, scales[group], zeros[group])) / factor[i, i]
            levels[i], errors[i - begin] = level, error
            work[i + 1 : end] -= factor[i, i + 1 : end, None] * error
        work[end:] -= factor[begin:end, end:].T @ errors
    return np.ascontiguousarray(levels.T), np.ascontiguousarray(scales.T), zeros.T.astype(np.int16)
