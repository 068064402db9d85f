/* vector.h: the one place that knows instruction sets.
 *
 * A `vector` is 64 bytes of `real` numbers on every CPU: one AVX-512 register, two of AVX2, four of
 * SSE2 or NEON. The algorithms are written once on this logical vector, so lane k of a sum holds the
 * same numbers in every build, and builds with a fused multiply-add agree bit for bit.
 *
 * The file is compiled once per module with COMPUTE_FLOAT32 or COMPUTE_FLOAT64 defined: `real` is what
 * is computed in. What arrays hold is a matter of element.h. Below, a "part" is one hardware register
 * of a vector.
 *
 * Plain arithmetic uses the vector extension of GCC and Clang. Intrinsics appear only where the
 * extension has no word for the instruction. Contraction must be off (-ffp-contract=off): a
 * multiply-add is fused where vector_fma is called and nowhere else.
 */
#ifndef SOFTCE_FAST_VECTOR_H
#define SOFTCE_FAST_VECTOR_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PASTE_EXPANDED(a, b) a##b
#define PASTE(a, b) PASTE_EXPANDED(a, b)

/* ---- types ------------------------------------------------------------------------------- */

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define PART_BYTES 64
#define X86(name) _mm512_##name
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PART_BYTES 32
#define X86(name) _mm256_##name
#else
#define PART_BYTES 16
#if defined(__SSE2__)
#define X86(name) _mm_##name
#endif
#endif

#if defined(COMPUTE_FLOAT64)
typedef double real;
typedef int64_t bits;
typedef uint64_t word;
#define SUFFIXED(name) PASTE(name, _pd)
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#elif defined(COMPUTE_FLOAT32)
typedef float real;
typedef int32_t bits;
typedef uint32_t word;
#define SUFFIXED(name) PASTE(name, _ps)
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#else
#error "define COMPUTE_FLOAT32 or COMPUTE_FLOAT64"
#endif

#define VECTOR_BYTES 64
enum {
    LANES = VECTOR_BYTES / sizeof(real),
    LANES_SQUARED = LANES * LANES,
    PARTS = VECTOR_BYTES / PART_BYTES,
    PART_LANES = PART_BYTES / sizeof(real),
    QUARTER_LANES = 16 / sizeof(real)
};

typedef real part __attribute__((vector_size(PART_BYTES)));
typedef bits part_bits __attribute__((vector_size(PART_BYTES)));
typedef word part_words __attribute__((vector_size(PART_BYTES)));
typedef real quarter __attribute__((vector_size(16)));
typedef struct { part p[PARTS]; } vector;

#if PART_BYTES == 64 && defined(COMPUTE_FLOAT64)
typedef __mmask8 part_mask;
#elif PART_BYTES == 64
typedef __mmask16 part_mask;
#else
typedef part_bits part_mask;
#endif
typedef struct { part_mask p[PARTS]; } mask; /* true where all bits are set */

#if defined(__FMA__) || defined(__aarch64__)
enum { HAS_FMA = 1 };
#else
enum { HAS_FMA = 0 };
#endif

/* ln(2) = LN2 + LN2_REST; a whole number times LN2 is exact where multiply-adds are not fused. */
#if defined(COMPUTE_FLOAT64)
#define NEGATIVE_INFINITY (-__builtin_inf())
#define LN2 (HAS_FMA ? 0.693147180559945286 : 0x1.62e42fefa4p-1)
#define LN2_REST (HAS_FMA ? 2.31904681384629956e-17 : -1.72394445256148357e-13)
#define SMALLEST_NORMAL 0x1p-1022
#define LARGEST 0x1.fffffffffffffp1023
#else
#define NEGATIVE_INFINITY (-__builtin_inff())
#define LN2 (HAS_FMA ? 0.693147182f : 0x1.62e8p-1f)
#define LN2_REST (HAS_FMA ? -1.90465421e-9f : -2.90889301e-5f)
#define SMALLEST_NORMAL 0x1p-126f
#define LARGEST 0x1.fffffep127f
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if PART_BYTES == 64
#define EACH_PART(e) {{e(0)}}
#elif PART_BYTES == 32
#define EACH_PART(e) {{e(0), e(1)}}
#else
#define EACH_PART(e) {{e(0), e(1), e(2), e(3)}}
#endif

/* ---- one part ---------------------------------------------------------------------------- */

INLINE part part_set(real x) {
    return x - (part){0};
}

