// The ranking of a row's tokens, and cuts through it: what the sampler does to a whole vocabulary.
//
// Tokens are ranked by logit, largest first, lower id first among equals. A filter that keeps the likeliest tokens is a
// cut, "the last token that stays", and cuts are found by selection, never by sorting: a bound that is proved to lie
// below the cut drops most of the vocabulary, then a weighted quickselect finds it exactly. Weights are float32; they
// are summed in float32 within a block of 1024 and in double across blocks, always in the same order. No containers
// and no std:: algorithms here: instantiations shared between translation units would leak one instruction set into
// another. This file knows nothing of plans, penalties or random numbers.
#pragma once

#include "vec.h"

namespace KVIK_ISA {

struct Ranked {
    float x;
    int32_t id;
    float weight;
};

// Memory of one caller at a time; nothing in it outlives a call or needs to be cleared.
struct SamplerScratch {
    float* values;   // [vocab] logits after bias and penalties
    float* maxima;   // [blocks, LANES] largest of each lane of each block of the row looked at last
    float* sums;     // [blocks] sums of weights
    float* kept;     // [vocab] logits of the tokens still in play, by ascending id
    float* weights;  // [vocab] their weights
    int32_t* ids;    // [vocab] their ids; before that, the counts of the penalties
    Ranked* ranked;  // [blocks * LANES or vocab, whichever is more]
};

namespace sampling {

constexpr int32_t BLOCK = 1024;
constexpr float INF = __builtin_inff();

KVIK_INLINE int32_t blocks_of(int32_t n) { return (n + BLOCK - 1) / BLOCK; }
KVIK_INLINE int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }

// Sixteen values, or the `left` that remain followed by -inf: nothing after the row is ever read.
KVIK_INLINE f32x16 load_part(const float* p, int32_t left) {
    if (left >= LANES) return load(p);
    float x[LANES];
    for (int32_t i = 0; i < LANES; i++) x[i] = i < left ? p[i] : -INF;
    return load(x);
}

// Sixteen lanes of running maxima, and of whether a NaN went by.
struct Maxima {
    reg most[REGS];
    ireg nans[REGS];

    KVIK_INLINE void reset() {
        for (int j = 0; j < REGS; j++) most[j] = reg{} - INF;
    }
    KVIK_INLINE void take(const float* x) {
        for (int j = 0; j < REGS; j++) {
            reg v = load_as<reg>(x + j * REG_LANES);
            most[j] = v > most[j] ? v : most[j];
            nans[j] |= v != v;
        }
    }
};

struct Scan {
    float largest;
    bool usable;  // no NaN, no +inf, not all -inf
};

inline Scan scan(const float* x, int32_t n, float* maxima) {
    Maxima seen = {};
    float most = -INF;
    for (int32_t start = 0; start < n; start += BLOCK, maxima += LANES) {
        int32_t i = start, end = lesser(start + BLOCK, n);
        seen.reset();
        for (; i + LANES <= end; i += LANES) seen.take(x + i);
        if (i < end) {
            f32x16 rest = load_part(x + i, end - i);
            seen.take(reinterpret_cast<const float*>(&rest));
        }
        for (int j = 0; j < REGS; j++) store_as(maxima + j * REG_LANES, seen.most[j]);
        float here = largest(load(maxima));
        most = here > most ? here : most;
    }
    int32_t nans = 0;
    for (int i = 0; i < LANES; i++) nans |= seen.nans[i / REG_LANES][i % REG_LANES];
    return {most, !nans && most > -INF && most < INF};
}

// The lowest id whose logit is `most`.
inline int32_t find(const float* x, int32_t n, const float* maxima, float most) {
    int32_t i = 0;
    while (i + BLOCK < n && largest(load(maxima)) != most) i += BLOCK, maxima += LANES;
    while (i < n - 1 && x[i] != most) i++;
    return i;
}

// weight(x) = exp((x - shift) / temperature): probabilities up to a common factor; the likeliest token's is 1.
struct Softmax {
    float shift, scale;

