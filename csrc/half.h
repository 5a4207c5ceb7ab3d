// IEEE half-precision floats (f16): one, or sixteen at a time. Rounding is to nearest, ties to even.
//
// Numbers past 65504 become infinity, numbers under 2^-14 keep what multiples of 2^-24 hold of them, and NaN stays NaN.
// Every instruction set gives the same bits, whether it converts by an instruction or by the arithmetic written here;
// only the payload of a NaN is not defined. This file knows nothing of what the numbers mean.
#pragma once

#include "vec.h"

namespace KVIK_ISA {

KVIK_INLINE u16x16 to_f16(f32x16 v) {
#if defined(__AVX512F__)
    return (u16x16)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    const float* p = (const float*)&v;
    u16x16 r;
    store_as((uint16_t*)&r, _mm256_cvtps_ph(_mm256_loadu_ps(p), _MM_FROUND_TO_NEAREST_INT));
    store_as((uint16_t*)&r + 8, _mm256_cvtps_ph(_mm256_loadu_ps(p + 8), _MM_FROUND_TO_NEAREST_INT));
    return r;
#else
    const u32x16 all = bits(v), sign = all & 0x80000000u, b = all ^ sign;
    // Adding 1/2 leaves a multiple of 2^-24 in the low bits of the sum, rounded by the addition itself.
    const u32x16 small = bits(from_bits(b) + splat(0.5f)) - 0x3f000000u;
    const u32x16 normal = (b + (((b >> 13) & 1u) + 0xc8000fffu)) >> 13;
    const u32x16 special = b > 0x7f800000u ? splat_bits(0x7e00u) : splat_bits(0x7c00u);
    const u32x16 h = b < 0x38800000u ? small : (b < 0x477ff000u ? normal : special);
    return __builtin_convertvector(h | sign >> 16, u16x16);
#endif
}

KVIK_INLINE f32x16 from_f16(u16x16 v) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_maskz_cvtph_ps(0xffff, (__m256i)v);
#elif defined(__F16C__)
    const uint16_t* p = (const uint16_t*)&v;
    f32x16 r;
    store_as((float*)&r, _mm256_cvtph_ps(load_as<__m128i>(p)));
    store_as((float*)&r + 8, _mm256_cvtph_ps(load_as<__m128i>(p + 8)));
    return r;
#else
    const u32x16 h = __builtin_convertvector(v, u32x16), sign = (h & 0x8000u) << 16, m = h & 0x7fffu;
    const u32x16 normal = (m << 13) + 0x38000000u, special = (m << 13) | 0x7f800000u;
    const u32x16 small = bits(__builtin_convertvector(m, f32x16) * splat(5.9604644775390625e-8f));  // 2^-24
    return from_bits((m < 0x400u ? small : (m < 0x7c00u ? normal : special)) | sign);
#endif
}

// As many as a register takes.
KVIK_INLINE reg from_f16_at(const uint16_t* p) {
#if defined(__AVX512F__)
    return (reg)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__F16C__)
    return (reg)_mm256_cvtph_ps(load_as<__m128i>(p));
#else
    typedef uint16_t few __attribute__((vector_size(REGISTER_BYTES / 2)));
    const ureg h = __builtin_convertvector(load_as<few>(p), ureg), sign = (h & 0x8000u) << 16, m = h & 0x7fffu;
    const ureg normal = (m << 13) + 0x38000000u, special = (m << 13) | 0x7f800000u;
    const ureg small = (ureg)(__builtin_convertvector(m, reg) * 5.9604644775390625e-8f);  // 2^-24
    return (reg)((m < 0x400u ? small : (m < 0x7c00u ? normal : special)) | sign);
#endif
}

KVIK_INLINE uint16_t to_f16(float x) { return to_f16(splat(x))[0]; }
KVIK_INLINE float from_f16(uint16_t h) { return from_f16(u16x16{} + h)[0]; }

}  // namespace KVIK_ISA
