/* kind.h: the element types of arrays, and single elements of them. */
#ifndef SOFTCE_FAST_KIND_H
#define SOFTCE_FAST_KIND_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    KIND_BOOL,
    KIND_INT8,
    KIND_UINT8,
    KIND_INT16,
    KIND_UINT16,
    KIND_INT32,
    KIND_UINT32,
    KIND_INT64,
    KIND_UINT64,
    KIND_FLOAT16,
    KIND_BFLOAT16,
    KIND_FLOAT32,
    KIND_FLOAT64,
    KINDS
};

#define KIND_INLINE static inline __attribute__((always_inline, unused))

KIND_INLINE ptrdiff_t kind_size(int kind) {
    static const signed char SIZES[KINDS] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
    return SIZES[kind];
}

/* ---- half types ------------------------------------------------------------------------------ */

KIND_INLINE uint32_t float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

KIND_INLINE float float_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* By its bits where it is subnormal: a conversion would take that for 0 while a kernel runs. */
KIND_INLINE double float32_widen(uint32_t u) {
    const double small = (double)(int32_t)(u & 0x7fffff) * 0x1p-149;
    if ((u & 0x7f800000) != 0) return (double)float_from_bits(u);
    return u >> 31 ? -small : small;
}

KIND_INLINE float bfloat16_widen(uint16_t h) {
    return float_from_bits((uint32_t)h << 16);
}

KIND_INLINE double bfloat16_widen_twice(uint16_t h) {
    return float32_widen((uint32_t)h << 16);
}

/* Rounding to nearest, ties to even; of a NaN the payload must not be carried away. */
KIND_INLINE uint16_t bfloat16_narrow(float x) {
    const uint32_t u = float_bits(x);
    const uint32_t rounded = (u + ((u >> 16 & 1) + 0x7fff)) >> 16;
    return (uint16_t)(x == x ? rounded : (u >> 16 | 0x40));
}

/* Shift the fields into place and correct the exponent's bias; a subnormal half is its bits times
 * 2**-24, infinity and NaN get the full exponent. */
KIND_INLINE float float16_widen(uint16_t h) {
    const uint32_t size = h & 0x7fff;
    const uint32_t normal = ((size << 13) + 0x38000000) | (size >= 0x7c00 ? 0x7f800000 : 0);
    const uint32_t small = float_bits((float)(int32_t)size * 0x1p-24f);
    return float_from_bits((size < 0x400 ? small : normal) | (uint32_t)(h & 0x8000) << 16);
}

KIND_INLINE uint16_t float16_narrow(float x) {
    const uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
    const uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    /* Adding 1/2 rounds at a half's smallest step, 2**-24. */
    const uint32_t small = float_bits(float_from_bits(size) + 0.5f) - 0x3f000000;
    const uint32_t finite = size < 0x38800000 ? small : normal;
    const uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (uint16_t)((size >= 0x47800000 ? large : finite) | sign);
}

/* ---- single elements ----------------------------------------------------------------------------- */

static __attribute__((noinline, unused)) double number_read(const char *p, int kind, int swapped) {
    char x[8];
    const ptrdiff_t size = kind_size(kind);
    for (ptrdiff_t i = 0; i < size; i++) x[i] = p[swapped ? size - 1 - i : i];
#define READ(type, convert) { type value; memcpy(&value, x, sizeof value); return (double)convert(value); }
    switch (kind) {
    case KIND_BOOL: READ(uint8_t, )
    case KIND_INT8: READ(int8_t, )
    case KIND_UINT8: READ(uint8_t, )
    case KIND_INT16: READ(int16_t, )
    case KIND_UINT16: READ(uint16_t, )
    case KIND_INT32: READ(int32_t, )
    case KIND_UINT32: READ(uint32_t, )
    case KIND_INT64: READ(int64_t, )
    case KIND_UINT64: READ(uint64_t, )
    case KIND_FLOAT16: READ(uint16_t, float16_widen)
    case KIND_BFLOAT16: READ(uint16_t, bfloat16_widen_twice)
    case KIND_FLOAT32: READ(uint32_t, float32_widen)
    default: READ(double, )
    }
#undef READ
}

