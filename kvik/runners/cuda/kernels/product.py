# ruff: noqa: N803
# mypy: disable-error-code="untyped-decorator, import-untyped, attr-defined, operator"
"""Products with quantized matrices: levels are read packed and become numbers between memory and the matrix unit.

Few tokens are bound by how fast levels can be read, so for them the inputs are divided among programs (split-K) whose
parts are added in order by a second pass. For many tokens the matrix is made whole first, which is read once and
multiplied at full speed. Layout and meaning of levels, scales and zeros: `quantized_linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvik.runners.cuda.quantized_linear import Quantized, multiply_plain

FEW_TOKENS = 128
"""Above it the matrix is made whole first."""
BLOCK_N, BLOCK_K = 64, 64


@dataclass(frozen=True)
class Products:
    """How products are cut for a device of this many processors; `fixed`: alike for any number of tokens."""

    processors: int
    fixed: bool = False

    def parts(self, tiles: int, blocks: int) -> int:
        """Programs that share the inputs of a tile of outputs, a power of two, with two blocks of inputs at least."""
        if self.fixed:
            return 1
        wanted = min(2 * self.processors // max(1, tiles), blocks // 2)
        return 1 << max(0, wanted.bit_length() - 1)


@triton.jit
def _numbers(
    level: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    output: tl.tensor,
    inside: tl.tensor,
    group: tl.tensor,
    groups: tl.int32,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MINIMA: tl.constexpr,
) -> tl.tensor:
    """float32 [BLOCK_N, BLOCK_K] of levels; their columns lie in GROUPS groups from `group` on."""
    index = group + tl.arange(0, GROUPS)
    at = output[:, None] * groups + index[None, :]
    known = inside[:, None] & (index < groups)[None, :]
    scale = tl.load(scales + at, mask=known, other=0.0).to(tl.float32)
    zero = tl.load(zeros + at, mask=known, other=0.0).to(tl.float32)
    wide = tl.reshape(level.to(tl.float32), (BLOCK_N, GROUPS, BLOCK_K // GROUPS))
    if MINIMA:
        wide = wide * scale[:, :, None] - zero[:, :, None]
    else:
        wide = (wide - zero[:, :, None]) * scale[:, :, None]
    return tl.reshape(wide, (BLOCK_N, BLOCK_K))


@triton.jit
def _multiply(
    x: tl.tensor,
    levels: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    out: tl.tensor,
    tokens: tl.int32,
    outputs: tl.int32,
    inputs: tl.int32,
    half: tl.int32,
    groups: tl.int32,
    group_size: tl.int32,
    blocks_in_part: tl.int32,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    MINIMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    some, inside = token < tokens, output < outputs
    row = x + token.to(tl.int64)[:, None] * inputs
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    begin = part * blocks_in_part * BLOCK_K
    for start in range(begin, tl.minimum(half, begin + blocks_in_part * BLOCK_K), BLOCK_K):
        at = start + k
        byte = tl.load(
            levels + output[:, None] * half + at[None, :], mask=inside[:, None] & (at < half)[None, :], other=0
        )
        low = byte & 15 if BITS == 4 else byte
        # Bytes past the row's end are not numbers of this half; the input beside them is 0.
        piece = tl.load(row + at[None, :], mask=some[:, None] & (at < half)[None, :], other=0.0)
        number = _numbers(
            low, scales, zeros, output, inside, start // group_size, groups, GROUPS, BLOCK_N, BLOCK_K, MINIMA
        )
        total += tl.dot(piece, tl.trans(number.to(piece.dtype)), input_precision=PRECISION)
        if BITS == 4:
            high = half + at
            piece = tl.load(
                row + high[None, :], mask=some[:, None] & (at < half)[None, :] & (high < inputs)[None, :], other=0.0
            )
            group = (half + start) // group_size
            number = _numbers(byte >> 4, scales, zeros, output, inside, group, groups, GROUPS, BLOCK_N, BLOCK_K, MINIMA)
            total += tl.dot(piece, tl.trans(number.to(piece.dtype)), input_precision=PRECISION)
    place = (part * tokens + token).to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=some[:, None] & inside[None, :])


def groups_in_block(matrix: Quantized) -> int | None:
    """Groups that BLOCK_K inputs lie in; None where blocks and groups do not end together."""
    if matrix.group_size >= matrix.inputs or matrix.group_size % BLOCK_K == 0:
        return 1
    return BLOCK_K // matrix.group_size if BLOCK_K % matrix.group_size == 0 else None


def multiply(products: Products, x: torch.Tensor, matrix: Quantized) -> torch.Tensor:
    """x [T, inputs] by a quantized matrix to [T, outputs], in x's dtype."""
    tokens, outputs, within = len(x), matrix.levels.shape[0], groups_in_block(matrix)
    if within is None or (tokens > FEW_TOKENS and not products.fixed):
        return multiply_plain(x, matrix)
    block_m = 16 if products.fixed else min(64, max(16, triton.next_power_of_2(tokens)))
    tiles = (triton.cdiv(outputs, BLOCK_N), triton.cdiv(tokens, block_m))
    blocks = triton.cdiv(matrix.half, BLOCK_K)
    parts = products.parts(tiles[0] * tiles[1], blocks)
    each = triton.cdiv(blocks, parts)
    shape = (tokens, outputs) if parts == 1 else (parts, tokens, outputs)
    out = torch.empty(shape, dtype=x.dtype if parts == 1 else torch.float32, device=x.device)
    if tokens:
        grid = (tiles[0], tiles[1], parts)
        _multiply[grid](
            *(x.contiguous(), matrix.levels, matrix.scales, matrix.zeros, out),
            *(tokens, outputs, matrix.inputs, matrix.half, matrix.scales.shape[1], matrix.group_size, each),
            BITS=matrix.bits,
            GROUPS=within,
            MINIMA=matrix.minima,
            BLOCK_M=block_m,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=3,
        )
    return out if parts == 1 else out.sum(dim=0).to(x.dtype)
