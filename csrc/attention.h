// Attention over a paged KV cache: one entry for decode, prefill and chunks of either.
//
// The rows of a product are the query heads of one KV head times a few tokens. Positions are cut at fixed places into
// PARTITIONS; within one, scores are materialised and softmaxed; partitions are then merged in order of position with
// the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Because the cuts depend on positions alone, a
// token's bytes are the same in any batch, chunk or thread count. With one partition as long as the sequence this is
// naive attention.
#pragma once

#include "kernels.h"
#include "linear.h"
#include "rows.h"

namespace KVIK_ISA {

using kvik::AttendArgs;
using kvik::AttendItem;
using kvik::Carver;
using kvik::CombineItem;

constexpr float NEVER = -__builtin_inff();

// The K-blocks of a run of groups of one sequence and head, found through its block table.
struct Groups {
    const char* head;  // layer + head offset
    const int32_t* table;
    KvLayout kv;
    int64_t first;   // group index in the sequence
    int64_t offset;  // within the group
    KVIK_INLINE const char* operator()(int64_t i) const {
        int64_t position = (first + i) * GROUP;
        return head + table[position / kv.block_size] * kv.block_bytes() +
               position % kv.block_size / GROUP * kv.group_bytes() + offset;
    }
};

// Working memory of one attention item.
template <class F>
struct Scratch {
    char* blocks;            // unpacked K-blocks: a group's keys, or 32 dimensions of a partition's values
    float* value_scales;     // [partition], of an int8 cache
    float* scores;           // [rows, partition]
    typename F::act* probs;  // [rows, partition]
    float *part, *total;     // [rows, dims] of this partition, of all so far
    float *part_max, *part_sum, *total_max, *total_sum;

    Scratch(Carver& carver, int64_t rows, int64_t partition, int64_t dims) {
        const int64_t kblocks = dims > partition ? dims / KBLOCK : partition / KBLOCK;
        blocks = carver.take<char>(kblocks * BF16_BLOCK_BYTES);
        value_scales = carver.take<float>(partition);
        scores = carver.take<float>(rows * partition);
        probs = carver.take<typename F::act>(rows * partition);
        part = carver.take<float>(rows * dims);
        total = carver.take<float>(rows * dims);
        part_max = carver.take<float>(rows);
        part_sum = carver.take<float>(rows);
        total_max = carver.take<float>(rows);
        total_sum = carver.take<float>(rows);
    }
};

// Merge the softmax-weighted sum of one partition into that of the partitions before it.
KVIK_INLINE void merge(float& max, float& sum, float* out, float part_max, float part_sum, const float* part,
                       int64_t dims) {
    if (part_max == NEVER) return;
    if (max == NEVER) {
        max = part_max;
        sum = part_sum;
        std::memcpy(out, part, dims * sizeof(float));
        return;
    }
    float top = max > part_max ? max : part_max;
    f32x16 old_scale = exp(splat(max - top)), part_scale = exp(splat(part_max - top));
    max = top;
    sum = sum * old_scale[0] + part_sum * part_scale[0];
    for (int64_t c = 0; c < dims; c += LANES)
        store(out + c, fma(load(out + c), old_scale, load(part + c) * part_scale));
}

// Softmax of scores[0 .. width) where only [low, high) may be seen: probabilities, their sum, and the largest score.
// An int8 value is a whole number times its position's scale; given `value_scales`, these go into the probabilities,
// and the sum is of them as they were before. Otherwise it is of the probabilities as they are rounded.
template <class F>
KVIK_INLINE void softmax_row(float* scores, int64_t width, int64_t low, int64_t high, float scale,
                             const float* value_scales, typename F::act* probs, float& max, float& total) {
    for (int64_t i = 0; i < low && i < width; i++) scores[i] = NEVER;
    for (int64_t i = high > 0 ? high : 0; i < width; i++) scores[i] = NEVER;
    f32x16 top = splat(NEVER);
    for (int64_t i = 0; i < width; i += LANES) {
        // A NaN must win, or a broken row would look sound.
        f32x16 v = load(scores + i) * scale;
        store(scores + i, v);
        top = v > top ? v : (v == v ? top : v);
    }
    max = largest(top);
    f32x16 nan_seen = top == top ? f32x16{} : top;
    float sick = sum(nan_seen);
    if (sick != sick) max = sick;
    f32x16 sums = {}, base = splat(max == NEVER ? 0.0f : max);
    for (int64_t i = 0; i < width; i += LANES) {
        f32x16 p = exp(load(scores + i) - base);
        if (value_scales) {
            sums = sums + p;
            store_act(probs + i, 0, p * load(value_scales + i), ACT_OF_BF16);
            continue;
        }
        if constexpr (sizeof(typename F::act) == 2) {
            u16x16 rounded = to_bf16(p);
            store_as(probs + i, rounded);
            sums = sums + from_bf16(rounded);
        } else {
            if constexpr (F::BLOCK_BYTES == KBLOCK * PANEL * 2) p = from_bf16(to_bf16(p));
            store(probs + i, p);
            sums = sums + p;
        }
    }
    total = sum(sums);
}

// Positions a query may see, relative to `start`: [low, high).
KVIK_INLINE int64_t first_seen(int64_t position, int32_t window) {
    return window && position - window + 1 > 0 ? position - window + 1 : 0;
}

// scores = q x keys, for `count` groups.
template <class F>
KVIK_INLINE void score_groups(const AttendArgs& args, const Groups& groups, int64_t count, const typename F::act* q,
                              int64_t rows, Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded(), kblocks = args.kv.kblocks();
    for (int64_t g = 0; g < count; g++) {
        const char* keys = groups(g);
        const bool is_int8 = args.kv.form == KVIK_INT8;
        // The values of a group lie behind its keys and are wanted soon after.
        if (is_int8) {
            for (int64_t line = 0; line < args.kv.keys_bytes(); line += 64)
                __builtin_prefetch(keys + args.kv.keys_bytes() + line, 0, 3);
            for (int64_t k = 0; k < kblocks; k++)
                unpack_int8(keys + k * kvik::kblock_bytes(KVIK_INT8), s.blocks + k * BF16_BLOCK_BYTES);
        }
        in_pieces<F>(rows, [&](int64_t r, int piece) {
            float* scores = s.scores + r * args.partition + g * GROUP;
            if (is_int8)
                panel_product<F>(piece, q + r * dims, dims, InOrder{s.blocks, BF16_BLOCK_BYTES}, kblocks,
                                 Ahead{groups(g + 1 < count ? g + 1 : g), 64}, scores, args.partition);
            else
                panel_product<F>(piece, q + r * dims, dims, InOrder{keys, F::BLOCK_BYTES}, kblocks,
                                 Ahead{keys + args.kv.keys_bytes(), 128}, scores, args.partition);
        });
        if (!is_int8) continue;
        const float* scales = reinterpret_cast<const float*>(keys + args.kv.scales_offset());
        std::memcpy(s.value_scales + g * GROUP, keys + args.kv.keys_bytes() + args.kv.scales_offset(),
                    GROUP * sizeof(float));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < GROUP; c += LANES) {
                float* at = s.scores + r * args.partition + g * GROUP + c;
                store(at, load(at) * load(scales + c));
            }
    }
}

