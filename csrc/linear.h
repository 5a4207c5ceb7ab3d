// Linear layers over packed weights, with what follows them done while the result is still in cache.
#pragma once

#include <type_traits>

#include "activations.h"
#include "integer.h"
#include "kernels.h"
#include "matmul.h"
#include "unpack.h"

namespace KVIK_ISA {

using kvik::LinearArgs;

KVIK_INLINE f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

// What to do with the finished rows x 32 results of one panel. int8: they are still to be scaled.
KVIK_INLINE void finish_panel(const LinearArgs& args, int64_t panel, int64_t row, int rows, const float* result) {
    const int64_t column = panel * PANEL;
    const float* scales = args.weights.form == KVIK_INT8 ? args.weights.scales + column : nullptr;
    for (int r = 0; r < rows; r++) {
        f32x16 left = load(result + r * PANEL), right = load(result + r * PANEL + TILE);
        if (scales) {
            left = left * load(scales);
            right = right * load(scales + TILE);
        }
        if (args.bias) {
            left = left + load(args.bias + column);
            right = right + load(args.bias + column + TILE);
        }
        if (args.epilogue == kvik::SILU_MUL) {
            store_act(args.act_out, (row + r) * args.act_out_stride + panel * TILE, silu(left) * right,
                      args.out_form);
            continue;
        }
        float* out = args.out + (row + r) * args.out_stride + column;
        if (args.epilogue == kvik::ADD) {
            left = left + load(out);
            right = right + load(out + TILE);
        } else if (args.columns < column + PANEL) {
            float both[PANEL];
            store(both, left);
            store(both + TILE, right);
            if (args.columns > column) std::memcpy(out, both, (args.columns - column) * sizeof(float));
            continue;
        }
        store(out, left);
        store(out + TILE, right);
    }
}

// What to fetch while a piece of rows is multiplied with a panel. A single piece streams: a little ahead of where it
// reads. Of several pieces the first ones fetch the next panel, as they find their own in cache.
constexpr int64_t STREAM_AHEAD = 8192;

// `steps`: how often a K-block asks.
KVIK_INLINE Ahead ahead_of(const kvik::Matrix& weights, int64_t panel, int64_t piece, bool only_piece, int64_t steps) {
    const char* at = weights.panel(panel);
    if (only_piece) return {at + STREAM_AHEAD, weights.block_bytes() / steps, weights.block_bytes()};
    const int64_t fetched = piece * weights.kblocks * steps * 64;
    if (fetched >= weights.panel_bytes()) return {at, 0, 0};
    return {at + weights.panel_bytes() + fetched, 64, steps * 64};
}

// Floats: the whole depth of a panel at once.
template <class F>
static void linear_of(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                      int64_t row_end) {
    const auto* act = static_cast<const typename F::act*>(args.act);
    alignas(64) float result[PANEL * PANEL];
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        int64_t piece = 0;
        InOrder blocks{args.weights.panel(panel), F::BLOCK_BYTES};
        in_pieces<F>(row_end - row_begin, [&](int64_t r, int rows) {
            int64_t row = row_begin + r;
            Ahead ahead = ahead_of(args.weights, panel, piece++, rows == row_end - row_begin, F::STEPS);
            panel_product<F>(rows, act + row * args.act_stride, args.act_stride, blocks, args.weights.kblocks, ahead,
                             result, PANEL);
            finish_panel(args, panel, row, rows, result);
        });
    }
}

// Rows whose sums are kept while a panel of whole numbers is multiplied.
constexpr int64_t SUM_ROWS = 192;

#if defined(KVIK_AMX)

// K-blocks widened at a time: they stay in the first cache.
constexpr int64_t UNPACKED = 8;