    KVIK_INLINE f32x16 weigh(f32x16 x) const { return exp((x - shift) * scale); }
    // A logit surely below that of any token whose weight is at least `weight`: 0.7 > ln 2 covers all rounding.
    float bound(double weight) const { return shift + static_cast<float>(__builtin_log(weight) - 0.7) / scale; }
};

// The weights of n logits summed by block, and the total.
inline double weigh_blocks(const float* x, int32_t n, Softmax softmax, float* sums) {
    double total = 0;
    for (int32_t start = 0; start < n; start += BLOCK) {
        int32_t end = lesser(start + BLOCK, n);
        f32x16 block = {};
        for (int32_t i = start; i < end; i += LANES) block += softmax.weigh(load_part(x + i, end - i));
        *sums = sum(block);
        total += *sums++;
    }
    return total;
}

// Index drawn by inverse CDF over n logits in their order: the first whose cumulated weight exceeds u * total. Where
// a block's weights one by one add up to less than its sum did, its last positive one; a weight of 0 is never drawn.
inline int32_t draw_index(const float* x, int32_t n, Softmax softmax, float u, float* sums) {
    double target = u * weigh_blocks(x, n, softmax, sums), reached = 0;
    int32_t chosen = 0;
    for (int32_t b = 0; b < blocks_of(n); b++) {
        if (!(sums[b] > 0)) continue;
        chosen = b;
        if (reached + sums[b] > target) break;
        reached += sums[b];
    }
    float weights[BLOCK];
    int32_t start = chosen * BLOCK, end = lesser(start + BLOCK, n), index = start;
    for (int32_t i = start; i < end; i += LANES) store(weights + (i - start), softmax.weigh(load_part(x + i, end - i)));
    for (int32_t i = start; i < end; i++) {
        if (!(weights[i - start] > 0)) continue;
        index = i;
        reached += weights[i - start];
        if (reached > target) break;
    }
    return index;
}

// Whether a comes before b in the ranking.
KVIK_INLINE bool precedes(const Ranked& a, const Ranked& b) { return (a.x > b.x) | ((a.x == b.x) & (a.id < b.id)); }

// The last token of the shortest prefix of the ranking whose weights reach `target`; of all n when none does. A
// quickselect in which a side's weight, not its length, decides where to go on. Pivots come from a small generator, so
// that no order of logits is slow on average; entries are permuted.
inline Ranked select(Ranked* entries, int32_t n, double target) {
    uint32_t state = static_cast<uint32_t>(n);
    Ranked pivot = entries[0];
    while (n > 0) {
        state = state * 1664525u + 1013904223u;
        Ranked& place = entries[(static_cast<uint64_t>(state) * static_cast<uint64_t>(n)) >> 32];
        pivot = place;
        place = entries[--n];
        int32_t before = 0;
        double weight = 0;
        for (int32_t i = 0; i < n; i++) {
            Ranked entry = entries[i];
            entries[i] = entries[before];
            entries[before] = entry;
            bool is_before = precedes(entry, pivot);
            before += is_before;
            weight += is_before ? entry.weight : 0.0f;
        }
        if (weight >= target) {
            n = before;
            continue;
        }
        target -= weight + pivot.weight;
        if (target <= 0) return pivot;
        entries += before;
        n -= before;
    }
    return pivot;
}

// A value below which the k largest of a row cannot lie: k lanes of blocks hold something at least as large.
inline float bound_of_largest(int32_t k, int32_t n, const SamplerScratch& scratch) {
    int32_t lanes = blocks_of(n) * LANES;
    if (k > lanes) return -INF;
    for (int32_t i = 0; i < lanes; i++) scratch.ranked[i] = {scratch.maxima[i], i, 1.0f};
    return select(scratch.ranked, lanes, k).x;
}

// Take the tokens whose logit is at least `bound` into play; returns how many.
inline int32_t gather(const float* x, int32_t n, float bound, const SamplerScratch& scratch) {
    int32_t count = 0;
    for (int32_t start = 0, b = 0; start < n; start += BLOCK, b++) {
        if (largest(load(scratch.maxima + b * LANES)) < bound) continue;
        int32_t end = lesser(start + BLOCK, n);
        for (int32_t i = start; i < end; i++) {
            scratch.kept[count] = x[i];
            scratch.ids[count] = i;
            count += x[i] >= bound;
        }
    }
    return count;
}

inline void fill_weights(int32_t n, Softmax softmax, const SamplerScratch& scratch) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) store(scratch.weights + i, softmax.weigh(load(scratch.kept + i)));
    float rest[LANES];
    store(rest, softmax.weigh(load_part(scratch.kept + i, n - i)));
    for (int32_t lane = 0; i < n; i++, lane++) scratch.weights[i] = rest[lane];
}