INLINE part part_load(const real *p) {
    part v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void part_store(real *p, part v) {
    memcpy(p, &v, sizeof v);
}

INLINE part part_fma(part a, part b, part c) {
#if defined(X86) && defined(__FMA__)
    return SUFFIXED(X86(fmadd))(a, b, c);
#elif defined(__aarch64__) && defined(COMPUTE_FLOAT64)
    return vfmaq_f64(c, a, b);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

INLINE part part_fnma(part a, part b, part c) {
#if defined(X86) && defined(__FMA__)
    return SUFFIXED(X86(fnmadd))(a, b, c);
#elif defined(__aarch64__) && defined(COMPUTE_FLOAT64)
    return vfmsq_f64(c, a, b);
#elif defined(__aarch64__)
    return vfmsq_f32(c, a, b);
#else
    return c - a * b;
#endif
}

INLINE part_mask part_greater(part a, part b) {
#if PART_BYTES == 64 && defined(COMPUTE_FLOAT64)
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
#elif PART_BYTES == 64
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#else
    return (part_mask)(a > b);
#endif
}

INLINE part_mask part_equal(part a, part b) {
#if PART_BYTES == 64 && defined(COMPUTE_FLOAT64)
    return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
#elif PART_BYTES == 64
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
#else
    return (part_mask)(a == b);
#endif
}

INLINE part part_select(part_mask m, part a, part b) {
#if PART_BYTES == 64
    return SUFFIXED(_mm512_mask_blend)(m, b, a);
#elif PART_BYTES == 32
    return SUFFIXED(_mm256_blendv)(b, a, (part)m);
#elif defined(X86)
    /* In C's own operators GCC 12 finds a conditional that it then cannot expand, and stops. */
    return SUFFIXED(_mm_or)(SUFFIXED(_mm_and)((part)m, a), SUFFIXED(_mm_andnot)((part)m, b));
#else
    return (part)((m & (part_bits)a) | (~m & (part_bits)b));
#endif
}

/* The greater one; b where either is not a number, so that NaN in b survives. */
INLINE part part_maximum(part a, part b) {
#if defined(X86)
    return SUFFIXED(X86(max))(a, b);
#else
    return part_select(part_greater(a, b), a, b);
#endif
}

INLINE void part_stream(real *p, part v) {
#if defined(X86)
    SUFFIXED(X86(stream))(p, v);
#else
    part_store(p, v);
#endif
}

/* Interleave the low or the high halves of each 16 bytes, by single numbers or by 8 bytes. */
#if defined(X86) && PART_BYTES == 64
typedef __m512 floats;
typedef __m512d doubles;
#elif defined(X86) && PART_BYTES == 32
typedef __m256 floats;
typedef __m256d doubles;
#elif defined(X86)
typedef __m128 floats;
typedef __m128d doubles;
#endif
#if defined(X86)
#define ZIP_LOW_4(a, b) ((part)X86(unpacklo_ps)((floats)(a), (floats)(b)))
#define ZIP_HIGH_4(a, b) ((part)X86(unpackhi_ps)((floats)(a), (floats)(b)))
#define ZIP_LOW_8(a, b) ((part)X86(unpacklo_pd)((doubles)(a), (doubles)(b)))
#define ZIP_HIGH_8(a, b) ((part)X86(unpackhi_pd)((doubles)(a), (doubles)(b)))
#else
typedef int64_t pair_bits __attribute__((vector_size(16)));
INLINE part zip_8(part a, part b, int high) {
    const pair_bits x = (pair_bits)a, y = (pair_bits)b;
    return (part)(pair_bits){x[high], y[high]};
}
#define ZIP_LOW_8(a, b) zip_8(a, b, 0)
#define ZIP_HIGH_8(a, b) zip_8(a, b, 1)
#if defined(__aarch64__) && !defined(COMPUTE_FLOAT64)
#define ZIP_LOW_4(a, b) vzip1q_f32(a, b)
#define ZIP_HIGH_4(a, b) vzip2q_f32(a, b)
#else
#define ZIP_LOW_4(a, b) ((part){(a)[0], (b)[0], (a)[1], (b)[1]})
#define ZIP_HIGH_4(a, b) ((part){(a)[2], (b)[2], (a)[3], (b)[3]})
#endif
#endif

/* A part made of lanes of two, which are numbered through. Of -1, any lane will do: GCC before 12, for
 * which the numbers go round, takes the last. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (part_bits){__VA_ARGS__})
#endif

/* PART_LANES as a literal, and f(k, m, n) for each lane k of a part. */
#if PART_BYTES == 64 && !defined(COMPUTE_FLOAT64)
#define PART_WIDTH 16
#elif PART_BYTES == 64 || (PART_BYTES == 32 && !defined(COMPUTE_FLOAT64))
#define PART_WIDTH 8
#elif PART_BYTES == 32 || !defined(COMPUTE_FLOAT64)
#define PART_WIDTH 4
#else
#define PART_WIDTH 2
#endif
#define EACH_OF_2(f, k, m, n) f((k), m, n), f((k) + 1, m, n)
#define EACH_OF_4(f, k, m, n) EACH_OF_2(f, k, m, n), EACH_OF_2(f, (k) + 2, m, n)
#define EACH_OF_8(f, k, m, n) EACH_OF_4(f, k, m, n), EACH_OF_4(f, (k) + 4, m, n)
#define EACH_OF_16(f, k, m, n) EACH_OF_8(f, k, m, n), EACH_OF_8(f, (k) + 8, m, n)
#define EACH_LANE(f, m, n) PASTE(EACH_OF_, PART_WIDTH)(f, 0, m, n)

/* ---- vectors: arithmetic ------------------------------------------------------------------ */

INLINE vector vector_set(real x) {
#define E(i) part_set(x)
    return (vector)EACH_PART(E);
#undef E
}

/* v, of which all lanes are alike: where the compiler cannot see that, each part has a register. */
INLINE vector vector_alike(vector v) {
#define E(i) v.p[0]
    return (vector)EACH_PART(E);
#undef E
}

INLINE vector vector_add(vector a, vector b) {
#define E(i) a.p[i] + b.p[i]
    return (vector)EACH_PART(E);
#undef E
}

INLINE vector vector_subtract(vector a, vector b) {
#define E(i) a.p[i] - b.p[i]
    return (vector)EACH_PART(E);
#undef E
}

INLINE vector vector_multiply(vector a, vector b) {
#define E(i) a.p[i] * b.p[i]
    return (vector)EACH_PART(E);
#undef E
}

INLINE vector vector_divide(vector a, vector b) {
#define E(i) a.p[i] / b.p[i]
    return (vector)EACH_PART(E);
#undef E
}

/* a*b + c, one rounding where HAS_FMA. */
INLINE vector vector_fma(vector a, vector b, vector c) {
#define E(i) part_fma(a.p[i], b.p[i], c.p[i])
    return (vector)EACH_PART(E);
#undef E
}

/* c - a*b, one rounding where HAS_FMA. */
INLINE vector vector_fnma(vector a, vector b, vector c) {
#define E(i) part_fnma(a.p[i], b.p[i], c.p[i])
    return (vector)EACH_PART(E);
#undef E
}

/* The greater one; b where either is NaN. */
INLINE vector vector_maximum(vector a, vector b) {
#define E(i) part_maximum(a.p[i], b.p[i])
    return (vector)EACH_PART(E);
#undef E
}

INLINE mask vector_greater(vector a, vector b) {
#define E(i) part_greater(a.p[i], b.p[i])
    return (mask)EACH_PART(E);
#undef E
}

INLINE mask vector_equal(vector a, vector b) {
#define E(i) part_equal(a.p[i], b.p[i])
    return (mask)EACH_PART(E);
#undef E
}

INLINE mask mask_either(mask a, mask b) {
#define E(i) (part_mask)(a.p[i] | b.p[i])
    return (mask)EACH_PART(E);
#undef E
}

INLINE vector vector_select(mask m, vector a, vector b) {
#define E(i) part_select(m.p[i], a.p[i], b.p[i])
    return (vector)EACH_PART(E);
#undef E
}

/* Bit k is lane k. */
INLINE unsigned vector_mask_bits(mask m) {
    unsigned word = 0;
#if PART_BYTES == 64
    word = m.p[0];
#elif PART_BYTES == 32
    for (int i = 0; i < PARTS; i++)
        word |= (unsigned)SUFFIXED(_mm256_movemask)((part)m.p[i]) << (i * PART_LANES);
#else
    for (int i = 0; i < LANES; i++)
        word |= (unsigned)(m.p[i / PART_LANES][i % PART_LANES] & 1) << i;
#endif
    return word;
}

INLINE int any_lane(mask m) {
    part_mask any = m.p[0];
    for (int i = 1; i < PARTS; i++)
        any |= m.p[i];
    return vector_mask_bits((mask){{any}}) != 0;
}

INLINE vector vector_absolute(vector a) {
    const part_bits keep = (bits)(((uint64_t)1 << (8 * sizeof(real) - 1)) - 1) - (part_bits){0};
#define E(i) (part)((part_bits)a.p[i] & keep)
    return (vector)EACH_PART(E);
#undef E
}

/* The next number above: of normal ones, and of -inf. */
INLINE vector vector_next(vector a) {
    enum { SIGN = 8 * sizeof(real) - 1 };
#define E(i) (part)((part_words)a.p[i] + (part_words)((part_bits)a.p[i] >> SIGN | 1))
    return (vector)EACH_PART(E);
#undef E
}

/* ---- vectors: exponent fields -------------------------------------------------------------- */

/* Exponentials are split at every STEPS-th part of a power of two. With 4 steps, looked up within 16
 * bytes of a register, a polynomial of degree 4 does where 1 step takes degree 6. */
#if !defined(COMPUTE_FLOAT64) && PART_BYTES > 16
enum { STEPS = 4 };
#else
enum { STEPS = 1 };
#endif

/* Adding ROUNDER rounds to a whole number and leaves it in the low bits. */
#define ROUNDER ((real)1.5 * (real)((bits)1 << MANTISSA_BITS))

/* 2**(n / STEPS) for a whole number given as POWER_ROUNDER + n. At n = -EXPONENT_BIAS * STEPS the
 * result is 0; n may not be less. */
#if !defined(COMPUTE_FLOAT64) && PART_BYTES > 16
#define POWER_ROUNDER ROUNDER
/* Entry j: the bits of 2**(j/4), less j << 21, which shifting the whole of n brings back. */
static const int32_t STEP_TABLE[4] = {0x3f800000, 0x3f7837f0, 0x3f7504f3, 0x3f7744fd};
INLINE part part_power_of_two(part n) {
    __m128 table;
    memcpy(&table, STEP_TABLE, sizeof table);
#if PART_BYTES == 64
    const part step = _mm512_permutevar_ps(_mm512_broadcast_f32x4(table), (__m512i)n);
#else
    const part step = _mm256_permutevar_ps(_mm256_set_m128(table, table), (__m256i)n);
#endif
    return (part)(((part_words)n << 21) + (part_words)step); /* it may go round */
}
#else
#define POWER_ROUNDER (ROUNDER + EXPONENT_BIAS)
INLINE part part_power_of_two(part n) {
    return (part)((part_words)n << MANTISSA_BITS);
}
#endif

INLINE vector vector_power_of_two(vector n) {
#define E(i) part_power_of_two(n.p[i])
    return (vector)EACH_PART(E);
#undef E
}

/* Split a positive normal number into 2**exponent * fraction, sqrt(1/2) <= fraction < sqrt(2). */
#if defined(COMPUTE_FLOAT64)
#define SQRT_HALF_BITS INT64_C(0x3fe6a09e667f3bcd)
#else
#define SQRT_HALF_BITS 0x3f3504f3
#endif
#define ONE_BITS ((bits)EXPONENT_BIAS << MANTISSA_BITS)

/* A sum that may go round, as that of a NaN's bits does. */
INLINE part_bits part_add_bits(part_bits a, bits b) {
    return (part_bits)((part_words)a + (word)b);
}

INLINE part part_exponent(part a) {
    const real whole = (real)((bits)1 << MANTISSA_BITS);
    const part_bits raised = part_add_bits((part_bits)a, ONE_BITS - SQRT_HALF_BITS);
    const part_words field = ((part_words)raised >> MANTISSA_BITS) | (part_words)part_set(whole);
    return (part)field - (whole + EXPONENT_BIAS);
}

INLINE part part_fraction(part a) {
    const part_bits raised = part_add_bits((part_bits)a, ONE_BITS - SQRT_HALF_BITS);
    const part_bits fraction_field = raised & (((bits)1 << MANTISSA_BITS) - 1);
    return (part)(fraction_field + SQRT_HALF_BITS);
}

INLINE vector vector_exponent(vector a) {
#define E(i) part_exponent(a.p[i])
    return (vector)EACH_PART(E);
#undef E
}

INLINE vector vector_fraction(vector a) {
#define E(i) part_fraction(a.p[i])
    return (vector)EACH_PART(E);
#undef E
}

/* ---- memory ------------------------------------------------------------------------------- */

INLINE vector vector_load(const real *p) {
#define E(i) part_load(p + i * PART_LANES)
    return (vector)EACH_PART(E);
#undef E
}

INLINE void vector_store(real *p, vector v) {
    for (int i = 0; i < PARTS; i++) part_store(p + i * PART_LANES, v.p[i]);
}

/* Past the caches; p on a 64-byte boundary. */
INLINE void vector_stream(real *p, vector v) {
    for (int i = 0; i < PARTS; i++) part_stream(p + i * PART_LANES, v.p[i]);
}

/* `count` numbers, fewer than LANES, in pieces: one branch for each bit of it. */
INLINE void copy_first(real *to, const real *from, ptrdiff_t count) {
#define PIECE(numbers) \
    if (count & (numbers)) { \
        memcpy(to, from, (numbers) * sizeof(real)); \
        to += (numbers), from += (numbers); \
    }
    PIECE(8)
    PIECE(4)
    PIECE(2)
    PIECE(1)
#undef PIECE
}

/* The first `count` (1 to LANES - 1) numbers; the other lanes are -infinity. Reads no further. */
INLINE vector vector_load_first(const real *p, ptrdiff_t count) {
    vector v;
#if PART_BYTES == 64 && defined(COMPUTE_FLOAT32)
    const __mmask16 m = (__mmask16)((1u << count) - 1);
    v.p[0] = _mm512_mask_loadu_ps(_mm512_set1_ps(NEGATIVE_INFINITY), m, p);
#elif PART_BYTES == 64
    const __mmask8 m = (__mmask8)((1u << count) - 1);
    v.p[0] = _mm512_mask_loadu_pd(_mm512_set1_pd(NEGATIVE_INFINITY), m, p);
#elif PART_BYTES == 32
    static const bits WANTED[2 * LANES] = {
#if defined(COMPUTE_FLOAT32)
        -1, -1, -1, -1, -1, -1, -1, -1,
#endif
        -1, -1, -1, -1, -1, -1, -1, -1,
    };
    for (int i = 0; i < PARTS; i++) {
        const __m256i m =
            _mm256_loadu_si256((const __m256i *)(WANTED + LANES - count + i * PART_LANES));
        const part loaded = SUFFIXED(_mm256_maskload)(p + i * PART_LANES, m);
        v.p[i] = part_select((part_mask)m, loaded, part_set(NEGATIVE_INFINITY));
    }
#else
    real line[LANES];
    for (int i = 0; i < LANES; i++) line[i] = NEGATIVE_INFINITY;
    copy_first(line, p, count);
    v = vector_load(line);
#endif
    return v;
}

INLINE void vector_store_first(real *p, vector v, ptrdiff_t count) {
#if PART_BYTES == 64 && defined(COMPUTE_FLOAT32)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), v.p[0]);
#elif PART_BYTES == 64
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << count) - 1), v.p[0]);
#else
    real line[LANES];
    vector_store(line, v);
    copy_first(p, line, count);
