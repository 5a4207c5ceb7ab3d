// The one matrix product: a few rows of activations times one panel of 32 columns.
//
// Linear layers, attention scores and attention outputs all come down to `panel_product`. Whatever the number of rows,
// every output element is one chain of additions over the inputs in order, so a row's bytes never depend on how many
// rows are computed beside it. The inputs' K-blocks are found through a functor, because weights lie in one span and a
// sequence's keys and values in blocks anywhere.
#pragma once

#include "kernels.h"
#include "layout.h"
#include "vec.h"
#if defined(KVIK_AMX)
#include "amx.h"
#endif

namespace KVIK_ISA {

using kvik::KBLOCK;
using kvik::PANEL;
using kvik::TILE;

KVIK_INLINE reg reg_fma(reg a, reg b, reg c) {
#if defined(__AVX512F__)
    return (reg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (reg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
    for (int i = 0; i < REG_LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}
KVIK_INLINE reg reg_of(ureg v) { return load_as<reg>(&v); }

// Cache lines to ask for while a K-block is multiplied: two with every few inputs (a pair of bf16, four bytes), `step`
// bytes on each time, `block` bytes a K-block. The hardware's own prefetcher keeps up with one row of activations, but
// not with eight: their loads fill the window in which it could look ahead.
struct Ahead {
    const char* next;
    int64_t step;  // 128: two new lines each time; 64: one
    int64_t block;

    KVIK_INLINE void pair(int i) const {
        __builtin_prefetch(next + i * step, 0, 3);
        __builtin_prefetch(next + i * step + 64, 0, 3);
    }
    KVIK_INLINE Ahead after(int64_t kblocks) const { return {next + kblocks * block, step, block}; }
};
// For blocks that lie in the first cache already.
struct NothingAhead {
    KVIK_INLINE void pair(int) const {}
    KVIK_INLINE NothingAhead after(int64_t) const { return {}; }
};

// K-blocks of a panel that lie one after another.
struct InOrder {
    const char* first;
    int64_t bytes;
    KVIK_INLINE const char* operator()(int64_t kblock) const { return first + kblock * bytes; }
};

// ---- How one K-block is multiplied, by form. An `act` holds PER values; STEPS is how often a block asks for lines
// ahead; of COLUMNS columns at most ROWS rows are kept in registers at once.

// f32 activations and weights.
struct F32 {
    typedef float act;
    static constexpr kvik::ActForm FORM = kvik::ACT_F32;
    static constexpr int64_t BLOCK_BYTES = KBLOCK * PANEL * 4, STEPS = KBLOCK, PER = 1;
#if defined(__AVX512F__)
    static constexpr int COLUMNS = 32, ROWS = 12;
#elif defined(__AVX2__)
    static constexpr int COLUMNS = 16, ROWS = 6;
#else
    static constexpr int COLUMNS = 16, ROWS = 2;
#endif
    template <int R, int N, class Fetch>
    static KVIK_INLINE void multiply(reg (&acc)[R][N], const act* a, int64_t stride, const char* block, int column,
                                     Fetch ahead) {
        const float* w = reinterpret_cast<const float*>(block) + column;
        for (int k = 0; k < KBLOCK; k++, w += PANEL) {
            ahead.pair(k);
            reg b[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) b[n] = load_as<reg>(w + n * REG_LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                reg x = reg{} + a[r * stride + k];
#pragma GCC unroll 8
                for (int n = 0; n < N; n++) acc[r][n] = reg_fma(x, b[n], acc[r][n]);
            }
        }
    }
};

#if defined(KVIK_AMX) || defined(__AVX512BF16__)

// bf16 activations and weights, pairs multiplied by VDPBF16PS.
struct Bf16 {
    typedef uint16_t act;
    static constexpr kvik::ActForm FORM = kvik::ACT_BF16;
    static constexpr int64_t BLOCK_BYTES = KBLOCK * PANEL * 2, STEPS = KBLOCK / 2, PER = 1;
    static constexpr int COLUMNS = 32, ROWS = 12;
    template <int R, int N, class Fetch>
    static KVIK_INLINE void multiply(reg (&acc)[R][N], const act* a, int64_t stride, const char* block, int,
                                     Fetch ahead) {
#if defined(__AVX512BF16__)
        for (int pair = 0; pair < KBLOCK / 2; pair++, block += 64, a += 2) {
            ahead.pair(pair);
            __m512bh b[N];
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) b[n] = (__m512bh)_mm512_loadu_si512(block + n * (KBLOCK * TILE * 2));
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                __m512bh x = (__m512bh)_mm512_set1_epi32(load_as<int32_t>(a + r * stride));
#pragma GCC unroll 2
                for (int n = 0; n < N; n++) acc[r][n] = (reg)_mm512_dpbf16_ps((__m512)acc[r][n], x, b[n]);
            }
        }
#else
        (void)acc, (void)a, (void)stride, (void)block, (void)ahead;
#endif
    }
};

#else

// bf16 weights widened to f32; the activations are f32 that hold bf16 values.
struct Bf16 {
    typedef float act;
    static constexpr kvik::ActForm FORM = kvik::ACT_F32_OF_BF16;
    static constexpr int64_t BLOCK_BYTES = KBLOCK * PANEL * 2, STEPS = KBLOCK / 2, PER = 1;
#if defined(__AVX512F__)
    static constexpr int COLUMNS = 32, ROWS = 10;
#elif defined(__AVX2__)
    static constexpr int COLUMNS = 16, ROWS = 4;
#else
    static constexpr int COLUMNS = 16, ROWS = 2;
#endif
    template <int R, int N, class Fetch>
    static KVIK_INLINE void multiply(reg (&acc)[R][N], const act* a, int64_t stride, const char* block, int column,
                                     Fetch ahead) {
        constexpr int TILES = COLUMNS / TILE, PER_TILE = N / TILES;
        const char* tile = block + column / TILE * (KBLOCK * TILE * 2);
        for (int pair = 0; pair < KBLOCK / 2; pair++, tile += 64, a += 2) {
            ahead.pair(pair);
            reg even[N], odd[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) {
                const char* p = tile + n / PER_TILE * (KBLOCK * TILE * 2) + n % PER_TILE * REGISTER_BYTES;
                ureg w = load_as<ureg>(p);
                even[n] = reg_of(w << 16);
                odd[n] = reg_of(w & 0xffff0000u);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                reg x = reg{} + a[r * stride], y = reg{} + a[r * stride + 1];
#pragma GCC unroll 8
                for (int n = 0; n < N; n++) {
                    acc[r][n] = reg_fma(x, even[n], acc[r][n]);
                    acc[r][n] = reg_fma(y, odd[n], acc[r][n]);
                }
            }
        }
    }
};

#endif

// What becomes of a product. FRESH: out = product. CONTINUE: the chain of additions goes on from out. SCALED: every
// K-block is a chain of its own, and out += that times the block's scale for each column.
enum Mode { FRESH, CONTINUE, SCALED };

// R rows times COLUMNS columns of a panel, from `column` on.
template <class F, Mode MODE, int R, class Blocks, class Fetch>
KVIK_INLINE void product_of_rows(const typename F::act* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                                 Fetch ahead, float* out, int64_t out_stride, int column) {
    constexpr int N = F::COLUMNS / REG_LANES;
    reg acc[R][N] = {};
    if constexpr (MODE == CONTINUE) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[r][n] = load_as<reg>(out + r * out_stride + column + n * REG_LANES);
    }
    for (int64_t k = 0; k < kblocks; k++)
        F::template multiply<R, N>(acc, a + k * KBLOCK, stride, blocks(k), column, ahead.after(k));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store_as(out + r * out_stride + column + n * REG_LANES, acc[r][n]);
}

template <class F, Mode MODE, int R, class Blocks, class Fetch>
KVIK_INLINE void product_of(int rows, const typename F::act* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                            Fetch ahead, float* out, int64_t out_stride) {
    if (rows == R) {
        for (int column = 0; column < PANEL; column += F::COLUMNS)
            product_of_rows<F, MODE, R>(a, stride, blocks, kblocks, ahead, out, out_stride, column);
    } else if constexpr (R > 1) {
        product_of<F, MODE, R - 1>(rows, a, stride, blocks, kblocks, ahead, out, out_stride);
    }
}

#if defined(KVIK_AMX)

// At most 32 rows of bf16 on tiles: 2 x 2 tiles of results, or 1 x 2 where 16 rows are enough. Reads 16 or 32 rows of
// activations whatever `rows` is, and writes as many rows of `out`.
template <class Blocks, class Fetch>
KVIK_INLINE void product_on_tiles(int rows, const uint16_t* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                                  Fetch ahead, bool go_on, float* out, int64_t out_stride) {
    const bool two = rows > 16;
    const uint16_t* lower = a + 16 * stride;
    if (go_on) {
        tile_load<0>(out, out_stride * 4);
        tile_load<1>(out + TILE, out_stride * 4);
    } else {
        tile_zero<0>();
        tile_zero<1>();
    }
    if (two && go_on) {
        tile_load<2>(out + 16 * out_stride, out_stride * 4);
        tile_load<3>(out + 16 * out_stride + TILE, out_stride * 4);
    } else if (two) {
        tile_zero<2>();
        tile_zero<3>();
    }
    for (int64_t k = 0; k < kblocks; k++) {
        const char* b = blocks(k);
        const auto now = ahead.after(k);
        for (int pair = 0; pair < KBLOCK / 2; pair++) now.pair(pair);
        tile_load<4>(a + k * KBLOCK, stride * 2);
        tile_load<6>(b, 64);
        tile_dot<0, 4, 6>();
        tile_load<7>(b + 1024, 64);
        tile_dot<1, 4, 7>();
        if (two) {
            tile_load<5>(lower + k * KBLOCK, stride * 2);
            tile_dot<2, 5, 6>();
            tile_dot<3, 5, 7>();
        }
    }
    tile_store<0>(out, out_stride * 4);
    tile_store<1>(out + TILE, out_stride * 4);
    if (two) {
        tile_store<2>(out + 16 * out_stride, out_stride * 4);
        tile_store<3>(out + 16 * out_stride + TILE, out_stride * 4);
    }
}

// The same with a scale for every K-block: the tiles hold one block's product at a time.
template <class Blocks, class Fetch>
KVIK_INLINE void scaled_on_tiles(int rows, const uint16_t* a, int64_t stride, const Blocks& blocks, int64_t kblocks,
                                 Fetch ahead, const float* scales, float* out, int64_t out_stride) {
    alignas(64) float block[PANEL * PANEL];
    for (int64_t k = 0; k < kblocks; k++) {
        product_on_tiles(rows, a + k * KBLOCK, stride, InOrder{blocks(k), 0}, 1, ahead.after(k), false, block, PANEL);
        const f32x16 left = load(scales + k * PANEL), right = load(scales + k * PANEL + TILE);
        for (int r = 0; r < rows; r++) {
            float* at = out + r * out_stride;
            store(at, fma(load(block + r * PANEL), left, load(at)));
            store(at + TILE, fma(load(block + r * PANEL + TILE), right, load(at + TILE)));
        }
    }
}

#endif

// Most rows that one call of panel_product takes.
template <class F>
constexpr int most_rows() {
#if defined(KVIK_AMX)
    return sizeof(typename F::act) == 2 ? 32 : F::ROWS;
#else
    return F::ROWS;
#endif
}

// act[rows, kblocks * 32] x panel into out[rows, 32], as MODE says. `scales` [kblocks, 32] for SCALED
// (on tiles). `out` has room for rows rounded up to 16.
template <class F, Mode MODE = FRESH, class Blocks, class Fetch>
KVIK_INLINE void panel_product(int rows, const typename F::act* a, int64_t stride, const Blocks& blocks,
                               int64_t kblocks, Fetch ahead, float* out, int64_t out_stride,
                               const float* scales = nullptr) {
#if defined(KVIK_AMX)
    constexpr bool ON_TILES = sizeof(typename F::act) == 2;
#else
    constexpr bool ON_TILES = false;
#endif
    static_assert(ON_TILES || MODE != SCALED, "K-blocks with scales of their own are multiplied as integers");
    if constexpr (!ON_TILES) product_of<F, MODE, F::ROWS>(rows, a, stride, blocks, kblocks, ahead, out, out_stride);
#if defined(KVIK_AMX)
    if constexpr (ON_TILES && MODE == SCALED)
        scaled_on_tiles(rows, a, stride, blocks, kblocks, ahead, scales, out, out_stride);
    else if constexpr (ON_TILES)
        product_on_tiles(rows, a, stride, blocks, kblocks, ahead, MODE == CONTINUE, out, out_stride);
#endif
    (void)scales;
}

// Call piece(begin, count) so that 0 .. rows is covered by pieces of nearly equal size that panel_product takes.
template <class F, class Piece>
KVIK_INLINE void in_pieces(int64_t rows, Piece piece) {
    if (rows <= 0) return;
    constexpr int64_t most = most_rows<F>();
    if (most == 32 || F::PER > 1) {  // tiles and blocks of rows: only the last piece is short
        for (int64_t r = 0; r < rows; r += most) piece(r, static_cast<int>(rows - r < most ? rows - r : most));
        return;
    }
    int64_t count = (rows + most - 1) / most, done = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t end = rows * (i + 1) / count;
        piece(done, static_cast<int>(end - done));
        done = end;
    }
}

}  // namespace KVIK_ISA
