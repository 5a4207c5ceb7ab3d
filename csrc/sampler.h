// From logits to a token, and to log-probabilities: SamplingParams' rules, in their order.
//
// min_p, top_k and top_p each keep a prefix of the ranking of ranking.h. Everything is a function of one row of logits
// and of the plan's numbers for it: no batch, no threads, no model. Rows are only read and need no alignment.
#pragma once

#include "kvik.h"
#include "random.h"
#include "ranking.h"
#include "vec.h"

namespace KVIK_ISA {

namespace sampling {

constexpr float COLDEST = 1e-30f;  // lower temperatures act as this one, whose inverse is still finite

struct Filters {
    int32_t top_k;  // 0: off
    float top_p;    // 1 or more: off
    float min_p;    // 0 or less: off
};

// Bring the tokens that pass the filters into play; returns how many.
inline int32_t filter(Filters filters, const float* x, int32_t vocab, Softmax softmax, const SamplerScratch& scratch) {
    float bound = filters.top_k ? bound_of_largest(filters.top_k, vocab, scratch) : -INF;
    if (filters.min_p > 0) {
        float other = softmax.bound(filters.min_p);
        bound = other > bound ? other : bound;
    }
    bool only_top_p = !filters.top_k && !(filters.min_p > 0);
    double total = 0;
    if (only_top_p) {
        // Tokens below an equal share of what top_p drops cannot weigh more than it together, so the cut is above.
        total = weigh_blocks(x, vocab, softmax, scratch.sums);
        bound = softmax.bound((1.0 - filters.top_p) * total / vocab);
    }
    int32_t n = gather(x, vocab, bound, scratch);
    if (filters.min_p > 0) n = keep_weight(n, filters.min_p, softmax, scratch);
    if (filters.top_k) n = keep_largest(n, filters.top_k, softmax, scratch);
    if (!(filters.top_p < 1)) return n;
    fill_weights(n, softmax, scratch);
    if (!only_top_p) total = weight_above(-INF, n, scratch);
    return keep_prefix(n, filters.top_p * total, softmax, scratch);
}

// Penalties of one draw on values[vocab]. counts needs no clearing: only the entries of the history are touched.
inline void penalize(const KvikSamplePlan& plan, int32_t s, float* values, int32_t vocab, int32_t* counts) {
    const int32_t* tokens = plan.history_tokens + plan.history_start[s];
    int32_t length = plan.history_start[s + 1] - plan.history_start[s];
    const float repetition = plan.repetition_penalty[s];
    auto in_vocab = [vocab](int32_t token) { return static_cast<uint32_t>(token) < static_cast<uint32_t>(vocab); };
    for (int32_t i = 0; i < length; i++)
        if (in_vocab(tokens[i])) counts[tokens[i]] = 0;
    for (int32_t i = plan.history_prompt[s]; i < length; i++)
        if (in_vocab(tokens[i])) counts[tokens[i]]++;
    for (int32_t i = 0; i < length; i++) {
        if (!in_vocab(tokens[i]) || counts[tokens[i]] < 0) continue;
        int32_t count = counts[tokens[i]];
        float& x = values[tokens[i]];
        x = x > 0 ? x / repetition : x * repetition;
        if (count) x -= plan.presence_penalty[s] + plan.frequency_penalty[s] * static_cast<float>(count);
        counts[tokens[i]] = -1;
    }
}

// The words of the mask that draw s must obey, one bit for each token; null: none.
KVIK_INLINE const uint32_t* mask_of(const KvikSamplePlan& plan, int32_t s) {
    if (!plan.num_masks) return nullptr;
    const int32_t index = plan.mask_index[s];
    return index >= 0 && index < plan.num_masks ? plan.masks + int64_t{index} * plan.mask_words : nullptr;
}

// values[vocab]: the logits of the tokens in a mask, -inf for all others. Tokens past the mask's end are not in it.
inline void apply_mask(const uint32_t* mask, int32_t words, const float* logits, int32_t vocab, float* values) {
    constexpr int32_t BITS = 32;
    ureg lane_bit;
    for (int i = 0; i < REG_LANES; i++) lane_bit[i] = 1u << i;
    const reg banned = reg{} - INF;
    for (int32_t start = 0; start < vocab; start += BITS) {
        const uint32_t word = start / BITS < words ? mask[start / BITS] : 0;
        int32_t i = start, end = lesser(start + BITS, vocab);
        for (; i + REG_LANES <= end; i += REG_LANES) {
            ureg bits = (ureg{} + (word >> (i - start))) & lane_bit;
            store_as(values + i, bits != 0 ? load_as<reg>(logits + i) : banned);
        }
        for (; i < end; i++) values[i] = word >> (i - start) & 1 ? logits[i] : -INF;
    }
}

// The row after mask, bias and penalties: the logits themselves, or a changed copy. Ids outside the vocabulary are
// ignored.
inline const float* adjust(const KvikSamplePlan& plan, int32_t s, const float* logits, int32_t vocab,
                           const SamplerScratch& scratch) {
    const int32_t first = plan.bias_start[s], last = plan.bias_start[s + 1];
    const uint32_t* mask = mask_of(plan, s);
    if (!mask && first == last && plan.history_start[s] == plan.history_start[s + 1]) return logits;
    if (mask)
        apply_mask(mask, plan.mask_words, logits, vocab, scratch.values);
    else
        std::memcpy(scratch.values, logits, sizeof(float) * static_cast<size_t>(vocab));
    for (int32_t i = first; i < last; i++)
        if (static_cast<uint32_t>(plan.bias_tokens[i]) < static_cast<uint32_t>(vocab))
            scratch.values[plan.bias_tokens[i]] += plan.bias_values[i];
    penalize(plan, s, scratch.values, vocab, scratch.ids);
    return scratch.values;
}

// The token of draw s, or -1 if its logits, the model's own or the adjusted ones, leave nothing to draw from.
inline int32_t draw_token(const KvikSamplePlan& plan, int32_t s, const float* logits, int32_t vocab,
                          const SamplerScratch& scratch) {
    Scan seen = scan(logits, vocab, scratch.maxima);
    if (!seen.usable) return -1;
    const float* x = adjust(plan, s, logits, vocab, scratch);
    if (x != logits) seen = scan(x, vocab, scratch.maxima);
    if (!seen.usable) return -1;
    const float temperature = plan.temperature[s];
    if (!(temperature > 0)) return find(x, vocab, scratch.maxima, seen.largest);
    Softmax softmax = {seen.largest, 1.0f / (temperature > COLDEST ? temperature : COLDEST)};
    float u = uniform(plan.seeds[s], static_cast<uint64_t>(plan.positions[s]));
    int32_t top_k = plan.top_k[s] > 0 && plan.top_k[s] < vocab ? plan.top_k[s] : 0;
    Filters filters = {top_k, plan.top_p[s], plan.min_p[s] < 1 ? plan.min_p[s] : 1.0f};
    if (!filters.top_k && !(filters.top_p < 1) && !(filters.min_p > 0))
        return draw_index(x, vocab, softmax, u, scratch.sums);
    int32_t n = filter(filters, x, vocab, softmax, scratch);
    return scratch.ids[draw_index(scratch.kept, n, softmax, u, scratch.sums)];
}

// Log-softmax of row n of `out`: of `token`, and of the `count` likeliest. NaN and no ids if the logits are unusable.
inline void report(const float* logits, int32_t vocab, int32_t token, int32_t count, const SamplerScratch& scratch,
                   const KvikTop& out, int32_t row) {
    Scan seen = scan(logits, vocab, scratch.maxima);
    out.logprobs[row] = __builtin_nanf("");
    if (!seen.usable) return;
    const Softmax softmax = {seen.largest, 1.0f};
    const float log_total = static_cast<float>(__builtin_log(weigh_blocks(logits, vocab, softmax, scratch.sums)));
    out.logprobs[row] = (logits[token] - seen.largest) - log_total;
    count = lesser(lesser(count, out.width), vocab);
    if (count <= 0) return;
    int32_t n = gather(logits, vocab, bound_of_largest(count, vocab, scratch), scratch);
    n = keep_largest(n, count, softmax, scratch);
    int32_t* ids = out.top_ids + static_cast<int64_t>(row) * out.width;
    float* values = out.top_logprobs + static_cast<int64_t>(row) * out.width;
    for (int32_t i = 0; i < n; i++) {  // they come by ascending id; a stable insertion leaves equals so
        int32_t j = i;
        for (; j > 0 && logits[ids[j - 1]] < scratch.kept[i]; j--) ids[j] = ids[j - 1];
        ids[j] = scratch.ids[i];
    }
    for (int32_t i = 0; i < n; i++) values[i] = (logits[ids[i]] - seen.largest) - log_total;
}

KVIK_INLINE int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace sampling

// Bytes of the scratch memory for rows of `vocab` logits.
inline int64_t sampler_scratch_bytes(int32_t vocab) {
    using namespace sampling;
    const int64_t row = rounded(int64_t{4} * vocab), blocks = blocks_of(vocab);
    const int64_t entries = blocks * LANES > vocab ? blocks * LANES : vocab;
    return 4 * row + rounded(blocks * LANES * 4) + rounded(blocks * 4) +
           rounded(entries * static_cast<int64_t>(sizeof(Ranked)));
}

// Lay the scratch memory out in `buffer`: 64-byte aligned, sampler_scratch_bytes(vocab) long, contents arbitrary.
inline SamplerScratch sampler_scratch(void* buffer, int32_t vocab) {
    using namespace sampling;
    char* next = static_cast<char*>(buffer);
    auto take = [&next](int64_t bytes) {
        char* at = next;
        next += rounded(bytes);
        return static_cast<void*>(at);
    };
    const int64_t row = int64_t{4} * vocab, blocks = blocks_of(vocab);
    SamplerScratch scratch;
    scratch.values = static_cast<float*>(take(row));
    scratch.kept = static_cast<float*>(take(row));
    scratch.weights = static_cast<float*>(take(row));
    scratch.maxima = static_cast<float*>(take(blocks * LANES * 4));
    scratch.sums = static_cast<float*>(take(blocks * 4));
    scratch.ids = static_cast<int32_t*>(take(row));
    scratch.ranked = static_cast<Ranked*>(take(0));
    return scratch;
}

// Draw s of the plan from `logits` [vocab]: fills token_ids[s], failed[s] and row s of sampled.
inline void draw(const KvikSamplePlan& plan, int32_t s, const float* logits, int32_t vocab,
                 const SamplerScratch& scratch, KvikResult& result) {
    int32_t token = sampling::draw_token(plan, s, logits, vocab, scratch);
    result.token_ids[s] = token;
    result.failed[s] = token < 0;
    result.sampled.logprobs[s] = 0;
    if (token >= 0 && plan.num_logprobs[s] >= 0)
        sampling::report(logits, vocab, token, plan.num_logprobs[s], scratch, result.sampled, s);
}

// Entry q of the plan: log-probability of its target under `logits` [vocab], and its likeliest tokens, as row q of
// `out`. Where the logits hold NaN or +inf, or are all -inf, the log-probability is NaN and no id is written.
inline void score(const KvikScorePlan& plan, int32_t q, const float* logits, int32_t vocab,
                  const SamplerScratch& scratch, KvikTop& out) {
    sampling::report(logits, vocab, plan.targets[q], plan.num_top[q], scratch, out, q);
}

}  // namespace KVIK_ISA
