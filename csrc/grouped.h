// The matrix product of whole numbers whose scales change along the inputs: panels with strips (layout.h).
//
// A K-block, or a half of one, is multiplied as in integer.h and then scaled for each column, with what the strip behind
// its group says; a form with a minimum also adds that times the sum of the activations. The order in which this
// happens is one for every number of rows, so a row's bytes depend on that row alone.
#pragma once

#include <type_traits>

#include "integer.h"

namespace KVIK_ISA {

KVIK_INLINE reg f16_at(const char* p) { return from_f16_at(reinterpret_cast<const uint16_t*>(p)); }

// Call body(quad, weights) for the eight quads of a K-block of nibbles; weights are byte(nibbles, n).
template <int N, class Fetch, class Byte, class Body>
KVIK_INLINE void for_nibbles(const char* at, Fetch ahead, Byte byte, Body body) {
#pragma GCC unroll 1
    for (int quad = 0; quad < KBLOCK / 8; quad++, at += PANEL * 4) {
        ahead.pair(2 * quad);
        ahead.pair(2 * quad + 1);
        ireg low[N], high[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            const ureg both = load_as<ureg>(at + n * REGISTER_BYTES);
            low[n] = (ireg)byte((u8reg)(both & 0x0f0f0f0fu), n);
            high[n] = (ireg)byte((u8reg)(both >> 4 & 0x0f0f0f0fu), n);
        }
        body(quad, low);
        body(quad + KBLOCK / 8, high);
    }
}

#if defined(KVIK_WORDS)
// Products of nibbles are small enough for words: a pair is at most 15 * 128 * 2, and eight of those fit.
KVIK_INLINE ireg dot_in_words(ireg acc, ireg weights, ireg act) {
#if defined(__AVX512BW__)
    return (ireg)((words)acc + (words)_mm512_maddubs_epi16((__m512i)weights, (__m512i)act));
#elif defined(__AVX2__)
    return (ireg)((words)acc + (words)_mm256_maddubs_epi16((__m256i)weights, (__m256i)act));
#else
    const words w = (words)weights, a = (words)act;
    return (ireg)((words)acc + (w & 255) * ((a << 8) >> 8) + (words)((u16reg)w >> 8) * (a >> 8));
#endif
}
KVIK_INLINE ireg sum_of_words(ireg acc) { return dot2(ireg{}, (words)acc, words{} + 1); }
#endif

// ---- The forms. `Strip` is what a group's columns from `column` on have in common. `for_quads<PART>` calls
// body(quad, weights) for the quads of a part of a K-block; `correct` takes off what the stored numbers have too much;
// `scale` and `offset` are those of the part's columns; `lifted` makes stored bytes those of an int8 K-block.

// A K-block and the strip of its group.
template <class F>
struct Source {
    const char* block;
    const typename F::Strip& strip;
    int column;
};

struct Grouped : Whole {
    static constexpr bool OFFSETS = false;
    static constexpr int PARTS = 1;
    template <int PART, class S>
    static KVIK_INLINE reg offset(const S&, int) {
        return reg{};
    }
};

// int4.
struct Nibbles : Grouped {
    static constexpr int64_t BLOCK_BYTES = kvik::NIBBLES, STRIP_BYTES = kvik::INT4_STRIP;
    struct Strip {
        reg scale[N];
        u8reg lift[N];
        ireg zero[N];

