#include "model.h"

#include <algorithm>

namespace kvik {

Model::Model(const KvikSpec& given, const Kernels* chosen)
    : spec(given),
      inv_freq(given.inv_freq, given.inv_freq + given.head_dim / 2),
      windows(given.windows, given.windows + given.num_layers),
      kernels(chosen),
      pool(given.threads),
      layers(given.num_layers) {
    spec.inv_freq = inv_freq.data();
    spec.windows = windows.data();
    const int64_t expected = expected_bytes();
    if (!weights.reserve(expected)) throw Error{"no memory for " + std::to_string(expected >> 20) + " MiB of weights"};
    auto vector = [&](bool present, int64_t size) { return present ? taken<float>(padded(size)) : nullptr; };
    for (Layer& layer : layers) {
        layer.attn_norm = vector(true, spec.hidden_size);
        layer.qkv_bias = vector(spec.qkv_bias, qkv_columns());
        layer.q_norm = vector(spec.qk_norm, spec.head_dim);
        layer.k_norm = vector(spec.qk_norm, spec.head_dim);
        layer.o_bias = vector(spec.o_bias, spec.hidden_size);
        layer.mlp_norm = vector(true, spec.hidden_size);
    }
    final_norm = vector(true, spec.hidden_size);
}

// Of a matrix that comes as floats.
Matrix Model::plain(int64_t columns, int64_t inputs) const {
    Matrix m;
    m.form = spec.weight_form;
    m.panels = padded(columns) / PANEL;
    m.kblocks = padded(inputs) / KBLOCK;
    m.group = m.form == KVIK_INT4 ? spec.weight_group / KBLOCK : m.kblocks;
    return m;
}

// All weights, if all come as floats: enough address space that they lie in one piece. Memory is used only as it is
// written.
int64_t Model::expected_bytes() const {
    auto matrix = [&](int64_t columns, int64_t inputs) {
        return round_up(plain(columns, inputs).bytes(), 64) + (spec.weight_form == KVIK_INT8 ? padded(columns) * 4 : 0);
    };
    const int64_t vectors = 4 * (2 * hidden() + qkv_columns() + 2 * padded(spec.head_dim) + hidden());
    const int64_t layer = vectors + matrix(q_columns(), spec.hidden_size) + 2 * matrix(kv_columns(), spec.hidden_size) +
                          matrix(spec.hidden_size, q_columns()) + matrix(2 * inner(), spec.hidden_size) +
                          matrix(spec.hidden_size, spec.intermediate_size);
    return spec.num_layers * layer + 4 * hidden() + (spec.tied_head ? 1 : 2) * matrix(spec.vocab_size, spec.hidden_size);
}

void Model::allocate(int32_t num_blocks, int32_t block_size) {
    if (block_size <= 0 || block_size % GROUP)
        throw Error{"block_size is " + std::to_string(block_size) + "; expected a multiple of " +
                    std::to_string(GROUP)};
    kv = KvLayout{spec.kv_form, num_blocks, block_size, spec.num_kv_heads, spec.head_dim};
    if (!kv_arena.reserve(kv_layers_bytes()))
        throw Error{"no memory for " + std::to_string(kv_layers_bytes() >> 20) + " MiB of KV cache"};
}

}  // namespace kvik
