/* The plain C interface of the native runner: what Python calls through ctypes.
 *
 * Nothing of Python crosses: plans and results are structs of pointers to arrays of numbers, named as in kvik/step.py.
 * Calls that can fail return 0 on success and otherwise write one line into `error`. A model is used by one caller at
 * a time; its threads belong to it. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVIK_ABI 5
#define KVIK_API __attribute__((visibility("default")))

/* The last three are forms of weights that are quantized already (KvikQuantized). */
enum KvikForm {
    KVIK_BF16 = 0,
    KVIK_F32 = 1,
    KVIK_F16 = 2,
    KVIK_INT8 = 3,
    KVIK_INT4 = 4,
    KVIK_BYTES = 5,
    KVIK_K4 = 6,
    KVIK_K6 = 7,
};

/* Roles of weights; the order is shared with kvik/runners/native/library.py. */
enum KvikRole {
    KVIK_EMBED,
    KVIK_FINAL_NORM,
    KVIK_HEAD,
    KVIK_ATTN_NORM,
    KVIK_Q,
    KVIK_K,
    KVIK_V,
    KVIK_O,
    KVIK_Q_BIAS,
    KVIK_K_BIAS,
    KVIK_V_BIAS,
    KVIK_O_BIAS,
    KVIK_Q_NORM,
    KVIK_K_NORM,
    KVIK_MLP_NORM,
    KVIK_GATE,
    KVIK_UP,
    KVIK_DOWN,
    /* In the place of KVIK_GATE and KVIK_UP where the two have different forms, groups or orders. */
    KVIK_GATE_ALONE,
    KVIK_UP_ALONE,
};

/* A matrix of whole numbers [rows, columns], with groups = ceil(columns / group) and steps = columns / 256:
 *
 *   form   levels      scales                  zeros                         weight
 *   INT8   0 .. 255    float [rows]            -                             (level - 128) * scale
 *   INT4   0 .. 15     f16 [rows, groups]      uint8 [rows, groups]          (level + zero - 128) * scale * unit
 *   BYTES  0 .. 255    float [rows, groups]    float [rows, groups] or NULL  (level - 128) * scale + zero
 *   K4     0 .. 15     f16 [rows, steps]       f16 [rows, steps]             level * scale * factor - zero * min factor
 *   K6     0 .. 63     f16 [rows, steps]       -                             (level - 32) * scale * factor
 *
 * group: a multiple of 32 of INT4 and BYTES, or the columns, or 16 of BYTES. Of K4 and K6 it is not read, and columns is a
 * multiple of 256. */
typedef struct {
    int32_t form, group;
    int64_t rows, columns;
    const uint8_t* levels;
    const void* scales;
    const void* zeros;
    const float* units;         /* [rows] or NULL, of INT4 */
    const uint8_t* factors;     /* K4: [rows, columns / 32]; K6: signed, [rows, columns / 16] */
    const uint8_t* min_factors; /* K4: [rows, columns / 32] */
    const int32_t* order;       /* [columns]: the input that each column takes, or NULL */
} KvikQuantized;

typedef struct {
    int32_t vocab_size, hidden_size, intermediate_size;
    int32_t num_layers, num_heads, num_kv_heads, head_dim;
    int32_t qkv_bias, o_bias, qk_norm, tied_head;
    int32_t weight_form; /* of weights that come as floats: KVIK_BF16, KVIK_F32, KVIK_INT8 or KVIK_INT4 */
    int32_t kv_form;     /* KVIK_BF16, KVIK_F32 or KVIK_INT8 */
    int32_t naive_attention;
    int32_t threads;
    int32_t weight_group, weight_symmetric; /* of KVIK_INT4: inputs that share a scale (32, 64 or 128) */
    float rms_norm_eps;
    float rope_attention_factor;
    const float* inv_freq;  /* [head_dim / 2] */
    const int32_t* windows; /* [num_layers] positions a token sees, 0 is all */
} KvikSpec;

