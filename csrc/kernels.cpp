// One table of kernels. This file is compiled once per instruction set, with KVIK_ISA naming the namespace and the
// compiler's flags naming the instructions; see CMakeLists.txt.
//
// Nothing here may instantiate a standard-library template that another translation unit could share: the linker would
// keep one copy, and it could be the one with instructions this machine lacks.

#include "kernels.h"

#include <ctime>

#include "attention.h"
#include "linear.h"
#include "pack_integers.h"
#include "rows.h"
#include "sampler.h"

namespace KVIK_ISA {

static void begin() {
#if defined(KVIK_AMX)
    tiles_begin();
#endif
}

static void end() {
#if defined(KVIK_AMX)
    tiles_end();
#endif
}

static void draw_one(const KvikSamplePlan& plan, int32_t s, const float* logits, int32_t vocab, void* scratch,
                     KvikResult& result) {
    draw(plan, s, logits, vocab, sampler_scratch(scratch, vocab), result);
}

static void score_one(const KvikScorePlan& plan, int32_t q, const float* logits, int32_t vocab, void* scratch,
                      KvikTop& out) {
    score(plan, q, logits, vocab, sampler_scratch(scratch, vocab), out);
}

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Repeat `burst`, which does `operations`, for `seconds`; operations per second.
template <class Burst>
static double rate(double seconds, double operations, Burst burst) {
    double start = now(), done = 0, elapsed = 0;
    while (elapsed < seconds) {
        burst();
        done += operations;
        elapsed = now() - start;
    }
    return done / elapsed;
}

constexpr int ROUNDS = 4096;

static double peak_of_f32(double seconds) {
    constexpr int CHAINS = REGISTER_BYTES == 64 ? 20 : 10;
    reg acc[CHAINS] = {}, x = {}, y = {};
    return rate(seconds, 2.0 * ROUNDS * CHAINS * REG_LANES, [&] {
        asm volatile("" : "+x"(x), "+x"(y));
        for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 20
            for (int c = 0; c < CHAINS; c++) acc[c] = reg_fma(x, y, acc[c]);
        for (int c = 0; c < CHAINS; c++) asm volatile("" : "+x"(acc[c]));
    });
}

#if defined(KVIK_AMX)
static double peak_of_bf16(double seconds) {
    alignas(64) static const char zeroes[1024] = {};
    tiles_begin();
    tile_load<4>(zeroes, 64);
    tile_load<5>(zeroes, 64);
    tile_load<6>(zeroes, 64);
    tile_load<7>(zeroes, 64);
    double result = rate(seconds, 2.0 * ROUNDS * 4 * 16 * 16 * 32, [] {
        for (int i = 0; i < ROUNDS; i++) {
            tile_dot<0, 4, 6>();
            tile_dot<1, 4, 7>();
            tile_dot<2, 5, 6>();
            tile_dot<3, 5, 7>();
        }
    });
    tiles_end();
    return result;
}
#elif defined(__AVX512BF16__)
static double peak_of_bf16(double seconds) {
    constexpr int CHAINS = 20;
    __m512 acc[CHAINS] = {};
    __m512i x = {}, y = {};
    return rate(seconds, 2.0 * ROUNDS * CHAINS * 32, [&] {
        asm volatile("" : "+v"(x), "+v"(y));
        for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 20
            for (int c = 0; c < CHAINS; c++) acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)x, (__m512bh)y);
        for (int c = 0; c < CHAINS; c++) asm volatile("" : "+v"(acc[c]));
    });
}
#else
static double peak_of_bf16(double seconds) { return peak_of_f32(seconds); }
#endif

#if defined(KVIK_AMX) && !defined(KVIK_AMX_EMULATED)
static double peak_of_int8(double seconds) {
    tiles_begin();
    double result = rate(seconds, 2.0 * ROUNDS * 4 * 16 * 16 * 64, [] {
        for (int i = 0; i < ROUNDS; i++)
            asm volatile(
                "tdpbusd %tmm6, %tmm4, %tmm0\n\ttdpbusd %tmm7, %tmm4, %tmm1\n\t"
                "tdpbusd %tmm6, %tmm5, %tmm2\n\ttdpbusd %tmm7, %tmm5, %tmm3");
    });
    tiles_end();
    return result;
}
#else
static double peak_of_int8(double seconds) {
    constexpr int CHAINS = REGISTER_BYTES == 64 ? 20 : 10;
    ireg acc[CHAINS] = {}, x = {}, y = {}, z = {};
    return rate(seconds, 2.0 * ROUNDS * CHAINS * REGISTER_BYTES, [&] {
        asm volatile("" : "+x"(y), "+x"(z));
        for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 20
            for (int c = 0; c < CHAINS; c++) {
                asm volatile("" : "+x"(x));  // or one product would serve every chain
#if defined(KVIK_WORDS)
                acc[c] = dot2(dot2(acc[c], (words)x, (words)y), (words)x, (words)z);
#else
                acc[c] = dot4(acc[c], x, y);
#endif
            }
        for (int c = 0; c < CHAINS; c++) asm volatile("" : "+x"(acc[c]));
    });
}
#endif

static double peak(int32_t form, double seconds) {
    if (form == KVIK_INT8) return peak_of_int8(seconds);
    return form == KVIK_F32 ? peak_of_f32(seconds) : peak_of_bf16(seconds);
}

static const kvik::Kernels TABLE = {
    KVIK_ISA_NAME, ACT_OF_BF16, ACT_OF_INTEGERS, begin,   end,
    embed,         rms_norm,    convert,         silu_mul, linear,
    rope_store,    attend_scratch, attend,       combine, sampler_scratch_bytes,
    draw_one,      score_one,   pack_integers,   peak,
};

const kvik::Kernels* table() { return &TABLE; }

}  // namespace KVIK_ISA
