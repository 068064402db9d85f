/* element.h: what arrays hold, and the way from it to `real` numbers and back.
 *
 * A kind is an element type of NumPy's. A new one takes a name here, a size, and a line in each of
 * elements_load() and, if results may have it, elements_store(). Uses vector.h.
 */
#ifndef SOFTCE_FAST_ELEMENT_H
#define SOFTCE_FAST_ELEMENT_H

#include "kind.h"
#include "vector.h"

/* What is computed in, as a kind. */
enum { REAL_KIND = sizeof(real) == 4 ? KIND_FLOAT32 : KIND_FLOAT64 };

/* ---- half types, a register at a time --------------------------------------------------------- */

#if defined(COMPUTE_FLOAT32)
typedef uint16_t part_halves __attribute__((vector_size(PART_BYTES / 2)));

/* GCC converts such vectors by halves, which takes twice as long. */
#if PART_BYTES == 64
#define WORDS_WIDEN(h) _mm512_cvtepu16_epi32((__m256i)(h))
#define WORDS_NARROW(w) _mm512_cvtepi32_epi16((__m512i)(w))
#elif PART_BYTES == 32
#define WORDS_WIDEN(h) _mm256_cvtepu16_epi32((__m128i)(h))
#define WORDS_NARROW(w) \
    _mm256_castsi256_si128(_mm256_permute4x64_epi64( \
        _mm256_packus_epi32((__m256i)(w), (__m256i)(w)), 0x08))
#else
#define WORDS_WIDEN(h) __builtin_convertvector(h, part_words)
#define WORDS_NARROW(w) __builtin_convertvector(w, part_halves)
#endif

INLINE part bfloat16_load(const char *from) {
    part_halves h;
    memcpy(&h, from, sizeof h);
    return (part)((part_words)WORDS_WIDEN(h) << 16);
}

/* kind.h's bfloat16_narrow(). */
INLINE void bfloat16_store(char *to, part v) {
    const part_words u = (part_words)v, rounded = u + ((u >> 16 & 1) + 0x7fff);
#if PART_BYTES == 64
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const part_words result = (part_words)_mm512_mask_or_epi32(
        (__m512i)rounded, is_nan, (__m512i)u, _mm512_set1_epi32(0x400000));
#else
    const part_words is_nan = (part_words)(v != v);
    const part_words result = (rounded & ~is_nan) | ((u | 0x400000) & is_nan);
#endif
    const part_halves h = (part_halves)WORDS_NARROW(result >> 16);
    memcpy(to, &h, sizeof h);
}

/* Float16, where the CPU has an instruction for it. */
#if PART_BYTES == 64
#define FLOAT16_LOAD(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define FLOAT16_STORE(p, v) \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#elif PART_BYTES == 32
#define FLOAT16_LOAD(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define FLOAT16_STORE(p, v) \
    _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#endif

#define PARTS_LOAD(load) \
    for (; n >= PART_LANES; n -= PART_LANES, to += PART_LANES, from += 2 * PART_LANES) \
        part_store(to, load(from));
#define PARTS_STORE(store) \
    for (; n >= PART_LANES; n -= PART_LANES, from += PART_LANES, to += 2 * PART_LANES) \
        store(to, part_load(from));
#else
#define PARTS_LOAD(load)
#define PARTS_STORE(store)
#endif

/* ---- runs of neighbours ------------------------------------------------------------------------ */

#define EACH_ELEMENT(expression) \
    for (ptrdiff_t i = 0; i < n; i++) expression; \
    return;

