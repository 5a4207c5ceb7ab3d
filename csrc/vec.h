// Vectors of sixteen floats, and the few operations the kernels need on them.
//
// Every kernel body is written once against this file and compiled once per instruction set. GCC's and clang's vector
// extensions turn `f32x16` into one zmm, two ymm or four xmm (or NEON) registers; only what they cannot express well is
// spelled in intrinsics. All functions are inline and live in the namespace of their instruction set, KVIK_ISA, so
// that no code of one set is ever linked into another. This file knows nothing of models.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define KVIK_INLINE inline __attribute__((always_inline))

namespace KVIK_ISA {

constexpr int LANES = 16;

// A register of the machine. Comparisons and inner loops are made in these: GCC takes wider vectors apart.
#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX2__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
constexpr int REG_LANES = REGISTER_BYTES / 4, REGS = LANES / REG_LANES;
typedef float reg __attribute__((vector_size(REGISTER_BYTES)));
typedef int32_t ireg __attribute__((vector_size(REGISTER_BYTES)));
typedef uint32_t ureg __attribute__((vector_size(REGISTER_BYTES)));

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

template <class V, class T>
KVIK_INLINE V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
KVIK_INLINE void store_as(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

KVIK_INLINE f32x16 load(const float* p) { return load_as<f32x16>(p); }
KVIK_INLINE void store(float* p, f32x16 v) { store_as(p, v); }
KVIK_INLINE f32x16 splat(float x) { return f32x16{} + x; }
KVIK_INLINE u32x16 splat_bits(uint32_t x) { return u32x16{} + x; }
KVIK_INLINE u32x16 bits(f32x16 v) { return load_as<u32x16>(&v); }
KVIK_INLINE f32x16 from_bits(u32x16 v) { return load_as<f32x16>(&v); }

// a * b + c with one rounding wherever the instruction set has it. The compiler is told not to contract on its own
// (-ffp-contract=off), so that the same expression gives the same bytes in every template instance.
KVIK_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    f32x16 r;
    __m256 lo = _mm256_fmadd_ps(_mm256_loadu_ps((const float*)&a), _mm256_loadu_ps((const float*)&b),
                                _mm256_loadu_ps((const float*)&c));
    __m256 hi = _mm256_fmadd_ps(_mm256_loadu_ps((const float*)&a + 8), _mm256_loadu_ps((const float*)&b + 8),
                                _mm256_loadu_ps((const float*)&c + 8));
    _mm256_storeu_ps((float*)&r, lo);
    _mm256_storeu_ps((float*)&r + 8, hi);
    return r;
#elif defined(__ARM_FEATURE_FMA)
    f32x16 r;
    for (int i = 0; i < LANES; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}

// a < b ? yes : no, lane by lane. NaN is less than nothing.
KVIK_INLINE f32x16 select_less(f32x16 a, f32x16 b, f32x16 yes, f32x16 no) {
    f32x16 r;
    for (int i = 0; i < LANES; i += REG_LANES) {
        ireg is_less = load_as<reg>((const float*)&a + i) < load_as<reg>((const float*)&b + i);
        store_as((float*)&r + i,
                 is_less ? load_as<reg>((const float*)&yes + i) : load_as<reg>((const float*)&no + i));
    }
    return r;
}
KVIK_INLINE f32x16 max(f32x16 a, f32x16 b) { return select_less(b, a, a, b); }

// Sum and maximum over the lanes, always in the same tree order: lane i and lane i + 8, then 4, 2, 1.
#if defined(__AVX512F__)
KVIK_INLINE float sum(f32x16 v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KVIK_INLINE float largest(f32x16 v) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
KVIK_INLINE float sum(f32x16 v) {
    float x[LANES];
    store(x, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}
KVIK_INLINE float largest(f32x16 v) {
    float x[LANES];
    store(x, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}
#endif

// bf16 is the upper half of a float32. Rounding is to nearest, ties to even; NaN stays NaN.
KVIK_INLINE u16x16 to_bf16(f32x16 v) {
#if defined(__AVX512BF16__)
    return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
    u32x16 b = bits(v);
    u32x16 rounded = (b + (((b >> 16) & 1u) + 0x7fffu)) >> 16;
    u32x16 quiet = (b >> 16) | 0x40u;
    return __builtin_convertvector(v == v ? rounded : quiet, u16x16);
#endif
}
KVIK_INLINE f32x16 from_bf16(u16x16 v) { return from_bits(__builtin_convertvector(v, u32x16) << 16); }

KVIK_INLINE uint16_t to_bf16(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    if (x != x) return static_cast<uint16_t>((b >> 16) | 0x40u);
    return static_cast<uint16_t>((b + (((b >> 16) & 1u) + 0x7fffu)) >> 16);
}
KVIK_INLINE float from_bf16(uint16_t h) {
    uint32_t b = static_cast<uint32_t>(h) << 16;
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}

// e^x to about 1 ulp for x <= 88; exactly 0 below -87.3 and for -infinity; NaN stays NaN. Cody and Waite's reduction
// and a minimax polynomial of degree 6 for e^r on |r| <= ln(2) / 2.
KVIK_INLINE f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-87.33654f), high = splat(88.0f);
    f32x16 clamped = select_less(high, x, high, select_less(x, low, low, x));
    const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    f32x16 shifted = fma(clamped, splat(1.44269504f), magic);
    f32x16 n = shifted - magic;
    f32x16 r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    f32x16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    f32x16 scaled = from_bits(bits(p) + ((bits(shifted) - bits(magic)) << 23));
    f32x16 result = select_less(x, splat(__builtin_inff()), scaled, x);
    return select_less(x, low, f32x16{}, result);
}

}  // namespace KVIK_ISA
