// What is done to each token's row on its own: embedding, norms, rotary positions, storing keys and values.
#pragma once

#include "kernels.h"
#include "linear.h"

namespace KVIK_ISA {

using kvik::EmbedArgs;
using kvik::GROUP;
using kvik::KvLayout;
using kvik::NormArgs;
using kvik::RopeStoreArgs;
using kvik::TokenRun;

KVIK_INLINE float element(const void* data, int64_t i, int32_t form) {
    return form == KVIK_F32 ? static_cast<const float*>(data)[i] : from_bf16(static_cast<const uint16_t*>(data)[i]);
}

// x[i] = embedding of token i; from the packed head if the two are tied, so that no second copy is held.
static void embed(const EmbedArgs& args, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t token = args.token_ids[i];
        float* x = args.x + i * args.stride;
        if (args.table) {
            for (int64_t c = 0; c < args.columns; c++)
                x[c] = element(args.table, token * args.columns + c, args.form);
            continue;
        }
        const char* panel = args.packed.panel(token / PANEL);
        const int64_t column = token % PANEL, block = args.packed.block_bytes();
        for (int64_t c = 0; c < args.columns; c++) {
            int64_t offset =
                args.form == KVIK_F32 ? kvik::f32_offset(column, c % KBLOCK) : kvik::bf16_offset(column, c % KBLOCK);
            x[c] = element(panel + c / KBLOCK * block, offset, args.form);
        }
    }
}

// 1 / sqrt(mean(x^2) + eps) over `columns` values, zero past them (Zhang and Sennrich 2019).
KVIK_INLINE float rms_scale(const float* x, int64_t columns, float eps) {
    f32x16 squares = {};
    for (int64_t c = 0; c < columns; c += LANES) {
        f32x16 v = load(x + c);
        squares = fma(v, v, squares);
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(columns) + eps);
}

static void rms_norm(const NormArgs& args, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const float* x = args.x + (args.rows ? args.rows[i] : i) * args.stride;
        f32x16 scale = splat(rms_scale(x, args.columns, args.eps));
        for (int64_t c = 0; c < args.stride; c += LANES)
            store_act(args.out, i * args.out_stride + c, load(x + c) * scale * load(args.weight + c), args.form);
    }
}

constexpr int64_t MAX_HEAD_DIM = 512;

// One head's vector, normalised (if the model does that) and rotated to its position, zero-padded, in `out`.
KVIK_INLINE void norm_and_rotate(const float* x, int64_t dim, const float* norm, float eps, const float* cos,
                                 const float* sin, float* out) {
    alignas(64) float v[MAX_HEAD_DIM];
    const int64_t all = kvik::padded(dim), half = dim / 2;
    std::memcpy(v, x, dim * sizeof(float));
    std::memset(v + dim, 0, (all - dim) * sizeof(float));
    std::memset(out + dim, 0, (all - dim) * sizeof(float));
    if (norm) {
        f32x16 scale = splat(rms_scale(v, dim, eps));
        for (int64_t c = 0; c < all; c += LANES) store(v + c, load(v + c) * scale * load(norm + c));
    }
    for (int64_t c = 0; c < half; c++) {
        float a = v[c], b = v[c + half];
        out[c] = a * cos[c] - b * sin[c];
        out[c + half] = b * cos[c] + a * sin[c];
    }
}

// Scatter one position's key into the columns of its group's panel.
KVIK_INLINE void store_key(const float* k, int64_t dim, int64_t slot, int32_t form, char* keys) {
    const int64_t block_bytes = KBLOCK * PANEL * kvik::form_bytes(form);
    for (int64_t d = 0; d < dim; d++) {
        char* block = keys + d / KBLOCK * block_bytes;
        if (form == KVIK_F32)
            reinterpret_cast<float*>(block)[kvik::f32_offset(slot, d % KBLOCK)] = k[d];
        else
            reinterpret_cast<uint16_t*>(block)[kvik::bf16_offset(slot, d % KBLOCK)] = to_bf16(k[d]);
    }
}

// Store one position's value as one input row of its group's K-blocks.
KVIK_INLINE void store_value(const float* v, int64_t dim, int64_t slot, int32_t form, char* values) {
    const int64_t block_bytes = KBLOCK * PANEL * kvik::form_bytes(form);
    for (int64_t d = 0; d < dim; d++) {
        char* block = values + d / PANEL * block_bytes;
        if (form == KVIK_F32)
            reinterpret_cast<float*>(block)[kvik::f32_offset(d % PANEL, slot)] = v[d];
        else
            reinterpret_cast<uint16_t*>(block)[kvik::bf16_offset(d % PANEL, slot)] = to_bf16(v[d]);
    }
}

// q of one token and KV head: norm, rotate, write as activations.
KVIK_INLINE void store_queries(const RopeStoreArgs& args, int64_t token, int64_t head, const float* cos,
                               const float* sin) {
    const KvikSpec& s = *args.spec;
    const int64_t dim = s.head_dim, all = kvik::padded(dim), group = s.num_heads / s.num_kv_heads;
    alignas(64) float rotated[MAX_HEAD_DIM];
    for (int64_t g = 0; g < group; g++) {
        const float* q = args.qkv + token * args.stride + (head * group + g) * dim;
        norm_and_rotate(q, dim, args.q_norm, s.rms_norm_eps, cos, sin, rotated);
        int64_t index = ((head * args.num_tokens + token) * group + g) * all;
        for (int64_t c = 0; c < all; c += LANES) store_act(args.q, index + c, load(rotated + c), args.form);
    }
}

// q, k, v of a range of (token run, KV head) pairs.
static void rope_store(const RopeStoreArgs& args, int64_t begin, int64_t end) {
    const KvikSpec& s = *args.spec;
    const KvLayout& kv = args.kv;
    const int64_t dim = s.head_dim, half = dim / 2;
    alignas(64) float rotated[MAX_HEAD_DIM];
    for (int64_t item = begin; item < end; item++) {
        const TokenRun& run = args.runs[item / s.num_kv_heads];
        const int64_t head = item % s.num_kv_heads;
        const int64_t first = args.positions[run.begin];
        const int64_t block = args.block_tables[run.row * args.table_width + first / kv.block_size];
        char* keys = args.kv_layer + block * kv.block_bytes() + head * kv.head_bytes() +
                     first % kv.block_size / GROUP * kv.group_bytes();
        char* values = keys + kv.keys_bytes();
        // Probabilities of positions not yet written are zero, but zero times an old NaN is NaN.
        if (first % GROUP == 0) std::memset(values, 0, kv.keys_bytes());
        for (int64_t t = run.begin; t < run.end; t++) {
            const float *cos = args.cos + t * half, *sin = args.sin + t * half;
            const float* row = args.qkv + t * args.stride;
            const int64_t slot = args.positions[t] % GROUP;
            store_queries(args, t, head, cos, sin);
            norm_and_rotate(row + args.k_column + head * dim, dim, args.k_norm, s.rms_norm_eps, cos, sin, rotated);
            store_key(rotated, dim, slot, kv.form, keys);
            store_value(row + args.v_column + head * dim, dim, slot, kv.form, values);
        }
    }
}

}  // namespace KVIK_ISA