/* Convert n elements of a kind, at any address. */
static __attribute__((noinline, unused)) void elements_load(real *restrict to, const char *from,
                                                            ptrdiff_t n, int kind) {
#define LOAD(type, convert) \
    EACH_ELEMENT({ \
        type x; \
        memcpy(&x, from + i * (ptrdiff_t)sizeof x, sizeof x); \
        to[i] = (real)convert(x); \
    })
    switch (kind) {
    case KIND_BOOL: LOAD(uint8_t, )
    case KIND_INT8: LOAD(int8_t, )
    case KIND_UINT8: LOAD(uint8_t, )
    case KIND_INT16: LOAD(int16_t, )
    case KIND_UINT16: LOAD(uint16_t, )
    case KIND_INT32: LOAD(int32_t, )
    case KIND_UINT32: LOAD(uint32_t, )
    case KIND_INT64: LOAD(int64_t, )
    case KIND_UINT64: LOAD(uint64_t, )
    case KIND_FLOAT16:
#if defined(FLOAT16_LOAD)
        PARTS_LOAD(FLOAT16_LOAD)
#endif
        LOAD(uint16_t, float16_widen)
    case KIND_BFLOAT16:
        PARTS_LOAD(bfloat16_load)
        LOAD(uint16_t, bfloat16_widen)
    case KIND_FLOAT32: LOAD(float, )
    default: LOAD(double, )
    }
#undef LOAD
}

/* The inverse, for the kinds that results have. */
static __attribute__((noinline, unused)) void elements_store(char *to, const real *restrict from,
                                                             ptrdiff_t n, int kind) {
#define STORE(type, convert) \
    EACH_ELEMENT({ \
        const type x = (type)convert(from[i]); \
        memcpy(to + i * (ptrdiff_t)sizeof x, &x, sizeof x); \
    })
    switch (kind) {
    case KIND_FLOAT16:
#if defined(FLOAT16_LOAD)
        PARTS_STORE(FLOAT16_STORE)
#endif
        STORE(uint16_t, float16_narrow)
    case KIND_BFLOAT16:
        PARTS_STORE(bfloat16_store)
        STORE(uint16_t, bfloat16_narrow)
    case KIND_FLOAT32: STORE(float, )
    default: STORE(double, )
    }
#undef STORE
}

/* Copy past the caches, 16 bytes or a multiple. */
INLINE void bytes_stream(char *to, const char *from, ptrdiff_t bytes) {
#if defined(__AVX__)
    for (; bytes >= 32; bytes -= 32, from += 32, to += 32)
        _mm256_stream_si256((__m256i *)to, *(const __m256i *)from);
#endif
#if defined(__SSE2__)
    for (; bytes > 0; bytes -= 16, from += 16, to += 16)
        _mm_stream_si128((__m128i *)to, *(const __m128i *)from);
#else
    memcpy(to, from, bytes);
#endif
}

/* The same past the caches: n is a number of lines, each LANES elements on a boundary of as many. */
static __attribute__((noinline, unused)) void elements_stream(char *to, const real *restrict from,
                                                              ptrdiff_t n, int kind) {
    enum { MOST = 16 * LANES };
    char line[MOST * 8] __attribute__((aligned(64)));
    const ptrdiff_t size = kind_size(kind);
    if (size == sizeof(real)) {
        for (; n > 0; n -= LANES, from += LANES, to += VECTOR_BYTES)
            vector_stream((real *)to, vector_load(from));
        return;
    }
    for (; n > 0; n -= MOST, from += MOST, to += MOST * size) {
        const ptrdiff_t bytes = (n < MOST ? n : MOST) * size;
        elements_store(line, from, bytes / size, kind);
        bytes_stream(to, line, bytes);
    }
}

/* ---- a vector at a time --------------------------------------------------------------------------
 * Of the kind that is computed in or, where that is float32, of a half type. */

INLINE int kind_has_vectors(int kind) {
    return kind == REAL_KIND
           || (REAL_KIND == KIND_FLOAT32 && (kind == KIND_FLOAT16 || kind == KIND_BFLOAT16));
}

