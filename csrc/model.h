// Model: the packed weights, the KV cache and the threads of one model, and the step that runs over them.
//
// Split over model.cpp (what is held), pack.cpp (taking weights in) and step.cpp (one step). It knows no requests and no
// text; it executes plans.
#pragma once

#include <string>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "pool.h"

namespace kvik {

struct Error {
    std::string message;
};

struct Layer {
    Matrix qkv, o, gate_up, down;
    float *attn_norm, *mlp_norm, *q_norm, *k_norm, *qkv_bias, *o_bias;
};

// The pieces of activation memory, carved anew from one arena for each step's sizes.
struct Activations {
    float *x, *qkv, *cos, *sin, *logits, *partials;
    void *normed, *q, *attended, *hidden;
    ActBlock* quantized;
};

struct Model {
    Model(const KvikSpec& spec, const Kernels* kernels);

    void load(int32_t role, int32_t layer, const void* data, int32_t form, int64_t rows, int64_t columns);
    void allocate(int32_t num_blocks, int32_t block_size);
    void step(const KvikPlan& plan, KvikResult& result);

    // ---- what is held
    KvikSpec spec;
    std::vector<float> inv_freq;
    std::vector<int32_t> windows;
    const Kernels* kernels;
    Pool pool;
    Claims claims;
    Arena weights, kv_arena, activations, scratch_arena;
    std::vector<Layer> layers;
    Matrix head, embedding;  // one and the same, if tied
    float* final_norm = nullptr;
    KvLayout kv;
    int64_t kv_layers_bytes() const { return spec.num_layers * kv.layer_bytes(); }

    // ---- sizes, padded to whole panels
    int64_t hidden() const { return padded(spec.hidden_size); }
    int64_t q_columns() const { return int64_t(spec.num_heads) * spec.head_dim; }
    int64_t kv_columns() const { return int64_t(spec.num_kv_heads) * spec.head_dim; }
    // Columns of the q, k and v sections of the joint matrix; each starts a panel.
    int64_t k_column() const { return padded(q_columns()); }
    int64_t v_column() const { return k_column() + padded(kv_columns()); }
    int64_t qkv_columns() const { return v_column() + padded(kv_columns()); }
    // gate and up are interleaved by 16, so a panel yields 16 columns of the product that `down` takes.
    int64_t inner() const { return padded(spec.intermediate_size); }
    int64_t group() const { return spec.num_heads / spec.num_kv_heads; }
    // What linear layers take.
    ActForm act_form() const {
        if (spec.weight_form == KVIK_F32) return ACT_F32;
        return spec.weight_form == KVIK_BF16 ? kernels->act_of_bf16 : kernels->act_of_integers;
    }
    // What is written where a block of 32 is not at hand, to be quantized afterwards.
    ActForm row_form() const { return act_form() == ACT_INT8 ? ACT_F32 : act_form(); }
    // Attention multiplies in the form of the cache.
    ActForm kv_act_form() const {
        if (spec.kv_form == KVIK_F32) return ACT_F32;
        return spec.kv_form == KVIK_BF16 ? kernels->act_of_bf16 : kernels->act_of_integers;
    }

private:
    void carve_weights(Carver& carver);
    // Copy row-major rows [rows, columns] of `form` into panels: source row i becomes column first_column + i, or of 16
    // rows a panel.
    void pack_rows(const Matrix& matrix, const void* data, int32_t form, int64_t rows, int64_t columns,
                   int64_t first_column, bool interleaved);
};

void convert_row(const void* data, int32_t form, int64_t offset, int64_t count, int32_t to_form, void* out);

}  // namespace kvik
