# ruff: noqa: N803
# mypy: disable-error-code="untyped-decorator, import-untyped, attr-defined, operator"
"""The product with a plain matrix, cut in one way for any number of tokens.

Libraries choose another kernel, and with it another order of sums, for another number of rows. Here a row's sum runs
over the inputs in blocks of one size, in order, whatever rows are beside it: `--deterministic` pays for that with time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_M, BLOCK_N, BLOCK_K = 32, 64, 64


@triton.jit
def _multiply(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    tokens: tl.int32,
    outputs: tl.int32,
    inputs: tl.int32,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    some, inside = token < tokens, output < outputs
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inputs, BLOCK_K):
        at = start + k
        known = at < inputs
        piece = tl.load(x + token[:, None] * inputs + at[None, :], mask=some[:, None] & known[None, :], other=0.0)
        part = tl.load(
            weight + output[:, None] * inputs + at[None, :], mask=inside[:, None] & known[None, :], other=0.0
        )
        total += tl.dot(piece, tl.trans(part), input_precision=PRECISION)
    place = token[:, None] * outputs + output[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=some[:, None] & inside[None, :])


def multiply(x: torch.Tensor, weight: torch.Tensor, *, wide: bool) -> torch.Tensor:
    """x [T, inputs] by weight [outputs, inputs] to [T, outputs], in float32 if `wide`, else in x's dtype."""
    tokens, outputs = len(x), len(weight)
    out = torch.empty(tokens, outputs, dtype=torch.float32 if wide else x.dtype, device=x.device)
    if tokens:
        _multiply[(triton.cdiv(outputs, BLOCK_N), triton.cdiv(tokens, BLOCK_M))](
            *(x.contiguous(), weight, out, tokens, outputs, x.shape[1]),
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=3,
        )
    return out
