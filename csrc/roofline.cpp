// What the machine allows: bytes per second read from memory and operations per second of its matrix instructions.
//
// These are the limits that every speed is held against, so they are measured with the fastest access known: 2 MB pages,
// reads strictly forward, and a buffer far larger than any cache; and for arithmetic, chains that touch no memory.

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace kvik {
namespace {

// Start `work(thread)` on all threads at once and add up what they return.
double together(int threads, const std::function<double(int)>& work) {
    std::vector<double> results(threads);
    std::vector<std::thread> running;
    std::atomic<int> ready{0};
    for (int t = 0; t < threads; t++)
        running.emplace_back([&, t] {
            ready++;
            while (ready < threads) {
            }
            results[t] = work(t);
        });
    double total = 0;
    for (int t = 0; t < threads; t++) {
        running[t].join();
        total += results[t];
    }
    return total;
}

typedef uint64_t words __attribute__((vector_size(64)));

uint64_t read_span(const char* begin, const char* end) {
    words a = {}, b = {}, c = {}, d = {};
    for (const char* p = begin; p + 256 <= end; p += 256) {
        const words* w = reinterpret_cast<const words*>(p);
        a ^= w[0];
        b ^= w[1];
        c ^= w[2];
        d ^= w[3];
    }
    a ^= b ^ c ^ d;
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum ^= a[i];
    return sum;
}

}  // namespace
}  // namespace kvik

extern "C" {

double kvik_read_bandwidth(int32_t threads, int64_t bytes, double seconds) {
    typedef std::chrono::steady_clock Clock;
    kvik::Arena arena;
    if (!arena.reserve(bytes)) return 0;
    const int64_t share = bytes / threads / 4096 * 4096;
    std::atomic<uint64_t> sink{0};
    // Each thread first touches its share, then reads it over and over.
    return kvik::together(threads, [&](int t) {
        char* begin = arena.data() + t * share;
        for (int64_t i = 0; i < share; i += 64) begin[i] = static_cast<char>(i >> 6);
        auto start = Clock::now();
        double elapsed = 0, done = 0;
        while (elapsed < seconds) {
            sink ^= kvik::read_span(begin, begin + share);
            done += static_cast<double>(share);
            elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        }
        return done / elapsed;
    });
}

double kvik_matrix_peak(const char* isa, int32_t form, int32_t threads, double seconds) {
    const char* why = nullptr;
    const kvik::Kernels* kernels = kvik::choose_kernels(isa, &why);
    if (!kernels) return 0;
    return kvik::together(threads, [&](int) { return kernels->peak(form, seconds); });
}

}  // extern "C"
