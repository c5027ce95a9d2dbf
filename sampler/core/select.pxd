"""Where a prefix in rank ends, among candidates.

`select` finds the shortest prefix whose measure reaches a target. The measure is a count of tokens
or their exact mass. It halves the range of values in which the boundary lies; where several tokens
have the boundary's value, it finds how many of them are needed.
"""

from libc.float cimport DBL_MAX
from libc.stdint cimport int64_t

from sampler.core.kernels cimport (
    WORD, Candidates, Cut, Mass, Row, Split, Tempering, exp_canonical, halfway, isa, mass_add,
    mass_times, mass_value, tempered, whole_words
)
from sampler.core.row cimport RowState, pad


# The boundary of a prefix: the value of its last token, and the measure without that token and its
# ties, and with all of them.
cdef struct Boundary:
    double value
    Mass before
    Mass reached


# A prefix that reaches a target, and its measure.
cdef struct Prefix:
    Cut cut
    double reached


cdef inline Prefix select(const RowState *s, Candidates candidates, bint by_mass, Mass before,
                          double target, double high) noexcept nogil:
    """The shortest prefix in rank of the candidates whose measure reaches target: see
    `find_boundary`."""
    cdef Candidates part = s.scratch.part
    cdef Boundary found = find_boundary(&s.row, candidates, &part, by_mass, before, target, high)
    cdef int64_t i, ties = 0, needed, last = -1
    for i in range(candidates.n):
        if candidates.values[i] == found.value:
            ties += 1
            last = i
    if ties == 1:
        return Prefix(Cut(found.value, candidates.ids[last]), mass_value(found.reached))
    needed = ties_needed(&s.tempering, by_mass, found, ties, target)
    ties = 0
    for i in range(candidates.n):
        if candidates.values[i] == found.value:
            ties += 1
            if ties == needed:
                last = i
                break
    return Prefix(Cut(found.value, candidates.ids[last]),
                  mass_value(with_ties(&s.tempering, by_mass, found, needed)))


cdef inline Boundary find_boundary(const Row *row, Candidates candidates, Candidates *part,
                                   bint by_mass, Mass before, double target,
                                   double high) noexcept nogil:
    """Where the shortest prefix in rank of the candidates ends whose measure, on top of `before`,
    reaches target. The measure is the exact mass, or the count of tokens, held as a mass of 1 each.

    There is at least one candidate; their logits are numbers of the row, none above `high`. If the
    target is not reached, the prefix is all there is. With `part`, what is left of many candidates
    is copied there once it has shrunk.
    """
    cdef Boundary found
    cdef Split split
    cdef double low, middle, x
    cdef int64_t above = 0, up_to = candidates.n, i, n
    cdef int rounds = 0
    cdef Mass start = before, reached
    isa.split(candidates.values, candidates.weights if by_mass else NULL, candidates.n, -DBL_MAX,
              &split)
    low = split.least
    found.before = before
    found.reached = mass_or_count(by_mass, before, &split)
    while low < high:
        # By value, and now and then by the numbers between: that ends, whatever the values.
        rounds += 1
        middle = low * 0.5 + high * 0.5 if rounds % 4 else halfway(row, low, high)
        if not low < middle <= high:
            middle = high
        isa.split(candidates.values, candidates.weights if by_mass else NULL, candidates.n, middle,
                  &split)
        reached = mass_or_count(by_mass, start, &split)
        if mass_value(reached) >= target:
            low = split.least
            found.reached = reached
            up_to = split.count
        else:
            high = split.most
            found.before = reached
            above = split.count
        if part != NULL and candidates.n > 4 * WORD and up_to - above <= candidates.n // 4:
            n = 0
            for i in range(candidates.n):
                x = candidates.values[i]
                part.values[n] = x
                part.ids[n] = candidates.ids[i]
                if by_mass:
                    part.weights[n] = candidates.weights[i]
                # Not a chained comparison: that would branch, and be predicted wrongly.
                n += (<int> (x >= low)) & (<int> (x <= high))
            part.n = n
            pad(part)
            if by_mass:
                for i in range(n, whole_words(n)):
                    part.weights[i] = 0.0
            candidates = part[0]
            start = found.before
            above = 0
            up_to = n
    found.value = low
    return found


cdef inline Mass mass_or_count(bint by_mass, Mass before, const Split *split) noexcept nogil:
    if by_mass:
        mass_add(&before, split.mass.high, split.mass.low)
    else:
        before.high += split.count
    return before


cdef inline int64_t ties_needed(const Tempering *tempering, bint by_mass, Boundary found,
                                int64_t ties, double target) noexcept nogil:
    """How many of the equal tokens at a boundary its prefix needs: at least 1, at most ties."""
    cdef int64_t few = 1, many = ties, middle
    while few < many:
        middle = few + (many - few) // 2
        if mass_value(with_ties(tempering, by_mass, found, middle)) >= target:
            many = middle
        else:
            few = middle + 1
    return few


cdef inline Mass with_ties(const Tempering *tempering, bint by_mass, Boundary found,
                           int64_t ties) noexcept nogil:
    cdef double weight = exp_canonical(tempered(tempering, found.value)) if by_mass else 1.0
    cdef Mass part = mass_times(weight, ties)
    mass_add(&found.before, part.high, part.low)
    return found.before