#endif
}

/* Fetch a cache line into the second-level cache, */
INLINE void prefetch(const char *p) {
    __builtin_prefetch(p, 0, 2);
}
/* or into the first. */
INLINE void prefetch_near(const char *p) {
    __builtin_prefetch(p, 0, 3);
}

/* Copy LANES class indices; whether any of them is `ignored`, or outside [0, classes). What is
 * compared is what was copied: another thread may change it where it came from. */
INLINE int labels_take(int64_t *to, const char *from, int64_t ignored, int64_t classes) {
    typedef int64_t indices __attribute__((vector_size(PART_BYTES)));
    enum { COUNT = PART_BYTES / sizeof(int64_t) };
    const indices none = {0};
    int64_t special = 0;
    indices label;
    int k;
#if PART_BYTES < 64
    indices found = none;
#endif
    for (k = 0; k < LANES; k += COUNT) {
        memcpy(&label, from + k * sizeof(int64_t), sizeof(label));
        memcpy(to + k, &label, sizeof(label));
#if PART_BYTES == 64
        special |= _mm512_cmpeq_epi64_mask((__m512i)label, (__m512i)(none + ignored))
                   | _mm512_cmpge_epu64_mask((__m512i)label, (__m512i)(none + classes));
    }
#else
        found |= (label == none + ignored) | (label < none) | (label >= none + classes);
    }
    for (k = 0; k < COUNT; k++)
        special |= found[k];
