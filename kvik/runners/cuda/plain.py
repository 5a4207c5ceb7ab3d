"""Every operation between the matrix products in plain torch: the slow, obvious twins of `kernels/`.

They define what the kernels compute, serve on the CPU device in tests, and `attend` is the naive attention of
`--attention naive`: the whole score matrix of a row at once. Nothing here can be captured in a graph.
"""

from __future__ import annotations

import torch

from kvik.runners.cuda.batch import Batch, Tiles
from kvik.runners.cuda.cache import LayerCache
from kvik.runners.cuda.heads import Heads, Rotary

FP8_MAX = 448.0
INT8_MAX = 127.0


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x over its root mean square along the last axis, times weight; float32 inside, x's dtype outside."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of x + residual, and that sum, both [T, width] in x's dtype. Without a residual the sum is x itself."""
    total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    return rms_norm(total, weight, eps), total


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [T, 2 * width], gate in the first half: [T, width]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, dim] float32, rotated in the plane of each (i, i + dim / 2); cos, sin [T, dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rope_and_store(qkv: torch.Tensor, rotary: Rotary, batch: Batch, cache: LayerCache) -> torch.Tensor:
    """Queries [T, heads * dim] of projections [T, (heads + 2 kv_heads) * dim], normed and rotated; keys and values go
    to their slots.
    """
    heads = rotary.heads
    split = qkv.float().view(len(qkv), -1, heads.dim)
    queries, keys, values = torch.split(split, [heads.query, heads.kv, heads.kv], dim=1)
    if rotary.q_norm is not None and rotary.k_norm is not None:
        queries = rms_norm(queries, rotary.q_norm, rotary.eps)
        keys = rms_norm(keys, rotary.k_norm, rotary.eps)
    cos, sin = rotary.cos[batch.positions], rotary.sin[batch.positions]
    store(cache.keys, cache.key_scales, batch.slots, rotate(keys, cos, sin))
    store(cache.values, cache.value_scales, batch.slots, values)
    return rotate(queries, cos, sin).reshape(len(qkv), -1).to(qkv.dtype)


def store(data: torch.Tensor, scales: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """Write [T, kv_heads, dim] float32 values to slots, in the cache's form; a slot of -1 writes nowhere."""
    used = slots >= 0
    slots, values = slots[used], values[used]
    block, offset = slots // data.shape[2], slots % data.shape[2]
    if data.dtype == torch.int8:
        values, scale = quantized_int8(values)
        scales[block, :, offset] = scale[..., 0]
    if data.dtype == torch.float8_e4m3fn:
        values = values.clamp(-FP8_MAX, FP8_MAX)
    data[block, :, offset] = values.to(data.dtype)


def quantized_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q [..., n] and scale [..., 1] of rows [..., n], as `quantize_int8` of the reference defines them."""
    top = rows.abs().amax(dim=-1, keepdim=True)
    sound = top.isfinite()
    inverse = INT8_MAX / top
    scaled = rows * torch.where(inverse.isfinite(), inverse, torch.zeros_like(inverse))
    q = torch.where(sound, scaled.round().clamp(-INT8_MAX, INT8_MAX), torch.zeros_like(scaled))
    return q, torch.where(sound, top / INT8_MAX, torch.full_like(top, float("nan")))


def fetch(data: torch.Tensor, scales: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Values [n, kv_heads, dim] float32 at n slots."""
    block, offset = slots // data.shape[2], slots % data.shape[2]
    values = data[block, :, offset].float()
    return values * scales[block, :, offset][..., None] if data.dtype == torch.int8 else values


def attend(queries: torch.Tensor, cache: LayerCache, heads: Heads, batch: Batch, window: int) -> torch.Tensor:
    """Attention [T, heads * dim] of queries of the same shape: tokens at p see max(0, p - window + 1) .. p."""
    out = torch.zeros_like(queries)
    for tiles in (batch.single, batch.several):
        attend_tiles(queries, cache, heads, batch, tiles, window, out)
    return out


def attend_tiles(
    queries: torch.Tensor,
    cache: LayerCache,
    heads: Heads,
    batch: Batch,
    tiles: Tiles,
    window: int,
    out: torch.Tensor,
) -> None:
    """The same for the tokens of `tiles`, one tile after another, into their rows of `out`."""
    for row, start, count in zip(tiles.rows.tolist(), tiles.starts.tolist(), tiles.counts.tolist(), strict=True):
        if not count:
            continue
        tokens = slice(start, start + count)
        positions = batch.positions[tokens]
        seen = torch.arange(int(positions[-1]) + 1, device=queries.device)
        slots = batch.block_tables[row, seen // cache.block_size].long() * cache.block_size + seen % cache.block_size
        keys, values = fetch(cache.keys, cache.key_scales, slots), fetch(cache.values, cache.value_scales, slots)
        query = queries[tokens].float().view(count, heads.kv, heads.group, heads.dim)
        scores = torch.einsum("tkgd,nkd->tkgn", query, keys) * heads.dim**-0.5
        hidden = seen > positions[:, None]
        if window:
            hidden |= seen <= positions[:, None] - window
        weights = scores.masked_fill(hidden[:, None, None, :], float("-inf")).softmax(dim=-1)
        out[tokens] = torch.einsum("tkgn,nkd->tkgd", weights, values).reshape(count, -1).to(out.dtype)
