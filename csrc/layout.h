// How matrices and the KV cache lie in memory. One layout serves every instruction set.
//
// A PANEL is 32 columns (outputs) of a matrix; it is stored in K-BLOCKS of 32 rows (inputs), one after another, so a
// matrix product reads its weights strictly forward. Columns and inputs are padded with zeroes to multiples of 32.
//
//   bf16 K-block, 2 KB = two tiles in the operand order of the matrix units (AMX TDPBF16PS, AVX512 VDPBF16PS):
//       [tile: columns 0-15, 16-31][pair of inputs: 16][column in tile: 16][input in pair: 2]
//   f32 K-block, 4 KB:
//       [input: 32][column: 32]
//
// The KV cache uses the same blocks. A GROUP is 32 consecutive positions of one sequence and KV head:
//
//   keys of a group:   a panel whose columns are the positions and whose inputs are the head's dimensions
//                      (scores = q x panel)
//   values of a group: for each 32 dimensions one K-block whose inputs are the positions and whose columns are the
//                      dimensions (output = probabilities x K-blocks of all groups)
//
//   arena: [layer][block][kv head][group of the block][keys | values]
#pragma once

#include <cstdint>

// Always inlined: an out-of-line copy from one instruction set's translation unit could be linked into another's.
#define KVIK_ALWAYS inline __attribute__((always_inline))

namespace kvik {

constexpr int PANEL = 32;
constexpr int KBLOCK = 32;
constexpr int TILE = 16;
constexpr int GROUP = 32;

KVIK_ALWAYS int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
KVIK_ALWAYS int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

// Bytes of one element of a form (enum KvikForm).
KVIK_ALWAYS int64_t form_bytes(int32_t form) { return form == 1 ? 4 : 2; }

// Element offset within a K-block of (column, input).
KVIK_ALWAYS int64_t bf16_offset(int64_t column, int64_t input) {
    return (column / TILE) * (KBLOCK * TILE) + (input / 2) * (TILE * 2) + (column % TILE) * 2 + input % 2;
}
KVIK_ALWAYS int64_t f32_offset(int64_t column, int64_t input) { return input * PANEL + column; }

// A packed matrix: `panels` panels of `kblocks` K-blocks.
struct Matrix {
    void* data = nullptr;
    int32_t form = 0;
    int64_t panels = 0, kblocks = 0;

    KVIK_ALWAYS int64_t block_bytes() const { return KBLOCK * PANEL * form_bytes(form); }
    KVIK_ALWAYS int64_t panel_bytes() const { return kblocks * block_bytes(); }
    KVIK_ALWAYS int64_t bytes() const { return panels * panel_bytes(); }
    KVIK_ALWAYS char* panel(int64_t p) const { return static_cast<char*>(data) + p * panel_bytes(); }
};

// Where the keys and values of a (layer, block, head) lie.
struct KvLayout {
    int32_t form = 0;
    int64_t num_blocks = 0, block_size = 0, num_kv_heads = 0, head_dim = 0;

    KVIK_ALWAYS int64_t head_dim_padded() const { return padded(head_dim); }
    KVIK_ALWAYS int64_t keys_bytes() const { return head_dim_padded() * GROUP * form_bytes(form); }
    KVIK_ALWAYS int64_t group_bytes() const { return 2 * keys_bytes(); }
    KVIK_ALWAYS int64_t head_bytes() const { return block_size / GROUP * group_bytes(); }
    KVIK_ALWAYS int64_t block_bytes() const { return num_kv_heads * head_bytes(); }
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