INLINE vector kind_vector(const char *from, int kind) {
    vector v;
#if defined(COMPUTE_FLOAT32)
    if (kind == KIND_BFLOAT16) {
        for (int i = 0; i < PARTS; i++) v.p[i] = bfloat16_load(from + 2 * i * PART_LANES);
        return v;
    }
    if (kind == KIND_FLOAT16) {
#if defined(FLOAT16_LOAD)
        for (int i = 0; i < PARTS; i++) v.p[i] = FLOAT16_LOAD(from + 2 * i * PART_LANES);
#else
        elements_load((real *)&v, from, LANES, kind);
#endif
        return v;
    }
#endif
    return vector_load((const real *)from);
}

/* The first `count` elements, and numbers. */
INLINE vector kind_vector_first(const char *from, ptrdiff_t count, int kind) {
    uint16_t first[LANES] = {0};
    if (kind == REAL_KIND) return vector_load_first((const real *)from, count);
    memcpy(first, from, count * sizeof(uint16_t));
    return kind_vector((const char *)first, kind);
}

INLINE void kind_vector_store(char *to, vector v, int kind) {
    if (kind == REAL_KIND) {
        vector_store((real *)to, v);
        return;
    }
#if defined(COMPUTE_FLOAT32)
    if (kind == KIND_BFLOAT16)
        for (int i = 0; i < PARTS; i++) bfloat16_store(to + 2 * i * PART_LANES, v.p[i]);
    else
#if defined(FLOAT16_STORE)
        for (int i = 0; i < PARTS; i++) FLOAT16_STORE(to + 2 * i * PART_LANES, v.p[i]);
#else
        elements_store(to, (const real *)&v, LANES, kind);
#endif
#endif
}

INLINE void kind_vector_store_first(char *to, vector v, ptrdiff_t count, int kind) {
    uint16_t first[LANES];
    if (kind == REAL_KIND) {
        vector_store_first((real *)to, v, count);
        return;
    }
    kind_vector_store((char *)first, v, kind);
    memcpy(to, first, count * sizeof(uint16_t));
}

/* Past the caches; `to` is on a boundary of a vector. */
INLINE void kind_vector_stream(char *to, vector v, int kind) {
    uint16_t line[LANES] __attribute__((aligned(32))) = {0};
    if (kind == REAL_KIND) {
        vector_stream((real *)to, v);
        return;
    }
    kind_vector_store((char *)line, v, kind);
    bytes_stream(to, (const char *)line, LANES * sizeof(uint16_t));
}

/* ---- rows whose elements are a few apart ---------------------------------------------------------
 * As where a class axis in the middle has few elements behind it: they are picked out of what lies side
 * by side, and put back. With registers that permute any lanes, which go where is the same for all
 * rows of n elements that are `step` elements apart; it is found once. */

enum { MOST_APART = LANES - 1, PERMUTES = PART_BYTES == 64 };

#if PART_BYTES == 64

typedef struct {
    ptrdiff_t n, step, size;   /* what it is for; 0: for nothing yet */
    __m512i lane;              /* of a register that a result's lane is taken from, */
    uint32_t here[MOST_APART]; /* and which lanes are from the one of that number */
    uint32_t last[MOST_APART]; /* The rest of a row: what is read of each, */
    uint32_t left;             /* and what is written. */
} Picking;

typedef struct {
    ptrdiff_t n, step, size;
    __m512i lane[MOST_APART];              /* of a row that is taken, for each register written, */
    uint32_t row[MOST_APART][MOST_APART];  /* and which lanes are of the row of that number */
    uint32_t last[MOST_APART];             /* The rest of a block: what is written of each, */
    uint32_t left;                         /* and what is read of a row. */
} Weaving;

/* For lanes of so many bits: the first `count` of them, small numbers multiplied, and divided by what
 * `part` is 65536 / step + 1 of. */
#define LANES_OF(bits) (512 / bits)
#define FIRST_LANES(bits, count) \
    ((uint32_t)((count) >= LANES_OF(bits) ? (1ull << LANES_OF(bits)) - 1 \
                                          : (1ull << ((count) > 0 ? (count) : 0)) - 1))
