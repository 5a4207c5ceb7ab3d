#include "pool.h"

#include <climits>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvik {
namespace {

// Long enough to cover the gap between two phases of a step, short enough to leave the core to others when a thread
// of ours was descheduled.
constexpr int SPINS = 3000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void sleep_while(std::atomic<uint32_t>& value, uint32_t seen) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    if (value.load() == seen) std::this_thread::yield();
#endif
}

void wake_all(std::atomic<uint32_t>& value) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)value;
#endif
}

}  // namespace

void Signal::wait_past(uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
        if (now() != seen) return;
        relax();
    }
    sleepers_.fetch_add(1);
    while (value_.load() == seen) sleep_while(value_, seen);
    sleepers_.fetch_sub(1);
}

void Signal::advance() {
    value_.fetch_add(1);
    if (sleepers_.load()) wake_all(value_);
}

Pool::Pool(int threads) : size_(threads < 1 ? 1 : threads) {
    for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { serve(i); });
}

Pool::~Pool() {
    stopping_ = true;
    start_.advance();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
        start_.wait_past(seen);
        seen++;
        if (stopping_) return;
        (*work_)(thread);
        barrier();
    }
}

void Pool::run(const std::function<void(int)>& work, bool small) {
    alone_ = small || size_ == 1;
    if (alone_) return work(0);
    work_ = &work;
    start_.advance();
    work(0);
    barrier();
}

void Pool::barrier() {
    if (alone_) return;
    uint32_t seen = arrived_all_.now();
    if (waiting_.fetch_add(1) + 1 == size_) {
        waiting_.store(0);
        arrived_all_.advance();
    } else {
        arrived_all_.wait_past(seen);
    }
}

}  // namespace kvik