// part = probabilities x values of `count` groups, 32 dimensions at a time.
template <class F>
KVIK_INLINE void weigh_values(const AttendArgs& args, const Groups& groups, int64_t count, int64_t rows,
                              Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded();
    for (int64_t d = 0; d < dims / PANEL; d++) {
        Groups values = groups;
        values.offset = args.kv.keys_bytes() + d * kvik::kblock_bytes(args.kv.form);
        float* part = s.part + d * PANEL;
        if (args.kv.form == KVIK_INT8)
            for (int64_t g = 0; g < count; g++) unpack_int8(values(g), s.blocks + g * BF16_BLOCK_BYTES);
        in_pieces<F>(rows, [&](int64_t r, int piece) {
            const typename F::act* probs = s.probs + r * args.partition;
            if (args.kv.form == KVIK_INT8)
                panel_product<F>(piece, probs, args.partition, InOrder{s.blocks, BF16_BLOCK_BYTES}, count,
                                 NothingAhead{}, part + r * dims, dims);
            else
                panel_product<F>(piece, probs, args.partition, values, count, NothingAhead{}, part + r * dims,
                                 dims);
        });
    }
}

// One partition: scores, softmax, weighted values into scratch.part. False if no row sees any of it.
template <class F>
static bool attend_partition(const AttendArgs& args, const AttendItem& item, const typename F::act* q, int64_t rows,
                             int64_t partition, Scratch<F>& s) {
    const int64_t group = args.spec->num_heads / args.spec->num_kv_heads;
    const int64_t last = args.positions[item.end - 1];
    const int64_t start = partition * args.partition;
    int64_t low = first_seen(args.positions[item.begin], args.window), high = last + 1;
    if (low < start) low = start;
    if (high > start + args.partition) high = start + args.partition;
    if (low >= high) return false;
    const int64_t group_begin = low / GROUP, width = kvik::padded(high - group_begin * GROUP), base = group_begin * GROUP;
    const Groups groups{args.kv_layer + item.kv_head * args.kv.head_bytes(),
                        args.block_tables + item.row * args.table_width, args.kv, group_begin, 0};
    const int64_t count = width / GROUP;
    score_groups<F>(args, groups, count, q, rows, s);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.spec->head_dim));
    for (int64_t r = 0; r < rows; r++) {
        const int64_t position = args.positions[item.begin + r / group];
        softmax_row<F>(s.scores + r * args.partition, width, first_seen(position, args.window) - base,
                       position + 1 - base, scale, args.kv.form == KVIK_INT8 ? s.value_scales : nullptr,
                       s.probs + r * args.partition, s.part_max[r], s.part_sum[r]);
    }
    weigh_values<F>(args, groups, count, rows, s);
    return true;
}

