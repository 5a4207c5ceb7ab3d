// Attention over a paged KV cache: one entry for decode, prefill and chunks of either.
//
// The rows of a product are the query heads of one KV head times a few tokens. Positions are cut at fixed places into
// PARTITIONS; within one, scores are materialised and softmaxed; partitions are then merged in order of position with
// the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Because the cuts depend on positions alone, a
// token's bytes are the same in any batch, chunk or thread count. With one partition as long as the sequence this is
// naive attention.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "linear.h"
#include "rows.h"

namespace KVIK_ISA {

using kvik::AttendArgs;
using kvik::AttendItem;
using kvik::Carver;
using kvik::CombineItem;

constexpr float NEVER = -__builtin_inff();

// The scales of one head in a run of groups of one sequence: where each group lies, and an offset within it.
struct Groups {
    const char* const* at;
    int64_t offset;
    KVIK_INLINE const char* operator()(int64_t i) const { return at[i] + offset; }
};

// The KV heads of an item, how many rows of queries each has, and from which row to which they lie: on tiles a product
// writes whole ones.
struct Heads {
    int64_t first, count, rows, pitch;
};

template <class F>
constexpr int64_t row_pitch(int64_t rows) {
    return most_rows<F>() == 32 ? kvik::round_up(rows, TILE) : rows;
}

// Working memory of one attention item.
template <class F>
struct Scratch {
    const char** groups;     // [partition / 32] where the groups of a partition lie
    char* blocks;            // widened K-blocks of one head of a group
    float* scores;           // [rows, partition]
    typename F::act* probs;  // [rows, partition], or ActBlocks [partition / 32, rows]
    int64_t probs_stride;
    float *part, *total;  // [rows, dims] of this partition, of all so far
    float *part_max, *part_sum, *total_max, *total_sum;