#define TIMES_16(a, b) _mm512_mullo_epi16(a, b)
#define TIMES_32(a, b) _mm512_mullo_epi32(a, b)
#define TIMES_64(a, b) _mm512_mullo_epi32(a, b)
#define SHARE_16(x, part) _mm512_mulhi_epu16(x, part)
#define SHARE_32(x, part) _mm512_srli_epi32(_mm512_mullo_epi32(x, part), 16)
#define SHARE_64(x, part) _mm512_srli_epi64(_mm512_mullo_epi32(x, part), 16)
typedef __mmask32 mask_16;
typedef __mmask16 mask_32;
typedef __mmask8 mask_64;

#define ELEMENTS_APART(bits, all) \
    INLINE __m512i lanes_up_##bits(int first) { \
        uint##bits##_t v __attribute__((vector_size(64))); \
        for (int i = 0; i < LANES_OF(bits); i++) v[i] = (uint##bits##_t)(first + i); \
        return (__m512i)v; \
    } \
    static void picking_open_##bits(Picking *picking) { \
        const int step = (int)picking->step; \
        const __m512i place = TIMES_##bits(lanes_up_##bits(0), all(step)); \
        const ptrdiff_t last = (picking->n - 1) % LANES_OF(bits) + 1; \
        picking->lane = _mm512_and_si512(place, all(LANES_OF(bits) - 1)); \
        picking->left = FIRST_LANES(bits, last); \
        for (int j = 0; j < step; j++) { \
            picking->here[j] = _mm512_cmpeq_epi##bits##_mask( \
                _mm512_sub_epi##bits(place, picking->lane), all(LANES_OF(bits) * j)); \
            picking->last[j] = FIRST_LANES(bits, (last - 1) * step + 1 - LANES_OF(bits) * j); \
        } \
    } \
    static void elements_pick_##bits(const Picking *picking, char *to, ptrdiff_t to_step, \
                                     const char *from, const ptrdiff_t *offsets, ptrdiff_t rows) { \
        const ptrdiff_t blocks = (picking->n - 1) / LANES_OF(bits); \
        const int step = (int)picking->step; \
        const __m512i lane = picking->lane; \
        for (ptrdiff_t k = 0; k < rows; k++) { \
            const char *x = from + offsets[k]; \
            char *y = to + k * to_step; \
            __m512i v; \
            for (ptrdiff_t i = 0; i < blocks; i++, x += 64 * step, y += 64) { \
                v = _mm512_permutexvar_epi##bits(lane, _mm512_loadu_si512(x)); \
                for (int j = 1; j < step; j++) \
                    v = _mm512_mask_permutexvar_epi##bits( \
                        v, (mask_##bits)picking->here[j], lane, _mm512_loadu_si512(x + 64 * j)); \
                _mm512_storeu_si512(y, v); \
            } \
            v = _mm512_setzero_si512(); \
            for (int j = 0; j < step && picking->last[j]; j++) \
                v = _mm512_mask_permutexvar_epi##bits( \
                    v, (mask_##bits)picking->here[j], lane, \
                    _mm512_maskz_loadu_epi##bits((mask_##bits)picking->last[j], x + 64 * j)); \
            _mm512_mask_storeu_epi##bits(y, (mask_##bits)picking->left, v); \
        } \
    } \
    static void weaving_open_##bits(Weaving *weaving) { \
        const int step = (int)weaving->step; \
        const ptrdiff_t last = weaving->n % LANES_OF(bits); \
        weaving->left = FIRST_LANES(bits, last); \
        for (int j = 0; j < step; j++) { \
            const __m512i place = lanes_up_##bits(LANES_OF(bits) * j); \
            const __m512i lane = SHARE_##bits(place, all(65536 / step + 1)); \
            const __m512i row = _mm512_sub_epi##bits(place, TIMES_##bits(lane, all(step))); \
            weaving->lane[j] = lane; \
            for (int r = 0; r < step; r++) \
                weaving->row[j][r] = _mm512_cmpeq_epi##bits##_mask(row, all(r)); \
            weaving->last[j] = FIRST_LANES(bits, last * step - LANES_OF(bits) * j); \
        } \
    } \
    static void elements_place_##bits(const Weaving *weaving, char *to, const char *from, \
                                      ptrdiff_t from_step, ptrdiff_t rows) { \
        const ptrdiff_t blocks = weaving->n / LANES_OF(bits); \
        const int step = (int)weaving->step; \
        for (ptrdiff_t k = 0; k < rows; k++, to += bits / 8, from += from_step) { \
            const char *x = from; \
            char *y = to; \
            __m512i v; \
            for (ptrdiff_t i = 0; i < blocks; i++, x += 64, y += 64 * step) { \
                v = _mm512_loadu_si512(x); \
                for (int j = 0; j < step; j++) \
                    _mm512_mask_storeu_epi##bits( \
                        y + 64 * j, (mask_##bits)weaving->row[j][0], \
                        _mm512_permutexvar_epi##bits(weaving->lane[j], v)); \
            } \
            v = _mm512_maskz_loadu_epi##bits((mask_##bits)weaving->left, x); \
            for (int j = 0; j < step && weaving->last[j]; j++) \
                _mm512_mask_storeu_epi##bits( \
                    y + 64 * j, (mask_##bits)(weaving->row[j][0] & weaving->last[j]), \
                    _mm512_permutexvar_epi##bits(weaving->lane[j], v)); \
        } \
    } \
    static void elements_weave_##bits(const Weaving *weaving, char *to, ptrdiff_t to_step, \
                                      const char *from, ptrdiff_t from_step, ptrdiff_t blocks) { \
        const ptrdiff_t whole = weaving->n / LANES_OF(bits); \
        const int step = (int)weaving->step; \
        for (ptrdiff_t k = 0; k < blocks; k++, to += to_step, from += step * from_step) { \
            const char *x = from; \
            char *y = to; \
            for (ptrdiff_t i = 0; i <= whole; i++, x += 64, y += 64 * step) \
                for (int j = 0; j < step; j++) { \
                    const __m512i lane = weaving->lane[j]; \
                    __m512i v; \
                    if (i == whole && !weaving->last[j]) break; \
                    v = _mm512_permutexvar_epi##bits(lane, _mm512_loadu_si512(x)); \
                    for (int r = 1; r < step; r++) \
                        v = _mm512_mask_permutexvar_epi##bits( \
                            v, (mask_##bits)weaving->row[j][r], lane, \
                            _mm512_loadu_si512(x + r * from_step)); \
                    if (i < whole) _mm512_storeu_si512(y + 64 * j, v); \
                    else _mm512_mask_storeu_epi##bits( \
                        y + 64 * j, (mask_##bits)weaving->last[j], v); \
                } \
        } \
    }
ELEMENTS_APART(16, _mm512_set1_epi16)
ELEMENTS_APART(32, _mm512_set1_epi32)
ELEMENTS_APART(64, _mm512_set1_epi64)
#else
enum { AT_ONCE = 64 };
typedef struct {
    ptrdiff_t n, step, size;
} Picking;
typedef Picking Weaving;
/* One by one, but so many of each row at a time: rows share cache lines, which are still there when
 * the next row comes. */
#define EACH_APART(bits, way, rows, copy) \
    for (ptrdiff_t i = 0; i < way->n; i += AT_ONCE) \
        for (ptrdiff_t k = 0; k < rows; k++) \
            for (ptrdiff_t j = i; j < way->n && j < i + AT_ONCE; j++) copy;
#define ELEMENTS_APART(bits) \
    static void picking_open_##bits(Picking *picking) { (void)picking; } \
    static void weaving_open_##bits(Weaving *weaving) { (void)weaving; } \
    static void elements_pick_##bits(const Picking *picking, char *restrict to, ptrdiff_t to_step, \
                                     const char *restrict from, const ptrdiff_t *offsets, \
                                     ptrdiff_t rows) { \
        const ptrdiff_t step = picking->step * (bits / 8); \
        EACH_APART(bits, picking, rows, \
                   memcpy(to + k * to_step + j * (bits / 8), from + offsets[k] + j * step, bits / 8)) \
    } \
    static void elements_place_##bits(const Weaving *weaving, char *restrict to, \
                                      const char *restrict from, ptrdiff_t from_step, \
                                      ptrdiff_t rows) { \
        const ptrdiff_t step = weaving->step * (bits / 8); \
        EACH_APART(bits, weaving, rows, \
                   memcpy(to + k * (bits / 8) + j * step, from + k * from_step + j * (bits / 8), \
                          bits / 8)) \
    } \
    static void elements_weave_##bits(const Weaving *weaving, char *to, ptrdiff_t to_step, \
                                      const char *from, ptrdiff_t from_step, ptrdiff_t blocks) { \
        for (ptrdiff_t k = 0; k < blocks; k++, to += to_step, from += weaving->step * from_step) \
            elements_place_##bits(weaving, to, from, from_step, weaving->step); \
    }