// out = total / sum, as activations of the next product.
KVIK_INLINE void finish_row(const AttendArgs& args, int64_t token, int64_t head, const float* total, float sum) {
    alignas(64) float scaled[MAX_HEAD_DIM];
    const int64_t dim = args.spec->head_dim;
    for (int64_t c = 0; c < kvik::padded(dim); c += LANES) store(scaled + c, load(total + c) / splat(sum));
    const int64_t at = token * args.out_stride + head * dim;
    for (int64_t c = 0; c < dim; c++) {
        if (args.form == kvik::ACT_BF16)
            static_cast<uint16_t*>(args.out)[at + c] = to_bf16(scaled[c]);
        else
            static_cast<float*>(args.out)[at + c] =
                args.form == kvik::ACT_F32 ? scaled[c] : from_bf16(to_bf16(scaled[c]));
    }
}

// Leave one partition's unmerged result for `combine`: merging here would change the order of additions.
template <class F>
KVIK_INLINE void leave_partial(const AttendArgs& args, const AttendItem& item, int64_t partition, int64_t rows,
                               bool seen, const Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded();
    float* left = args.partials + (item.partial + partition - item.part_begin) * args.partial_stride;
    for (int64_t r = 0; r < rows; r++, left += 2 + dims) {
        left[0] = seen ? s.part_max[r] : NEVER;
        left[1] = seen ? s.part_sum[r] : 0.0f;
        if (seen) std::memcpy(left + 2, s.part + r * dims, dims * sizeof(float));
    }
}

template <class F>
static void attend_of(const AttendArgs& args, const AttendItem& item, void* scratch) {
    const int64_t dims = args.kv.head_dim_padded(), group = args.spec->num_heads / args.spec->num_kv_heads;
    const int64_t rows = (item.end - item.begin) * group, room = kvik::padded(rows);
    Carver carver(static_cast<char*>(scratch));
    Scratch<F> s(carver, room, args.partition, dims);
    const auto* q = static_cast<const typename F::act*>(args.q) +
                    (item.kv_head * args.num_tokens + item.begin) * group * dims;
    for (int64_t r = 0; r < rows; r++) s.total_max[r] = NEVER;
    for (int64_t p = item.part_begin; p < item.part_end; p++) {
        bool seen = attend_partition<F>(args, item, q, rows, p, s);
        if (item.partial >= 0) leave_partial(args, item, p, rows, seen, s);
        if (!seen || item.partial >= 0) continue;
        for (int64_t r = 0; r < rows; r++)
            merge(s.total_max[r], s.total_sum[r], s.total + r * dims, s.part_max[r], s.part_sum[r], s.part + r * dims,
                  dims);
    }
    if (item.partial >= 0) return;
    for (int64_t r = 0; r < rows; r++)
        finish_row(args, item.begin + r / group, item.kv_head * group + r % group, s.total + r * dims, s.total_sum[r]);
}

static void attend(const AttendArgs& args, const AttendItem& item, void* scratch) {
    if (args.kv.form == KVIK_F32)
        attend_of<F32>(args, item, scratch);
    else
        attend_of<Bf16>(args, item, scratch);
}

static int64_t attend_scratch(const KvikSpec& spec, int64_t query_rows, int64_t partition) {
    Carver measure;
    Scratch<F32> s(measure, kvik::padded(query_rows), partition, kvik::padded(spec.head_dim));
    (void)s;
    return measure.used();
}

// Merge what the items of a split sequence left behind, in order of position.
static void combine(const AttendArgs& args, const CombineItem& item) {
    const int64_t dims = args.kv.head_dim_padded(), group = args.spec->num_heads / args.spec->num_kv_heads;
    alignas(64) float total[MAX_HEAD_DIM];
    for (int64_t r = 0; r < (item.end - item.begin) * group; r++) {
        float max = NEVER, sum = 0;
        for (int64_t i = 0; i < item.count; i++) {
            const float* left = args.partials + (item.first + i) * args.partial_stride + r * (2 + dims);
            merge(max, sum, total, left[0], left[1], left + 2, dims);
        }
        finish_row(args, item.begin + r / group, item.kv_head * group + r % group, total, sum);
    }
}

}  // namespace KVIK_ISA
