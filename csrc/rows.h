// What is done to each token's row on its own: embedding, norms, rotary positions, storing keys and values.
#pragma once

#include "kernels.h"
#include "linear.h"
#include "quantize.h"

namespace KVIK_ISA {

using kvik::EmbedArgs;
using kvik::GROUP;
using kvik::KvLayout;
using kvik::NormArgs;
using kvik::RopeStoreArgs;
using kvik::TokenRun;

// One weight of a packed matrix that is not float32, without the column's scale: of its K-block and the group's strip.
KVIK_INLINE float whole_weight_at(const kvik::Matrix& m, const char* block, const char* strip, int64_t c, int64_t k) {
    const auto *bytes = reinterpret_cast<const uint8_t*>(block), *of_strip = reinterpret_cast<const uint8_t*>(strip);
    const int nibble = bytes[kvik::int4_byte(c, k)] >> kvik::int4_shift(k) & 15;
    switch (m.form) {
        case KVIK_INT4:
            return static_cast<float>(nibble + of_strip[kvik::INT4_LIFTS + c] - kvik::BYTE_OFFSET) *
                   from_f16(load_as<uint16_t>(strip + c * 2));
        case KVIK_K4: {
            const float scale = from_f16(load_as<uint16_t>(strip + c * 2)) * bytes[kvik::K4_FACTORS + c];
            const float least =
                from_f16(load_as<uint16_t>(strip + kvik::K4_MIN_STEPS + c * 2)) * bytes[kvik::K4_MIN_FACTORS + c];
            return static_cast<float>(nibble) * scale - least;
        }
        case KVIK_K6: {
            const int upper = bytes[kvik::k6_upper_byte(c, k)] >> kvik::k6_upper_shift(k) & 3;
            const int8_t factor = static_cast<int8_t>(block[kvik::K6_FACTORS + k / 16 * PANEL + c]);
            return static_cast<float>((nibble | upper << 4) - kvik::K6_ZERO) *
                   (from_f16(load_as<uint16_t>(strip + c * 2)) * factor);
        }
        default: {
            const auto number = static_cast<float>(bytes[kvik::int8_offset(c, k)] - kvik::BYTE_OFFSET);
            if (m.form == KVIK_INT8) return number;
            const int64_t at = (k * m.parts / KBLOCK * PANEL + c) * 4;
            const float value = number * load_as<float>(strip + at);
            return m.has_offsets ? value + load_as<float>(strip + m.parts * PANEL * 4 + at) : value;
        }
    }
}

KVIK_INLINE float weight_at(const kvik::Matrix& m, int64_t column, int64_t input) {
    const int64_t panel = column / PANEL, kblock = input / KBLOCK, c = column % PANEL, k = input % KBLOCK;
    const char* block = m.block(panel, kblock);
    if (m.form == KVIK_F32) return load_as<float>(block + kvik::f32_offset(c, k) * 4);
    if (m.form == KVIK_BF16) return from_bf16(load_as<uint16_t>(block + kvik::bf16_offset(c, k) * 2));
    const float value = whole_weight_at(m, block, m.strip(panel, kblock), c, k);
    return m.scales ? value * m.scales[column] : value;
}

// x[i] = embedding of token i, from panels: a tied head is the embedding, and no second copy is held.
static void embed(const EmbedArgs& args, int64_t begin, int64_t end) {
    const int32_t* order = args.table.order;
    for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < args.columns; c++)
            args.x[i * args.stride + (order ? order[c] : c)] = weight_at(args.table, args.token_ids[i], c);
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
        for (int64_t c = 0; c < args.stride; c += 2 * LANES)
            store_act32(args.out, i, args.out_stride, c, load(x + c) * scale * load(args.weight + c),
                        load(x + c + LANES) * scale * load(args.weight + c + LANES), args.form);
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

// Store one position's whole numbers: a key is a column of its group's panel, so four dimensions are four bytes.
KVIK_INLINE void store_int8_key(const int8_t* q, int64_t dims, int64_t slot, char* at) {
    for (int64_t d = 0; d < dims; d += 4)
        store_as(at + d / KBLOCK * BYTE_BLOCK_BYTES + kvik::int8_offset(slot, d % KBLOCK),
                 load_as<uint32_t>(q + d) ^ 0x80808080u);
}

// A value is an input of its group's K-blocks: one byte of every column's four.
KVIK_INLINE void store_int8_value(const int8_t* q, int64_t dims, int64_t slot, char* at) {
    typedef uint8_t u8x16 __attribute__((vector_size(16)));
    const uint32_t shift = static_cast<uint32_t>(slot % 4 * 8);
    for (int64_t d = 0; d < dims; d += LANES) {
        char* four = at + d / KBLOCK * BYTE_BLOCK_BYTES + kvik::int8_offset(d % KBLOCK, slot / 4 * 4);
        const u32x16 bytes = __builtin_convertvector(load_as<u8x16>(q + d), u32x16) ^ 0x80u;
        store_as(four, (load_as<u32x16>(four) & ~(0xffu << shift)) | bytes << shift);
    }
}

// Store one position's key or value, padded with zeroes to whole K-blocks. A key is a column of its group's panel: its
// dimensions are the inputs. A value is an input of its group's K-blocks: its dimensions are the columns. Either way 32
// dimensions are a K-block.
template <bool IS_KEY>
KVIK_INLINE void store_head(const float* x, const KvLayout& kv, int64_t slot, char* at) {
    const int64_t bytes = kvik::kblock_bytes(kv.form);
    if (kv.form == KVIK_INT8) {
        int8_t q[MAX_HEAD_DIM];
        quantize_int8_row(x, kv.head_dim_padded(), q, reinterpret_cast<float*>(at + kv.scales_offset()) + slot);
        if (IS_KEY)
            store_int8_key(q, kv.head_dim_padded(), slot, at);
        else
            store_int8_value(q, kv.head_dim_padded(), slot, at);
        return;
    }
    for (int64_t d = 0; d < kv.head_dim; d++) {
        char* block = at + d / KBLOCK * bytes;
        const int64_t column = IS_KEY ? slot : d % KBLOCK, input = IS_KEY ? d % KBLOCK : slot;
        if (kv.form == KVIK_F32)
            reinterpret_cast<float*>(block)[kvik::f32_offset(column, input)] = x[d];
        else
            reinterpret_cast<uint16_t*>(block)[kvik::bf16_offset(column, input)] = to_bf16(x[d]);
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
        const int64_t rows = args.num_tokens * group, row = token * group + g;
        for (int64_t c = 0; c < all; c += KBLOCK) {
            const f32x16 left = load(rotated + c), right = load(rotated + c + LANES);
            if (args.form == kvik::ACT_INT8)
                quantize_exactly(left, right, static_cast<ActBlock*>(args.q)[(head * all + c) / KBLOCK * rows + row]);
            else
                store_act32(args.q, head * rows + row, all, c, left, right, args.form);
        }
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
        char* group = args.kv_layer + block * kv.block_bytes() + first % kv.block_size / GROUP * kv.group_bytes();
        char *keys = group + kv.keys_offset(head), *values = group + kv.values_offset(head);
        // Probabilities of positions not yet written are zero, but zero times an old NaN is NaN.
        if (first % GROUP == 0) std::memset(values, 0, kv.keys_bytes());
        for (int64_t t = run.begin; t < run.end; t++) {
            const float *cos = args.cos + t * half, *sin = args.sin + t * half;
            const float* row = args.qkv + t * args.stride;
            const int64_t slot = args.positions[t] % GROUP;
            store_queries(args, t, head, cos, sin);
            norm_and_rotate(row + args.k_column + head * dim, dim, args.k_norm, s.rms_norm_eps, cos, sin, rotated);
            store_head<true>(rotated, kv, slot, keys);
            std::memcpy(rotated, row + args.v_column + head * dim, dim * sizeof(float));
            store_head<false>(rotated, kv, slot, values);
        }
    }
}

}  // namespace KVIK_ISA
