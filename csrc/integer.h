// The matrix product of whole numbers: rows of ActBlocks times one panel of 32 columns of bytes.
//
// Within a K-block the products are integers, and exact in any order on any instruction set; then they are scaled and
// added to the row's floats, K-block after K-block. So a row's bytes do not depend on how many rows are computed beside
// it, and hardly on the instruction set (matmul.h has the float products).
#pragma once

#include "activations.h"
#include "layout.h"
#include "matmul.h"

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

// Whole activations against whole weights.
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
    static constexpr int QUADS = KBLOCK / 4, QUAD_BYTES = PANEL * 4;
};
// The same where every block has low bits, and both products are made side by side.
struct WholeAndLow : Whole {
    static constexpr bool ALL_LOW = true;
    static constexpr int ROWS = Whole::ROWS / 2;
};

template <int N>
KVIK_INLINE void load_quad(const char* block, int quad, int column, ireg (&w)[N]) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
        w[n] = load_as<ireg>(block + quad * Whole::QUAD_BYTES + column * 4 + n * REGISTER_BYTES);
}
KVIK_INLINE ireg four_of(const int8_t* act, int quad) { return ireg{} + load_as<int32_t>(act + quad * 4); }

// The product of a row's high bits (with its bias) made one of all its bits.
template <int N>
KVIK_INLINE void add_low(ireg (&acc)[N], const ActBlock& row, const char* block, int column) {
    for (int n = 0; n < N; n++) acc[n] = ((acc[n] - row.bias) << 8) + row.bias;
    for (int quad = 0; quad < Whole::QUADS; quad++) {
        ireg w[N];
        load_quad(block, quad, column, w);
        for (int n = 0; n < N; n++) acc[n] = dot4(acc[n], w[n], four_of(row.low, quad));
    }
}

// R rows (side by side) times one K-block, into registers. ALL_LOW: every row has low bits, multiplied along.
template <bool ALL_LOW, int R, int N, class Fetch>
KVIK_INLINE void multiply_block(ireg (&acc)[R][N], const ActBlock* a, const char* block, int column, Fetch ahead) {
    ireg low[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            acc[r][n] = ireg{} + (ALL_LOW ? 0 : a[r].bias);
            if constexpr (ALL_LOW) low[r][n] = ireg{} + a[r].bias;
        }
#pragma GCC unroll 1
    for (int quad = 0; quad < Whole::QUADS; quad++) {
        ahead.pair(quad);
        ireg w[N];
        load_quad(block, quad, column, w);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const ireg x = four_of(a[r].high, quad);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[r][n] = dot4(acc[r][n], w[n], x);
            if constexpr (ALL_LOW) {
                const ireg y = four_of(a[r].low, quad);
#pragma GCC unroll 8
                for (int n = 0; n < N; n++) low[r][n] = dot4(low[r][n], w[n], y);
            }
        }
    }
    if constexpr (ALL_LOW) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[r][n] = (acc[r][n] << 8) + low[r][n];
    }
}

// R rows times COLUMNS columns of a panel, as MODE says. `stride`: ActBlocks from one K-block to the next.
template <class F, Mode MODE, int R, class Blocks, class Fetch>
KVIK_INLINE void whole_rows(const ActBlock* a, int64_t stride, const Blocks& blocks, int64_t kblocks, Fetch ahead,
                            float* out, int64_t out_stride, const float* scales, int column) {
    constexpr int N = F::COLUMNS / REG_LANES;
    reg sums[R][N] = {};
    if constexpr (MODE != FRESH) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sums[r][n] = load_as<reg>(out + r * out_stride + column + n * REG_LANES);
    }
    for (int64_t k = 0; k < kblocks; k++) {
        const char* block = blocks(k);
        ireg acc[R][N];
        const ActBlock* rows = a + k * stride;
        multiply_block<F::ALL_LOW>(acc, rows, block, column, ahead.after(k));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const ActBlock& row = rows[r];
            float scale = F::ALL_LOW ? row.scale * (1.0f / 256) : row.scale;
            if (!F::ALL_LOW && __builtin_expect(row.has_low, 0)) {
                add_low(acc[r], row, block, column);
                scale *= 1.0f / 256;
            }
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) {
                reg factor = reg{} + scale;
                if constexpr (MODE == SCALED) factor *= load_as<reg>(scales + k * PANEL + column + n * REG_LANES);
                sums[r][n] = reg_fma(__builtin_convertvector(acc[r][n], reg), factor, sums[r][n]);
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
                          Fetch ahead, float* out, int64_t out_stride, const float* scales) {
    if (rows == R) {
        for (int column = 0; column < PANEL; column += F::COLUMNS)
            whole_rows<F, MODE, R>(a, stride, blocks, kblocks, ahead, out, out_stride, scales, column);
    } else if constexpr (R > 1) {
        whole_of<F, MODE, R - 1>(rows, a, stride, blocks, kblocks, ahead, out, out_stride, scales);
    }
}

// panel_product for every form: at most F::ROWS rows of activations x panel into out[rows, 32], as MODE says.
// `stride`: values from one row to the next, or ActBlocks from one K-block to the next.
template <class F, Mode MODE = FRESH, class Blocks, class Fetch>
KVIK_INLINE void product(int rows, const typename F::act* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                         Fetch ahead, float* out, int64_t out_stride, const float* scales = nullptr) {
    if constexpr (F::PER == 1)
        panel_product<F, MODE>(rows, a, stride, blocks, kblocks, ahead, out, out_stride, scales);
    else
        whole_of<F, MODE, F::ROWS>(rows, a, stride, blocks, kblocks, ahead, out, out_stride, scales);
}

}  // namespace KVIK_ISA