// Whole numbers on units of bf16: widened a few K-blocks at a time. int4 scales every 32 inputs, int8 the whole.
template <bool INT4>
KVIK_INLINE void quantized_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    constexpr Mode MODE = INT4 ? SCALED : CONTINUE;
    alignas(64) char blocks[UNPACKED * BF16_BLOCK_BYTES], bytes[BYTE_BLOCK_BYTES];
    alignas(64) float scales[UNPACKED * PANEL];
    const kvik::Matrix& weights = args.weights;
    const auto* act = static_cast<const Bf16::act*>(args.act) + row * args.act_stride;
    std::memset(sums, 0, rows * PANEL * sizeof(float));
    for (int64_t first = 0; first < weights.kblocks; first += UNPACKED) {
        const int64_t count = weights.kblocks - first < UNPACKED ? weights.kblocks - first : UNPACKED;
        const char* packed = weights.panel(panel) + first * weights.block_bytes();
        for (int64_t k = 0; k < count; k++, packed += weights.block_bytes()) {
            if constexpr (INT4) {
                unpack_int4(packed, bytes);
                for (int c = 0; c < PANEL; c += REG_LANES) store_as(scales + k * PANEL + c, scales_of_int4(packed, c));
            }
            widen_bytes(INT4 ? bytes : packed, blocks + k * BF16_BLOCK_BYTES);
        }
        // While these are multiplied the packed weights after them are fetched, by the first piece of rows.
        in_pieces<Bf16>(rows, [&](int64_t r, int piece) {
            panel_product<Bf16, MODE>(piece, act + r * args.act_stride + first * KBLOCK, args.act_stride,
                                      InOrder{blocks, BF16_BLOCK_BYTES}, count,
                                      r == 0 ? Ahead{packed, 64, 1024} : Ahead{blocks, 0, 0}, sums + r * PANEL, PANEL,
                                      scales);
        });
    }
}

#else

KVIK_INLINE const ActBlock* blocks_of(const LinearArgs& args, int64_t row, int64_t kblock) {
    return static_cast<const ActBlock*>(args.act) + kvik::act_block(row, kblock, args.act_stride);
}

// Bytes and nibbles are multiplied where they lie.
template <bool INT4>
KVIK_INLINE void quantized_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    typedef std::conditional_t<INT4, Nibbles, Whole> F;
    const InOrder blocks{args.weights.panel(panel), F::BLOCK_BYTES};
    int64_t number = 0;
    in_pieces<F>(rows, [&](int64_t r, int piece) {
        const Ahead ahead = ahead_of(args.weights, panel, number++, piece == rows, F::STEPS);
        product<F>(piece, blocks_of(args, row + r, 0), kvik::ACT_ROWS, blocks, args.weights.kblocks, ahead,
                   sums + r * PANEL, PANEL);
    });
}

#endif

constexpr ActForm ACT_OF_BF16 = Bf16::FORM;
#if defined(KVIK_AMX)
constexpr ActForm ACT_OF_INTEGERS = ACT_OF_BF16;
#else
constexpr ActForm ACT_OF_INTEGERS = kvik::ACT_INT8;
#endif

template <bool INT4>
static void linear_quantized(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                             int64_t row_end) {
    alignas(64) float sums[SUM_ROWS * PANEL];
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        for (int64_t row = row_begin; row < row_end; row += SUM_ROWS) {
            const int64_t rows = row_end - row < SUM_ROWS ? row_end - row : SUM_ROWS;
            quantized_panel<INT4>(args, panel, row, rows, sums);
            finish_panel(args, panel, row, static_cast<int>(rows), sums);
        }
    }
}

static void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                   int64_t row_end) {
    switch (args.weights.form) {
        case KVIK_F32: return linear_of<F32>(args, panel_begin, panel_end, row_begin, row_end);
        case KVIK_INT8: return linear_quantized<false>(args, panel_begin, panel_end, row_begin, row_end);
        case KVIK_INT4: return linear_quantized<true>(args, panel_begin, panel_end, row_begin, row_end);
        default: return linear_of<Bf16>(args, panel_begin, panel_end, row_begin, row_end);
    }
}

}  // namespace KVIK_ISA
