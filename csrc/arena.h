// Arena: one span of zeroed, 64-byte aligned memory in 2 MB pages where the system grants them.
//
// Transparent huge pages here are given only to memory that asks (madvise), which malloc does not; without them a
// fifth of the read bandwidth is lost to address translation.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <vector>

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

// Pieces of memory taken one after another and kept to the end: of one arena as large as is expected, and of more where
// that was too little.
class Shelf {
public:
    bool reserve(int64_t bytes) { return add(bytes); }

    // Zeroed and aligned as an arena is; null if there is no memory.
    template <class T>
    T* take(int64_t count) {
        const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        if ((arenas_.empty() || taken_ + bytes > arenas_.back()->size()) && !add(bytes > MORE ? bytes : MORE))
            return nullptr;
        char* at = arenas_.back()->data() + taken_;
        taken_ += bytes;
        size_ += bytes;
        return reinterpret_cast<T*>(at);
    }
    // Of all that was taken.
    int64_t size() const { return size_; }

private:
    static constexpr int64_t MORE = 32 * HUGE_PAGE;

    bool add(int64_t bytes) {
        auto arena = std::make_unique<Arena>();
        if (!arena->reserve(bytes)) return false;
        arenas_.push_back(std::move(arena));
        taken_ = 0;
        return true;
    }

    std::vector<std::unique_ptr<Arena>> arenas_;
    int64_t taken_ = 0, size_ = 0;
};

}  // namespace kvik
