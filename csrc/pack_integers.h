// One panel of whole numbers from 32 rows of floats: quantized (quantize.h) and put where products look (layout.h).
#pragma once

#include "kernels.h"
#include "quantize.h"

namespace KVIK_ISA {

using kvik::PackArgs;

constexpr int64_t MAX_GROUP = 128;

KVIK_INLINE void pack_int8_column(const PackArgs& args, int64_t c, int8_t* q) {
    const kvik::Matrix& m = args.matrix;
    char* panel = m.panel(args.panel);
    quantize_int8_row(args.rows[c], args.columns, q, m.scales + args.panel * kvik::PANEL + c);
    for (int64_t k = 0; k < args.columns; k++)
        panel[k / kvik::KBLOCK * m.block_bytes() + kvik::int8_offset(c, k % kvik::KBLOCK)] =
            static_cast<char>(q[k] + kvik::BYTE_OFFSET);
}

// The levels, scale and zero of one group, which may span several K-blocks.
KVIK_INLINE void pack_int4_column(const PackArgs& args, int64_t c, float* row) {
    const kvik::Matrix& m = args.matrix;
    const int64_t padded = m.kblocks * kvik::KBLOCK, group = m.group * kvik::KBLOCK;
    std::memcpy(row, args.rows[c], args.columns * sizeof(float));
    std::memset(row + args.columns, 0, (padded - args.columns) * sizeof(float));
    for (int64_t first = 0; first < args.columns; first += group) {
        const int64_t count = args.columns - first < group ? args.columns - first : group;
        uint8_t q[MAX_GROUP], zero;
        uint16_t scale;
        quantize_int4_group(row + first, count, args.symmetric, q, &scale, &zero);
        char* strip = m.strip(args.panel, first / kvik::KBLOCK);
        store_as(strip + c * 2, scale);
        strip[kvik::INT4_LIFTS + c] = static_cast<char>(kvik::BYTE_OFFSET - zero);
        for (int64_t k = 0; k < count; k += kvik::KBLOCK)
            kvik::put_nibbles(m.block(args.panel, (first + k) / kvik::KBLOCK), c, q + k);
    }
}

static void pack_integers(const PackArgs& args) {
    for (int64_t c = 0; c < kvik::PANEL; c++) {
        if (!args.rows[c]) continue;
        if (args.matrix.form == KVIK_INT8)
            pack_int8_column(args, c, reinterpret_cast<int8_t*>(args.scratch));
        else
            pack_int4_column(args, c, args.scratch);
    }
}

}  // namespace KVIK_ISA
