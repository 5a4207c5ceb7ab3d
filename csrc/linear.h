// Linear layers over packed weights, with what follows them done while the result is still in cache.
#pragma once

#include <type_traits>

#include "activations.h"
#include "grouped.h"
#include "integer.h"
#include "kernels.h"
#include "matmul.h"
#include "unpack.h"

namespace KVIK_ISA {

using kvik::LinearArgs;

KVIK_INLINE f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

// What to do with the finished rows x 32 results of one panel. Columns with scales are still to be scaled.
KVIK_INLINE void finish_panel(const LinearArgs& args, int64_t panel, int64_t row, int rows, const float* result) {
    const int64_t column = panel * PANEL;
    const float* scales = args.weights.scales ? args.weights.scales + column : nullptr;
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
    const int64_t block = weights.panel_bytes() / weights.kblocks;  // with its share of a strip
    if (only_piece) return {at + STREAM_AHEAD, block / steps, block};
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

// Whole numbers on units of bf16: widened a few K-blocks at a time.
KVIK_INLINE void int8_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    alignas(64) char blocks[UNPACKED * BF16_BLOCK_BYTES];
    const kvik::Matrix& weights = args.weights;
    const auto* act = static_cast<const Bf16::act*>(args.act) + row * args.act_stride;
    std::memset(sums, 0, rows * PANEL * sizeof(float));
    for (int64_t first = 0; first < weights.kblocks; first += UNPACKED) {
        const int64_t count = weights.kblocks - first < UNPACKED ? weights.kblocks - first : UNPACKED;
        const char* packed = weights.panel(panel) + first * BYTE_BLOCK_BYTES;
        for (int64_t k = 0; k < count; k++, packed += BYTE_BLOCK_BYTES)
            widen_bytes(packed, blocks + k * BF16_BLOCK_BYTES);
        // While these are multiplied the packed weights after them are fetched, by the first piece of rows.
        in_pieces<Bf16>(rows, [&](int64_t r, int piece) {
            panel_product<Bf16, CONTINUE>(piece, act + r * args.act_stride + first * KBLOCK, args.act_stride,
                                          InOrder{blocks, BF16_BLOCK_BYTES}, count,
                                          r == 0 ? Ahead{packed, 64, 1024} : Ahead{blocks, 0, 0}, sums + r * PANEL,
                                          PANEL);
        });
    }
}

// The product with one part of a K-block, or with the ones that sum its activations up: a bf16 K-block that is zero for
// the other part, and what the columns of the product are multiplied with.
struct Term {
    alignas(64) char block[BF16_BLOCK_BYTES];
    alignas(64) float scales[PANEL];
};

template <class F, int PART>
KVIK_INLINE void widen_part(const char* block, const char* strip_at, Term* terms) {
    static_assert(F::COLUMNS == PANEL, "one register holds a tile's columns");
    constexpr int TERMS = F::OFFSETS ? 2 : 1;
    alignas(64) char bytes[BYTE_BLOCK_BYTES];
    const typename F::Strip strip(strip_at, 0);
    const Source<F> source{block, strip, 0};
    if constexpr (F::PARTS > 1) std::memset(bytes, kvik::BYTE_OFFSET, sizeof bytes);
    F::template for_quads<PART>(source, NothingAhead{}, [&](int quad, const ireg(&w)[F::N]) {
        for (int n = 0; n < F::N; n++)
            store_as(bytes + quad * (PANEL * 4) + n * REGISTER_BYTES, F::lifted(source, w[n], n));
    });
    widen_bytes(bytes, terms[0].block);
    for (int n = 0; n < F::N; n++) {
        store_as(terms[0].scales + n * REG_LANES, F::template scale<PART>(source, n));
        if constexpr (F::OFFSETS)
            store_as(terms[1].scales + n * REG_LANES, F::template offset<PART>(source, n));
    }
    if constexpr (F::OFFSETS) {
        constexpr int64_t QUADS = KBLOCK / 4 / F::PARTS, FIRST = PART * QUADS * (PANEL * 4);
        std::memset(bytes, kvik::BYTE_OFFSET, sizeof bytes);
        std::memset(bytes + FIRST, kvik::BYTE_OFFSET + 1, QUADS * (PANEL * 4));
        widen_bytes(bytes, terms[TERMS - 1].block);
    }
}

// The same where scales change along the inputs.
template <class F>
KVIK_INLINE void grouped_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    constexpr int OF_PART = F::OFFSETS ? 2 : 1, TERMS = OF_PART * F::PARTS;
    Term terms[TERMS];
    const kvik::Matrix& weights = args.weights;
    const auto* act = static_cast<const Bf16::act*>(args.act) + row * args.act_stride;
    std::memset(sums, 0, rows * PANEL * sizeof(float));
    for (int64_t k = 0; k < weights.kblocks; k++) {
        const char *block = weights.block(panel, k), *strip = weights.strip(panel, k);
        widen_part<F, 0>(block, strip, terms);
        if constexpr (F::PARTS == 2) widen_part<F, 1>(block, strip, terms + OF_PART);
        in_pieces<Bf16>(rows, [&](int64_t r, int piece) {
            for (const Term& term : terms)
                panel_product<Bf16, SCALED>(piece, act + r * args.act_stride + k * KBLOCK, args.act_stride,
                                            InOrder{term.block, 0}, 1,
                                            Ahead{block + F::BLOCK_BYTES, r == 0 && &term == terms ? 64 : 0, 0},
                                            sums + r * PANEL, PANEL, term.scales);
        });
    }
}

