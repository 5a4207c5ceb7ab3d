// How matrices and the KV cache lie in memory. One layout serves every instruction set.
//
// A PANEL is 32 columns (outputs) of a matrix; it is stored in K-BLOCKS of 32 rows (inputs), one after another, so a
// matrix product reads its weights strictly forward. Columns and inputs are padded with zeroes to multiples of 32.
//
//   bf16 K-block, 2 KB = two tiles in the operand order of the matrix units (AMX TDPBF16PS, AVX512 VDPBF16PS):
//       [tile: columns 0-15, 16-31][pair of inputs: 16][column in tile: 16][input in pair: 2]
//   f32 K-block, 4 KB:
//       [input: 32][column: 32]
//   int8 K-block, 1 KB, each number plus 128; the scale of each column lies apart (Matrix::scales):
//       [four inputs: 8][column: 32][input of four: 4]
//
// The other forms of whole numbers have a STRIP behind every `group` K-blocks of a panel (fewer at its end) with what
// those inputs have in common, for each column:
//
//   int4    K-blocks of 512 bytes of nibbles; strip: an f16 scale, and the byte 128 - zero, which added to the nibbles
//           makes them bytes of an int8 K-block. 96 bytes a group.
//               K-block: byte i: bits 0 .. 3 for byte i of the int8 K-block, bits 4 .. 7 for its byte 512 + i
//               strip: [column: 32] f16, [column: 32] bytes
//   bytes   int8 K-blocks; strip: a float scale, and in a matrix with offsets a float that is added to every weight.
//           Where 16 inputs share a scale (`parts` 2) each K-block has a strip with those of both halves.
//               strip: [part][column: 32] scales, [part][column: 32] offsets
//   k4      GGUF's Q4_K: nibbles as in int4, and 32 bytes of factors of the scale and 32 of the minimum; a strip of
//           steps every 8 K-blocks.   weight = step * factor * nibble - min step * min factor
//               K-block: [512], [column: 32] factors, [column: 32] min factors; strip: [column: 32] f16 steps, min steps
//   k6      GGUF's Q6_K: nibbles as in int4, two more bits of each number, signed factors for 16 inputs each; a strip of
//           steps every 8 K-blocks.   weight = step * factor * (number - 32)
//               K-block: [512], [part: 2][column: 32][input of four: 4] bytes with the upper bits of the same input of
//               four quads, [part: 2][column: 32] factors; strip: [column: 32] f16 steps
//
// The KV cache uses the same blocks. A GROUP is 32 consecutive positions of one sequence and KV head:
//
//   keys of a group:   a panel whose columns are the positions and whose inputs are the head's dimensions
//                      (scores = q x panel)
//   values of a group: for each 32 dimensions one K-block whose inputs are the positions and whose columns are the
//                      dimensions (output = probabilities x K-blocks of all groups)
//
//   int8: K-blocks of int8, then the float scale of each position: [keys][32 scales][values][32 scales]
//
//   arena: [layer][block][group of the block][keys of all kv heads | values of all kv heads]
//
// Keys of all heads lie together, and so do values: attention takes all keys of some groups, then all values, and memory
// is fast only where such runs are longer than its pages of 4 KB.
#pragma once

#include <cstdint>

#include "kvik.h"

// Always inlined: an out-of-line copy from one instruction set's translation unit could be linked into another's.
#define KVIK_ALWAYS inline __attribute__((always_inline))

