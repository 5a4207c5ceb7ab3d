// Linear layers over packed weights, with what follows them done while the result is still in cache.
#pragma once

#include "kernels.h"
#include "matmul.h"
#include "unpack.h"

namespace KVIK_ISA {

using kvik::ActForm;
using kvik::LinearArgs;

// Write 16 activations in the form that the next product takes.
KVIK_INLINE void store_act(void* base, int64_t index, f32x16 v, ActForm form) {
    if (form == kvik::ACT_BF16) {
        store_as(static_cast<uint16_t*>(base) + index, to_bf16(v));
    } else {
        store(static_cast<float*>(base) + index, form == kvik::ACT_F32 ? v : from_bf16(to_bf16(v)));
    }
}

KVIK_INLINE f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

// What to do with the finished rows x 32 results of one panel.
KVIK_INLINE void finish_panel(const LinearArgs& args, ActForm form, int64_t panel, int64_t row, int rows,
                              const float* result) {
    const int64_t column = panel * PANEL;
    for (int r = 0; r < rows; r++) {
        f32x16 left = load(result + r * PANEL), right = load(result + r * PANEL + TILE);
        if (args.bias) {
            left = left + load(args.bias + column);
            right = right + load(args.bias + column + TILE);
        }
        if (args.epilogue == kvik::SILU_MUL) {
            store_act(args.act_out, (row + r) * args.act_out_stride + panel * TILE, silu(left) * right, form);
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

KVIK_INLINE Ahead ahead_of(const kvik::Matrix& weights, int64_t panel, int64_t piece, bool only_piece) {
    const char* at = weights.panel(panel);
    if (only_piece) return {at + STREAM_AHEAD, 128};
    const int64_t fetched = piece * (weights.kblocks * KBLOCK / 2 * 64);
    if (fetched >= weights.panel_bytes()) return {at, 0};
    return {at + weights.panel_bytes() + fetched, 64};
}

template <class F>
static void linear_of(const LinearArgs& args, ActForm form, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                      int64_t row_end) {
    const auto* act = static_cast<const typename F::act*>(args.act);
    alignas(64) float result[PANEL * PANEL];
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        int64_t piece = 0;
        InOrder blocks{args.weights.panel(panel), F::BLOCK_BYTES};
        in_pieces<F>(row_end - row_begin, [&](int64_t r, int rows) {
            int64_t row = row_begin + r;
            Ahead ahead = ahead_of(args.weights, panel, piece++, rows == row_end - row_begin);
            panel_product<F>(rows, act + row * args.act_stride, args.act_stride, blocks, args.weights.kblocks, ahead,
                             result, PANEL);
            finish_panel(args, form, panel, row, rows, result);
        });
    }
}

// K-blocks unpacked at a time, and rows whose sums are kept meanwhile: both stay in the first cache.
constexpr int64_t UNPACKED = 8, SUM_ROWS = 192;

// Unpack K-blocks first .. first + count of a panel.
template <bool INT4>
KVIK_INLINE void unpack_blocks(const kvik::Matrix& weights, int64_t panel, int64_t first, int64_t count, char* blocks,
                               float* scales) {
    for (int64_t k = 0; k < count; k++) {
        const char* packed = weights.panel(panel) + (first + k) * weights.block_bytes();
        if constexpr (INT4) {
            unpack_int4(packed, blocks + k * BF16_BLOCK_BYTES);
            scales_of_int4(packed, scales + k * PANEL);
        } else {
            unpack_int8(packed, blocks + k * BF16_BLOCK_BYTES);
        }
    }
}

// Rows row .. row + rows of a quantized layer's panel, rows <= SUM_ROWS. int4 scales every 32 inputs, int8 the whole.
template <bool INT4>
KVIK_INLINE void quantized_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    constexpr Mode MODE = INT4 ? SCALED : CONTINUE;
    alignas(64) char blocks[UNPACKED * BF16_BLOCK_BYTES];
    alignas(64) float scales[UNPACKED * PANEL];
    const auto* act = static_cast<const Bf16::act*>(args.act) + row * args.act_stride;
    std::memset(sums, 0, rows * PANEL * sizeof(float));
    for (int64_t first = 0; first < args.weights.kblocks; first += UNPACKED) {
        const int64_t left = args.weights.kblocks - first, count = left < UNPACKED ? left : UNPACKED;
        unpack_blocks<INT4>(args.weights, panel, first, count, blocks, scales);
        // While these are multiplied, the packed weights that come next arrive: one line with every pair of inputs.
        const char* next = args.weights.panel(panel) + (first + count) * args.weights.block_bytes();
        in_pieces<Bf16>(rows, [&](int64_t r, int piece) {
            panel_product<Bf16, MODE>(piece, act + r * args.act_stride + first * KBLOCK, args.act_stride,
                                      InOrder{blocks, BF16_BLOCK_BYTES}, count,
                                      r == 0 ? Ahead{next, 64} : Ahead{blocks, 0}, sums + r * PANEL, PANEL, scales);
        });
    }
    if (INT4) return;
    const float* scale = args.weights.scales + panel * PANEL;
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < PANEL; c += LANES)
            store(sums + r * PANEL + c, load(sums + r * PANEL + c) * load(scale + c));
}

template <bool INT4>
static void linear_quantized(const LinearArgs& args, ActForm form, int64_t panel_begin, int64_t panel_end,
                             int64_t row_begin, int64_t row_end) {
    alignas(64) float sums[SUM_ROWS * PANEL];
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        for (int64_t row = row_begin; row < row_end; row += SUM_ROWS) {
            const int64_t rows = row_end - row < SUM_ROWS ? row_end - row : SUM_ROWS;
            quantized_panel<INT4>(args, panel, row, rows, sums);
            finish_panel(args, form, panel, row, static_cast<int>(rows), sums);
        }
    }
}

constexpr ActForm ACT_OF_BF16 = sizeof(Bf16::act) == 2 ? kvik::ACT_BF16 : kvik::ACT_F32_OF_BF16;

static void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                   int64_t row_end) {
    switch (args.weights.form) {
        case KVIK_F32: return linear_of<F32>(args, kvik::ACT_F32, panel_begin, panel_end, row_begin, row_end);
        case KVIK_INT8:
            return linear_quantized<false>(args, ACT_OF_BF16, panel_begin, panel_end, row_begin, row_end);
        case KVIK_INT4: return linear_quantized<true>(args, ACT_OF_BF16, panel_begin, panel_end, row_begin, row_end);
        default: return linear_of<Bf16>(args, ACT_OF_BF16, panel_begin, panel_end, row_begin, row_end);
    }
}

}  // namespace KVIK_ISA
