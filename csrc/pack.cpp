// Taking weights in: from rows as stored in a checkpoint to panels, converting between float forms on the way.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace kvik {
namespace {

float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

float from_half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float small = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -small : small;
}

uint16_t to_bf16(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    if (x != x) return static_cast<uint16_t>(b >> 16 | 0x40);
    return static_cast<uint16_t>((b + ((b >> 16 & 1) + 0x7fff)) >> 16);
}

float read(const void* data, int32_t form, int64_t i) {
    if (form == KVIK_F32) return static_cast<const float*>(data)[i];
    uint16_t h = static_cast<const uint16_t*>(data)[i];
    return form == KVIK_F16 ? from_half(h) : bits_to_float(uint32_t(h) << 16);
}

// One K-block from 32 rows of inputs; rows[c] is null for a column of padding.
template <class T>
void pack_block(const T* const* rows, int64_t first, int64_t count, char* block) {
    T* out = reinterpret_cast<T*>(block);
    for (int64_t c = 0; c < PANEL; c++) {
        if (!rows[c]) continue;
        for (int64_t k = 0; k < count; k++)
            out[sizeof(T) == 2 ? bf16_offset(c, k) : f32_offset(c, k)] = rows[c][first + k];
    }
}

// One panel from 32 rows in the matrix's own form.
void pack_panel(const Matrix& matrix, int64_t panel, const void* const* rows, int64_t columns) {
    auto floats = reinterpret_cast<const float* const*>(rows);
    for (int64_t k = 0; k < matrix.kblocks; k++) {
        int64_t first = k * KBLOCK, count = std::min<int64_t>(KBLOCK, columns - first);
        char* block = matrix.panel(panel) + k * matrix.block_bytes();
        if (matrix.form == KVIK_F32)
            pack_block(floats, first, count, block);
        else
            pack_block(reinterpret_cast<const uint16_t* const*>(rows), first, count, block);
    }
}

}  // namespace

void convert_row(const void* data, int32_t form, int64_t offset, int64_t count, int32_t to_form, void* out) {
    if (form == to_form) {
        std::memcpy(out, static_cast<const char*>(data) + offset * form_bytes(form), count * form_bytes(form));
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        float x = read(data, form, offset + i);
        if (to_form == KVIK_F32)
            static_cast<float*>(out)[i] = x;
        else
            static_cast<uint16_t*>(out)[i] = to_bf16(x);
    }
}

void Model::pack_rows(const Matrix& matrix, const void* data, int32_t form, int64_t rows, int64_t columns,
                      int64_t first_column, bool interleaved) {
    // Source row of a panel's column, or -1. Interleaved: 16 rows a panel, into the tile that first_column names.
    const int64_t per_panel = interleaved ? TILE : PANEL;
    const int64_t first_panel = first_column / PANEL, within = first_column % PANEL;
    const bool whole = matrix.form == KVIK_INT8 || matrix.form == KVIK_INT4;
    const int32_t from = whole ? int32_t(KVIK_F32) : matrix.form;
    claims.reset(1);
    pool.run([&](int) {
        std::vector<char> converted(form == from ? 0 : PANEL * columns * form_bytes(from));
        std::vector<float> scratch(whole ? matrix.kblocks * KBLOCK : 0);
        claims.each(0, (rows + per_panel - 1) / per_panel, 1, [&](int64_t panel, int64_t) {
            const void* sources[PANEL] = {};
            for (int64_t c = 0; c < per_panel; c++) {
                int64_t row = panel * per_panel + c;
                if (row >= rows) break;
                const char* source = static_cast<const char*>(data) + row * columns * form_bytes(form);
                if (!converted.empty()) {
                    char* copy = converted.data() + c * columns * form_bytes(from);
                    convert_row(data, form, row * columns, columns, from, copy);
                    source = copy;
                }
                sources[within + c] = source;
            }
            if (whole)
                kernels->pack_integers({matrix, first_panel + panel, reinterpret_cast<const float* const*>(sources),
                                        columns, spec.weight_group, spec.weight_symmetric != 0, scratch.data()});
            else
                pack_panel(matrix, first_panel + panel, sources, columns);
        });
    });
}

void Model::load(int32_t role, int32_t index, const void* data, int32_t form, int64_t rows, int64_t columns) {
    const bool per_layer = role >= KVIK_ATTN_NORM;
    if (per_layer && (index < 0 || index >= spec.num_layers)) throw Error{"no layer " + std::to_string(index)};
    Layer none{};
    Layer& layer = per_layer ? layers[index] : none;
    auto matrix = [&](const Matrix& to, int64_t want_rows, int64_t want_columns, int64_t first, bool interleaved) {
        if (rows != want_rows || columns != want_columns || !to.data) throw Error{"a weight of the wrong shape"};
        pack_rows(to, data, form, rows, columns, first, interleaved);
    };
    auto vector = [&](float* to, int64_t size) {
        if (rows != 1 || columns != size || !to) throw Error{"a weight of the wrong shape"};
        convert_row(data, form, 0, size, KVIK_F32, to);
    };
    const int64_t hidden_size = spec.hidden_size, inner_size = spec.intermediate_size;
    switch (role) {
        case KVIK_EMBED:
            return matrix(embedding, spec.vocab_size, hidden_size, 0, false);
        case KVIK_HEAD: return matrix(head, spec.vocab_size, hidden_size, 0, false);
        case KVIK_FINAL_NORM: return vector(final_norm, hidden_size);
        case KVIK_ATTN_NORM: return vector(layer.attn_norm, hidden_size);
        case KVIK_MLP_NORM: return vector(layer.mlp_norm, hidden_size);
        case KVIK_Q: return matrix(layer.qkv, q_columns(), hidden_size, 0, false);
        case KVIK_K: return matrix(layer.qkv, kv_columns(), hidden_size, k_column(), false);
        case KVIK_V: return matrix(layer.qkv, kv_columns(), hidden_size, v_column(), false);
        case KVIK_O: return matrix(layer.o, hidden_size, q_columns(), 0, false);
        case KVIK_Q_BIAS: return vector(layer.qkv_bias, q_columns());
        case KVIK_K_BIAS: return vector(layer.qkv_bias ? layer.qkv_bias + k_column() : nullptr, kv_columns());
        case KVIK_V_BIAS: return vector(layer.qkv_bias ? layer.qkv_bias + v_column() : nullptr, kv_columns());
        case KVIK_O_BIAS: return vector(layer.o_bias, hidden_size);
        case KVIK_Q_NORM: return vector(layer.q_norm, spec.head_dim);
        case KVIK_K_NORM: return vector(layer.k_norm, spec.head_dim);
        case KVIK_GATE: return matrix(layer.gate_up, inner_size, hidden_size, 0, true);
        case KVIK_UP: return matrix(layer.gate_up, inner_size, hidden_size, TILE, true);
        case KVIK_DOWN: return matrix(layer.down, hidden_size, inner_size, 0, false);
        default: throw Error{"no role " + std::to_string(role)};
    }
}

}  // namespace kvik
