// The table of operations that each instruction set provides, and their arguments.
//
// The step (model.cpp) knows only this file; kernels.cpp fills one table per instruction set. Every operation works on
// a range of its items, so that the step can deal ranges to threads; no operation sums across ranges, so the dealing
// never changes a result.
#pragma once

#include <cstdint>

#include "kvik.h"
#include "layout.h"

namespace kvik {

// The form in which activations enter a matrix product.
enum ActForm : int32_t {
    ACT_BF16,         // weights of at most bf16, matrix instructions that take bf16
    ACT_F32_OF_BF16,  // the same widened to f32: activations are f32 holding bf16 values
    ACT_F32,          // f32 weights
    ACT_INT8,         // whole weights, multiplied as integers: ActBlocks
};
// Of one row of activations; `columns` is a multiple of 32.
KVIK_ALWAYS int64_t act_bytes(ActForm form, int64_t columns) {
    if (form == ACT_INT8) return columns / KBLOCK * static_cast<int64_t>(sizeof(ActBlock));
    return columns * (form == ACT_BF16 ? 2 : 4);
}

// Rows of activations are readable up to a multiple of this many, for tiles that always load 16 or 32 rows.
constexpr int64_t ROW_PADDING = 32;
// Most KV heads of one item of attention: runs of memory are long enough by then.
constexpr int32_t HEADS_TOGETHER = 8;

enum Epilogue : int32_t {
    STORE,     // out = product (+ bias)
    ADD,       // out += product (+ bias)
    SILU_MUL,  // act_out[:, 16 p + i] = silu(column i) * column 16 + i of panel p
};

struct LinearArgs {
    Matrix weights;
    const void* act;  // in the weights' ActForm: [rows, act_stride] values, or ActBlocks, act_stride a row (act_block)
    int64_t act_stride;
    const float* bias;  // [panels * 32] or null
    Epilogue epilogue;
    float* out;  // [rows, out_stride]
    int64_t out_stride;
    void* act_out;
    int64_t act_out_stride;
    ActForm out_form;
    int64_t columns;  // STORE writes only this many (the rest is padding)
};

struct NormArgs {
    const float* x;  // [rows, stride], zero past `columns`
    int64_t stride, columns;
    const float* weight;  // [padded(columns)], zero past `columns`
    float eps;
    const int32_t* rows;  // which row of x becomes row i of out; null: row i
    void* out;            // activations, as in LinearArgs
    int64_t out_stride;
    ActForm form;
};

struct ConvertArgs {
    const float* x;        // [rows, columns]
    int64_t columns;       // a multiple of 32
    const int32_t* order;  // [columns] or null: which value comes where, -1 for zero
    void* out;             // activations, as in LinearArgs
    int64_t out_stride;
    ActForm form;
};

struct SiluArgs {
    const float* x;  // [rows, 2 * columns]: gate, up
    int64_t columns;
    void* out;  // [rows, columns] activations
    ActForm form;
};

struct EmbedArgs {
    const int32_t* token_ids;
    Matrix table;
    int64_t columns;
    float* x;  // [tokens, stride]
    int64_t stride;
};

// A run of consecutive tokens of one row within one group of 32 positions.
struct TokenRun {
    int32_t row, begin, end;
};

struct RopeStoreArgs {
    const KvikSpec* spec;
    const float* qkv;  // [tokens, stride]: q, k, v sections at these columns
    int64_t stride, k_column, v_column;
    const float *q_norm, *k_norm;  // [padded(head_dim)] or null
    const float *cos, *sin;        // [tokens, head_dim / 2]
    const int32_t* positions;
    const int32_t* block_tables;
    int64_t table_width;
    const TokenRun* runs;
    KvLayout kv;
    char* kv_layer;
    void* q;  // [kv_heads, tokens, group, padded(head_dim)] values, or [kv_heads, K-blocks, tokens, group] ActBlocks
    int64_t num_tokens;
    ActForm form;
};

// One piece of attention: query tokens [begin, end) of a row, KV heads [head_begin, head_end), partitions
// [part_begin, part_end).
struct AttendItem {
    int32_t row, begin, end, head_begin, head_end;
    int32_t part_begin, part_end;
    int32_t partial;  // where to leave the partitions' results unmerged, one after another; -1: finish the item
};

struct AttendArgs {
    const KvikSpec* spec;
    const AttendItem* items;
    int32_t window;
    int64_t partition;  // positions, a multiple of GROUP
    const void* q;
    int64_t num_tokens;
    const int32_t* positions;
    const int32_t* block_tables;
    int64_t table_width;
    KvLayout kv;
    const char* kv_layer;
    void* out;  // [tokens, out_stride] activations
    int64_t out_stride;
    ActForm form;
    float* partials;  // [partial, rows, 2 + padded(head_dim)]
    int64_t partial_stride;
};

struct CombineItem {
    int32_t row, begin, end, head_begin, head_end;
    int32_t first, count;  // partials first .. first + count, in order of position
};

// One panel of a matrix of whole numbers.
struct PackArgs {
    Matrix matrix;
    int64_t panel;
    const float* const* rows;  // [32] of `columns` inputs; null for a column of padding
    int64_t columns;
    bool symmetric;  // of int4
    float* scratch;  // [kblocks * 32]
};

struct Kernels {
    const char* name;
    ActForm act_of_bf16, act_of_integers;
    // Around a thread's work in a step: matrix units may need setting up.
    void (*begin)();
    void (*end)();
    void (*embed)(const EmbedArgs&, int64_t begin, int64_t end);
    void (*rms_norm)(const NormArgs&, int64_t begin, int64_t end);
    void (*convert)(const ConvertArgs&, int64_t begin, int64_t end);
    void (*silu_mul)(const SiluArgs&, int64_t begin, int64_t end);
    void (*linear)(const LinearArgs&, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
    // Item i is run i / kv_heads, KV head i % kv_heads.
    void (*rope_store)(const RopeStoreArgs&, int64_t begin, int64_t end);
    int64_t (*attend_scratch)(const KvikSpec&, int64_t query_rows, int64_t partition);
    void (*attend)(const AttendArgs&, int64_t begin, int64_t end, void* scratch);
    void (*combine)(const AttendArgs&, const CombineItem&);
    int64_t (*sampler_scratch)(int32_t vocab);
    void (*draw)(const KvikSamplePlan&, int32_t s, const float* logits, int32_t vocab, void* scratch, KvikResult&);
    void (*score)(const KvikScorePlan&, int32_t q, const float* logits, int32_t vocab, void* scratch, KvikTop&);
    void (*pack_integers)(const PackArgs&);
    double (*peak)(int32_t form, double seconds);
};

struct Isa {
    const char* name;
    const char* (*refusal)();  // null if it can run here
    const Kernels* (*kernels)();
};
// Best first.
const Isa* isa_list(int* count);
// The named set, or the best for "auto"; null with `why` if it cannot run.
const Kernels* choose_kernels(const char* name, const char** why);

}  // namespace kvik