        KVIK_INLINE Strip(const char* at, int column) {
#pragma GCC unroll 8
            for (int n = 0; n < N; n++, column += REG_LANES) {
                scale[n] = f16_at(at + column * 2);
                lift[n] = lifts_of(at + kvik::INT4_LIFTS, column);
                zero[n] = kvik::BYTE_OFFSET - integers_of_unsigned(at + kvik::INT4_LIFTS + column);
            }
        }
    };
    template <int PART, class Fetch, class Body>
    static KVIK_INLINE void for_quads(const Source<Nibbles>& s, Fetch ahead, Body body) {
        for_nibbles<N>(s.block + s.column * 4, ahead, [&](u8reg v, int n) { return IN_WORDS ? v : v + s.strip.lift[n]; },
                       body);
    }
    template <int PART>
    static KVIK_INLINE reg scale(const Source<Nibbles>& s, int n) {
        return s.strip.scale[n];
    }
    static KVIK_INLINE u8reg lifted(const Source<Nibbles>& s, ireg v, int n) { return (u8reg)v + s.strip.lift[n]; }
#if defined(KVIK_WORDS)
    static constexpr bool IN_WORDS = true;
    static KVIK_INLINE ireg dot(ireg acc, ireg weights, ireg act) { return dot_in_words(acc, weights, act); }
    static KVIK_INLINE ireg sum(ireg acc) { return sum_of_words(acc); }
    // A nibble is zero points too large: zero times the sum of the row, which the bias has times -128.
    static KVIK_INLINE ireg correct(ireg acc, const Strip& strip, int n, int32_t bias) {
        return acc + strip.zero[n] * (bias / kvik::BYTE_OFFSET);
    }
#else
    static constexpr bool IN_WORDS = false;
    static KVIK_INLINE ireg correct(ireg acc, const Strip&, int, int32_t bias) { return acc + bias; }
#endif
};

// bytes: scales, and maybe offsets, for 32 inputs or more (PARTS_ 1) or for 16 (2).
template <int PARTS_, bool OFFSETS_>
struct Bytes : Grouped {
    static constexpr bool OFFSETS = OFFSETS_;
    static constexpr int PARTS = PARTS_;
    static constexpr int64_t STRIP_BYTES = PARTS * (OFFSETS ? 2 : 1) * PANEL * 4;
    // Left where they lie: as many registers as this could take would not be kept.
    struct Strip {
        const float *scales, *offsets;
        KVIK_INLINE Strip(const char* at, int column)
            : scales(reinterpret_cast<const float*>(at) + column), offsets(scales + PARTS * PANEL) {}
    };
    template <int PART, class Fetch, class Body>
    static KVIK_INLINE void for_quads(const Source<Bytes>& s, Fetch ahead, Body body) {
        constexpr int QUADS = KBLOCK / 4 / PARTS;
        const char* at = s.block + s.column * 4 + PART * QUADS * PANEL * 4;
#pragma GCC unroll 1
        for (int quad = PART * QUADS; quad < (PART + 1) * QUADS; quad++, at += PANEL * 4) {
            ahead.pair(quad);
            ireg w[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) w[n] = load_as<ireg>(at + n * REGISTER_BYTES);
            body(quad, w);
        }
    }
    template <int PART>
    static KVIK_INLINE reg scale(const Source<Bytes>& s, int n) {
        return load_as<reg>(s.strip.scales + PART * PANEL + n * REG_LANES);
    }
    template <int PART>
    static KVIK_INLINE reg offset(const Source<Bytes>& s, int n) {
        return load_as<reg>(s.strip.offsets + PART * PANEL + n * REG_LANES);
    }
    static KVIK_INLINE u8reg lifted(const Source<Bytes>&, ireg v, int) { return (u8reg)v; }
    static KVIK_INLINE ireg correct(ireg acc, const Strip&, int, int32_t bias) { return acc + bias; }
};

// k4: the minimum takes the place of a zero, so nibbles are multiplied as they are.
struct K4 : Grouped {
    static constexpr bool OFFSETS = true;
    static constexpr int64_t BLOCK_BYTES = kvik::K4_BLOCK, STRIP_BYTES = kvik::K4_STRIP;
    struct Strip {
        reg step[N], min_step[N];
        KVIK_INLINE Strip(const char* at, int column) {
#pragma GCC unroll 8
            for (int n = 0; n < N; n++, column += REG_LANES) {
                step[n] = f16_at(at + column * 2);
                min_step[n] = -f16_at(at + kvik::K4_MIN_STEPS + column * 2);
            }
        }
    };
    template <int PART, class Fetch, class Body>
    static KVIK_INLINE void for_quads(const Source<K4>& s, Fetch ahead, Body body) {
        for_nibbles<N>(s.block + s.column * 4, ahead, [](u8reg v, int) { return v; }, body);
    }
    template <int PART>
    static KVIK_INLINE reg scale(const Source<K4>& s, int n) {
        const char* at = s.block + kvik::K4_FACTORS + s.column + n * REG_LANES;
        return s.strip.step[n] * __builtin_convertvector(integers_of_unsigned(at), reg);
    }
    template <int PART>
    static KVIK_INLINE reg offset(const Source<K4>& s, int n) {
        const char* at = s.block + kvik::K4_MIN_FACTORS + s.column + n * REG_LANES;
        return s.strip.min_step[n] * __builtin_convertvector(integers_of_unsigned(at), reg);
    }
    static KVIK_INLINE u8reg lifted(const Source<K4>&, ireg v, int) { return (u8reg)v + 128; }
    static KVIK_INLINE ireg correct(ireg acc, const Strip&, int, int32_t) { return acc; }
#if defined(KVIK_WORDS)
    static KVIK_INLINE ireg dot(ireg acc, ireg weights, ireg act) { return dot_in_words(acc, weights, act); }
    static KVIK_INLINE ireg sum(ireg acc) { return sum_of_words(acc); }
#endif
};

// k6: nibbles with two more bits.
struct K6 : Grouped {
    static constexpr int PARTS = 2;
    static constexpr int64_t BLOCK_BYTES = kvik::K6_BLOCK, STRIP_BYTES = kvik::K6_STRIP;
    struct Strip {
        reg step[N];
        KVIK_INLINE Strip(const char* at, int column) {
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) step[n] = f16_at(at + (column + n * REG_LANES) * 2);
        }
    };
    template <int PART, class Fetch, class Body>
    static KVIK_INLINE void for_quads(const Source<K6>& s, Fetch ahead, Body body) {
        constexpr int QUADS = KBLOCK / 8;
        const char *at = s.block + s.column * 4, *upper_at = at + kvik::K6_UPPER + PART * PANEL * 4;
        ureg upper[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) upper[n] = load_as<ureg>(upper_at + n * REGISTER_BYTES);
#pragma GCC unroll 1
        for (int quad = 0; quad < QUADS; quad++, at += PANEL * 4) {
            ahead.pair(PART * QUADS + quad);
            ireg w[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) {
                const ureg lower = load_as<ureg>(at + n * REGISTER_BYTES) >> (4 * PART) & 0x0f0f0f0fu;
                w[n] = (ireg)(lower | (upper[n] & 0x03030303u) << 4);
                upper[n] >>= 2;
            }
            body(PART * QUADS + quad, w);
        }
    }
    template <int PART>
    static KVIK_INLINE reg scale(const Source<K6>& s, int n) {
        const char* at = s.block + kvik::K6_FACTORS + PART * PANEL + s.column + n * REG_LANES;
        return s.strip.step[n] * __builtin_convertvector(integers_of_signed(at), reg);
    }
    static KVIK_INLINE u8reg lifted(const Source<K6>&, ireg v, int) {
        return (u8reg)v + static_cast<uint8_t>(kvik::BYTE_OFFSET - kvik::K6_ZERO);
    }
    static KVIK_INLINE ireg correct(ireg acc, const Strip&, int, int32_t bias) {
        return acc + bias / (kvik::BYTE_OFFSET / kvik::K6_ZERO);
    }
};