#else

KVIK_INLINE const ActBlock* blocks_of(const LinearArgs& args, int64_t row, int64_t kblock) {
    return static_cast<const ActBlock*>(args.act) + kvik::act_block(row, kblock, args.act_stride);
}

// Whole numbers are multiplied where they lie.
KVIK_INLINE void int8_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    const InOrder blocks{args.weights.panel(panel), Whole::BLOCK_BYTES};
    int64_t number = 0;
    in_pieces<Whole>(rows, [&](int64_t r, int piece) {
        const Ahead ahead = ahead_of(args.weights, panel, number++, piece == rows, Whole::STEPS);
        product<Whole>(piece, blocks_of(args, row + r, 0), kvik::ACT_ROWS, blocks, args.weights.kblocks, ahead,
                       sums + r * PANEL, PANEL);
    });
}

template <class F>
KVIK_INLINE void grouped_panel(const LinearArgs& args, int64_t panel, int64_t row, int64_t rows, float* sums) {
    int64_t number = 0;
    in_pieces<F>(rows, [&](int64_t r, int piece) {
        const Ahead ahead = ahead_of(args.weights, panel, number++, piece == rows, F::STEPS);
        grouped_product<F>(piece, blocks_of(args, row + r, 0), kvik::ACT_ROWS, args.weights, panel, ahead,
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

template <class F>
static void linear_quantized(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                             int64_t row_end) {
    alignas(64) float sums[SUM_ROWS * PANEL];
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        for (int64_t row = row_begin; row < row_end; row += SUM_ROWS) {
            const int64_t rows = row_end - row < SUM_ROWS ? row_end - row : SUM_ROWS;
            if constexpr (std::is_same_v<F, Whole>)
                int8_panel(args, panel, row, rows, sums);
            else
                grouped_panel<F>(args, panel, row, rows, sums);
            finish_panel(args, panel, row, static_cast<int>(rows), sums);
        }
    }
}

typedef void LinearOf(const LinearArgs&, int64_t, int64_t, int64_t, int64_t);

static LinearOf* linear_of_bytes(const kvik::Matrix& weights) {
    const bool offsets = weights.has_offsets;
    if (weights.parts == 1) return offsets ? linear_quantized<Bytes<1, true>> : linear_quantized<Bytes<1, false>>;
    return offsets ? linear_quantized<Bytes<2, true>> : linear_quantized<Bytes<2, false>>;
}

static LinearOf* linear_for(const kvik::Matrix& weights) {
    switch (weights.form) {
        case KVIK_F32: return linear_of<F32>;
        case KVIK_INT8: return linear_quantized<Whole>;
        case KVIK_INT4: return linear_quantized<Nibbles>;
        case KVIK_BYTES: return linear_of_bytes(weights);
        case KVIK_K4: return linear_quantized<K4>;
        case KVIK_K6: return linear_quantized<K6>;
        default: return linear_of<Bf16>;
    }
}

static void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end, int64_t row_begin,
                   int64_t row_end) {
    linear_for(args.weights)(args, panel_begin, panel_end, row_begin, row_end);
}

// The product of silu(gate) and up, where the two are not made by one panel.
static void silu_mul(const kvik::SiluArgs& args, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const float *gate = args.x + i * 2 * args.columns, *up = gate + args.columns;
        for (int64_t c = 0; c < args.columns; c += LANES)
            store_act(args.out, i * args.columns + c, silu(load(gate + c)) * load(up + c), args.form);
    }
}

}  // namespace KVIK_ISA
