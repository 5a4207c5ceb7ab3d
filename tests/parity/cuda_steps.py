"""Steps that launch every kernel in every form in which a model of real size would: for compiling them all.

What they compute is not looked at; where kernels are not run, it is what lay in memory.
"""

from __future__ import annotations

import numpy as np
import torch
from cuda_bench import step_of

from kvik.runners.cuda.batch import batch_of
from kvik.runners.cuda.cache import KVCache
from kvik.runners.cuda.heads import Heads, Rotary
from kvik.runners.cuda.kernels import launch, pointwise, product, rope
from kvik.runners.cuda.quantized_linear import Quantized

HEADS = Heads(16, 8, 128)
HIDDEN = 1024


def every_launch(dtype: torch.dtype) -> None:
    """Norms, gates, attention over all forms of cache in both ways of cutting it, and quantized products."""
    device = torch.device("cpu")
    plan, num_blocks = step_of([(40, 41), (0, 40)], 32)
    x, weight = torch.zeros(plan.num_tokens, HIDDEN, dtype=dtype), torch.ones(HIDDEN, dtype=dtype)
    pointwise.add_rms_norm(x, None, weight, 1e-6)
    pointwise.add_rms_norm(x, x, weight, 1e-6)
    pointwise.silu_mul(torch.zeros(4, 2 * HIDDEN, dtype=dtype))
    angle = torch.zeros(64, HEADS.dim // 2)
    norm = torch.ones(HEADS.dim, dtype=dtype)
    qkv = torch.zeros(plan.num_tokens, HEADS.projected, dtype=dtype)
    for form in ("bf16", "int8", "fp8"):
        layer = KVCache(1, num_blocks, 32, HEADS, form=form, device=device).layer(0)
        for norms in (norm, None):
            rotary = Rotary(HEADS, norms, norms, 1e-6, angle, angle)
            queries = rope.rope_and_store(qkv, rotary, batch_of(plan, 32, 1, device), layer)
        for shapes in (launch.AdaptiveShapes(132), launch.FixedShapes()):
            batch = batch_of(plan, 32, max(1, shapes.several_rows // 2), device)
            launch.attend(shapes, queries, layer, HEADS, batch, 0)
    for bits, group in ((4, 32), (4, 128), (8, HIDDEN)):
        for tokens in (1, 64):
            matrix = zero_matrix(bits, group)
            product.multiply(product.Products(132), torch.zeros(tokens, HIDDEN, dtype=dtype), matrix)
            product.multiply(product.Products(132, fixed=True), torch.zeros(tokens, HIDDEN, dtype=dtype), matrix)
    fixed_products(dtype)


def zero_matrix(bits: int, group: int, outputs: int = 256) -> Quantized:
    """A matrix of zeros."""
    groups = -(-HIDDEN // group)
    levels = torch.zeros(outputs, HIDDEN * bits // 8, dtype=torch.uint8)
    scales = torch.zeros(outputs, groups, dtype=torch.float16)
    return Quantized(levels, scales, scales, HIDDEN, group, bits, minima=False)


def fixed_products(dtype: torch.dtype) -> None:
    """The products of plain matrices whose bytes do not depend on the batch."""
    from kvik.runners.cuda.kernels import fixed

    weight = torch.zeros(256, HIDDEN, dtype=dtype)
    fixed.multiply(torch.from_numpy(np.zeros((3, HIDDEN), np.float32)).to(dtype), weight, wide=False)
    fixed.multiply(torch.from_numpy(np.zeros((3, HIDDEN), np.float32)).to(dtype), weight, wide=True)