#endif
    return special != 0;
}

/* ---- quarters: 16 bytes of a vector ------------------------------------------------------- */

#if defined(COMPUTE_FLOAT64)
#define QUARTER_TO_256(q) _mm256_castpd128_pd256(q)
#define QUARTER_TO_512(q) _mm512_castpd128_pd512(q)
#define INSERT_QUARTER _mm512_insertf64x2
#define EXTRACT_QUARTER _mm512_extractf64x2_pd
#define LOWER_HALF(v) _mm512_castpd512_pd256(v)
#define UPPER_HALF(v) _mm512_extractf64x4_pd(v, 1)
#define LOWER_QUARTER(v) _mm256_castpd256_pd128(v)
#else
#define QUARTER_TO_256(q) _mm256_castps128_ps256(q)
#define QUARTER_TO_512(q) _mm512_castps128_ps512(q)
#define INSERT_QUARTER _mm512_insertf32x4
#define EXTRACT_QUARTER _mm512_extractf32x4_ps
#define LOWER_HALF(v) _mm512_castps512_ps256(v)
#define UPPER_HALF(v) _mm512_extractf32x8_ps(v, 1)
#define LOWER_QUARTER(v) _mm256_castps256_ps128(v)
#endif

INLINE quarter quarter_load(const char *p) {
    quarter q;
    memcpy(&q, p, sizeof q);
    return q;
}