ELEMENTS_APART(16)
ELEMENTS_APART(32)
ELEMENTS_APART(64)
#endif
#define BY_SIZE(function, size, ...) \
    if (size == 2) function##_16(__VA_ARGS__); \
    else if (size == 4) function##_32(__VA_ARGS__); \
    else function##_64(__VA_ARGS__);

/* Whether elements of `size` bytes that many bytes apart are so few apart. */
INLINE int are_few_apart(ptrdiff_t step, ptrdiff_t size) {
    return size > 1 && step >= 2 * size && step <= MOST_APART * size && step % size == 0;
}

#define OPEN(way, function) \
    if (way->n != n || way->step != step / size || way->size != size) { \
        way->n = n; \
        way->step = step / size; \
        way->size = size; \
        BY_SIZE(function, size, way) \
    }

/* Copy n elements, `step` bytes apart, of each of some rows to where they are neighbours. */
static __attribute__((noinline, unused)) void elements_pick(Picking *picking, char *to,
                                                            ptrdiff_t to_step, const char *from,
                                                            const ptrdiff_t *offsets,
                                                            ptrdiff_t rows, ptrdiff_t step,
                                                            ptrdiff_t n, ptrdiff_t size) {
    OPEN(picking, picking_open)
    BY_SIZE(elements_pick, size, picking, to, to_step, from, offsets, rows)
}

