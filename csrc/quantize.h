// Weights to whole numbers: the rule of kvik/runners/reference/quantized.py, operation for operation.
//
// Sums run over sixteen lanes and then down a tree, and no product is fused with a sum, so that every instruction set
// and numpy find the same integers. The lanes are REGS registers of the machine. This file knows nothing of where
// whole numbers are packed to.
#pragma once

#include "half.h"

namespace KVIK_ISA {

constexpr float LEAST_STEP = 5.9604644775390625e-8f, LARGEST_STEP = 65504.0f;  // of f16: 2^-24, and the largest
constexpr uint16_t F16_NAN = 0x7e00;
constexpr int NUM_PARTS = 5;
// Of a group's range, over which its sixteen levels are spread; what lies outside is clipped.
alignas(64) constexpr float PARTS[LANES] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f};
alignas(64) constexpr float STEPS[LANES] = {1.0f / 15.0f, 0.95f / 15.0f, 0.9f / 15.0f, 0.85f / 15.0f, 0.8f / 15.0f};

typedef int8_t bytes __attribute__((vector_size(REG_LANES)));

KVIK_INLINE reg all(float x) { return reg{} + x; }

// The smaller and the larger of two, neither of which is NaN.
KVIK_INLINE reg lower(reg a, reg b) { return a < b ? a : b; }
KVIK_INLINE reg upper(reg a, reg b) { return a > b ? a : b; }
KVIK_INLINE reg clip(reg v, float low, float high) { return lower(upper(v, all(low)), all(high)); }
KVIK_INLINE reg magnitude(reg v) { return (reg)((ureg)v & 0x7fffffffu); }