/* The first `count` (1 to QUARTER_LANES - 1) numbers; what the others hold is not used. */
INLINE quarter quarter_load_first(const char *p, ptrdiff_t count) {
#if PART_BYTES == 64 && defined(COMPUTE_FLOAT32)
    return _mm_maskz_loadu_ps((__mmask8)((1u << count) - 1), p);
#elif PART_BYTES == 64
    return _mm_maskz_loadu_pd((__mmask8)((1u << count) - 1), p);
#elif __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    quarter q = {0};
    memcpy(&q, p, count * sizeof(real));
    return q;
#else
    /* In whole words: one by one, they would have to reach the cache before they can be read. */
    typedef uint64_t quarter_words __attribute__((vector_size(16)));
    const ptrdiff_t size = count * (ptrdiff_t)sizeof(real);
    uint64_t low = 0, high = 0;
    if (size >= 8) {
        memcpy(&low, p, 8);
        memcpy(&high, p + size - 8, 8);
        /* In two steps: at 8 bytes nothing of it is wanted. */
        high = high >> 1 >> (8 * (16 - size) - 1);
    } else {
        uint32_t start;
        memcpy(&start, p, 4);
        low = start;
    }
    return (quarter)(quarter_words){low, high};
#endif
}

INLINE vector vector_from_quarters(quarter a, quarter b, quarter c, quarter d) {
#if PART_BYTES == 64
    part v = QUARTER_TO_512(a);
    v = INSERT_QUARTER(v, b, 1);
    v = INSERT_QUARTER(v, c, 2);
    v = INSERT_QUARTER(v, d, 3);
    return (vector){{v}};
#elif PART_BYTES == 32
    return (vector){{SUFFIXED(_mm256_insertf128)(QUARTER_TO_256(a), b, 1),
                     SUFFIXED(_mm256_insertf128)(QUARTER_TO_256(c), d, 1)}};
#else
    return (vector){{a, b, c, d}};
#endif
}

#if PART_BYTES == 64
#define QUARTER(v, i) EXTRACT_QUARTER((v).p[0], i)
#elif PART_BYTES == 32
#define QUARTER(v, i) \
    ((i) % 2 ? SUFFIXED(_mm256_extractf128)((v).p[(i) / 2], 1) : LOWER_QUARTER((v).p[(i) / 2]))
#else
#define QUARTER(v, i) ((v).p[i])
#endif

/* Transpose QUARTER_LANES vectors within each quarter, in place: lane j of quarter q of vector k
 * changes places with lane k of quarter q of vector j. */
INLINE void vectors_transpose_quarters(vector *v) {
    for (int i = 0; i < PARTS; i++) {
#if defined(COMPUTE_FLOAT64)
        const part a = v[0].p[i], b = v[1].p[i];
        v[0].p[i] = ZIP_LOW_8(a, b);
        v[1].p[i] = ZIP_HIGH_8(a, b);
#else
        const part a = ZIP_LOW_4(v[0].p[i], v[1].p[i]), b = ZIP_HIGH_4(v[0].p[i], v[1].p[i]);
        const part c = ZIP_LOW_4(v[2].p[i], v[3].p[i]), d = ZIP_HIGH_4(v[2].p[i], v[3].p[i]);
        v[0].p[i] = ZIP_LOW_8(a, c);
        v[1].p[i] = ZIP_HIGH_8(a, c);
        v[2].p[i] = ZIP_LOW_8(b, d);
        v[3].p[i] = ZIP_HIGH_8(b, d);
#endif
    }
}

/* The lane, of two parts, that is number j of their even blocks of `width` numbers, or the odd ones. */
#define AT(j, width, odd) (2 * ((j) / (width)) * (width) + (j) % (width) + (odd) * (width))
/* Within the two parts, also where a branch for wider parts is compiled and never taken. */
#define WITHIN(j, width, odd) (AT(j, width, odd) & (2 * PART_WIDTH - 1))
#define PART_BLOCKS(a, b, width, odd) SHUFFLED(a, b, EACH_LANE(WITHIN, width, odd))

/* The even blocks of `width` numbers of two vectors, one behind the other, and the odd ones. */
INLINE void vectors_halve(const vector *pair, ptrdiff_t width, vector *even, vector *odd) {
    part from[2 * PARTS];
    memcpy(from, pair, sizeof from);
    for (int i = 0; i < PARTS; i++) {
        const part a = from[2 * i], b = from[2 * i + 1];
        if (width >= PART_LANES) {
            const int block = (int)(width / PART_LANES);
            even->p[i] = from[AT(i, block, 0)];
            odd->p[i] = from[AT(i, block, 1)];
        } else if (width == 8) {
            even->p[i] = PART_BLOCKS(a, b, 8, 0);
            odd->p[i] = PART_BLOCKS(a, b, 8, 1);
        } else if (width == 4) {
            even->p[i] = PART_BLOCKS(a, b, 4, 0);
            odd->p[i] = PART_BLOCKS(a, b, 4, 1);
        } else if (width == 2) {
            even->p[i] = PART_BLOCKS(a, b, 2, 0);
            odd->p[i] = PART_BLOCKS(a, b, 2, 1);
        } else {
            even->p[i] = PART_BLOCKS(a, b, 1, 0);
            odd->p[i] = PART_BLOCKS(a, b, 1, 1);
        }
    }
}

