/* cpu.h: whether the CPU and the operating system support what a build of the kernels needs.
 *
 * setup.py's table says what that is; AVX2_NEEDS and AVX512_NEEDS are made from it. The CPU is asked
 * directly: the compilers' __builtin_cpu_supports knows other names in each, and with clang-cl it
 * needs a library that is not linked. */
#ifndef SOFTCE_FAST_CPU_H
#define SOFTCE_FAST_CPU_H

#if defined(__x86_64__) || defined(_M_X64)
enum {
    CPU_F16C = 1 << 0,
    CPU_FMA = 1 << 1,
    CPU_AVX2 = 1 << 2,
    CPU_AVX512F = 1 << 3,
    CPU_AVX512BW = 1 << 4,
    CPU_AVX512DQ = 1 << 5,
    CPU_AVX512VL = 1 << 6,
};

typedef struct { unsigned a, b, c, d; } cpu_registers;

static cpu_registers cpu_leaf(unsigned leaf) {
    cpu_registers r;
    __asm__("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
    return r;
}

/* The registers that the system keeps when it changes threads (XCR0), by bits; 0 if it says nothing. */
static unsigned cpu_kept_registers(void) {
    unsigned low = 0, high;
    if (cpu_leaf(1).c >> 27 & 1) __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned cpu_features(void) {
    const unsigned avx = 0x06, avx512 = 0xe6; /* XMM and YMM; the masks and ZMM, too */
    const unsigned kept = cpu_kept_registers();
    unsigned found = 0;
    if ((kept & avx) != avx || cpu_leaf(0).a < 7) return 0;
    const unsigned first = cpu_leaf(1).c, seventh = cpu_leaf(7).b;
    if (first >> 29 & 1) found |= CPU_F16C;
    if (first >> 12 & 1) found |= CPU_FMA;
    if (seventh >> 5 & 1) found |= CPU_AVX2;
    if ((kept & avx512) != avx512) return found;
    if (seventh >> 16 & 1) found |= CPU_AVX512F;
    if (seventh >> 30 & 1) found |= CPU_AVX512BW;
    if (seventh >> 17 & 1) found |= CPU_AVX512DQ;
    if (seventh >> 31 & 1) found |= CPU_AVX512VL;
    return found;
}

static int supports_avx2(void) {
    return (cpu_features() & (AVX2_NEEDS)) == (AVX2_NEEDS);
}
static int supports_avx512(void) {
    return (cpu_features() & (AVX512_NEEDS)) == (AVX512_NEEDS);
}
#else
static int supports_avx2(void) { return 0; }
static int supports_avx512(void) { return 0; }
#endif

#endif
