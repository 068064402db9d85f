/* What memory gives: a parallel copy with non-temporal stores and a parallel read.
 *
 * Built at run time with the system compiler (cc -O3 -march=native -fopenmp). Each thread takes one
 * contiguous part, as a row-parallel kernel does. Without OpenMP both run on one thread.
 */
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { LINE = 64, BLOCK = 4096 * LINE };

/* Copies whole cache lines without reading the destination's first, as ordinary stores would. */
static void copy_lines(char *destination, const char *source, int64_t size)
{
#if defined(__SSE2__)
    for (int64_t offset = 0; offset < size; offset += sizeof(__m128i))
        _mm_stream_si128((__m128i *)(destination + offset),
                         _mm_loadu_si128((const __m128i *)(source + offset)));
    _mm_sfence();
#else
    memcpy(destination, source, size);
#endif
}

void parallel_copy(char *destination, const char *source, int64_t size, int threads)
{
    int64_t head = -(uintptr_t)destination & (LINE - 1); /* a line in part would be read after all */
    if (head > size) head = size;
    int64_t lines = (size - head) & -(int64_t)LINE, end = head + lines;
    memcpy(destination, source, head);
    memcpy(destination + end, source + end, size - end);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t start = head; start < end; start += BLOCK)
        copy_lines(destination + start, source + start, end - start < BLOCK ? end - start : BLOCK);
}

/* Exclusive or of all 8-byte words; the result only keeps the loads from being removed. */
uint64_t parallel_read(const uint64_t *source, int64_t size, int threads)
{
    uint64_t total = 0;
#pragma omp parallel for simd schedule(static) num_threads(threads) reduction(^ : total)
    for (int64_t word = 0; word < size / 8; word++)
        total ^= source[word];
    return total;
}
