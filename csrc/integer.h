// The matrix product of whole numbers: rows of ActBlocks times one panel of 32 columns of bytes.
//
// Within a K-block the products are integers, and exact in any order on any instruction set; then they are scaled and
// added to the row's floats, K-block after K-block. So a row's bytes do not depend on how many rows are computed beside
// it, and hardly on the instruction set (matmul.h has the float products).
#pragma once

#include "activations.h"
#include "layout.h"
#include "matmul.h"
#include "unpack.h"

namespace KVIK_ISA {

// acc += for every column the sum of four products: unsigned bytes of weights times signed bytes of activations.
#if defined(__AVX512VNNI__)
KVIK_INLINE ireg dot4(ireg acc, ireg weights, ireg act) {
    return (ireg)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, (__m512i)act);
}
#elif defined(__AVXVNNI__)
KVIK_INLINE ireg dot4(ireg acc, ireg weights, ireg act) {
    return (ireg)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)weights, (__m256i)act);
}
#elif defined(__SSE2__)
#define KVIK_WORDS
// Even and odd bytes apart, as words: VPMADDUBSW would saturate.
typedef int16_t words __attribute__((vector_size(REGISTER_BYTES)));
typedef uint16_t u16reg __attribute__((vector_size(REGISTER_BYTES)));
KVIK_INLINE ireg dot2(ireg acc, words weights, words act) {
#if defined(__AVX512BW__)
    return acc + (ireg)_mm512_madd_epi16((__m512i)weights, (__m512i)act);
#elif defined(__AVX2__)
    return acc + (ireg)_mm256_madd_epi16((__m256i)weights, (__m256i)act);
#else
    return acc + (ireg)_mm_madd_epi16((__m128i)weights, (__m128i)act);
#endif
}
KVIK_INLINE ireg dot4(ireg acc, ireg weights, ireg act) {
    const words w = (words)weights, a = (words)act;
    const words odd = (words)((u16reg)w >> 8);
    return dot2(dot2(acc, w & 255, (a << 8) >> 8), odd, a >> 8);
}
#else
KVIK_INLINE ireg dot4(ireg acc, ireg weights, ireg act) {
    for (int i = 0; i < 4; i++) {
        acc += (ireg)((ureg)weights >> (8 * i) & 255u) * ((ireg)((ureg)act << (24 - 8 * i)) >> 24);
    }
    return acc;
}
#endif

KVIK_INLINE ireg four_of(const int8_t* act, int quad) { return ireg{} + load_as<int32_t>(act + quad * 4); }

// ---- How the K-blocks of a panel are read and multiplied. `for_quads` calls body(quad, weights) for every four inputs
// of a block; `dot` adds their products up; `sum` makes what it adds up 32-bit integers.

// Whole activations against bytes.
struct Whole {
    typedef ActBlock act;
    static constexpr int64_t BLOCK_BYTES = KBLOCK * PANEL, STEPS = KBLOCK / 4, PER = KBLOCK;
    static constexpr bool ALL_LOW = false;
    // Columns and rows of sums that fit the registers; ROWS divides ACT_ROWS.
#if defined(__AVX512F__)
    static constexpr int COLUMNS = 32, ROWS = 8;
#elif defined(__AVXVNNI__)
    static constexpr int COLUMNS = 8, ROWS = 8;
#elif defined(__AVX2__)
    static constexpr int COLUMNS = 16, ROWS = 4;
#else
    static constexpr int COLUMNS = 16, ROWS = 2;
#endif
    static constexpr int N = COLUMNS / REG_LANES;

    template <int PART, class Fetch, class Body>
    static KVIK_INLINE void for_quads(const char* at, Fetch ahead, Body body) {
#pragma GCC unroll 1
        for (int quad = 0; quad < STEPS; quad++, at += PANEL * 4) {
            ahead.pair(quad);
            ireg w[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) w[n] = load_as<ireg>(at + n * REGISTER_BYTES);
            body(quad, w);
        }
    }
    static KVIK_INLINE ireg dot(ireg acc, ireg weights, ireg act) { return dot4(acc, weights, act); }
    static KVIK_INLINE ireg sum(ireg acc) { return acc; }
};

