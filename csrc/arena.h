// Arena: one span of zeroed, 64-byte aligned memory in 2 MB pages where the system grants them.
//
// Transparent huge pages here are given only to memory that asks (madvise), which malloc does not; without them a
// fifth of the read bandwidth is lost to address translation.
#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "layout.h"

namespace kvik {

constexpr int64_t HUGE_PAGE = int64_t(2) << 20;

class Arena {
public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { release(); }

    // Replace the content with `bytes` of zeroes, untouched pages costing nothing. False if there is no memory.
    bool reserve(int64_t bytes) {
        release();
        if (bytes <= 0) return true;
        span_ = round_up(bytes, HUGE_PAGE) + HUGE_PAGE;
        void* p = mmap(nullptr, span_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            span_ = 0;
            return false;
        }
        base_ = p;
        data_ = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(p), HUGE_PAGE));
        bytes_ = bytes;
#ifdef MADV_HUGEPAGE
        madvise(data_, round_up(bytes, HUGE_PAGE), MADV_HUGEPAGE);
#endif
        return true;
    }
    // Like reserve, but keeps what is there if it is large enough already.
    bool grow(int64_t bytes) { return bytes <= bytes_ || reserve(bytes); }

    void release() {
        if (base_) munmap(base_, span_);
        base_ = data_ = nullptr;
        span_ = bytes_ = 0;
    }
    char* data() const { return static_cast<char*>(data_); }
    int64_t size() const { return bytes_; }

private:
    void* base_ = nullptr;
    void* data_ = nullptr;
    int64_t span_ = 0, bytes_ = 0;
};

}  // namespace kvik