/* The same address. The compiler, not knowing that, adds few multiples of a stride to each of some
 * addresses, as instructions can, instead of keeping all multiples of one. */
INLINE void *apart(const void *p) {
    __asm__("" : "+r"(p));
    return (void *)p;
}

/* What 16 bytes hold of LANES rows, turned over: lane k of vector c is number c of row k. Rows are
 * `row_stride` bytes apart. */
#define LOAD_ROWS(columns, rows, row_stride, load) \
    const char *const a = apart(rows), *const b = apart(a + QUARTER_LANES * (row_stride)); \
    const char *const c = apart(b + QUARTER_LANES * (row_stride)); \
    const char *const d = apart(c + QUARTER_LANES * (row_stride)); \
    for (int k = 0; k < QUARTER_LANES; k++) { \
        const ptrdiff_t at = k * (row_stride); \
        (columns)[k] = vector_from_quarters(load(a + at), load(b + at), load(c + at), load(d + at)); \
    } \
    vectors_transpose_quarters(columns);

#define LOAD_FIRST(p) quarter_load_first(p, count)

#define STORE_QUARTER(columns, rows, row_stride, q) \
    for (int k = 0; k < QUARTER_LANES; k++) { \
        const quarter v = QUARTER((columns)[k], q); \
        memcpy((rows) + k * (row_stride), &v, sizeof v); \
    } \
    rows = apart((rows) + QUARTER_LANES * (row_stride));

/* QUARTER_LANES classes of LANES rows, turned over: lane k of columns[c] is class c of row k. */
INLINE void columns_load(vector *columns, const char *rows, ptrdiff_t row_stride) {
    LOAD_ROWS(columns, rows, row_stride, quarter_load)
}

/* The same of `count` classes, fewer than QUARTER_LANES. */
INLINE void columns_load_first(vector *columns, const char *rows, ptrdiff_t row_stride,
                               ptrdiff_t count) {
    LOAD_ROWS(columns, rows, row_stride, LOAD_FIRST)
}

/* The inverse of columns_load. Writes 16 bytes a row whatever is wanted of them, in the order of the
 * rows: what a row writes too much, the next one overwrites; after the last, room is needed. */
INLINE void columns_store(char *rows, ptrdiff_t row_stride, vector *columns) {
    char *at = apart(rows);
    vectors_transpose_quarters(columns);
    STORE_QUARTER(columns, at, row_stride, 0)
    STORE_QUARTER(columns, at, row_stride, 1)
    STORE_QUARTER(columns, at, row_stride, 2)
    STORE_QUARTER(columns, at, row_stride, 3)
}

/* ---- packed rows of few classes -------------------------------------------------------------
 *
 * LANES rows of n classes, one behind the other, are n vectors, and so are their columns: in column
 * c, lane k is class c of row k. Number e of the rows is class e % n of row e / n. */

enum { MOST_COLUMNS = 3 };

/* Which lane, of two parts, to take for lane k of column c. The first two parts give what they have,
 * the third one what is still missing: there, any lane will do, as -1 says. */
#define COLUMN_PLACE(k, n, c) ((k) * (n) + (c))
#define COLUMN_FROM_TWO(k, n, c) \
    (COLUMN_PLACE(k, n, c) < 2 * PART_WIDTH ? COLUMN_PLACE(k, n, c) : -1)
#define COLUMN_AND_THIRD(k, n, c) \
    (COLUMN_PLACE(k, n, c) < 2 * PART_WIDTH ? (k) : COLUMN_PLACE(k, n, c) - PART_WIDTH)

/* The same for lane k of part i of the rows, from the columns. */
#define ROW_CLASS(k, n, i) (((i) * PART_WIDTH + (k)) % (n))
#define ROW_NUMBER(k, n, i) (((i) * PART_WIDTH + (k)) / (n))
#define ROW_FROM_TWO(k, n, i) \
    (ROW_CLASS(k, n, i) < 2 ? ROW_CLASS(k, n, i) * PART_WIDTH + ROW_NUMBER(k, n, i) : -1)
#define ROW_AND_THIRD(k, n, i) (ROW_CLASS(k, n, i) < 2 ? (k) : PART_WIDTH + ROW_NUMBER(k, n, i))

