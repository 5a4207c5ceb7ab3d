// The four tile operations that the kernels use, on AMX or on its emulation.
//
// A tile is 16 rows of 64 bytes. `dot` adds to the 16 x 16 floats of c, for every row of a and every column of b, the
// 16 products of bf16 pairs, in order. The emulation computes the same tiles in plain C++, so that everything built on
// tiles can be tested on a machine without them; it is never chosen by itself.
#pragma once

#include "vec.h"

#if defined(KVIK_AMX_EMULATED)

namespace KVIK_ISA {

struct Tile {
    uint32_t row[16][16];
};
static thread_local Tile tiles[8];

KVIK_INLINE void tiles_begin() {}
KVIK_INLINE void tiles_end() {}
template <int T>
KVIK_INLINE void tile_zero() {
    std::memset(&tiles[T], 0, sizeof(Tile));
}
template <int T>
KVIK_INLINE void tile_load(const void* p, int64_t stride) {
    for (int r = 0; r < 16; r++) std::memcpy(tiles[T].row[r], static_cast<const char*>(p) + r * stride, 64);
}
template <int T>
KVIK_INLINE void tile_store(void* p, int64_t stride) {
    for (int r = 0; r < 16; r++) std::memcpy(static_cast<char*>(p) + r * stride, tiles[T].row[r], 64);
}
template <int C, int A, int B>
KVIK_INLINE void tile_dot() {
    for (int r = 0; r < 16; r++) {
        f32x16 c = load_as<f32x16>(tiles[C].row[r]);
        for (int k = 0; k < 16; k++) {
            u32x16 b = load_as<u32x16>(tiles[B].row[k]);
            uint32_t a = tiles[A].row[r][k];
            c = fma(from_bits(splat_bits(a << 16)), from_bits(b << 16), c);
            c = fma(from_bits(splat_bits(a & 0xffff0000u)), from_bits(b & 0xffff0000u), c);
        }
        store_as(tiles[C].row[r], c);
    }
}

}  // namespace KVIK_ISA

#else

namespace KVIK_ISA {

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};
static const TileConfig ALL_FULL = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// In assembly, because the compilers' intrinsics take only a literal as a tile's number.
KVIK_INLINE void tiles_begin() { asm volatile("ldtilecfg %0" ::"m"(ALL_FULL)); }
KVIK_INLINE void tiles_end() { asm volatile("tilerelease"); }
template <int T>
KVIK_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
KVIK_INLINE void tile_load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
KVIK_INLINE void tile_store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
KVIK_INLINE void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace KVIK_ISA

#endif
