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

// An int8 K-block: each 64 bytes are four inputs of 16 columns, that is two pairs.
KVIK_INLINE void unpack_int8(const char* block, char* out) {
    for (int quad = 0; quad < 16; quad++, block += 64, out += 128) {
        for (int i = 0; i < REGS; i++) {
            ireg v = load_as<ireg>(block + i * REGISTER_BYTES);
            store_as(out + i * REGISTER_BYTES, bf16_pair((v << 24) >> 24, (v << 16) >> 24));
            store_as(out + 64 + i * REGISTER_BYTES, bf16_pair((v << 8) >> 24, v >> 24));
        }
    }
}

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
