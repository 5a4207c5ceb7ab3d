# ruff: noqa: N803
# mypy: disable-error-code="untyped-decorator, import-untyped, attr-defined, operator"
"""Query and key norm, rotary embedding and the write into the KV cache, in one pass over the projections.

A program takes one token and one KV head: the query heads that read it, its key and its value, each as two halves of
the head. What is written is rounded once, from float32. A slot of -1 writes nowhere: rows that only pad a captured
graph have it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvik.runners.cuda.batch import Batch
from kvik.runners.cuda.cache import LayerCache
from kvik.runners.cuda.heads import Rotary

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: to add and subtract it rounds to a whole number, ties to even
LEAST_TOP = tl.constexpr(3.7324e-37)  # below it, 127 over it is infinite
FP8_MAX = tl.constexpr(448.0)


@triton.jit
def _normed(
    first: tl.tensor, second: tl.tensor, weight: tl.tensor, eps: tl.float32, D: tl.constexpr, P: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    pair = tl.arange(0, P)
    inside = pair < D // 2
    scale = tl.rsqrt(tl.sum(first * first + second * second, axis=1, keep_dims=True) / D + eps)
    low = tl.load(weight + pair, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(weight + D // 2 + pair, mask=inside, other=0.0).to(tl.float32)
    return first * scale * low[None, :], second * scale * high[None, :]


@triton.jit
def _load_halves(
    pointer: tl.tensor, heads: tl.tensor, count: tl.constexpr, D: tl.constexpr, P: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    pair = tl.arange(0, P)
    at = heads[:, None] * D + pair[None, :]
    mask = (heads < count)[:, None] & (pair < D // 2)[None, :]
    first = tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(pointer + at + D // 2, mask=mask, other=0.0).to(tl.float32)
    return first, second, at, mask


@triton.jit
def _store_halves(
    cache: tl.tensor,
    scales: tl.tensor,
    slot: tl.int64,
    first: tl.tensor,
    second: tl.tensor,
    mask: tl.tensor,
    at: tl.tensor,
    D: tl.constexpr,
    FORM: tl.constexpr,
) -> None:
    if FORM == "int8":
        top = tl.maximum(tl.max(tl.abs(first)), tl.max(tl.abs(second)))
        # Nothing that is not finite must pass for a number: 0 times it makes the scale NaN.
        top += tl.sum(first * 0.0) + tl.sum(second * 0.0)
        inverse = tl.where(top > LEAST_TOP, 127.0 / tl.where(top > LEAST_TOP, top, 1.0), 0.0)
        first = tl.clamp(first * inverse + ROUND - ROUND, -127.0, 127.0)
        second = tl.clamp(second * inverse + ROUND - ROUND, -127.0, 127.0)
        tl.store(scales + slot, top / 127.0)
    if FORM == "fp8":
        first = tl.clamp(first, -FP8_MAX, FP8_MAX)
        second = tl.clamp(second, -FP8_MAX, FP8_MAX)
    target = cache + slot * D + at
    tl.store(target, first.to(cache.dtype.element_ty), mask=mask)
    tl.store(target + D // 2, second.to(cache.dtype.element_ty), mask=mask)


@triton.jit
def _rope_and_store(
    qkv: tl.tensor,
    queries: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    eps: tl.float32,
    block_size: tl.int32,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    NORMS: tl.constexpr,
    FORM: tl.constexpr,
) -> None:
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, P)
    angle = tl.load(positions + token).to(tl.int64) * (D // 2) + pair
    cos = tl.load(cosines + angle, mask=pair < D // 2, other=0.0)[None, :]
    sin = tl.load(sines + angle, mask=pair < D // 2, other=0.0)[None, :]
    row = qkv + token * (KV * (GROUP + 2) * D)

    first, second, at, mask = _load_halves(row + head * GROUP * D, tl.arange(0, GROUP_P), GROUP, D, P)
    if NORMS:
        first, second = _normed(first, second, q_norm, eps, D, P)
    out = queries + (token * KV + head) * GROUP * D + at
    tl.store(out, (first * cos - second * sin).to(queries.dtype.element_ty), mask=mask)
    tl.store(out + D // 2, (second * cos + first * sin).to(queries.dtype.element_ty), mask=mask)

    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        place = (slot // block_size * KV + head) * block_size + slot % block_size
        one = tl.arange(0, 1)
        key, key_rest, spot, part = _load_halves(row + (KV * GROUP + head) * D, one, 1, D, P)
        if NORMS:
            key, key_rest = _normed(key, key_rest, k_norm, eps, D, P)
        low, high = key * cos - key_rest * sin, key_rest * cos + key * sin
        _store_halves(keys, key_scales, place, low, high, part, spot, D, FORM)
        value, value_rest, spot, part = _load_halves(row + (KV * (GROUP + 1) + head) * D, one, 1, D, P)
        _store_halves(values, value_scales, place, value, value_rest, part, spot, D, FORM)


def rope_and_store(qkv: torch.Tensor, rotary: Rotary, batch: Batch, cache: LayerCache) -> torch.Tensor:
    """Queries [T, heads * dim] of projections [T, (heads + 2 kv_heads) * dim], normed and rotated; keys and values go
    to their slots.
    """
    heads = rotary.heads
    queries = qkv.new_empty(qkv.shape[0], heads.query * heads.dim)
    weight = qkv if rotary.q_norm is None or rotary.k_norm is None else None
    form = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}.get(cache.keys.dtype, "plain")
    if len(qkv):
        _rope_and_store[(len(qkv), heads.kv)](
            *(qkv, queries, batch.positions, batch.slots, rotary.cos, rotary.sin),
            *((weight, weight) if weight is not None else (rotary.q_norm, rotary.k_norm)),
            *(cache.keys, cache.values, cache.key_scales, cache.value_scales),
            *(rotary.eps, cache.block_size),
            KV=heads.kv,
            GROUP=heads.group,
            GROUP_P=triton.next_power_of_2(heads.group),
            D=heads.dim,
            P=triton.next_power_of_2(heads.dim // 2),
            NORMS=weight is None,
            FORM=form,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return queries
