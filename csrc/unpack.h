// Whole-number weights to bf16, one K-block at a time, in the first cache.
//
// int8 and int4 weights are whole numbers that bf16 holds exactly, so a quantized layer is the bf16 product of these
// numbers, scaled afterwards: nothing is rounded but the activations, whatever outliers they have. Activations rounded
// to int8 would be twice as fast at best where arithmetic is the limit, and lose the channels beside an outlier.
#pragma once

#include "layout.h"
#include "vec.h"

namespace KVIK_ISA {

constexpr int64_t BF16_BLOCK_BYTES = kvik::KBLOCK * kvik::PANEL * 2;

// Two whole numbers a lane, as a pair of bf16: both have few enough bits that cutting off is exact.
KVIK_INLINE ureg bf16_pair(ireg even, ireg odd) {
    reg e = __builtin_convertvector(even, reg), o = __builtin_convertvector(odd, reg);
    return (load_as<ureg>(&e) >> 16) | (load_as<ureg>(&o) & 0xffff0000u);
}

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

// An int8 K-block: each 64 bytes are four inputs of 16 columns, that is two pairs. Both bytes of a magnitude's bf16
// come from tables of 128, the sign from the number itself; then the bytes are interleaved.
KVIK_INLINE void unpack_int8(const char* block, char* out) {
    static constexpr BytesOfBf16 TABLE;
    const __m512i low0 = _mm512_load_si512(TABLE.low), low1 = _mm512_load_si512(TABLE.low + 64);
    const __m512i high0 = _mm512_load_si512(TABLE.high), high1 = _mm512_load_si512(TABLE.high + 64);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int quad = 0; quad < 16; quad++, block += 64, out += 128) {
        const __m512i v = _mm512_loadu_si512(block), magnitude = _mm512_abs_epi8(v);
        const __m512i low = _mm512_permutex2var_epi8(low0, magnitude, low1);
        __m512i high = _mm512_permutex2var_epi8(high0, magnitude, high1);
        high = _mm512_ternarylogic_epi64(high, v, sign, 0xf8);  // high | (v & sign)
        _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, high));
        _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi8(low, high));
    }
}

#else

// An int8 K-block: each 64 bytes are four inputs of 16 columns, that is two pairs; 8 bytes are a pair of 4 columns.
KVIK_INLINE void unpack_int8(const char* block, char* out) {
    typedef uint16_t half __attribute__((vector_size(REGISTER_BYTES / 2)));
    for (int quad = 0; quad < 16; quad++, block += 64)
        for (int pair = 0; pair < 2; pair++)
            for (int i = 0; i < REGS; i++, out += REGISTER_BYTES) {
                half columns;
                for (int four = 0; four < REG_LANES / 4; four++)
                    std::memcpy(reinterpret_cast<char*>(&columns) + four * 8,
                                block + (i * (REG_LANES / 4) + four) * 16 + pair * 8, 8);
                ireg v = __builtin_convertvector(columns, ireg);
                store_as(out, bf16_pair((v << 24) >> 24, (v << 16) >> 24));
            }
}

#endif

// The nibbles of an int4 K-block: each 64 bytes are eight inputs of 16 columns, that is four pairs.
KVIK_INLINE void unpack_int4(const char* block, char* out) {
#if defined(__AVX512BW__)
    // A table of the 16 values, twice: the look-up uses five bits of every 16, and the fifth may be anything.
    alignas(64) static const uint16_t VALUES[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
        0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
        0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i table = _mm512_load_si512(VALUES);
    for (int octet = 0; octet < 8; octet++, block += 64, out += 256) {
        __m512i v = _mm512_loadu_si512(block);
        _mm512_storeu_si512(out, _mm512_permutexvar_epi16(v, table));
        _mm512_storeu_si512(out + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), table));
        _mm512_storeu_si512(out + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), table));
        _mm512_storeu_si512(out + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), table));
    }
#else
    for (int octet = 0; octet < 8; octet++, block += 64, out += 256)
        for (int i = 0; i < REGS; i++) {
            ireg v = load_as<ireg>(block + i * REGISTER_BYTES);
            for (int pair = 0; pair < 4; pair++)
                store_as(out + pair * 64 + i * REGISTER_BYTES,
                         bf16_pair(((v >> (4 * pair)) & 15) - 8, ((v >> (16 + 4 * pair)) & 15) - 8));
        }
#endif
}

KVIK_INLINE void scales_of_int4(const char* block, float* out) {
    const auto* scales = reinterpret_cast<const uint16_t*>(block + kvik::INT4_NIBBLES);
    for (int c = 0; c < kvik::PANEL; c += LANES) store(out + c, from_bf16(load_as<u16x16>(scales + c)));
}

}  // namespace KVIK_ISA
