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
    Carver measure;
    carve_weights(measure);
    if (!weights.reserve(measure.used()))
        throw Error{"no memory for " + std::to_string(measure.used() >> 20) + " MiB of weights"};
    Carver carver(weights.data());
    carve_weights(carver);
}

void Model::carve_weights(Carver& carver) {
    const int32_t form = spec.weight_form;
    auto matrix = [&](int64_t columns, int64_t inputs) {
        Matrix m;
        m.form = form;
        m.panels = padded(columns) / PANEL;
        m.kblocks = padded(inputs) / KBLOCK;
        m.data = carver.take<char>(m.bytes());
        if (form == KVIK_INT8) m.scales = carver.take<float>(m.panels * PANEL);
        return m;
    };
    auto vector = [&](bool present, int64_t size) { return present ? carver.take<float>(padded(size)) : nullptr; };
    for (Layer& layer : layers) {
        layer.attn_norm = vector(true, spec.hidden_size);
        layer.qkv = matrix(qkv_columns(), spec.hidden_size);
        layer.qkv_bias = vector(spec.qkv_bias, qkv_columns());
        layer.q_norm = vector(spec.qk_norm, spec.head_dim);
        layer.k_norm = vector(spec.qk_norm, spec.head_dim);
        layer.o = matrix(spec.hidden_size, q_columns());
        layer.o_bias = vector(spec.o_bias, spec.hidden_size);
        layer.mlp_norm = vector(true, spec.hidden_size);
        layer.gate_up = matrix(2 * inner(), spec.hidden_size);
        layer.down = matrix(spec.hidden_size, spec.intermediate_size);
    }
    final_norm = vector(true, spec.hidden_size);
    head = matrix(spec.vocab_size, spec.hidden_size);
    embedding = spec.tied_head ? head : matrix(spec.vocab_size, spec.hidden_size);
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