namespace kvik {

constexpr int PANEL = 32;
constexpr int KBLOCK = 32;
constexpr int TILE = 16;
constexpr int GROUP = 32;

KVIK_ALWAYS int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
KVIK_ALWAYS int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

// Bytes of one element of a float form.
KVIK_ALWAYS int64_t form_bytes(int32_t form) { return form == KVIK_F32 ? 4 : 2; }

constexpr int64_t NIBBLES = KBLOCK * PANEL / 2, WHOLE_BYTES = KBLOCK * PANEL;
// Where the parts of strips and K-blocks begin (see above).
constexpr int64_t INT4_LIFTS = PANEL * 2, INT4_STRIP = INT4_LIFTS + PANEL;
constexpr int64_t K4_FACTORS = NIBBLES, K4_MIN_FACTORS = K4_FACTORS + PANEL, K4_BLOCK = K4_MIN_FACTORS + PANEL;
constexpr int64_t K4_MIN_STEPS = PANEL * 2, K4_STRIP = 2 * K4_MIN_STEPS;
constexpr int64_t K6_UPPER = NIBBLES, K6_FACTORS = K6_UPPER + NIBBLES / 2, K6_BLOCK = K6_FACTORS + 2 * PANEL;
constexpr int64_t K6_STRIP = PANEL * 2;
constexpr int32_t K6_ZERO = 32;
// K-blocks that share the steps of k4 and k6.
constexpr int64_t SUPER_BLOCK = 8;
// What is added to a whole number to store it as an unsigned byte.
constexpr int32_t BYTE_OFFSET = 128;

// Bytes of a K-block without its strip.
KVIK_ALWAYS int64_t kblock_bytes(int32_t form) {
    switch (form) {
        case KVIK_F32: return KBLOCK * PANEL * 4;
        case KVIK_INT8:
        case KVIK_BYTES: return WHOLE_BYTES;
        case KVIK_INT4: return NIBBLES;
        case KVIK_K4: return K4_BLOCK;
        case KVIK_K6: return K6_BLOCK;
        default: return KBLOCK * PANEL * 2;
    }
}

// Element offset within a K-block of (column, input).
KVIK_ALWAYS int64_t bf16_offset(int64_t column, int64_t input) {
    return (column / TILE) * (KBLOCK * TILE) + (input / 2) * (TILE * 2) + (column % TILE) * 2 + input % 2;
}
KVIK_ALWAYS int64_t f32_offset(int64_t column, int64_t input) { return input * PANEL + column; }

KVIK_ALWAYS int64_t int8_offset(int64_t column, int64_t input) {
    return input / 4 * (PANEL * 4) + column * 4 + input % 4;
}
// Of the byte that holds a nibble, and the nibble's first bit in it.
KVIK_ALWAYS int64_t int4_byte(int64_t column, int64_t input) { return int8_offset(column, input) % NIBBLES; }
KVIK_ALWAYS int int4_shift(int64_t input) { return input < KBLOCK / 2 ? 0 : 4; }
// 32 levels 0 .. 15 of a column.
KVIK_ALWAYS void put_nibbles(char* block, int64_t column, const uint8_t* levels) {
    for (int64_t k = 0; k < KBLOCK / 2; k++)
        block[int4_byte(column, k)] = static_cast<char>(levels[k] | levels[k + KBLOCK / 2] << 4);
}
// Where the upper two bits of a k6 number lie, and their first bit.
KVIK_ALWAYS int64_t k6_upper_byte(int64_t column, int64_t input) {
    return K6_UPPER + input / 16 * (PANEL * 4) + column * 4 + input % 4;
}
KVIK_ALWAYS int k6_upper_shift(int64_t input) { return static_cast<int>(input % 16 / 4 * 2); }

// 32 activations as whole numbers, x = scale * (high + low / 256): the inputs of one K-block. `low` is there only where
// it is needed. The bias undoes what BYTE_OFFSET adds to a product: -128 times the sum of the numbers, in 256ths if
// there are low ones.
// Eight rows that are multiplied together lie side by side and all their blocks close by, [rows / 8][columns / 32][8]:
// at whole rows' distances they would meet in a few sets of the first cache.
struct ActBlock {
    int8_t high[KBLOCK];
    float scale;
    int32_t bias, has_low, bias_of_half;  // the last for the first 16 of them
    int8_t low[KBLOCK];
};

constexpr int64_t ACT_ROWS = 8;
KVIK_ALWAYS int64_t act_block(int64_t row, int64_t kblock, int64_t kblocks) {
    return (row / ACT_ROWS * kblocks + kblock) * ACT_ROWS + row % ACT_ROWS;
}

// A packed matrix: `panels` panels of `kblocks` K-blocks, with a strip behind every `group`.
struct Matrix {
    char* data = nullptr;
    float* scales = nullptr;         // [panels * 32] or null: what a column's sums are multiplied with in the end
    const int32_t* order = nullptr;  // [kblocks * 32] or null: the input that each row of weights takes, -1 for none
    int32_t form = 0, parts = 1;
    bool has_offsets = false;
    int64_t panels = 0, kblocks = 0, group = 1;