/* The inverse, to rows that lie side by side. */
static __attribute__((noinline, unused)) void elements_place(Weaving *weaving, char *to,
                                                             const char *from, ptrdiff_t from_step,
                                                             ptrdiff_t rows, ptrdiff_t step,
                                                             ptrdiff_t n, ptrdiff_t size) {
    OPEN(weaving, weaving_open)
    BY_SIZE(elements_place, size, weaving, to, from, from_step, rows)
}

/* The same to blocks, to_step bytes apart, that the rows fill. A register more than they have is
 * read. */
static __attribute__((noinline, unused)) void elements_weave(Weaving *weaving, char *to,
                                                             ptrdiff_t to_step, const char *from,
                                                             ptrdiff_t from_step, ptrdiff_t blocks,
                                                             ptrdiff_t step, ptrdiff_t n,
                                                             ptrdiff_t size) {
    OPEN(weaving, weaving_open)
    BY_SIZE(elements_weave, size, weaving, to, to_step, from, from_step, blocks)
}

/* ---- elements apart ------------------------------------------------------------------------------ */

/* Copy n elements of `size` bytes that lie `from_step` bytes apart to where they lie `to_step` apart. */
static __attribute__((noinline, unused)) void elements_copy(char *restrict to, ptrdiff_t to_step,
                                                            const char *restrict from,
                                                            ptrdiff_t from_step, ptrdiff_t n,
                                                            ptrdiff_t size) {
#define COPY_BY(bytes, to_step, from_step) \
    EACH_ELEMENT(memcpy(to + i * (to_step), from + i * (from_step), bytes))
#define COPY(bytes) COPY_BY(bytes, to_step, from_step)
#define FILL(bytes) \
    { \
        char element[bytes]; \
        memcpy(element, from, bytes); \
        EACH_ELEMENT(memcpy(to + i * bytes, element, bytes)) \
    }
    const ptrdiff_t start = 0;
    if (size == to_step && size == from_step) {
        memcpy(to, from, n * size);
        return;
    }
    if (size == to_step && from_step == 0) switch (size) {
        /* One number, broadcast. */
        case 1: FILL(1)
        case 2: FILL(2)
        case 4: FILL(4)
        default: FILL(8)
        }
    /* Steps that are constants make vectors of elements that are turned round, or every second one. */
    if (size == to_step && from_step == -size) switch (size) {
        case 4: COPY_BY(4, 4, -4)
        case 8: COPY_BY(8, 8, -8)
        }
    if (size == to_step && from_step == 2 * size) switch (size) {
        case 4: COPY_BY(4, 4, 8)
        case 8: COPY_BY(8, 8, 16)
        }
    if (PERMUTES && n >= LANES && size == to_step && are_few_apart(from_step, size)) {
        Picking picking = {0};
        elements_pick(&picking, to, 0, from, &start, 1, from_step, n, size);
        return;
    }
    if (PERMUTES && n >= LANES && size == from_step && are_few_apart(to_step, size)) {
        Weaving weaving = {0};
        elements_place(&weaving, to, from, 0, 1, to_step, n, size);
        return;
    }
    switch (size) {
    case 1: COPY(1)
    case 2: COPY(2)
    case 4: COPY(4)
    default: COPY(8)
    }
#undef COPY_BY
#undef COPY
#undef FILL
}