    Scratch(Carver& carver, int64_t rows, int64_t partition, int64_t dims) {
        groups = carver.take<const char*>(partition / GROUP);
        blocks = carver.take<char>(dims / KBLOCK * BF16_BLOCK_BYTES);
        scores = carver.take<float>(rows * partition);
        probs = carver.take<typename F::act>(rows * partition / F::PER);
        probs_stride = F::PER == 1 ? partition : rows;
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

// What one partition of an item reads: `count` groups from position `begin` on; none, if no query sees any of it.
struct Span {
    const char* const* groups;
    int64_t count, begin;
};

alignas(64) constexpr float LANE_NUMBERS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores times `scale` (and the scales of int8 keys), and the largest of those in [low, high), which alone may be seen.
KVIK_INLINE float scale_scores(float* scores, const Span& span, int64_t low, int64_t high, float scale,
                               const Groups* int8_keys) {
    const f32x16 from = splat(static_cast<float>(low)), to = splat(static_cast<float>(high)), never = splat(NEVER);
    f32x16 top = never, nothing = {}, at = load(LANE_NUMBERS);
    for (int64_t i = 0; i < span.count * GROUP; i += LANES) {
        f32x16 v = load(scores + i) * scale;
        if (int8_keys) v = v * load(reinterpret_cast<const float*>((*int8_keys)(i / GROUP)) + i % GROUP);
        v = select_less(at, from, never, select_less(at, to, v, never));
        store(scores + i, v);
        top = max(top, v);
        nothing = nothing + (v == v ? f32x16{} : v);
        at = at + static_cast<float>(LANES);
    }
    // A NaN must win, or a broken row would look sound.
    const float sick = sum(nothing);
    return sick != sick ? sick : largest(top);
}

// Softmax of a row of scores, of which `max` is the largest: probabilities and their sum. An int8 value is a whole number
// times its position's scale: these go into the probabilities, and the sum is of them as they were before. Otherwise it
// is of the probabilities as they are rounded.
template <class F>
KVIK_INLINE void softmax_row(float* scores, const Span& span, const Groups* value_scales, typename F::act* probs,
                             int64_t stride, float max, float& total) {
    f32x16 sums = {}, base = splat(max == NEVER ? 0.0f : max);
    for (int64_t g = 0; g < span.count; g++) {
        const float* row = scores + g * GROUP;
        f32x16 left = exp(load(row) - base), right = exp(load(row + LANES) - base);
        if (value_scales) {
            sums = sums + left + right;
            const float* scales = reinterpret_cast<const float*>((*value_scales)(g));
            left = left * load(scales);
            right = right * load(scales + LANES);
        }
        if constexpr (F::PER == GROUP) {
            quantize_exactly(left, right, probs[g * stride]);
        } else {
            store_act(probs + g * GROUP, 0, left, F::FORM);
            store_act(probs + g * GROUP, LANES, right, F::FORM);
            if (!value_scales) sums = sums + load_act(probs + g * GROUP) + load_act(probs + g * GROUP + LANES);
        }
    }
    total = sum(sums);
}

// Positions a query may see, relative to `start`: [low, high).
KVIK_INLINE int64_t first_seen(int64_t position, int32_t window) {
    return window && position - window + 1 > 0 ? position - window + 1 : 0;
}

// Where row r of activations starts, and the stride of queries (as in LinearArgs).
template <class F>
KVIK_INLINE int64_t row_at(int64_t r, int64_t stride) {
    return F::PER == 1 ? r * stride : r;
}
template <class F>
KVIK_INLINE int64_t query_stride(const AttendArgs& args) {
    return F::PER == 1 ? args.kv.head_dim_padded() : args.num_tokens * (args.spec->num_heads / args.spec->num_kv_heads);
}

KVIK_INLINE Span span_of(const AttendArgs& args, const AttendItem& item, int64_t partition, const char** at) {
    const int64_t start = partition * args.partition;
    int64_t low = first_seen(args.positions[item.begin], args.window), high = args.positions[item.end - 1] + 1;
    if (low < start) low = start;
    if (high > start + args.partition) high = start + args.partition;
    if (low > high) low = high;
    const int64_t begin = low / GROUP * GROUP, count = low < high ? kvik::padded(high - begin) / GROUP : 0;
    const int32_t* table = args.block_tables + item.row * args.table_width;
    for (int64_t i = 0; i < count; i++) {
        const int64_t position = begin + i * GROUP, block = position / args.kv.block_size;
        at[i] = args.kv_layer + table[block] * args.kv.block_bytes() +
                (position - block * args.kv.block_size) / GROUP * args.kv.group_bytes();
    }
    return {at, count, begin};
}

// scores = q x keys. `q` is the first head's; `next_head` elements on are those of the next.
template <class F>
KVIK_INLINE void score_groups(const AttendArgs& args, const Span& span, const typename F::act* q, int64_t next_head,
                              const Heads& heads, Scratch<F>& s) {
    const int64_t kblocks = args.kv.kblocks(), stride = query_stride<F>(args);
    const int64_t bytes = kvik::kblock_bytes(args.kv.form);
    for (int64_t g = 0; g < span.count; g++) {
        for (int64_t h = 0; h < heads.count; h++) {
            InOrder keys{span.groups[g] + args.kv.keys_offset(heads.first + h), bytes};
            const Ahead none{keys(0), 0, 0};
#if defined(KVIK_AMX)
            if (args.kv.form == KVIK_INT8) {
                for (int64_t k = 0; k < kblocks; k++) widen_bytes(keys(k), s.blocks + k * BF16_BLOCK_BYTES);
                keys = {s.blocks, BF16_BLOCK_BYTES};
            }
#endif
            float* scores = s.scores + h * heads.pitch * args.partition + g * GROUP;
            in_pieces<F>(heads.rows, [&](int64_t r, int piece) {
                product<F>(piece, q + h * next_head + row_at<F>(r, stride), stride, keys, kblocks, none,
                           scores + r * args.partition, args.partition);
            });
        }
    }
}

// part = (or, from the second group on, +=) probabilities x values of one group and head.
template <class F, Mode MODE>
KVIK_INLINE void weigh_group(const AttendArgs& args, const char* values, const typename F::act* probs, int64_t rows,
                             float* part, Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded(), bytes = kvik::kblock_bytes(args.kv.form), stride = s.probs_stride;
    for (int64_t d = 0; d < dims / PANEL; d++) {
        const char* block = values + d * bytes;
#if defined(KVIK_AMX)
        if (args.kv.form == KVIK_INT8) {
            widen_bytes(block, s.blocks);
            block = s.blocks;
        }
#endif
        in_pieces<F>(rows, [&](int64_t r, int piece) {
            product<F, MODE>(piece, probs + row_at<F>(r, stride), stride, InOrder{block, 0}, 1, Ahead{block, 0, 0},
                             part + r * dims + d * PANEL, dims);
        });
    }
}

// part = probabilities x values, in the order of positions.
template <class F>
KVIK_INLINE void weigh_values(const AttendArgs& args, const Span& span, const Heads& heads, Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded();
    for (int64_t g = 0; g < span.count; g++) {
        for (int64_t h = 0; h < heads.count; h++) {
            const int64_t row = h * heads.pitch;
            const char* values = span.groups[g] + args.kv.values_offset(heads.first + h);
            const typename F::act* probs =
                s.probs + row_at<F>(row, s.probs_stride) + (F::PER == 1 ? g * GROUP : g * s.probs_stride);
            float* part = s.part + row * dims;
            if (g == 0)
                weigh_group<F, FRESH>(args, values, probs, heads.rows, part, s);
            else
                weigh_group<F, CONTINUE>(args, values, probs, heads.rows, part, s);
        }
    }
}

// One partition: scores, softmax, weighted values into scratch.part. Memory is read forward, the keys of all heads and
// then their values, and fetched ahead by the machine; asking for it here as well made it slower.
template <class F>
static void attend_partition(const AttendArgs& args, const AttendItem& item, const Span& span,
                             const typename F::act* q, int64_t next_head, const Heads& heads, Scratch<F>& s) {
    const int64_t group = args.spec->num_heads / args.spec->num_kv_heads;
    score_groups<F>(args, span, q, next_head, heads, s);
    const bool is_int8 = args.kv.form == KVIK_INT8;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.spec->head_dim));
    for (int64_t h = 0; h < heads.count; h++) {
        const Groups key_scales{span.groups, args.kv.keys_offset(heads.first + h) + args.kv.scales_offset()};
        const Groups value_scales{span.groups, args.kv.values_offset(heads.first + h) + args.kv.scales_offset()};
        for (int64_t r = h * heads.pitch; r < h * heads.pitch + heads.rows; r++) {
            const int64_t position = args.positions[item.begin + (r - h * heads.pitch) / group];
            float* scores = s.scores + r * args.partition;
            s.part_max[r] = scale_scores(scores, span, first_seen(position, args.window) - span.begin,
                                         position + 1 - span.begin, scale, is_int8 ? &key_scales : nullptr);
            softmax_row<F>(scores, span, is_int8 ? &value_scales : nullptr, s.probs + row_at<F>(r, s.probs_stride),
                           s.probs_stride, s.part_max[r], s.part_sum[r]);
        }
    }
    weigh_values<F>(args, span, heads, s);
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
KVIK_INLINE void leave_partial(const AttendArgs& args, const AttendItem& item, int64_t partition, const Heads& heads,
                               bool seen, const Scratch<F>& s) {
    const int64_t dims = args.kv.head_dim_padded();
    float* left = args.partials + (item.partial + partition - item.part_begin) * args.partial_stride;
    for (int64_t i = 0; i < heads.count * heads.rows; i++, left += 2 + dims) {
        const int64_t r = i / heads.rows * heads.pitch + i % heads.rows;
        left[0] = seen ? s.part_max[r] : NEVER;
        left[1] = seen ? s.part_sum[r] : 0.0f;
        if (seen) std::memcpy(left + 2, s.part + r * dims, dims * sizeof(float));
    }
}

template <class F>
static void attend_of(const AttendArgs& args, const AttendItem& item, void* scratch) {
    const int64_t dims = args.kv.head_dim_padded(), group = args.spec->num_heads / args.spec->num_kv_heads;
    const Heads heads{item.head_begin, item.head_end - item.head_begin, (item.end - item.begin) * group,
                      row_pitch<F>((item.end - item.begin) * group)};
    const int64_t rows = heads.count * heads.pitch;
    Carver carver(static_cast<char*>(scratch));
    Scratch<F> s(carver, kvik::padded(rows), args.partition, dims);
    const int64_t stride = query_stride<F>(args), next_head = args.num_tokens * group * dims / F::PER;
    const auto* q = static_cast<const typename F::act*>(args.q) + item.head_begin * next_head +
                    row_at<F>(item.begin * group, stride);
    for (int64_t r = 0; r < rows; r++) s.total_max[r] = NEVER;
    for (int64_t p = item.part_begin; p < item.part_end; p++) {
        const Span span = span_of(args, item, p, s.groups);
        if (span.count) attend_partition<F>(args, item, span, q, next_head, heads, s);
        if (item.partial >= 0) leave_partial(args, item, p, heads, span.count > 0, s);
        for (int64_t r = 0; span.count && item.partial < 0 && r < rows; r++) {
            if (r % heads.pitch >= heads.rows) continue;
            merge(s.total_max[r], s.total_sum[r], s.total + r * dims, s.part_max[r], s.part_sum[r], s.part + r * dims,
                  dims);
        }
    }
    if (item.partial >= 0) return;
    for (int64_t i = 0; i < heads.count * heads.rows; i++) {
        const int64_t r = i / heads.rows * heads.pitch + i % heads.rows;
        finish_row(args, item.begin + i % heads.rows / group, (heads.first + i / heads.rows) * group + i % group,
                   s.total + r * dims, s.total_sum[r]);
    }
}

static void attend(const AttendArgs& args, int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; i++) {
        const AttendItem& item = args.items[i];
        if (args.kv.form == KVIK_F32)
            attend_of<F32>(args, item, scratch);
        else if (args.kv.form == KVIK_INT8)
            attend_of<std::conditional_t<ACT_OF_INTEGERS == kvik::ACT_INT8, WholeAndLow, Bf16>>(args, item, scratch);
        else
            attend_of<Bf16>(args, item, scratch);
    }
}

static int64_t attend_scratch(const KvikSpec& spec, int64_t query_rows, int64_t partition) {
    Carver measure;
    const int64_t rows = query_rows < kvik::HEADS_TOGETHER * TILE ? kvik::HEADS_TOGETHER * TILE : query_rows;
    Scratch<F32> s(measure, kvik::padded(rows), partition, kvik::padded(spec.head_dim));
    (void)s;
    return measure.used();
}

// Merge what the items of a split sequence left behind, in order of position.
static void combine(const AttendArgs& args, const CombineItem& item) {
    const int64_t dims = args.kv.head_dim_padded(), group = args.spec->num_heads / args.spec->num_kv_heads;
    const int64_t rows = (item.end - item.begin) * group;
    alignas(64) float total[MAX_HEAD_DIM];
    for (int64_t r = 0; r < (item.head_end - item.head_begin) * rows; r++) {
        float max = NEVER, sum = 0;
        for (int64_t i = 0; i < item.count; i++) {
            const float* left = args.partials + (item.first + i) * args.partial_stride + r * (2 + dims);
            merge(max, sum, total, left[0], left[1], left + 2, dims);
        }
        finish_row(args, item.begin + r % rows / group, (item.head_begin + r / rows) * group + r % group, total, sum);
    }
}

}  // namespace KVIK_ISA