    KVIK_ALWAYS int64_t block_bytes() const { return kblock_bytes(form); }
    KVIK_ALWAYS int64_t strip_bytes() const {
        switch (form) {
            case KVIK_INT4: return INT4_STRIP;
            case KVIK_BYTES: return parts * (has_offsets ? 2 : 1) * PANEL * 4;
            case KVIK_K4: return K4_STRIP;
            case KVIK_K6: return K6_STRIP;
            default: return 0;
        }
    }
    KVIK_ALWAYS int64_t panel_bytes() const {
        return kblocks * block_bytes() + (kblocks + group - 1) / group * strip_bytes();
    }
    KVIK_ALWAYS int64_t bytes() const { return panels * panel_bytes(); }
    KVIK_ALWAYS char* panel(int64_t p) const { return data + p * panel_bytes(); }
    KVIK_ALWAYS char* block(int64_t p, int64_t kblock) const {
        return panel(p) + kblock * block_bytes() + kblock / group * strip_bytes();
    }
    // Of the group that this K-block belongs to.
    KVIK_ALWAYS char* strip(int64_t p, int64_t kblock) const {
        const int64_t begin = kblock / group * group, end = begin + group < kblocks ? begin + group : kblocks;
        return block(p, begin) + (end - begin) * block_bytes();
    }
};

// Where the keys and values of a (layer, block, head) lie.
struct KvLayout {
    int32_t form = 0;
    int64_t num_blocks = 0, block_size = 0, num_kv_heads = 0, head_dim = 0;

    KVIK_ALWAYS int64_t head_dim_padded() const { return padded(head_dim); }
    KVIK_ALWAYS int64_t kblocks() const { return head_dim_padded() / KBLOCK; }
    // Of one head's keys in a group, and as much of its values. The scales of an int8 group are the last 128 bytes.
    KVIK_ALWAYS int64_t keys_bytes() const {
        return kblocks() * kblock_bytes(form) + (form == KVIK_INT8 ? GROUP * 4 : 0);
    }
    KVIK_ALWAYS int64_t scales_offset() const { return kblocks() * kblock_bytes(form); }
    // Within a group: where a head's keys and values begin.
    KVIK_ALWAYS int64_t keys_offset(int64_t head) const { return head * keys_bytes(); }
    KVIK_ALWAYS int64_t values_offset(int64_t head) const { return (num_kv_heads + head) * keys_bytes(); }
    KVIK_ALWAYS int64_t group_bytes() const { return 2 * num_kv_heads * keys_bytes(); }
    KVIK_ALWAYS int64_t block_bytes() const { return block_size / GROUP * group_bytes(); }
    KVIK_ALWAYS int64_t layer_bytes() const { return num_blocks * block_bytes(); }
};

// Hands out 64-byte aligned pieces of a span, one after another; with a null span it only measures.
class Carver {
public:
    KVIK_ALWAYS explicit Carver(char* base = nullptr) : base_(base) {}
    template <class T>
    KVIK_ALWAYS T* take(int64_t count) {
        char* p = base_ ? base_ + used_ : nullptr;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(p);
    }
    KVIK_ALWAYS int64_t used() const { return used_; }

private:
    char* base_;
    int64_t used_ = 0;
};

}  // namespace kvik