#define COPY_BY_SIZE(to, from) \
    switch (size) { \
    case 1: EACH_ELEMENT(memcpy(to(1), from(1), 1)) \
    case 2: EACH_ELEMENT(memcpy(to(2), from(2), 2)) \
    case 4: EACH_ELEMENT(memcpy(to(4), from(4), 4)) \
    default: EACH_ELEMENT(memcpy(to(8), from(8), 8)) \
    }
/* Copy n elements of `size` bytes from anywhere to where they are neighbours, */
static __attribute__((noinline, unused)) void elements_collect(char *restrict to,
                                                               const char *restrict from,
                                                               const ptrdiff_t *offsets,
                                                               ptrdiff_t n, ptrdiff_t size) {
#define TO(bytes) to + i * bytes
#define FROM(bytes) from + offsets[i]
    COPY_BY_SIZE(TO, FROM)
#undef TO
#undef FROM
}

/* and back. */
static __attribute__((noinline, unused)) void elements_spread(char *restrict to,
                                                              const ptrdiff_t *offsets,
                                                              const char *restrict from,
                                                              ptrdiff_t n, ptrdiff_t size) {
#define TO(bytes) to + offsets[i]
#define FROM(bytes) from + i * bytes
    COPY_BY_SIZE(TO, FROM)
#undef TO
#undef FROM
}

/* Turn the bytes of n elements round. */
static __attribute__((noinline, unused)) void elements_swap(char *p, ptrdiff_t n, ptrdiff_t size) {
#define SWAP(type, swapped) \
    EACH_ELEMENT({ \
        type x; \
        memcpy(&x, p + i * (ptrdiff_t)sizeof x, sizeof x); \
        x = swapped(x); \
        memcpy(p + i * (ptrdiff_t)sizeof x, &x, sizeof x); \
    })
    switch (size) {
    case 1: return;
    case 2: SWAP(uint16_t, __builtin_bswap16)
    case 4: SWAP(uint32_t, __builtin_bswap32)
    default: SWAP(uint64_t, __builtin_bswap64)
    }
#undef SWAP
}
#undef EACH_ELEMENT

#endif