/* Turn `from` into `to`, n parts each. */
#define TURN_TWO(kind, c) \
    to[c] = SHUFFLED(from[0], from[1], EACH_LANE(kind##_FROM_TWO, 2, c));
#define TURN_THREE(kind, c) \
    to[c] = SHUFFLED(SHUFFLED(from[0], from[1], EACH_LANE(kind##_FROM_TWO, 3, c)), from[2], \
                     EACH_LANE(kind##_AND_THIRD, 3, c));
#define TURN(kind, n) \
    if (n == 2) { \
        TURN_TWO(kind, 0) TURN_TWO(kind, 1) \
    } else { \
        TURN_THREE(kind, 0) TURN_THREE(kind, 1) TURN_THREE(kind, 2) \
    }

/* `n` is a constant: 2 or 3. Of more classes quarters are as fast. */
INLINE void columns_from_rows(vector *columns, const vector *rows, ptrdiff_t n) {
    for (int i = 0; i < PARTS; i++) {
        part from[MOST_COLUMNS], to[MOST_COLUMNS];
        for (int k = 0; k < n; k++) from[k] = rows[(i * n + k) / PARTS].p[(i * n + k) % PARTS];
        TURN(COLUMN, n)
        for (int k = 0; k < n; k++) columns[k].p[i] = to[k];
    }
}

INLINE void rows_from_columns(vector *rows, const vector *columns, ptrdiff_t n) {
    for (int i = 0; i < PARTS; i++) {
        part from[MOST_COLUMNS], to[MOST_COLUMNS];
        for (int k = 0; k < n; k++) from[k] = columns[k].p[i];
        TURN(ROW, n)
        for (int k = 0; k < n; k++) rows[(i * n + k) / PARTS].p[(i * n + k) % PARTS] = to[k];
    }
}

/* ---- across the lanes ----------------------------------------------------------------------
 * The order is part of the contract: halves onto each other, 16 lanes to 8, 4, 2, 1, so that
 * one row alone and sixteen rows side by side add up the same way. */

#if PART_BYTES == 64
#define FOLD(v, combine_256, combine_128) \
    const __typeof__(LOWER_HALF(v.p[0])) half = combine_256(LOWER_HALF(v.p[0]), UPPER_HALF(v.p[0])); \
    const quarter q = combine_128(LOWER_QUARTER(half), SUFFIXED(_mm256_extractf128)(half, 1));
#elif PART_BYTES == 32
#define FOLD(v, combine_256, combine_128) \
    const part half = combine_256(v.p[0], v.p[1]); \
    const quarter q = combine_128(LOWER_QUARTER(half), SUFFIXED(_mm256_extractf128)(half, 1));
#else
#define FOLD(v, combine_256, combine_128) \
    const quarter q = combine_128(combine_128(v.p[0], v.p[2]), combine_128(v.p[1], v.p[3]));
#endif

#define PLUS(a, b) ((a) + (b))
#if defined(X86)
#define GREATER_256(a, b) SUFFIXED(_mm256_max)(a, b)
#define GREATER_128(a, b) SUFFIXED(_mm_max)(a, b)
#else
#define GREATER_128(a, b) part_maximum(a, b)
#endif
#define GREATER(a, b) ((a) > (b) ? (a) : (b))

/* The sum of the lanes of `high`, plus what it lost, `low`. Each step keeps its own rounding error
 * (two-sum), operation by operation as pair_merge in numbers.pxd. */
#define MERGE(type, a_high, a_low, b_high, b_low, high, low) \
    const type high = (a_high) + (b_high), low##_kept = high - (a_high); \
    const type low = ((a_low) + (b_low)) + (((a_high) - (high - low##_kept)) + ((b_high)-low##_kept));

INLINE real vector_reduce_compensated(vector high, vector low, real *rest) {
#if PART_BYTES == 64
    typedef __typeof__(LOWER_HALF(high.p[0])) half;
    MERGE(half, LOWER_HALF(high.p[0]), LOWER_HALF(low.p[0]), UPPER_HALF(high.p[0]),
          UPPER_HALF(low.p[0]), h8, l8)
    MERGE(quarter, LOWER_QUARTER(h8), LOWER_QUARTER(l8), SUFFIXED(_mm256_extractf128)(h8, 1),
          SUFFIXED(_mm256_extractf128)(l8, 1), h4, l4)
#elif PART_BYTES == 32
    MERGE(part, high.p[0], low.p[0], high.p[1], low.p[1], h8, l8)
    MERGE(quarter, LOWER_QUARTER(h8), LOWER_QUARTER(l8), SUFFIXED(_mm256_extractf128)(h8, 1),
          SUFFIXED(_mm256_extractf128)(l8, 1), h4, l4)
#else
    MERGE(quarter, high.p[0], low.p[0], high.p[2], low.p[2], h8, l8)
    MERGE(quarter, high.p[1], low.p[1], high.p[3], low.p[3], h9, l9)
    MERGE(quarter, h8, l8, h9, l9, h4, l4)
#endif
#if defined(COMPUTE_FLOAT64)
    MERGE(real, h4[0], l4[0], h4[1], l4[1], h1, l1)
#else
    MERGE(real, h4[0], l4[0], h4[2], l4[2], h2, l2)
    MERGE(real, h4[1], l4[1], h4[3], l4[3], h3, l3)
    MERGE(real, h2, l2, h3, l3, h1, l1)
#endif
    *rest = l1;
    return h1;
}

/* The sum of the lanes of v, added up plainly until four remain, then as above. */
INLINE real vector_reduce_few(vector v, real *rest) {
    const real none __attribute__((unused)) = 0;
#if defined(COMPUTE_FLOAT64)
#if PART_BYTES == 64
    const __m256d half = LOWER_HALF(v.p[0]) + UPPER_HALF(v.p[0]);
    const quarter a = LOWER_QUARTER(half), b = _mm256_extractf128_pd(half, 1);
#elif PART_BYTES == 32
    const part half = v.p[0] + v.p[1];
    const quarter a = LOWER_QUARTER(half), b = _mm256_extractf128_pd(half, 1);
#else
    const quarter a = v.p[0] + v.p[2], b = v.p[1] + v.p[3];
#endif
    const real q[4] = {a[0], a[1], b[0], b[1]};
#else
    FOLD(v, PLUS, PLUS)
#endif
    MERGE(real, q[0], none, q[2], none, h2, l2)
    MERGE(real, q[1], none, q[3], none, h3, l3)
    MERGE(real, h2, l2, h3, l3, h1, l1)
    *rest = l1;
    return h1;
}

INLINE real vector_reduce_maximum(vector v) {
    FOLD(v, GREATER_256, GREATER_128)
#if defined(COMPUTE_FLOAT64)
    return GREATER(q[0], q[1]);
#else
    const real even = GREATER(q[0], q[2]), odd = GREATER(q[1], q[3]);
    return GREATER(even, odd);
#endif
}

/* ---- eight doubles --------------------------------------------------------------------------
 * For sums and products that are to be made in double, whatever is computed in. By parts: a vector
 * wider than registers would be compared one number after the other. */

typedef double part_doubles __attribute__((vector_size(PART_BYTES)));
typedef int64_t part_doubles_bits __attribute__((vector_size(PART_BYTES)));
typedef real part_reals __attribute__((vector_size(PART_BYTES / 8 * sizeof(real))));
typedef struct { part_doubles d[PARTS]; } octet;
#define BY_PARTS for (int i = 0; i < PARTS; i++)

INLINE octet octet_set(double x) {
    octet v;
    BY_PARTS v.d[i] = x - (part_doubles){0};
    return v;
}

INLINE octet octet_load(const double *p) {
    octet v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE octet octet_from_reals(const real *p) {
    octet v;
    BY_PARTS {
        part_reals x;
        memcpy(&x, (const char *)p + i * sizeof x, sizeof x);
        v.d[i] = __builtin_convertvector(x, part_doubles);
    }
    return v;
}

INLINE void octet_store(double *p, octet v) {
    memcpy(p, &v, sizeof v);
}

/* a*b*c, which is 0 only where one of them is: what is too small becomes the smallest number. */
INLINE octet octet_coefficient(octet a, octet b) {
    octet v;
    BY_PARTS {
        const part_doubles product = a.d[i] * b.d[i];
        const part_doubles_bits least = (part_doubles_bits)(DBL_MIN - (part_doubles){0});
        const part_doubles_bits lost = (product == 0) & (a.d[i] != 0) & (b.d[i] != 0);
        v.d[i] = (part_doubles)((part_doubles_bits)product | (least & lost));
    }
    return v;
}

/* a*b, but 0 where a is, whatever b is. */
INLINE octet octet_product_or_zero(octet a, octet b) {
    octet v;
    BY_PARTS v.d[i] = (part_doubles)((part_doubles_bits)(a.d[i] * b.d[i]) & (a.d[i] != 0));
    return v;
}

/* Add x to `sum`, and what that loses to `rest` (two-sum): nothing that matters to a float. */
INLINE void octet_add(octet *sum, octet *rest, octet x) {
    BY_PARTS {
        const part_doubles total = sum->d[i] + x.d[i], kept = total - sum->d[i];
        if (sizeof(real) > sizeof(float))
            rest->d[i] += (sum->d[i] - (total - kept)) + (x.d[i] - kept);
        sum->d[i] = total;
    }
}

/* The same of a number that has lost something, too. What an infinite sum lost is 0. */
INLINE void octet_merge(octet *sum, octet *rest, octet x, octet x_rest) {
    BY_PARTS {
        const part_doubles total = sum->d[i] + x.d[i], kept = total - sum->d[i];
        const part_doubles lost =
            (rest->d[i] + x_rest.d[i]) + ((sum->d[i] - (total - kept)) + (x.d[i] - kept));
        rest->d[i] = (part_doubles)((part_doubles_bits)lost & (lost == lost));
        sum->d[i] = total;
    }
}
#undef BY_PARTS

/* The sum of the eight, each with what it lost, merged in the same way: halves onto each other. */
INLINE double octet_reduce(octet sum, octet rest, double *lost) {
    typedef double four __attribute__((vector_size(32)));
    typedef double two __attribute__((vector_size(16)));
    four s[2], r[2];
    memcpy(s, &sum, sizeof s);
    memcpy(r, &rest, sizeof r);
    MERGE(four, s[0], r[0], s[1], r[1], s4, r4)
    two t[2], q[2];
    memcpy(t, &s4, sizeof t);
    memcpy(q, &r4, sizeof q);
    MERGE(two, t[0], q[0], t[1], q[1], s2, r2)
    MERGE(double, s2[0], r2[0], s2[1], r2[1], s1, r1)
    *lost = r1 == r1 ? r1 : 0;
    return s1;
}

/* ---- the floating-point environment of a thread ----------------------------------------------
 * Results below the smallest normal number become 0 in hardware while a kernel runs, so that they are
 * never slow. Leaving restores the thread's own mode. */

#if defined(__SSE2__)
typedef unsigned environment;
INLINE environment environment_enter(void) {
    const environment before = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* round to nearest, no traps, subnormal operands and results are zero */
    return before;
}
INLINE environment environment_plain(void) {
    const environment before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* subnormal numbers are what they are */
    return before;
}
INLINE void environment_leave(environment before) {
    _mm_setcsr(before);
}
#elif defined(__aarch64__)
typedef uint64_t environment;
INLINE environment environment_enter(void) {
    environment before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((environment)1 << 24));
    return before;
}
INLINE environment environment_plain(void) {
    environment before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((environment)0));
    return before;
}
INLINE void environment_leave(environment before) {
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
#else
typedef int environment;
INLINE environment environment_enter(void) { return 0; }
INLINE environment environment_plain(void) { return 0; }
INLINE void environment_leave(environment before) { (void)before; }
#endif

/* How many numbers of `size` bytes come before the first boundary of LANES of them, which can be
 * written past the caches; -1: none ever. */
INLINE ptrdiff_t stream_head(const void *p, ptrdiff_t size) {
    const size_t line = LANES * size, past = (uintptr_t)p % line;
    if (past % size != 0) return -1;
    return past == 0 ? 0 : (ptrdiff_t)((line - past) / size);
}

INLINE void stores_finish(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
