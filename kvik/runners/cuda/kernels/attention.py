# ruff: noqa: N803
# mypy: disable-error-code="untyped-decorator, import-untyped, attr-defined, operator"
"""Paged attention with an online softmax, one kernel for decode, prefill and any mixture of them.

A program takes a tile of tokens (`batch.py`), one KV head, and one part of the keys that the tile sees. The query heads
that share the KV head are packed beside the tokens into the rows of one matrix tile:

    row m of the tile  =  token m // GROUP_P, query head m % GROUP_P of the group      (GROUP_P: a power of two)

Parts are divided at multiples of BLOCK_N by the length of the row alone, and a second kernel adds them in order (Dao et
al. 2023, flash decoding); with one part there is no second kernel. int8 keys scale the scores and int8 values the
weights, so that both products take whole numbers as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvik.runners.cuda.batch import Batch, Tiles
from kvik.runners.cuda.cache import LayerCache
from kvik.runners.cuda.heads import Heads

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class TileShape:
    """How a launch is cut: rows and keys of a matrix tile, parts of the keys."""

    rows: int
    keys: int
    parts: int
    warps: int


@triton.jit
def _span(
    positions: tl.tensor, start: tl.int32, count: tl.int32, window: tl.int32, BLOCK_N: tl.constexpr, PARTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """First key, end of the keys, and keys in a part, of a tile; the first is a multiple of BLOCK_N."""
    end = tl.where(count > 0, tl.load(positions + start + tl.maximum(count, 1) - 1) + 1, 0)
    first = tl.where(window > 0, tl.maximum(tl.load(positions + start) - window + 1, 0), 0) // BLOCK_N * BLOCK_N
    blocks = tl.cdiv(tl.maximum(end - first, 0), BLOCK_N)
    return first, end, tl.cdiv(blocks, PARTS) * BLOCK_N


@triton.jit
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    tables: tl.tensor,
    positions: tl.tensor,
    tile_rows: tl.tensor,
    tile_starts: tl.tensor,
    tile_counts: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    table_stride: tl.int32,
    block_size: tl.int32,
    window: tl.int32,
    scale: tl.float32,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P: tl.constexpr,
    D: tl.constexpr,
    D_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count = tl.load(tile_starts + tile), tl.load(tile_counts + tile)
    table = tables + tl.load(tile_rows + tile).to(tl.int64) * table_stride
    m, d, n = tl.arange(0, BLOCK_M), tl.arange(0, D_P), tl.arange(0, BLOCK_N)
    token = m // GROUP_P
    valid = (token < count) & (m % GROUP_P < GROUP)
    position = tl.load(positions + start + token, mask=token < count, other=-1)
    at = ((start + token).to(tl.int64) * KV * GROUP + head * GROUP + m % GROUP_P)[:, None] * D + d[None, :]
    inside = valid[:, None] & (d < D)[None, :]
    query = tl.load(queries + at, mask=inside, other=0.0)

    first, end, length = _span(positions, start, count, window, BLOCK_N, PARTS)
    begin = first + part * length
    end = tl.minimum(end, begin + length)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D_P], tl.float32)
    for block in range(begin, end, BLOCK_N):
        key_at = block + n
        seen = key_at < end
        number = tl.load(table + key_at // block_size, mask=seen, other=0).to(tl.int64)
        line = (number * KV + head) * block_size + key_at % block_size
        place = line[:, None] * D + d[None, :]
        loaded = seen[:, None] & (d < D)[None, :]
        key = tl.load(keys + place, mask=loaded, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        if SCALED:
            score *= tl.load(key_scales + line, mask=seen, other=0.0)[None, :]
        visible = (key_at[None, :] <= position[:, None]) & seen[None, :]
        visible &= (window <= 0) | (key_at[None, :] > position[:, None] - window)
        score = tl.where(visible, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        # A token that sees none of these keys yet has no largest score; 0 in its place keeps infinities apart.
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - pivot[:, None])
        fade = tl.exp2(top - pivot)
        total = total * fade + tl.sum(weight, axis=1)
        if SCALED:
            weight *= tl.load(value_scales + line, mask=seen, other=0.0)[None, :]
        value = tl.load(values + place, mask=loaded, other=0.0).to(query.dtype)
        mixed = mixed * fade[:, None] + tl.dot(weight.to(query.dtype), value, input_precision=PRECISION)
        top = new_top

    if PARTS == 1:
        answer = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
        # NaN scores leave no sum above 0 and must not pass for zeros.
        answer = tl.where((total == total)[:, None], answer, total[:, None])
        tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)
    else:
        slab = ((tile.to(tl.int64) * KV + head) * PARTS + part) * BLOCK_M + m
        tl.store(out + slab[:, None] * D + d[None, :], mixed, mask=inside)
        tl.store(sums + slab * 2, top, mask=valid)
        tl.store(sums + slab * 2 + 1, total, mask=valid)


@triton.jit
def _combine(
    parts: tl.tensor,
    sums: tl.tensor,
    positions: tl.tensor,
    tile_starts: tl.tensor,
    tile_counts: tl.tensor,
    out: tl.tensor,
    window: tl.int32,
    KV: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P: tl.constexpr,
    D: tl.constexpr,
    D_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    tile, head = tl.program_id(0), tl.program_id(1)
    start, count = tl.load(tile_starts + tile), tl.load(tile_counts + tile)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, D_P)
    token = m // GROUP_P
    valid = (token < count) & (m % GROUP_P < GROUP)
    inside = valid[:, None] & (d < D)[None, :]
    first, end, length = _span(positions, start, count, window, BLOCK_N, PARTS)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, D_P], tl.float32)
    for part in range(0, tl.cdiv(tl.maximum(end - first, 0), tl.maximum(length, 1))):
        slab = ((tile.to(tl.int64) * KV + head) * PARTS + part) * BLOCK_M + m
        part_top = tl.load(sums + slab * 2, mask=valid, other=float("-inf"))
        part_total = tl.load(sums + slab * 2 + 1, mask=valid, other=0.0)
        piece = tl.load(parts + slab[:, None] * D + d[None, :], mask=inside, other=0.0)
        new_top = tl.maximum(top, part_top)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, gain = tl.exp2(top - pivot), tl.exp2(part_top - pivot)
        total = total * fade + part_total * gain
        mixed = mixed * fade[:, None] + piece * gain[:, None]
        top = new_top
    answer = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    answer = tl.where((total == total)[:, None], answer, total[:, None])
    at = ((start + token).to(tl.int64) * KV * GROUP + head * GROUP + m % GROUP_P)[:, None] * D + d[None, :]
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)


def attend_tiles(
    queries: torch.Tensor,
    cache: LayerCache,
    heads: Heads,
    batch: Batch,
    tiles: Tiles,
    window: int,
    shape: TileShape,
    out: torch.Tensor,
) -> None:
    """Attention of the tokens in `tiles`, written to their rows of `out` [T, heads * dim]; a tile's tokens and the
    padded group must fit in shape.rows.
    """
    if not len(tiles):
        return
    sizes = {
        "KV": heads.kv,
        "GROUP": heads.group,
        "GROUP_P": triton.next_power_of_2(heads.group),
        "D": heads.dim,
        "D_P": max(16, triton.next_power_of_2(heads.dim)),
        "BLOCK_M": shape.rows,
        "BLOCK_N": shape.keys,
        "PARTS": shape.parts,
    }
    whole = shape.parts == 1
    slabs = len(tiles) * heads.kv * shape.parts * shape.rows
    parts = out if whole else torch.empty(slabs, heads.dim, dtype=torch.float32, device=out.device)
    sums = out if whole else torch.empty(slabs, 2, dtype=torch.float32, device=out.device)
    _attend[(len(tiles), heads.kv, shape.parts)](
        *(queries, cache.keys, cache.values, cache.key_scales, cache.value_scales),
        *(batch.block_tables, batch.positions, tiles.rows, tiles.starts, tiles.counts, parts, sums),
        *(batch.block_tables.stride(0), cache.block_size, window, heads.dim**-0.5 * LOG2E),
        **sizes,
        SCALED=cache.scaled,
        PRECISION="ieee" if queries.dtype == torch.float32 else "tf32",
        num_warps=shape.warps,
        num_stages=2,
    )
    if not whole:
        _combine[(len(tiles), heads.kv)](
            *(parts, sums, batch.positions, tiles.starts, tiles.counts, out, window), **sizes, num_warps=4
        )