// The same where every block of activations has low bits, and both products are made side by side.
struct WholeAndLow : Whole {
    static constexpr bool ALL_LOW = true;
    static constexpr int ROWS = Whole::ROWS / 2;
};

// R rows (side by side) times one part of a K-block, uncorrected. LOW: their low bits. `source`: as F::for_quads takes it.
template <class F, bool LOW, int PART, int R, int N, class Source, class Fetch>
KVIK_INLINE void multiply_block(ireg (&acc)[R][N], const ActBlock* a, const Source& source, Fetch ahead) {
    constexpr int TERMS = F::ALL_LOW ? 2 : 1;
    ireg part[TERMS][R][N] = {};
    F::template for_quads<PART>(source, ahead, [&](int quad, const ireg(&w)[N]) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
            for (int t = 0; t < TERMS; t++) {
                const ireg x = four_of(LOW || t ? a[r].low : a[r].high, quad);
#pragma GCC unroll 8
                for (int n = 0; n < N; n++) part[t][r][n] = F::dot(part[t][r][n], w[n], x);
            }
        }
    });
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            acc[r][n] = F::sum(part[0][r][n]);
            if constexpr (F::ALL_LOW) acc[r][n] = (acc[r][n] << 8) + F::sum(part[1][r][n]);
        }
}

// R rows times COLUMNS columns of a panel, as MODE says. `stride`: ActBlocks from one K-block to the next.
template <class F, Mode MODE, int R, class Blocks, class Fetch>
KVIK_INLINE void whole_rows(const ActBlock* a, int64_t stride, const Blocks& blocks, int64_t kblocks, Fetch ahead,
                            float* out, int64_t out_stride, int column) {
    constexpr int N = F::N;
    reg sums[R][N] = {};
    if constexpr (MODE == CONTINUE) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sums[r][n] = load_as<reg>(out + r * out_stride + column + n * REG_LANES);
    }
    for (int64_t k = 0; k < kblocks; k++) {
        const char* block = blocks(k) + column * 4;
        ireg acc[R][N];
        const ActBlock* rows = a + k * stride;
        multiply_block<F, false, 0>(acc, rows, block, ahead.after(k));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const ActBlock& row = rows[r];
            float scale = F::ALL_LOW ? row.scale * (1.0f / 256) : row.scale;
            if (!F::ALL_LOW && __builtin_expect(row.has_low, 0)) {
                ireg low[1][N];
                multiply_block<F, true, 0>(low, &row, block, NothingAhead{});
                for (int n = 0; n < N; n++) acc[r][n] = (acc[r][n] << 8) + low[0][n];
                scale *= 1.0f / 256;
            }
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) {
                const ireg exact = acc[r][n] + row.bias;
                sums[r][n] = reg_fma(__builtin_convertvector(exact, reg), reg{} + scale, sums[r][n]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store_as(out + r * out_stride + column + n * REG_LANES, sums[r][n]);
}

template <class F, Mode MODE, int R, class Blocks, class Fetch>
KVIK_INLINE void whole_of(int rows, const ActBlock* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                          Fetch ahead, float* out, int64_t out_stride) {
    if (rows == R) {
        for (int column = 0; column < PANEL; column += F::COLUMNS)
            whole_rows<F, MODE, R>(a, stride, blocks, kblocks, ahead, out, out_stride, column);
    } else if constexpr (R > 1) {
        whole_of<F, MODE, R - 1>(rows, a, stride, blocks, kblocks, ahead, out, out_stride);
    }
}

// panel_product for every form: at most F::ROWS rows of activations x panel into out[rows, 32], as MODE says.
// `stride`: values from one row to the next, or ActBlocks from one K-block to the next.
template <class F, Mode MODE = FRESH, class Blocks, class Fetch>
KVIK_INLINE void product(int rows, const typename F::act* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                         Fetch ahead, float* out, int64_t out_stride) {
    if constexpr (F::PER == 1)
        panel_product<F, MODE>(rows, a, stride, blocks, kblocks, ahead, out, out_stride);
    else
        whole_of<F, MODE, F::ROWS>(rows, a, stride, blocks, kblocks, ahead, out, out_stride);
}

}  // namespace KVIK_ISA
