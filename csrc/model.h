// Model: the packed weights, the KV cache and the threads of one model, and the step that runs over them.
//
// Split over model.cpp (what is held), pack.cpp (taking weights in), pack_quantized.cpp (those that are whole numbers
// already) and step.cpp (one step). It knows no requests and no text; it executes plans.
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

// gate_up: both, interleaved by 16 columns, or where they do not go together each has a matrix of its own.
struct Layer {
    Matrix q, k, v, o, gate_up, gate, up, down;
    float *attn_norm, *mlp_norm, *q_norm, *k_norm, *qkv_bias, *o_bias;

    bool is_split() const { return !gate_up.data; }
};

// The pieces of activation memory, carved anew from one arena for each step's sizes.
constexpr int MAX_VIEWS = 3;
struct Activations {
    float *x, *qkv, *gate_up, *cos, *sin, *logits, *partials;
    char *normed, *q, *attended, *hidden, *views[MAX_VIEWS];
};

struct Model {
    Model(const KvikSpec& spec, const Kernels* kernels);

    void load(int32_t role, int32_t layer, const void* data, int32_t form, int64_t rows, int64_t columns);
    void load_quantized(int32_t role, int32_t layer, const KvikQuantized& weight);
    void allocate(int32_t num_blocks, int32_t block_size);
    void step(const KvikPlan& plan, KvikResult& result);

    // ---- what is held
    KvikSpec spec;
    std::vector<float> inv_freq;
    std::vector<int32_t> windows;
    const Kernels* kernels;
    Pool pool;
    Claims claims;
    Shelf weights;
    Arena kv_arena, activations, scratch_arena;
    std::vector<Layer> layers;
    Matrix embedding, own_head;
    const Matrix& head() const { return spec.tied_head ? embedding : own_head; }
    float* final_norm = nullptr;
    KvLayout kv;
    int64_t kv_layers_bytes() const { return spec.num_layers * kv.layer_bytes(); }

    // ---- sizes, padded to whole panels
    int64_t hidden() const { return padded(spec.hidden_size); }
    int64_t q_columns() const { return int64_t(spec.num_heads) * spec.head_dim; }
    int64_t kv_columns() const { return int64_t(spec.num_kv_heads) * spec.head_dim; }
    // Columns of the q, k and v sections of what their matrices make; each starts a panel.
    int64_t k_column() const { return padded(q_columns()); }
    int64_t v_column() const { return k_column() + padded(kv_columns()); }
    int64_t qkv_columns() const { return v_column() + padded(kv_columns()); }
    // gate and up are interleaved by 16, so a panel yields 16 columns of the product that `down` takes.
    int64_t inner() const { return padded(spec.intermediate_size); }
    int64_t group() const { return spec.num_heads / spec.num_kv_heads; }
    // What a matrix takes.
    ActForm act_form(const Matrix& weights) const {
        if (weights.form == KVIK_F32) return ACT_F32;
        return weights.form == KVIK_BF16 ? kernels->act_of_bf16 : kernels->act_of_integers;
    }
    // Attention multiplies in the form of the cache.
    ActForm kv_act_form() const {
        if (spec.kv_form == KVIK_F32) return ACT_F32;
        return spec.kv_form == KVIK_BF16 ? kernels->act_of_bf16 : kernels->act_of_integers;
    }

private:
    // Where a role's weights go: [rows, columns] into the columns from `first` on, or into 16 of every panel.
    struct Place {
        Matrix* matrix;
        int64_t rows, columns, first;
        bool interleaved;
    };
    Place place_of(int32_t role, int32_t layer);
    float* vector_of(int32_t role, int32_t layer, int64_t size);
    void check_layer(int32_t role, int32_t layer) const;
    void check_complete();
    Matrix plain(int64_t columns, int64_t inputs) const;
    int64_t expected_bytes() const;
    // The matrix of a place in the memory it takes, `like` saying how; a second half must be like the first.
    const Matrix& prepared(const Place& place, Matrix like);
    const int32_t* kept_order(const Layer& layer, const int32_t* order, int64_t columns, int64_t kblocks);
    template <class T>
    T* taken(int64_t count);
    // Copy row-major rows of `form` into panels.
    void pack_rows(const Place& place, const void* data, int32_t form);
    void pack_whole(const Place& place, const KvikQuantized& weight);
    bool complete_ = false;
};

void convert_row(const void* data, int32_t form, int64_t offset, int64_t count, int32_t to_form, void* out);

}  // namespace kvik