typedef struct {
    int32_t num_draws;
    const int32_t* rows;
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const float* repetition_penalty;
    const float* presence_penalty;
    const float* frequency_penalty;
    const uint64_t* seeds;
    const int64_t* positions;
    const int32_t* num_logprobs;
    const int32_t* bias_start;
    const int32_t* bias_tokens;
    const float* bias_values;
    const int32_t* history_start;
    const int32_t* history_tokens;
    const int32_t* history_prompt;
    int32_t num_masks, mask_words; /* masks is [num_masks, mask_words]; without masks neither pointer is read */
    const int32_t* mask_index;     /* [num_draws] */
    const uint32_t* masks;
} KvikSamplePlan;

typedef struct {
    int32_t num_scores;
    const int32_t* indices;
    const int32_t* targets;
    const int32_t* num_top;
} KvikScorePlan;

typedef struct {
    int32_t num_rows, num_tokens, num_copies, table_width;
    const int32_t* token_ids;
    const int32_t* positions;
    const int32_t* query_start_loc;
    const int32_t* seq_lens;
    const int32_t* block_tables;
    const int32_t* copies;
    KvikSamplePlan sample;
    KvikScorePlan score;
} KvikPlan;

/* Log-probabilities of N positions with room for `width` most likely tokens each. */
typedef struct {
    int32_t width;
    float* logprobs;     /* [N] */
    int32_t* top_ids;    /* [N, width], filled with -1 by the caller */
    float* top_logprobs; /* [N, width] */
} KvikTop;

typedef struct {
    int32_t* token_ids; /* [S] */
    uint8_t* failed;    /* [S] */
    KvikTop sampled;    /* N = S */
    KvikTop scored;     /* N = Q */
    float* logits;      /* [T, vocab_size] to receive every token's logits, or NULL */
} KvikResult;

typedef struct KvikModel KvikModel;

KVIK_API int32_t kvik_abi(void);
/* Instruction sets, best first: their number, their names, and why set i cannot run here (NULL if it can). */
KVIK_API int32_t kvik_isa_count(void);
KVIK_API const char* kvik_isa_name(int32_t i);
KVIK_API const char* kvik_isa_refusal(int32_t i);

KVIK_API KvikModel* kvik_create(const KvikSpec* spec, const char* isa, char* error, int32_t error_size);
KVIK_API void kvik_free(KvikModel* model);
/* Take one weight in: row-major [rows, columns] of `form`; a vector has one row. */
KVIK_API int32_t kvik_load(KvikModel* model, int32_t role, int32_t layer, const void* data, int32_t form, int64_t rows,
                           int64_t columns, char* error, int32_t error_size);
/* Take one matrix in that is quantized already. */
KVIK_API int32_t kvik_load_quantized(KvikModel* model, int32_t role, int32_t layer, const KvikQuantized* weight,
                                     char* error, int32_t error_size);
KVIK_API int32_t kvik_allocate(KvikModel* model, int32_t num_blocks, int32_t block_size, char* error,
                               int32_t error_size);
KVIK_API int32_t kvik_step(KvikModel* model, const KvikPlan* plan, KvikResult* result, char* error,
                           int32_t error_size);
KVIK_API int64_t kvik_weight_bytes(const KvikModel* model);
KVIK_API int64_t kvik_kv_bytes_per_token(const KvikModel* model);
KVIK_API int64_t kvik_activation_bytes(const KvikModel* model);

/* Draw from given logits without a model: S draws from logits [num_rows, vocab]. For tests of the sampler. */
KVIK_API int32_t kvik_draw(const char* isa, const KvikSamplePlan* plan, const float* logits, int32_t vocab,
                           KvikResult* result, char* error, int32_t error_size);

/* What the machine allows: bytes per second read from memory, operations per second of one kind, over `threads`. */
KVIK_API double kvik_read_bandwidth(int32_t threads, int64_t bytes, double seconds);
KVIK_API double kvik_matrix_peak(const char* isa, int32_t form, int32_t threads, double seconds);

#ifdef __cplusplus
}
#endif
