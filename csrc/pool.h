// Pool: the threads of one model. All of them run the same function, meet at barriers, and claim work from counters.
//
// No OpenMP: with one other busy process on the machine its static split makes every thread wait for the slowest.
// Here work is claimed in small pieces, so a thread that lost its core for a while only does less. Waiting spins for
// some microseconds, then sleeps in the kernel, so an idle model takes no processor time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace kvik {

// A number that threads wait on: spins, then sleeps (futex) until it differs from what they saw.
class Signal {
public:
    uint32_t now() const { return value_.load(std::memory_order_acquire); }
    void wait_past(uint32_t seen);
    void advance();

private:
    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return size_; }
    // Run work(thread) on every thread, the caller being thread 0; returns when all are done. A `small` run is done by
    // the caller alone: waking and waiting for others would cost more than they save.
    void run(const std::function<void(int)>& work, bool small = false);
    // Called by every thread of a run: nobody passes before all have arrived.
    void barrier();

private:
    void serve(int thread);

    int size_;
    bool alone_ = false;
    const std::function<void(int)>* work_ = nullptr;
    bool stopping_ = false;
    Signal start_, arrived_all_;
    std::atomic<int> waiting_{0};
    std::vector<std::thread> threads_;
};

// Counters from which threads claim pieces of the phases of a step, one counter a phase, each on its own cache line.
class Claims {
public:
    void reset(int phases) {
        if (static_cast<int>(counters_.size()) < phases) counters_ = std::vector<Counter>(phases);
        for (int i = 0; i < phases; i++) counters_[i].next.store(0, std::memory_order_relaxed);
    }
    // Call body(begin, end) for pieces of 0 .. total that no other thread got.
    template <class Body>
    void each(int phase, int64_t total, int64_t piece, Body body) {
        std::atomic<int64_t>& next = counters_[phase].next;
        for (;;) {
            int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
            if (begin >= total) return;
            body(begin, begin + piece < total ? begin + piece : total);
        }
    }

    // The same in pieces that shrink as the work runs out (guided self-scheduling, Polychronopoulos and Kuck 1987):
    // long runs that read memory forward, and short ones at the end so that no thread waits long for another.
    template <class Body>
    void each_guided(int phase, int64_t total, int threads, Body body) {
        std::atomic<int64_t>& next = counters_[phase].next;
        int64_t begin = next.load(std::memory_order_relaxed);
        while (begin < total) {
            const int64_t left = total - begin, share = (left + 2 * threads - 1) / (2 * threads);
            if (!next.compare_exchange_weak(begin, begin + share, std::memory_order_relaxed)) continue;
            body(begin, begin + share);
            begin = next.load(std::memory_order_relaxed);
        }
    }

private:
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
        Counter() = default;
        Counter(const Counter&) {}
    };
    std::vector<Counter> counters_;
};

}  // namespace kvik
