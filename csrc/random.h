// Random numbers that are a function of (seed, position) alone, so that the same request draws the same tokens in any
// batch, after any preemption, on any thread: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011). There is no state and no stream. This file knows nothing of what is drawn.
#pragma once

#include <cstdint>

namespace KVIK_ISA {

// Encrypts the 128-bit counter under the 64-bit key in ten rounds; words are least significant first.
inline void philox4x32(uint32_t counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * counter[0];
        uint64_t b = 0xCD9E8D57ull * counter[2];
        uint32_t word0 = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0;
        uint32_t word2 = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1;
        counter[0] = word0;
        counter[1] = static_cast<uint32_t>(b);
        counter[2] = word2;
        counter[3] = static_cast<uint32_t>(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Uniform in [0, 1): the upper 24 bits of the first word, over 2^24, so every value is exact in float32 and 1 cannot
// occur. The seed is the key; the position fills the low half of the counter.
inline float uniform(uint64_t seed, uint64_t position) {
    uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
    philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    return static_cast<float>(counter[0] >> 8) * (1.0f / 16777216.0f);
}

}  // namespace KVIK_ISA
