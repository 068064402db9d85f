/* What memory gives: a parallel copy with non-temporal stores and a parallel read.
 *
 * Built at run time with the system compiler (cc -O3 -march=native -fopenmp). Each thread takes one
 * contiguous part, as a row-parallel kernel does. Without OpenMP both run on one thread.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { BLOCK = 4096 };

/* Copies without reading the destination's lines first, which is what ordinary stores would do. */
static void copy_block(char *destination, const char *source, size_t size)
{
#if defined(__SSE2__)
    /* Up to a whole cache line: a line written in part would be read first after all. */
    size_t head = (64 - ((uintptr_t)destination & 63)) & 63;
    if (head > size) {
        head = size;
    }
    memcpy(destination, source, head);
    size_t offset = head;
    for (; offset + 64 <= size; offset += 64) {
        for (size_t part = 0; part < 64; part += 16) {
            _mm_stream_si128((__m128i *)(destination + offset + part),
                             _mm_loadu_si128((const __m128i *)(source + offset + part)));
        }
    }
    memcpy(destination + offset, source + offset, size - offset);
    _mm_sfence();
#else
    memcpy(destination, source, size);
#endif
}

void parallel_copy(char *destination, const char *source, int64_t size, int threads)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
    for (int64_t start = 0; start < size; start += 64 * BLOCK) {
        int64_t length = size - start < 64 * BLOCK ? size - start : 64 * BLOCK;
        copy_block(destination + start, source + start, (size_t)length);
    }
}

/* Exclusive or of all 8-byte words; the result only keeps the loads from being removed. */
uint64_t parallel_read(const char *source, int64_t size, int threads)
{
    uint64_t total = 0;
    int64_t words = size / 8;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) reduction(^ : total)
#endif
    for (int64_t start = 0; start < words; start += BLOCK) {
        int64_t length = words - start < BLOCK ? words - start : BLOCK;
        uint64_t lanes[32] = {0};
        int64_t word = 0;
        for (; word + 32 <= length; word += 32) {
            uint64_t loaded[32];
            memcpy(loaded, source + (start + word) * 8, sizeof loaded);
            for (int lane = 0; lane < 32; lane++) {
                lanes[lane] ^= loaded[lane];
            }
        }
        for (; word < length; word++) {
            uint64_t loaded;
            memcpy(&loaded, source + (start + word) * 8, sizeof loaded);
            lanes[0] ^= loaded;
        }
        for (int lane = 0; lane < 32; lane++) {
            total ^= lanes[lane];
        }
    }
    return total;
}
