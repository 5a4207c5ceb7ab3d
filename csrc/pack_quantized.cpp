// Taking weights in that are whole numbers already: levels, scales and zeros are put where products look (layout.h), and
// nothing is rounded.

#include <algorithm>
#include <cstring>

#include "model.h"

namespace kvik {
namespace {

template <class T>
void put(char* at, int64_t column, T value) {
    std::memcpy(at + column * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

template <class T>
T value_at(const void* values, int64_t i) {
    return static_cast<const T*>(values)[i];
}

// 32 levels of a K-block, zero past the row's end.
void put_levels(int32_t form, char* block, int64_t c, const uint8_t* levels) {
    if (form == KVIK_INT8 || form == KVIK_BYTES) {
        for (int64_t k = 0; k < KBLOCK; k += 4) std::memcpy(block + int8_offset(c, k), levels + k, 4);
        return;
    }
    uint8_t nibbles[KBLOCK];
    for (int64_t k = 0; k < KBLOCK; k++) nibbles[k] = levels[k] & 15;
    put_nibbles(block, c, nibbles);
    for (int64_t k = 0; form == KVIK_K6 && k < KBLOCK; k++) {
        char& upper = block[k6_upper_byte(c, k)];
        upper = static_cast<char>(upper | (levels[k] >> 4 << k6_upper_shift(k)));
    }
}

// What one column has beside its levels: in the K-block's own factors, and in the strip that follows the group.
class Column {
public:
    Column(const KvikQuantized& w, const Matrix& m, int64_t row)
        : w_(w), m_(m), row_(row), groups_((w.columns + w.group - 1) / w.group) {}

    void put_factors(char* block, int64_t c, int64_t kblock) const {
        const int64_t at = row_ * m_.kblocks + kblock;
        if (m_.form == KVIK_K4) {
            block[K4_FACTORS + c] = static_cast<char>(w_.factors[at]);
            block[K4_MIN_FACTORS + c] = static_cast<char>(w_.min_factors[at]);
        }
        for (int64_t part = 0; m_.form == KVIK_K6 && part < 2; part++)
            block[K6_FACTORS + part * PANEL + c] = static_cast<char>(w_.factors[2 * at + part]);
    }

    void put_strip(char* strip, int64_t c, int64_t kblock) const {
        const int64_t steps = row_ * (m_.kblocks / SUPER_BLOCK) + kblock / SUPER_BLOCK;
        switch (m_.form) {
            case KVIK_INT4: {
                const int64_t at = row_ * groups_ + kblock / m_.group;
                put(strip, c, value_at<uint16_t>(w_.scales, at));
                put(strip + INT4_LIFTS, c, value_at<uint8_t>(w_.zeros, at));
                return;
            }
            case KVIK_BYTES:
                for (int64_t part = 0; part < m_.parts; part++) put_scale(strip + part * PANEL * 4, c, kblock, part);
                return;
            case KVIK_K4: put(strip + K4_MIN_STEPS, c, value_at<uint16_t>(w_.zeros, steps)); [[fallthrough]];
            case KVIK_K6: put(strip, c, value_at<uint16_t>(w_.scales, steps)); return;
            default: return;
        }
    }

private:
    void put_scale(char* strip, int64_t c, int64_t kblock, int64_t part) const {
        const int64_t group = m_.parts == 2 ? kblock * 2 + part : kblock / m_.group, at = row_ * groups_ + group;
        if (group >= groups_) return;
        put(strip, c, value_at<float>(w_.scales, at));
        if (m_.has_offsets) put(strip + m_.parts * PANEL * 4, c, value_at<float>(w_.zeros, at));
    }

    const KvikQuantized& w_;
    const Matrix& m_;
    int64_t row_, groups_;
};

void pack_column(const Matrix& m, const KvikQuantized& w, int64_t panel, int64_t c, int64_t row) {
    const Column column(w, m, row);
    for (int64_t k = 0; k < m.kblocks; k++) {
        const int64_t first = k * KBLOCK, count = std::min<int64_t>(KBLOCK, w.columns - first);
        uint8_t levels[KBLOCK] = {};
        std::memcpy(levels, w.levels + row * w.columns + first, count);
        char* block = m.block(panel, k);
        put_levels(m.form, block, c, levels);
        column.put_factors(block, c, k);
        if (k % m.group == 0) column.put_strip(m.strip(panel, k), c, k);
    }
}

bool is_known(const KvikQuantized& w) {
    const bool whole_row = w.group >= w.columns;
    switch (w.form) {
        case KVIK_INT8: return whole_row;
        case KVIK_INT4: return w.zeros && (whole_row || w.group % KBLOCK == 0);
        case KVIK_BYTES: return whole_row || w.group == KBLOCK / 2 || w.group % KBLOCK == 0;
        case KVIK_K4: return w.zeros && w.factors && w.min_factors && w.columns % (SUPER_BLOCK * KBLOCK) == 0;
        case KVIK_K6: return w.factors && w.columns % (SUPER_BLOCK * KBLOCK) == 0;
        default: return false;
    }
}

// How a weight is laid out, but for its size.
Matrix layout_of(const KvikQuantized& w) {
    Matrix m;
    m.form = w.form;
    m.kblocks = padded(w.columns) / KBLOCK;
    m.group = std::min<int64_t>(m.kblocks, (w.group + KBLOCK - 1) / KBLOCK);
    if (w.form == KVIK_INT8) m.group = m.kblocks;
    if (w.form == KVIK_K4 || w.form == KVIK_K6) m.group = SUPER_BLOCK;
    if (w.form == KVIK_BYTES) {
        m.parts = w.group < KBLOCK && w.group < w.columns ? 2 : 1;
        m.has_offsets = w.zeros != nullptr;
    }
    return m;
}

}  // namespace

// Matrices of a layer that take their inputs in the same order share it, and so the activations in that order.
const int32_t* Model::kept_order(const Layer& layer, const int32_t* order, int64_t columns, int64_t kblocks) {
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.gate_up, &layer.gate, &layer.up})
        if (m->order && m->kblocks == kblocks && std::equal(order, order + columns, m->order)) return m->order;
    int32_t* kept = taken<int32_t>(kblocks * KBLOCK);
    std::copy(order, order + columns, kept);
    std::fill(kept + columns, kept + kblocks * KBLOCK, -1);
    return kept;
}

void Model::load_quantized(int32_t role, int32_t index, const KvikQuantized& weight) {
    const Place place = place_of(role, index);
    if (!place.matrix || weight.rows != place.rows || weight.columns != place.columns)
        throw Error{"a quantized weight of the wrong shape"};
    if (!is_known(weight))
        throw Error{"a quantized weight of form " + std::to_string(weight.form) + " with groups of " +
                    std::to_string(weight.group) + ", which has no kernel"};
    for (int64_t i = 0; weight.order && i < weight.columns; i++)
        if (weight.order[i] < 0 || weight.order[i] >= weight.columns)
            throw Error{"an order of inputs that names input " + std::to_string(weight.order[i])};
    Matrix like = layout_of(weight);
    like.panels = (place.interleaved ? 2 * inner() : padded(weight.rows)) / PANEL;
    if (weight.order) {
        const Layer none{};
        like.order = kept_order(role >= KVIK_ATTN_NORM ? layers[index] : none, weight.order, weight.columns,
                                like.kblocks);
    }
    prepared(place, like);
    pack_whole(place, weight);
}

void Model::pack_whole(const Place& place, const KvikQuantized& weight) {
    Matrix& matrix = *place.matrix;
    const auto* factors = matrix.form == KVIK_INT8 ? static_cast<const float*>(weight.scales) : weight.units;
    if (factors && !matrix.scales) {
        matrix.scales = taken<float>(matrix.panels * PANEL);
        std::fill(matrix.scales, matrix.scales + matrix.panels * PANEL, 1.0f);
    }
    const int64_t per_panel = place.interleaved ? TILE : PANEL;
    claims.reset(1);
    pool.run([&](int) {
        claims.each(0, (place.rows + per_panel - 1) / per_panel, 1, [&](int64_t panel, int64_t) {
            for (int64_t c = 0; c < per_panel && panel * per_panel + c < place.rows; c++) {
                const int64_t row = panel * per_panel + c, column = place.first + c;
                pack_column(matrix, weight, panel, column, row);
                if (matrix.scales) matrix.scales[panel * PANEL + column] = factors ? factors[row] : 1.0f;
            }
        });
    });
}

}  // namespace kvik
