"""Tokens in rank order: the first of a row, and the ranks of given ones."""

from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport qsort

from sampler.core.kernels cimport (
    BLOCK, KEEP_ALL, Candidates, Cut, block_start, blocks_in, keeps
)
from sampler.core.row cimport Item, RowState, are_candidates
from sampler.core.search cimport first_in_rank


cdef inline int64_t top_items(RowState *s, int64_t n, Item *items) noexcept nogil:
    """The first n of the row in rank, into items; returns how many there are. The last thing to ask
    of a row: the candidates may become others."""
    cdef Cut cut = first_in_rank(s, n)
    cdef double x[BLOCK]
    cdef int64_t b, i, count, found = 0
    if are_candidates(s, cut):
        for i in range(s.candidates.n):
            if keeps(cut, s.candidates.values[i], s.candidates.ids[i]):
                items[found] = Item(s.candidates.values[i], s.candidates.ids[i], 0)
                found += 1
    else:
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, cut, b, x, NULL)
            for i in range(count):
                if x[i] > -INFINITY:
                    items[found] = Item(x[i], block_start(&s.row, b) + i, 0)
                    found += 1
    qsort(items, found, sizeof(Item), by_rank)
    return found


cdef inline void rank_items(RowState *s, bint among_candidates, Item *items, int64_t n,
                            int64_t *ranks) noexcept nogil:
    """ranks[item.place] = 1 + the tokens of the row before the item; sorts the items by rank.

    With `among_candidates`, every token before the items is a candidate. One pass, whatever n.
    """
    cdef double x[BLOCK]
    cdef int64_t b, i, count, start, after = 0, before = 0
    cdef Cut cut
    if n == 1 and items[0].value > -INFINITY:
        cut = Cut(items[0].value, items[0].id)
        ranks[0] = (rank_among_candidates(&s.candidates, cut) if among_candidates
                    else s.row.kernels.count(&s.row, cut))
        return
    if n == 1:  # at -inf: after all that is finite, by id
        ranks[0] = items[0].id + 1
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, KEEP_ALL, b, x, NULL)
            start = block_start(&s.row, b)
            for i in range(max(<int64_t> 0, items[0].id + 1 - start), count):
                after += x[i] > -INFINITY
        ranks[0] += after
        return
    qsort(items, n, sizeof(Item), by_rank)
    for i in range(n):
        ranks[items[i].place] = 0
    if among_candidates:
        for i in range(s.candidates.n):
            rank_after(s.candidates.values[i], s.candidates.ids[i], items, n, ranks)
    else:
        cut = Cut(items[n - 1].value, INT64_MAX)  # at -inf it keeps all that is finite
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, cut, b, x, NULL)
            for i in range(count):
                rank_after(x[i], block_start(&s.row, b) + i, items, n, ranks)
    for i in range(n):
        # An item counts itself; equal draws of one token share the first one's count.
        before += ranks[items[i].place]
        ranks[items[i].place] = before


cdef inline int64_t rank_among_candidates(const Candidates *candidates, Cut cut) noexcept nogil:
    """How many candidates a cut keeps: by values alone, which compilers vectorise, where none is
    tied with the last."""
    cdef int64_t i, above = 0, ties = 0
    for i in range(candidates.n):
        above += candidates.values[i] > cut.value
    for i in range(candidates.n):
        ties += candidates.values[i] == cut.value
    if ties == 1:
        return above + 1
    for i in range(candidates.n):
        above += candidates.values[i] == cut.value and candidates.ids[i] <= cut.last
    return above


cdef inline void rank_after(double value, int64_t id, const Item *items, int64_t n,
                            int64_t *ranks) noexcept nogil:
    """Count a token at the first item that is not before it in rank: that and all after it have the
    token ahead."""
    cdef Item token = Item(value, id, 0)
    cdef int64_t low = 0, high = n, middle
    if not value >= items[n - 1].value:
        return
    while low < high:
        middle = low + (high - low) // 2
        if by_rank(&items[middle], &token) < 0:
            low = middle + 1
        else:
            high = middle
    if low < n:
        ranks[items[low].place] += 1


cdef inline int by_rank(const void *left, const void *right) noexcept nogil:
    cdef const Item *a = <const Item *> left
    cdef const Item *b = <const Item *> right
    if a.value != b.value:
        return -1 if a.value > b.value else 1
    return -1 if a.id < b.id else a.id > b.id
