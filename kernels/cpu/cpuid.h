/* Which levels the processor *and* the operating system allow: on x86-64 CPUID for the instructions, XGETBV for the register
 * state that the system saves; on aarch64 what Linux and macOS tell. Elsewhere none. Knows nothing of what was built.
 */
#ifndef FASTMIXER_CPUID_H
#define FASTMIXER_CPUID_H

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

#include "cpu/tiles.h"

static uint64_t cpu_xgetbv(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

enum { CPU_TILES = 1u << 22 | 1u << 24 }; /* AMX_BF16, AMX_TILE */

/* Whether the processor is one with AMX, at whatever level kernels run: Sapphire Rapids or later. */
static int cpu_has_tiles(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & CPU_TILES) == CPU_TILES;
}

/* 1, 2, 3 or 4: the highest x86-64 psABI micro-architecture level; 5: level 4 with AVX512_VNNI (Cascade Lake, Ice
 * Lake), 6: and with AVX512_BF16 (Zen 4), 7: and with AMX (Sapphire Rapids). */
static int cpu_level(void) {
    unsigned a, b, c, d, b7 = 0, c7 = 0, d7 = 0, c_extended = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 1;
    __get_cpuid_count(7, 0, &a, &b7, &c7, &d7);
    unsigned ignored;
    __get_cpuid(0x80000001u, &ignored, &ignored, &c_extended, &ignored);

    const unsigned v2 = bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B;
    if ((c & v2) != v2 || !(c_extended & bit_LAHF_LM)) return 1;

    const unsigned v3 = bit_AVX | bit_FMA | bit_F16C | bit_MOVBE | bit_OSXSAVE;
    const unsigned v3_extended = bit_AVX2 | bit_BMI | bit_BMI2;
    if ((c & v3) != v3 || (b7 & v3_extended) != v3_extended || !(c_extended & bit_LZCNT)) return 2;
    uint64_t saved = cpu_xgetbv();
    if ((saved & 0x06) != 0x06) return 2; /* xmm, ymm */

    const unsigned v4 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    if ((b7 & v4) != v4 || (saved & 0xe6) != 0xe6) return 3; /* and opmask, zmm */

    unsigned a71 = 0;
    __get_cpuid_count(7, 1, &a71, &ignored, &ignored, &ignored);
    const unsigned vnni = 1u << 11, bf16 = 1u << 5;
    const uint64_t tiles_saved = 3ull << 17;
    if (!(c7 & vnni)) return 4;
    if (!(a71 & bf16)) return 5;
    return (d7 & CPU_TILES) == CPU_TILES && (saved & tiles_saved) == tiles_saved && system_allows_tiles() ? 7 : 6;
}
#else
static int cpu_has_tiles(void) { return 0; }

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* 1: products of four bytes (Armv8.2's dotprod). */
static int cpu_level(void) {
    const unsigned long dotprod = 1ul << 20;
    return (getauxval(AT_HWCAP) & dotprod) != 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

static int cpu_level(void) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, NULL, 0) == 0 && found;
}
#else
static int cpu_level(void) { return 0; }
#endif
#endif

#endif