// The weight of the tokens in play whose logit is at least `bound`.
inline double weight_above(float bound, int32_t n, const SamplerScratch& scratch) {
    double total = 0;
    for (int32_t start = 0; start < n; start += BLOCK) {
        int32_t end = lesser(start + BLOCK, n), i = start;
        reg block[REGS] = {};
        for (; i + LANES <= end; i += LANES)
            for (int j = 0; j < REGS; j++) {
                reg weight = load_as<reg>(scratch.weights + i + j * REG_LANES);
                block[j] += load_as<reg>(scratch.kept + i + j * REG_LANES) >= bound ? weight : reg{};
            }
        float rest = 0;
        for (; i < end; i++) rest += scratch.kept[i] >= bound ? scratch.weights[i] : 0.0f;
        total += sum(load_as<f32x16>(block)) + rest;
    }
    return total;
}

// Logits between which a cut lies: those from `high` on weigh `above`, less than the target; those from `low` reach it.
struct Range {
    float low, high;
    double above;
};

// Bisection by whole passes over the tokens in play: vectorised, so cheaper than quickselect while they are many.
inline Range narrow(int32_t n, double target, Softmax softmax, const SamplerScratch& scratch) {
    constexpr int32_t FEW = 2048, PASSES = 8;
    Range range = {-INF, INF, 0};
    if (n <= FEW) return range;
    float low = softmax.bound(1e-9), high = softmax.shift;
    for (int pass = 0; pass < PASSES; pass++) {
        float middle = low + (high - low) * 0.5f;
        double above = weight_above(middle, n, scratch);
        if (above >= target) {
            range.low = low = middle;
        } else {
            range.high = high = middle;
            range.above = above;
        }
    }
    return range;
}

// Of the n tokens in play keep the shortest prefix of the ranking whose weights reach `target`; returns how many.
inline int32_t keep_prefix(int32_t n, double target, Softmax softmax, const SamplerScratch& scratch) {
    Range range = narrow(n, target, softmax, scratch);
    int32_t between = 0, left = 0;
    for (int32_t i = 0; i < n; i++) {
        scratch.ranked[between] = {scratch.kept[i], scratch.ids[i], scratch.weights[i]};
        between += (scratch.kept[i] >= range.low) & (scratch.kept[i] < range.high);
    }
    if (!between) return n;  // rounding: all of them together fall short of the target
    Ranked last = select(scratch.ranked, between, target - range.above);
    for (int32_t i = 0; i < n; i++) {
        Ranked entry = {scratch.kept[i], scratch.ids[i], 0};
        scratch.kept[left] = entry.x;
        scratch.ids[left] = entry.id;
        left += !precedes(last, entry);
    }
    return left;
}

inline int32_t keep_largest(int32_t n, int32_t k, Softmax softmax, const SamplerScratch& scratch) {
    if (n <= k) return n;
    for (int32_t i = 0; i < n; i++) scratch.weights[i] = 1.0f;
    return keep_prefix(n, k, softmax, scratch);
}

inline int32_t keep_weight(int32_t n, float least, Softmax softmax, const SamplerScratch& scratch) {
    fill_weights(n, softmax, scratch);
    int32_t left = 0;
    for (int32_t i = 0; i < n; i++) {
        scratch.kept[left] = scratch.kept[i];
        scratch.ids[left] = scratch.ids[i];
        left += scratch.weights[i] >= least;
    }
    return left;
}

}  // namespace sampling

}  // namespace KVIK_ISA
