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

template <class T>
T* Model::taken(int64_t count) {
    T* memory = weights.take<T>(count);
    if (!memory) throw Error{"no memory for more than " + std::to_string(weights.size() >> 20) + " MiB of weights"};
    return memory;
}
template float* Model::taken<float>(int64_t);
template int32_t* Model::taken<int32_t>(int64_t);

const Matrix& Model::prepared(const Place& place, Matrix like) {
    Matrix& m = *place.matrix;
    if (!m.data) {
        like.data = taken<char>(like.bytes());
        if (like.form == KVIK_INT8) like.scales = taken<float>(like.panels * PANEL);
        return m = like;
    }
    const bool same = m.form == like.form && m.group == like.group && m.parts == like.parts &&
                      m.has_offsets == like.has_offsets && m.order == like.order;
    if (!same) throw Error{"gate and up of a layer have different forms; expected them apart"};
    return m;
}

void Model::pack_rows(const Place& place, const void* data, int32_t form) {
    const Matrix& matrix = *place.matrix;
    const int64_t rows = place.rows, columns = place.columns;
    const int64_t per_panel = place.interleaved ? TILE : PANEL;
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
                sources[place.first + c] = source;
            }
            if (whole)
                kernels->pack_integers({matrix, panel, reinterpret_cast<const float* const*>(sources), columns,
                                        spec.weight_symmetric != 0, scratch.data()});
            else
                pack_panel(matrix, panel, sources, columns);
        });
    });
}

void Model::check_layer(int32_t role, int32_t layer) const {
    if (role >= KVIK_ATTN_NORM && (layer < 0 || layer >= spec.num_layers))
        throw Error{"no layer " + std::to_string(layer)};
}

// Of a role that is no matrix there is none.
Model::Place Model::place_of(int32_t role, int32_t index) {
    check_layer(role, index);
    Layer none{};
    Layer& layer = role >= KVIK_ATTN_NORM ? layers[index] : none;
    const int64_t hidden = spec.hidden_size, inner = spec.intermediate_size, vocab = spec.vocab_size;
    switch (role) {
        case KVIK_EMBED: return {&embedding, vocab, hidden, 0, false};
        case KVIK_HEAD: return {spec.tied_head ? nullptr : &own_head, vocab, hidden, 0, false};
        case KVIK_Q: return {&layer.q, q_columns(), hidden, 0, false};
        case KVIK_K: return {&layer.k, kv_columns(), hidden, 0, false};
        case KVIK_V: return {&layer.v, kv_columns(), hidden, 0, false};
        case KVIK_O: return {&layer.o, hidden, q_columns(), 0, false};
        case KVIK_GATE: return {&layer.gate_up, inner, hidden, 0, true};
        case KVIK_UP: return {&layer.gate_up, inner, hidden, TILE, true};
        case KVIK_GATE_ALONE: return {&layer.gate, inner, hidden, 0, false};
        case KVIK_UP_ALONE: return {&layer.up, inner, hidden, 0, false};
        case KVIK_DOWN: return {&layer.down, hidden, inner, 0, false};
        default: return {nullptr, 0, 0, 0, false};
    }
}

float* Model::vector_of(int32_t role, int32_t index, int64_t size) {
    check_layer(role, index);
    Layer none{};
    const Layer& layer = role >= KVIK_ATTN_NORM ? layers[index] : none;
    auto of_size = [&](float* vector, int64_t expected) { return size == expected ? vector : nullptr; };
    float* biases = layer.qkv_bias;
    switch (role) {
        case KVIK_FINAL_NORM: return of_size(final_norm, spec.hidden_size);
        case KVIK_ATTN_NORM: return of_size(layer.attn_norm, spec.hidden_size);
        case KVIK_MLP_NORM: return of_size(layer.mlp_norm, spec.hidden_size);
        case KVIK_Q_BIAS: return of_size(biases, q_columns());
        case KVIK_K_BIAS: return of_size(biases ? biases + k_column() : nullptr, kv_columns());
        case KVIK_V_BIAS: return of_size(biases ? biases + v_column() : nullptr, kv_columns());
        case KVIK_O_BIAS: return of_size(layer.o_bias, spec.hidden_size);
        case KVIK_Q_NORM: return of_size(layer.q_norm, spec.head_dim);
        case KVIK_K_NORM: return of_size(layer.k_norm, spec.head_dim);
        default: throw Error{"no role " + std::to_string(role)};
    }
}

void Model::load(int32_t role, int32_t index, const void* data, int32_t form, int64_t rows, int64_t columns) {
    const Place place = place_of(role, index);
    if (!place.matrix) {
        float* vector = rows == 1 ? vector_of(role, index, columns) : nullptr;
        if (!vector) throw Error{"a weight of the wrong shape"};
        convert_row(data, form, 0, columns, KVIK_F32, vector);
        return;
    }
    if (rows != place.rows || columns != place.columns) throw Error{"a weight of the wrong shape"};
    prepared(place, plain(place.interleaved ? 2 * inner() : rows, columns));
    pack_rows(place, data, form);
}

void Model::check_complete() {
    if (complete_) return;
    bool all = embedding.data && head().data;
    for (const Layer& w : layers) {
        const bool mlp = w.down.data && (w.gate_up.data || (w.gate.data && w.up.data));
        all = all && mlp && w.q.data && w.k.data && w.v.data && w.o.data;
    }
    if (!all) throw Error{"a step before every weight was loaded"};
    complete_ = true;
}

}  // namespace kvik