/* n numbers that lie `step` bytes apart. */
static __attribute__((noinline, unused)) void numbers_read(double *to, const char *from,
                                                        ptrdiff_t step, ptrdiff_t n, int kind,
                                                        int swapped) {
    if (kind == KIND_FLOAT32 && !swapped) {
        for (ptrdiff_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, from + i * step, sizeof u);
            to[i] = float32_widen(u);
        }
    } else if (kind == KIND_FLOAT64 && !swapped) {
        for (ptrdiff_t i = 0; i < n; i++) memcpy(to + i, from + i * step, sizeof *to);
    } else {
        for (ptrdiff_t i = 0; i < n; i++) to[i] = number_read(from + i * step, kind, swapped);
    }
}

/* The inverse of number_read(), for the kinds that results have. */
static __attribute__((noinline, unused)) void number_write(char *p, double value, int kind,
                                                           int swapped) {
    char x[8];
    const ptrdiff_t size = kind_size(kind);
#define WRITE(type, convert) { const type number = (type)convert(value); memcpy(x, &number, sizeof number); break; }
    switch (kind) {
    case KIND_FLOAT16: WRITE(uint16_t, float16_narrow)
    case KIND_BFLOAT16: WRITE(uint16_t, bfloat16_narrow)
    case KIND_FLOAT32: WRITE(float, )
    default: WRITE(double, )
    }
#undef WRITE
    for (ptrdiff_t i = 0; i < size; i++) p[i] = x[swapped ? size - 1 - i : i];
}

/* A whole number of n that lie `step` bytes apart, as int64. What is above its range becomes its largest
 * number, which is no class. */
static __attribute__((noinline, unused)) void labels_read(int64_t *labels, const char *from,
                                                       ptrdiff_t step, ptrdiff_t n, int kind,
                                                       int swapped) {
#define READ(type, swap) \
    for (ptrdiff_t i = 0; i < n; i++) { \
        type x; \
        memcpy(&x, from + i * step, sizeof x); \
        if (swapped) x = (type)swap(x); \
        labels[i] = (int64_t)x; \
    } \
    return;
    switch (kind) {
    case KIND_INT8: READ(int8_t, )
    case KIND_UINT8: READ(uint8_t, )
    case KIND_INT16: READ(int16_t, __builtin_bswap16)
    case KIND_UINT16: READ(uint16_t, __builtin_bswap16)
    case KIND_INT32: READ(int32_t, __builtin_bswap32)
    case KIND_UINT32: READ(uint32_t, __builtin_bswap32)
    case KIND_UINT64:
        for (ptrdiff_t i = 0; i < n; i++) {
            uint64_t x;
            memcpy(&x, from + i * step, sizeof x);
            if (swapped) x = __builtin_bswap64(x);
            labels[i] = x > INT64_MAX ? INT64_MAX : (int64_t)x;
        }
        return;
    default: READ(int64_t, __builtin_bswap64)
    }
#undef READ
}

/* ---- powers of two ------------------------------------------------------------------------------ */

/* Split x into a number of size 1 to 2 and a power of two; what has none (0, infinity, NaN) stays. */
KIND_INLINE double power_split(double x, int *power) {
    uint64_t u;
    int field;
    *power = 0;
    memcpy(&u, &x, sizeof u);
    if ((u & UINT64_C(0x7ff0000000000000)) == 0 && x != 0) {
        x *= 0x1p64;
        *power = -64;
        memcpy(&u, &x, sizeof u);
    }
    field = (int)(u >> 52 & 0x7ff);
    if (field == 0 || field == 0x7ff) return x;
    *power += field - 1023;
    u = (u & ~UINT64_C(0x7ff0000000000000)) | UINT64_C(0x3ff0000000000000);
    memcpy(&x, &u, sizeof x);
    return x;
}

/* The same power of a normal number; 0 of 0. */
KIND_INLINE int64_t exponent_of(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x == 0 ? 0 : (bits >> 52 & 0x7ff) - 1023;
}

/* 2**power where that is a normal number. */
KIND_INLINE double two_to(int64_t power) {
    const int64_t bits = (power + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x * 2**power, in steps that leave the range only where the result does. */
KIND_INLINE double power_apply(double x, int power) {
    for (int step = 0; step < 3 && power != 0; step++) {
        const int part = power > 1000 ? 1000 : power < -1000 ? -1000 : power;
        const uint64_t u = (uint64_t)(part + 1023) << 52;
        double factor;
        memcpy(&factor, &u, sizeof factor);
        x *= factor;
        power -= part;
    }
    return x;
}

#endif
