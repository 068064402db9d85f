/* labels.h: how many of a row of labels count. Uses kind.h. */
#ifndef SOFTCE_FAST_LABELS_H
#define SOFTCE_FAST_LABELS_H

#include "kind.h"

/* Count labels that are not `ignored`; set `bad` if one of them is no class. By signs, for
 * processors that cannot compare such numbers side by side. */
#define LABELS_COUNT(name, type) \
    static ptrdiff_t name( \
        const type *labels, ptrdiff_t n, int64_t ignored_, int64_t classes, int *bad) { \
        const int64_t limit = sizeof(type) == 4 && classes > INT32_MAX ? INT32_MAX : classes; \
        const u##type ignored = (u##type)ignored_, most = (u##type)limit; \
        const int shift = 8 * sizeof(type) - 1; \
        ptrdiff_t total = 0; \
        u##type found = 0; \
        while (n > 0) { \
            const ptrdiff_t block = n < 65536 ? n : 65536; \
            u##type count = 0; \
            for (ptrdiff_t i = 0; i < block; i++) { \
                const u##type label = (u##type)labels[i], apart = label ^ ignored; \
                const u##type counts = (apart | (0 - apart)) >> shift; \
                count += counts; \
                found |= (label | ~(label - most)) & (0 - counts); \
            } \
            total += count; \
            labels += block; \
            n -= block; \
        } \
        *bad |= (int)(found >> shift); \
        return total; \
    }
LABELS_COUNT(labels_count_32, int32_t)
LABELS_COUNT(labels_count_64, int64_t)

/* The same of aligned int32 or int64 labels. */
static ptrdiff_t labels_count(
    const char *labels, ptrdiff_t n, int kind, int64_t ignored, int64_t classes, int *bad) {
    if (kind == KIND_INT32)
        return labels_count_32((const int32_t *)labels, n, ignored, classes, bad);
    return labels_count_64((const int64_t *)labels, n, ignored, classes, bad);
}

#endif
