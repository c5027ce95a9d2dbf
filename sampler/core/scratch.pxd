"""How the scratch memory of a thread is laid out. `_core.pyx` knows who has which scratch."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from sampler.core.kernels cimport BLOCK, WORD, Mass, maxima_in, most_blocks
from sampler.core.row cimport Scratch, room_for
from sampler.core.search cimport PICKED


cdef extern from *:
    """
    /* For `make test-asan`: nobody may read or write this memory. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define SAMPLER_FORBID(start, size) ASAN_POISON_MEMORY_REGION(start, size)
    #else
    #define SAMPLER_FORBID(start, size) ((void)0)
    #endif
    """
    void SAMPLER_FORBID(void *start, size_t size) noexcept nogil


cdef inline size_t lay_out(Scratch *scratch, int64_t vocab) noexcept nogil:
    """Point the arrays into the arena; returns its size."""
    cdef size_t used = 64 - <size_t> scratch.arena % 64
    cdef int64_t room = room_for(vocab) + 2 * WORD
    cdef int64_t part = max(<int64_t> PICKED, room // 4) + 2 * WORD
    cdef int64_t blocks = most_blocks(vocab), maxima = maxima_in(blocks) * sizeof(double)
    scratch.maxima = carve(scratch, &used, maxima)
    scratch.folded = carve(scratch, &used, maxima)
    # A loop over a block's bits may read 8 bytes more.
    scratch.mask = <uint64_t *> carve(scratch, &used, (blocks * (BLOCK // WORD) + 1)
                                      * sizeof(uint64_t))
    scratch.marks = <uint64_t *> carve(scratch, &used, blocks * (BLOCK // WORD)
                                       * sizeof(uint64_t))
    scratch.candidates.values = <double *> carve(scratch, &used, room * sizeof(double))
    scratch.candidates.ids = <int64_t *> carve(scratch, &used, room * sizeof(int64_t))
    scratch.candidates.weights = <double *> carve(scratch, &used, room * sizeof(double))
    scratch.part.values = <double *> carve(scratch, &used, part * sizeof(double))
    scratch.part.ids = <int64_t *> carve(scratch, &used, part * sizeof(int64_t))
    scratch.part.weights = <double *> carve(scratch, &used, part * sizeof(double))
    scratch.masses = <double *> carve(scratch, &used, blocks * sizeof(double))
    scratch.errors = <double *> carve(scratch, &used, blocks * sizeof(double))
    scratch.blocks = <Mass *> carve(scratch, &used, blocks * sizeof(Mass))
    return used


cdef inline void *carve(Scratch *scratch, size_t *used, size_t size) noexcept nogil:
    """The next `size` bytes of the arena; without an arena, only count them.

    Neighbours start at different offsets in a page: a loop that reads one array and writes another
    at the same offset is several times slower.
    """
    cdef size_t start = used[0]
    used[0] += (size + 63) // 64 * 64 + 64 * 11
    if scratch.arena == NULL:
        return NULL
    SAMPLER_FORBID(<char *> scratch.arena + start + size, used[0] - start - size)
    return <char *> scratch.arena + start


cdef inline void *regrow(void *old, size_t size) noexcept nogil:
    # The old contents are of no use: do not let realloc copy them.
    free(old)
    return malloc(size)


cdef inline void destroy(Scratch *scratch) noexcept nogil:
    free(scratch.arena)
    free(scratch.cumulative)
    free(scratch.items)
    free(scratch.rebased)
    free(scratch)