// ---- The product

template <int PARTS, int PART>
KVIK_INLINE int32_t bias_of_part(const ActBlock& row) {
    if constexpr (PARTS == 1) return row.bias;
    return PART == 0 ? row.bias_of_half : row.bias - row.bias_of_half;
}

// sums += R rows (side by side) times one part of a K-block.
template <class F, int PART, int R, class Fetch>
KVIK_INLINE void add_part(reg (&sums)[R][F::N], const ActBlock* rows, const Source<F>& source, Fetch ahead) {
    constexpr int N = F::N;
    ireg acc[R][N];
    multiply_block<F, false, PART>(acc, rows, source, ahead);
    reg own[N], offset[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
        own[n] = F::template scale<PART>(source, n);
        offset[n] = F::template offset<PART>(source, n);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        const ActBlock& row = rows[r];
        const int32_t bias = bias_of_part<F::PARTS, PART>(row);
        float scale = row.scale;
        if (__builtin_expect(row.has_low, 0)) {
            ireg low[1][N];
            multiply_block<F, true, PART>(low, &row, source, NothingAhead{});
            for (int n = 0; n < N; n++) acc[r][n] = (acc[r][n] << 8) + low[0][n];
            scale *= 1.0f / 256;
        }
        const reg total = reg{} + scale * static_cast<float>(bias) * (-1.0f / kvik::BYTE_OFFSET);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            const ireg exact = F::correct(acc[r][n], source.strip, n, bias);
            reg factor = reg{} + scale;
            factor *= own[n];
            sums[r][n] = reg_fma(__builtin_convertvector(exact, reg), factor, sums[r][n]);
            if constexpr (F::OFFSETS) sums[r][n] = reg_fma(offset[n], total, sums[r][n]);
        }
    }
}

// R rows times COLUMNS columns of a panel. `stride`: ActBlocks from one K-block to the next; `group`: K-blocks to a
// strip.
template <class F, int R, class Fetch>
KVIK_INLINE void grouped_rows(const ActBlock* a, int64_t stride, const char* at, int64_t kblocks, int64_t group,
                              Fetch ahead, float* out, int64_t out_stride, int column) {
    constexpr int N = F::N;
    reg sums[R][N] = {};
    for (int64_t k = 0; k < kblocks;) {
        const int64_t end = kblocks - k < group ? kblocks : k + group;
        const typename F::Strip strip(at + (end - k) * F::BLOCK_BYTES, column);
        for (; k < end; k++, at += F::BLOCK_BYTES) {
            const Source<F> source{at, strip, column};
            add_part<F, 0>(sums, a + k * stride, source, ahead.after(k));
            if constexpr (F::PARTS == 2) add_part<F, 1>(sums, a + k * stride, source, ahead.after(k));
        }
        at += F::STRIP_BYTES;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store_as(out + r * out_stride + column + n * REG_LANES, sums[r][n]);
}

// At most F::ROWS rows times a panel into out[rows, 32].
template <class F, int R = F::ROWS, class Fetch>
KVIK_INLINE void grouped_product(int rows, const ActBlock* a, int64_t stride, const kvik::Matrix& weights, int64_t panel,
                                 Fetch ahead, float* out, int64_t out_stride) {
    if (rows == R) {
        for (int column = 0; column < PANEL; column += F::COLUMNS)
            grouped_rows<F, R>(a, stride, weights.panel(panel), weights.kblocks, weights.group, ahead, out, out_stride,
                               column);
    } else if constexpr (R > 1) {
        grouped_product<F, R - 1>(rows, a, stride, weights, panel, ahead, out, out_stride);
    }
}

}  // namespace KVIK_ISA
