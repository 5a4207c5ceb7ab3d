# ruff: noqa: N803, N806
# mypy: disable-error-code="untyped-decorator, import-untyped, attr-defined, operator"
"""The small steps between matrix products, each one pass over memory: sum and RMS norm, and the gate of the MLP.

A program takes one token, so that a token's bytes do not depend on how many there are. Sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _add_rms_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    width: tl.int32,
    eps: tl.float32,
    ADDS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, WIDTH)
    inside = column < width
    value = tl.load(x + row + column, mask=inside, other=0.0)
    if ADDS:
        other = tl.load(residual + row + column, mask=inside, other=0.0)
        # Rounded to what is stored before it is squared: the norm is of what the next layer will see.
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(total + row + column, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + column, (wide * scale * gain).to(value.dtype), mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of x + residual, and that sum, both [T, width] in x's dtype. Without a residual the sum is x itself."""
    tokens, width = x.shape
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    WIDTH = triton.next_power_of_2(width)
    if tokens:
        _add_rms_norm[(tokens,)](
            *(x, x if residual is None else residual, weight, normed, total, width, eps),
            ADDS=residual is not None,
            WIDTH=WIDTH,
            num_warps=min(16, max(1, WIDTH // 512)),
        )
    return normed, total


@triton.jit
def _silu_mul(gate_up: tl.tensor, out: tl.tensor, width: tl.int32, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0)
    gated = gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)
    tl.store(out + row * width + column, gated.to(up.dtype), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [T, 2 * width], gate in the first half: [T, width]."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width)
    if tokens:
        _silu_mul[(tokens, triton.cdiv(width, BLOCK))](gate_up, out, width, BLOCK=BLOCK, num_warps=4)
    return out
