// Which instruction sets this library was built with, and which of them this machine can run.

#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define KVIK_DECLARE(isa)                \
    namespace isa {                      \
    const kvik::Kernels* table();        \
    }
#if defined(KVIK_HAVE_X86)
KVIK_DECLARE(kvik_amx)
KVIK_DECLARE(kvik_amx_emulated)
KVIK_DECLARE(kvik_avx512bf16)
KVIK_DECLARE(kvik_avx512vnni)
KVIK_DECLARE(kvik_avx512)
KVIK_DECLARE(kvik_avxvnni)
KVIK_DECLARE(kvik_avx2)
#endif
KVIK_DECLARE(kvik_portable)

namespace kvik {
namespace {

const char* none() { return nullptr; }

#if defined(KVIK_HAVE_X86)

const char* refuse_avx2() {
    if (!__builtin_cpu_supports("avx2")) return "the processor has no AVX2";
    if (!__builtin_cpu_supports("fma")) return "the processor has no FMA";
    return nullptr;
}

// Leaf 7, subleaf 1, eax bit 4. Asked directly, as compilers differ in what they name.
bool has_avxvnni_bit() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

const char* refuse_avxvnni() {
    if (const char* why = refuse_avx2()) return why;
    return has_avxvnni_bit() ? nullptr : "the processor has no AVX-VNNI";
}

const char* refuse_avx512() {
    const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                     __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return all ? nullptr : "the processor has no AVX512 (F, CD, BW, DQ and VL)";
}

const char* refuse_avx512vnni() {
    if (const char* why = refuse_avx512()) return why;
    return __builtin_cpu_supports("avx512vnni") ? nullptr : "the processor has no AVX512-VNNI";
}

const char* refuse_avx512bf16() {
    if (const char* why = refuse_avx512vnni()) return why;
    return __builtin_cpu_supports("avx512bf16") ? nullptr : "the processor has no AVX512-BF16";
}

// Leaf 7: AMX-BF16 is bit 22 and AMX-TILE bit 24 of edx. Asked directly, as compilers differ in what they name.
bool has_amx_bits() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}

// Linux gives a process the 8 KB of tile state only on request (ARCH_REQ_XCOMP_PERM, feature 18).
bool may_use_tiles() {
#if defined(__linux__)
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return granted;
#else
    return false;
#endif
}

const char* refuse_amx() {
    if (!has_amx_bits()) return "the processor has no AMX-BF16";
    if (const char* why = refuse_avx512bf16()) return why;
    if (!__builtin_cpu_supports("avx512vbmi")) return "the processor has no AVX512-VBMI";
    return may_use_tiles() ? nullptr : "the kernel does not grant AMX tile state to this process";
}

#endif

const Isa LIST[] = {
#if defined(KVIK_HAVE_X86)
    {"amx", refuse_amx, kvik_amx::table},
    {"avx512bf16", refuse_avx512bf16, kvik_avx512bf16::table},
    {"avx512vnni", refuse_avx512vnni, kvik_avx512vnni::table},
    {"avx512", refuse_avx512, kvik_avx512::table},
    {"avxvnni", refuse_avxvnni, kvik_avxvnni::table},
    {"avx2", refuse_avx2, kvik_avx2::table},
#endif
    {"portable", none, kvik_portable::table},
#if defined(KVIK_HAVE_X86)
    // Last: for tests of what is built on tiles, never chosen by itself (portable always comes first).
    {"amx-emulated", refuse_avx512, kvik_amx_emulated::table},
#endif
};

}  // namespace

const Isa* isa_list(int* count) {
    *count = static_cast<int>(sizeof LIST / sizeof LIST[0]);
    return LIST;
}

const Kernels* choose_kernels(const char* name, const char** why) {
    *why = "no such instruction set in this build";
    const bool best = std::strcmp(name, "auto") == 0;
    for (const Isa& isa : LIST) {
        if (!best && std::strcmp(name, isa.name) != 0) continue;
        *why = isa.refusal();
        if (!*why) return isa.kernels();
        if (!best) return nullptr;
    }
    return nullptr;
}

}  // namespace kvik