// To whole numbers, ties to even, for numbers that are clipped to -127 .. 127 afterwards.
KVIK_INLINE reg to_whole(reg v) {
#if defined(__AVX512F__)
    return (reg)_mm512_maskz_roundscale_ps(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const reg magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds
    return (v + magic) - magic;
#endif
}

// Sum over sixteen lanes, in the order of sum(f32x16).
KVIK_INLINE float tree_sum(const reg* lanes) {
#if defined(__AVX512F__)
    return sum(lanes[0]);
#elif defined(__AVX2__)
    const __m256 eight = (__m256)(lanes[0] + lanes[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    const reg four = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

KVIK_INLINE float largest_lane(reg v) {
    float most = v[0];
    for (int i = 1; i < REG_LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// v - v of every value, added up, is zero unless one is NaN or infinite.
KVIK_INLINE bool is_zero(reg v) {
    const reg lanes[REGS] = {v};
    return tree_sum(lanes) == 0;
}

KVIK_INLINE reg to_step(reg wanted) {
    alignas(64) float step[LANES] = {};
    store_as(step, clip(wanted, LEAST_STEP, LARGEST_STEP));
    store(step, from_f16(to_f16(load(step))));
    return load_as<reg>(step);
}

KVIK_INLINE float to_step(float wanted) {
    return from_f16(to_f16(wanted < LEAST_STEP ? LEAST_STEP : (wanted > LARGEST_STEP ? LARGEST_STEP : wanted)));
}

// A step and the level of zero.
struct Fit {
    float step, inverse, zero;
};

// Steps, their inverses, and the two zeros beside the exact one, for every part of [lo, hi] that is tried.
struct Candidates {
    alignas(64) float steps[LANES], inverses[LANES], zeros[2][LANES];

    KVIK_INLINE Fit fit(int part, int z) const { return {steps[part], inverses[part], zeros[z][part]}; }
};

KVIK_INLINE Candidates candidates(float lo, float hi) {
    Candidates c;
    for (int i = 0; i < NUM_PARTS; i += REG_LANES) {
        const reg step = to_step(all(hi - lo) * load_as<reg>(STEPS + i)), inverse = all(1.0f) / step;
        const reg exact = lower(all(-lo) * load_as<reg>(PARTS + i) * inverse, all(15.0f)), zero = to_whole(exact);
        store_as(c.steps + i, step);
        store_as(c.inverses + i, inverse);
        store_as(c.zeros[0] + i, zero > exact ? zero - 1.0f : zero);
        store_as(c.zeros[1] + i, zero < exact ? zero + 1.0f : zero);
    }
    return c;
}

// A group of R registers, in steps and rounded to whole steps.
template <int R>
struct Scaled {
    reg exact[R], whole[R];

    KVIK_INLINE Scaled(const reg* x, float inverse) {
        for (int i = 0; i < R; i++) {
            exact[i] = x[i] * inverse;
            whole[i] = to_whole(exact[i]);
        }
    }
    KVIK_INLINE reg clipped(int i, float zero) const { return clip(whole[i], -zero, 15.0f - zero); }

    // Sum of the squared errors.
    KVIK_INLINE float error(const Fit& fit) const {
        reg sums[REGS] = {};
        for (int i = 0; i < R; i++) {
            const reg off = clipped(i, fit.zero) - exact[i];
            sums[i % REGS] += off * off;
        }
        return tree_sum(sums) * (fit.step * fit.step);
    }
};

// The step that suits the whole numbers of a fit best: x . q / q . q.
template <int R>
KVIK_INLINE Fit refit(const reg* x, const Fit& fit) {
    const Scaled<R> scaled(x, fit.inverse);
    reg products[REGS] = {}, squares[REGS] = {};
    for (int i = 0; i < R; i++) {
        const reg q = scaled.clipped(i, fit.zero);
        products[i % REGS] += x[i] * q;
        squares[i % REGS] += q * q;
    }
    const float square = tree_sum(squares);
    const float step = to_step(tree_sum(products) / (square > 1.0f ? square : 1.0f));
    return {step, 1.0f / step, fit.zero};
}

// The candidate of the least error, the first of equals; then its refit, if that is better.
template <int R>
KVIK_INLINE Fit search(const reg* x, float lo, float hi) {
    const Candidates c = candidates(lo, hi);
    Fit best = c.fit(0, 0);
    float least = 0;
    for (int i = 0; i < NUM_PARTS; i++) {
        const Scaled<R> scaled(x, c.inverses[i]);
        for (int z = 0; z < 2; z++) {
            const Fit fit = c.fit(i, z);
            const float error = scaled.error(fit);
            if (i + z && !(error < least)) continue;
            least = error;
            best = fit;
        }
    }
    const Fit again = refit<R>(x, best);
    return Scaled<R>(x, again.inverse).error(again) < least ? again : best;
}

// Zero is the level 8, and the weight of the largest magnitude the level 0; of two such, the negative one.
KVIK_INLINE Fit centred(float lo, float hi) {
    const bool negative = -lo >= hi;
    const float size = to_step((negative ? -lo : hi) * 0.125f), step = negative ? size : -size;
    return {step, 1.0f / step, 8.0f};
}

KVIK_INLINE void store_whole(void* out, reg v) {
    store_as(static_cast<int8_t*>(out), __builtin_convertvector(__builtin_convertvector(v, ireg), bytes));
}

template <int R>
KVIK_INLINE void quantize_group(const float* at, bool symmetric, uint8_t* q, uint16_t* scale, uint8_t* zero) {
    reg x[R], low = {}, high = {}, nothing = {};
    for (int i = 0; i < R; i++) {
        x[i] = load_as<reg>(at + i * REG_LANES);
        low = lower(low, x[i]);
        high = upper(high, x[i]);
        nothing += x[i] - x[i];
    }
    if (!is_zero(nothing)) {
        // NaN and infinity have no level: the scale says so, or a broken weight would look sound.
        std::memset(q, 0, R * REG_LANES);
        *scale = F16_NAN;
        *zero = 0;
        return;
    }
    const float lo = -largest_lane(-low), hi = largest_lane(high);
    const Fit fit = symmetric ? centred(lo, hi) : search<R>(x, lo, hi);
    const Scaled<R> scaled(x, fit.inverse);
    for (int i = 0; i < R; i++) store_whole(q + i * REG_LANES, scaled.clipped(i, fit.zero) + fit.zero);
    *scale = to_f16(fit.step);
    *zero = static_cast<uint8_t>(fit.zero);
}

// One group of 1 .. 128 weights: levels q in 0 .. 15, such that weight = (q - zero) * scale, scale an f16. x is readable
// and zero, and q writable, up to the next multiple of 32; past `count` q is the level of zero.
KVIK_INLINE void quantize_int4_group(const float* x, int64_t count, bool symmetric, uint8_t* q, uint16_t* scale,
                                     uint8_t* zero) {
    switch ((count + 31) / 32) {
        case 1: return quantize_group<2 * REGS>(x, symmetric, q, scale, zero);
        case 2: return quantize_group<4 * REGS>(x, symmetric, q, scale, zero);
        case 3: return quantize_group<6 * REGS>(x, symmetric, q, scale, zero);
        default: return quantize_group<8 * REGS>(x, symmetric, q, scale, zero);
    }
}

// One row: q in -127 .. 127, such that weight = q * scale. NaN or infinity makes the scale NaN and q zero.
KVIK_INLINE void quantize_int8_row(const float* x, int64_t count, int8_t* q, float* scale) {
    const int64_t whole = count / REG_LANES * REG_LANES, rest = count - whole;
    reg tail = {};
    std::memcpy(&tail, x + whole, rest * sizeof(float));
    reg top = magnitude(tail), nothing = tail - tail;
    for (int64_t i = 0; i < whole; i += REG_LANES) {
        const reg v = load_as<reg>(x + i);
        top = upper(top, magnitude(v));
        nothing += v - v;
    }
    const bool sound = is_zero(nothing);
    const float size = largest_lane(top), inverse = 127.0f / size;
    *scale = sound ? size / 127.0f : __builtin_nanf("");
    // Of 0, and of a number so small that its inverse is no float, all are 0.
    if (!sound || !(inverse <= 3.4028235e38f)) {
        std::memset(q, 0, count);
        return;
    }
    for (int64_t i = 0; i < whole; i += REG_LANES)
        store_whole(q + i, clip(to_whole(load_as<reg>(x + i) * inverse), -127.0f, 127.0f));
    alignas(64) int8_t last[LANES];
    store_whole(last, clip(to_whole(tail * inverse), -127.0f, 127.0f));
    std::memcpy(q + whole, last, rest);
}

}  // namespace KVIK_ISA
