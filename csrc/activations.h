// Activations in the forms that matrix products take: floats, bf16, or whole numbers in blocks of 32.
//
// Whole numbers are of 8 bits and share a scale per 32 inputs. Real models have channels 50 times larger than the rest,
// and beside one of those the others would keep a bit or two; so a block whose largest value stands out is given eight
// more bits (`low`), which costs a second product for this row and block only. What a row becomes depends on its own
// values alone.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace KVIK_ISA {

using kvik::ActBlock;
using kvik::ActForm;

// Write 16 activations in a form of floats.
KVIK_INLINE void store_act(void* base, int64_t index, f32x16 v, ActForm form) {
    if (form == kvik::ACT_BF16) {
        store_as(static_cast<uint16_t*>(base) + index, to_bf16(v));
    } else {
        store(static_cast<float*>(base) + index, form == kvik::ACT_F32 ? v : from_bf16(to_bf16(v)));
    }
}

KVIK_INLINE f32x16 load_act(const uint16_t* p) { return from_bf16(load_as<u16x16>(p)); }
KVIK_INLINE f32x16 load_act(const float* p) { return load(p); }

// The largest value of a block over the mean of all, from which on it gets low bits. 32 normal draws stay below 5,
// products of two such seldom pass 12, and one value of 50 times the others' size is mostly above. At 12 and without low
// bits the largest is 15 deviations of the others, and the rounding error 3 % of one.
constexpr float STANDS_OUT = 12.0f;

KVIK_INLINE f32x16 absolute(f32x16 v) { return from_bits(bits(v) & 0x7fffffffu); }

// The nearest whole number (ties to even) of |v| < 2^22, as a float and as an integer.
struct Whole16 {
    f32x16 value;
    u32x16 integer;
};
KVIK_INLINE Whole16 nearest_whole(f32x16 v) {
    const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    f32x16 shifted = v + magic;
    return {shifted - magic, bits(shifted) - bits(magic)};
}

KVIK_INLINE void store_bytes(int8_t* out, u32x16 v) {
    typedef uint8_t u8x16 __attribute__((vector_size(16)));
    store_as(out, __builtin_convertvector(v, u8x16));
}

KVIK_INLINE int32_t bias_of(float sum_of_whole) { return -kvik::BYTE_OFFSET * static_cast<int32_t>(sum_of_whole); }

// 32 values in steps of 1/127 of the largest.
struct Steps {
    f32x16 left, right;
    float step;

    KVIK_INLINE Steps(f32x16 l, f32x16 r) {
        const float top = largest(max(absolute(l), absolute(r)));
        float inverse = 127.0f / top;
        if (!(inverse <= 3.4028235e38f)) inverse = 0;  // of 0, or too large for a float
        left = l * inverse;
        right = r * inverse;
        step = top / 127.0f;
    }
};

// The whole steps of a block, and where wanted what is left in 256ths of one. Returns the sum of all in steps (or in
// 256ths), from which the bias follows; it is NaN if any value was. HALVES: also the bias of the first half.
template <bool HALVES>
KVIK_INLINE float store_steps(const Steps& steps, bool low, ActBlock& out) {
    const Whole16 left = nearest_whole(steps.left), right = nearest_whole(steps.right);
    store_bytes(out.high, left.integer);
    store_bytes(out.high + LANES, right.integer);
    out.has_low = low;
    if (!low) {
        if constexpr (HALVES) out.bias_of_half = bias_of(sum(left.value));
        return sum(left.value + right.value);
    }
    const f32x16 most = splat(127.0f);
    f32x16 rest_left = (steps.left - left.value) * 256.0f, rest_right = (steps.right - right.value) * 256.0f;
    rest_left = select_less(most, rest_left, most, rest_left);
    rest_right = select_less(most, rest_right, most, rest_right);
    const Whole16 low_left = nearest_whole(rest_left), low_right = nearest_whole(rest_right);
    store_bytes(out.low, low_left.integer);
    store_bytes(out.low + LANES, low_right.integer);
    if constexpr (HALVES) out.bias_of_half = bias_of(sum(fma(left.value, splat(256.0f), low_left.value)));
    return sum(fma(left.value + right.value, splat(256.0f), low_left.value + low_right.value));
}

// With low bits always.
KVIK_INLINE void quantize_exactly(f32x16 left, f32x16 right, ActBlock& out) {
    const Steps steps(left, right);
    const float total = store_steps<false>(steps, true, out);
    out.bias = bias_of(total);
    // NaN compares as nothing: say so in the scale, or a broken row would look sound.
    out.scale = steps.step + total * 0.0f;
}

// With low bits where the largest value stands out.
KVIK_INLINE void quantize_block(f32x16 left, f32x16 right, ActBlock& out) {
    const Steps steps(left, right);
    const float size = sum(absolute(left) + absolute(right));
    const float total = store_steps<true>(steps, steps.step * (127.0f * 32.0f) > STANDS_OUT * size, out);
    out.bias = bias_of(total);
    out.scale = steps.step + size * 0.0f;
}

// Write columns c .. c + 32 of a row of activations in any form; `stride` as in LinearArgs.
KVIK_INLINE void store_act32(void* base, int64_t row, int64_t stride, int64_t c, f32x16 left, f32x16 right,
                             ActForm form) {
    if (form == kvik::ACT_INT8) {
        quantize_block(left, right, static_cast<ActBlock*>(base)[kvik::act_block(row, c / kvik::KBLOCK, stride)]);
    } else {
        store_act(base, row * stride + c, left, form);
        store_act(base, row * stride + c + LANES, right, form);
    }
}

// Rows of floats in the form, and the order, that a matrix takes them in.
static void convert(const kvik::ConvertArgs& args, int64_t begin, int64_t end) {
    alignas(64) float ordered[kvik::KBLOCK];
    for (int64_t i = begin; i < end; i++) {
        const float* row = args.x + i * args.columns;
        for (int64_t c = 0; c < args.columns; c += kvik::KBLOCK) {
            const float* x = row + c;
            if (args.order) {
                for (int64_t k = 0; k < kvik::KBLOCK; k++)
                    ordered[k] = args.order[c + k] < 0 ? 0.0f : row[args.order[c + k]];
                x = ordered;
            }
            store_act32(args.out, i, args.out_stride, c, load(x), load(x + LANES), args.form);
        }
    }
}

}  // namespace KVIK_ISA
