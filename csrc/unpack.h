// Packed whole numbers to what the products take.
//
// A nibble and its column's lift are the byte of an int8 K-block. Matrix units of bf16 (AMX) are so much faster than
// integer vectors that bytes are widened for them, a K-block at a time in the first cache: bf16 holds whole numbers of 8
// bits exactly.
#pragma once

#include "half.h"
#include "layout.h"
#include "vec.h"

namespace KVIK_ISA {

constexpr int64_t BYTE_BLOCK_BYTES = kvik::KBLOCK * kvik::PANEL, BF16_BLOCK_BYTES = 2 * BYTE_BLOCK_BYTES;

typedef uint8_t u8reg __attribute__((vector_size(REGISTER_BYTES)));

// As many bytes as a register has lanes, as integers. Spelled out, since GCC converts such short vectors byte by byte.
KVIK_INLINE ireg integers_of_unsigned(const char* p) {
#if defined(__AVX512F__)
    return (ireg)_mm512_cvtepu8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
    return (ireg)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(__SSE2__)
    const __m128i none = _mm_setzero_si128(), bytes = _mm_cvtsi32_si128(load_as<int32_t>(p));
    return (ireg)_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, none), none);
#else
    typedef uint8_t few __attribute__((vector_size(REG_LANES)));
    return __builtin_convertvector(load_as<few>(p), ireg);
#endif
}
KVIK_INLINE ireg integers_of_signed(const char* p) {
#if defined(__AVX512F__)
    return (ireg)_mm512_cvtepi8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
    return (ireg)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    const ireg bytes = integers_of_unsigned(p);
    return (bytes ^ 128) - 128;
#endif
}

// Of the bytes at `lifts` those of the columns from `column` on, each in all four bytes of its lane.
KVIK_INLINE u8reg lifts_of(const char* lifts, int column) {
    const ureg lift = (ureg)integers_of_unsigned(lifts + column), pair = lift | lift << 8;
    return (u8reg)(pair | pair << 16);
}

#if defined(KVIK_AMX)

#if defined(__AVX512VBMI__)

// The two bytes of the bf16 of 0 .. 127: 2^e * 1.m is (e + 127) << 7 | m.
struct BytesOfBf16 {
    alignas(64) uint8_t low[128], high[128];
    constexpr BytesOfBf16() : low(), high() {
        for (int x = 1; x < 128; x++) {
            int e = 0;
            while (x >> (e + 1)) e++;
            const int bits = (e + 127) << 7 | ((x << (7 - e)) & 127);
            low[x] = static_cast<uint8_t>(bits);
            high[x] = static_cast<uint8_t>(bits >> 8);
        }
    }
};

// Of each lane, the bytes of its first (or second) two inputs: low 0, high 0, low 1, high 1.
struct PairsOfLane {
    alignas(64) uint8_t index[2][64];
    constexpr PairsOfLane() : index() {
        for (int pair = 0; pair < 2; pair++)
            for (int i = 0; i < 64; i++)
                index[pair][i] = static_cast<uint8_t>((i & 1 ? 64 : 0) + i / 4 * 4 + pair * 2 + i % 4 / 2);
    }
};

// An int8 K-block. Both bytes of a magnitude's bf16 come from tables of 128, the sign from the number itself.
KVIK_INLINE void widen_bytes(const char* block, char* out) {
    static constexpr BytesOfBf16 TABLE;
    static constexpr PairsOfLane PAIRS;
    const __m512i low0 = _mm512_load_si512(TABLE.low), low1 = _mm512_load_si512(TABLE.low + 64);
    const __m512i high0 = _mm512_load_si512(TABLE.high), high1 = _mm512_load_si512(TABLE.high + 64);
    const __m512i first = _mm512_load_si512(PAIRS.index[0]), second = _mm512_load_si512(PAIRS.index[1]);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int quad = 0; quad < 8; quad++)
        for (int tile = 0; tile < 2; tile++, block += 64) {
            const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(block), sign), size = _mm512_abs_epi8(v);
            const __m512i low = _mm512_permutex2var_epi8(low0, size, low1);
            __m512i high = _mm512_permutex2var_epi8(high0, size, high1);
            high = _mm512_ternarylogic_epi64(high, v, sign, 0xf8);  // high | (v & sign)
            char* to = out + tile * BYTE_BLOCK_BYTES + quad * 128;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi8(low, first, high));
            _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi8(low, second, high));
        }
}

#else

// An int8 K-block: each lane is four inputs of a column, that is two pairs.
KVIK_INLINE void widen_bytes(const char* block, char* out) {
    for (int quad = 0; quad < 8; quad++)
        for (int column = 0; column < kvik::PANEL; column += LANES, block += 64) {
            const u32x16 v = load_as<u32x16>(block);
            for (int pair = 0; pair < 2; pair++) {
                const i32x16 even = (i32x16)(v >> (16 * pair) & 255u) - kvik::BYTE_OFFSET;
                const i32x16 odd = (i32x16)(v >> (16 * pair + 8) & 255u) - kvik::BYTE_OFFSET;
                const u32x16 low = bits(__builtin_convertvector(even, f32x16)) >> 16;
                const u32x16 high = bits(__builtin_convertvector(odd, f32x16)) & 0xffff0000u;
                store_as(out + column / LANES * BYTE_BLOCK_BYTES + quad * 128 + pair * 64, low | high);
            }
        }
}

#endif
#endif

}  // namespace KVIK_ISA
