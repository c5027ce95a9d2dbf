"""Edits that look at the text so far, or at the logit itself: `find_edits`.

What an edit does to a logit is a function of that logit and of the text. So the tokens that any
edit of a chain may touch are collected first, as bits, which gives them in order without sorting;
then their logits are looked up, and each edit in turn changes those it is about. All of it takes
time in proportion to the text and the ids of the edits, whatever the size of the vocabulary.
"""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from sampler.core.kernels cimport BLOCK, Edits, Row, count_bits, first_bit, log_canonical


cdef extern from *:
    """
    /* Of the kinds of edits, by their numbers: as `Edit.compiled` has them. */
    static const char *const edit_names[] = {"bias", "repetition", "frequency", "presence", "dry",
                                             "no_repeat", "before", "force"};
    #define N_EDITS ((int)(sizeof edit_names / sizeof *edit_names))
    """
    const char *const edit_names[]
    int N_EDITS


cdef enum:
    BIAS         # adds to the last token of a sequence whose others end the text; -inf forbids it
    REPETITION
    FREQUENCY
    PRESENCE
    DRY
    NO_REPEAT    # forbids what would complete a sequence of n tokens that the text has already
    BEFORE       # forbids ids while the output is shorter than n
    FORCE        # allows one id alone, where the output has n tokens

    EDIT_PARAMETERS = 6
    # Their places. A window of NaN is the whole text.
    AMOUNT = 0
    WINDOW = 1
    WITH_PROMPT = 2
    DECAY = 3        # of a penalty
    BASE = 3         # of DRY
    ALLOWED = 4


# An edit of a chain: its parameters, each one for all rows or one for each, and sequences of ids,
# one after another: sequence i ends before ends[i].
cdef struct Edit:
    int kind
    const double *values[EDIT_PARAMETERS]
    int64_t strides[EDIT_PARAMETERS]
    const int64_t *ids
    const int64_t *ends
    const double *biases
    int64_t n_sequences
    int64_t n_ids


# The tokens of a row so far.
cdef struct Text:
    const int32_t *tokens
    int64_t n_prompt
    int64_t n


# A token that would go on with a repetition, and how long that is.
cdef struct Match:
    int32_t token
    int32_t length


# Memory for one row at a time. The bits are 0 between rows.
cdef struct Workspace:
    void *memory         # all of this
    int64_t vocab        # of what it has room for, at least
    int64_t longest
    int64_t most_touched
    int64_t most_matches
    uint64_t *bits       # of the tokens that are touched
    uint64_t *any        # of the words of bits that are not 0
    double *came         # the logits of the touched tokens, as they came in
    double *shares       # of the touched tokens; 0 between edits
    Match *matches       # of all edits, one after another
    int32_t *before      # how many bits are set before each word of bits that is not 0
    int32_t *lengths     # of repetitions, one for each token of the text
    int32_t *places      # of the text's tokens, among those that are touched
    int64_t n_matches
    int64_t first        # where a penalty first looks at the text


cdef inline bint make_workspace(Workspace *w, const Edit *edits, int n_edits, int64_t vocab,
                                int64_t longest) noexcept nogil:
    """Make room for such edits of texts of so many tokens, unless there is. False where memory is
    out."""
    cdef int64_t words, groups, touched = longest, matches = 0
    cdef int one
    for one in range(n_edits):
        touched += edits[one].n_ids
        if repeats(edits + one):
            matches += longest + 2
    touched = min(touched, vocab)
    if (w.memory != NULL and w.vocab >= vocab and w.longest >= longest
            and w.most_touched >= touched and w.most_matches >= matches):
        return True
    free(w.memory)
    w.vocab = max(w.vocab, vocab)
    w.longest = max(w.longest, longest + longest // 2)  # it will grow
    w.most_touched = max(w.most_touched, min(touched + longest // 2, vocab))
    w.most_matches = max(w.most_matches, matches + matches // 2)
    words = (w.vocab >> 6) + 1
    groups = (w.vocab >> 12) + 1
    w.memory = malloc((words + groups + 2 * w.most_touched) * sizeof(uint64_t)
                      + w.most_matches * sizeof(Match)
                      + (words + 2 * w.longest + 1) * sizeof(int32_t))
    if w.memory == NULL:
        return False
    w.bits = <uint64_t *> w.memory
    w.any = w.bits + words
    w.came = <double *> (w.any + groups)
    w.shares = w.came + w.most_touched
    w.matches = <Match *> (w.shares + w.most_touched)
    w.before = <int32_t *> (w.matches + w.most_matches)
    w.lengths = w.before + words
    w.places = w.lengths + w.longest + 1
    memset(w.bits, 0, (words + groups) * sizeof(uint64_t))
    return True


cdef inline bint find_edits(Workspace *w, const Edit *edits, int n_edits, const Text *text,
                            int64_t index, const Row *row, Edits *found,
                            void **memory) noexcept nogil:
    """What edits make of a row that has none, and whose text has no id that is not one of it; into
    memory that is the caller's to free. `found` may have a mask. False where memory is out."""
    cdef int64_t forced = forced_token(edits, n_edits, text)
    cdef int64_t n, blocks = (row.n + BLOCK - 1) // BLOCK
    cdef int64_t words = (row.n + 31) // 32 if forced != -1 else 0
    cdef int64_t *first
    cdef int64_t *ids
    cdef double *values
    cdef int32_t *only
    collect(w, edits, n_edits, text, index)
    n = count_touched(w)
    memory[0] = malloc((blocks + 1 + 2 * n + words) * sizeof(int64_t))
    if memory[0] == NULL:
        forget_all(w)
        return False
    first = <int64_t *> memory[0]
    ids = first + blocks + 1
    values = <double *> (ids + n)
    list_touched(w, ids)
    row.kernels.look_up(row, ids, n, values)
    apply_edits(w, edits, n_edits, text, index, values, n)
    forget_touched(w, ids, n)
    if n > 0:
        index_edits(ids, n, row.n, first)
        found.ids, found.values, found.first = ids, values, first
    if forced != -1:
        only = <int32_t *> (values + n)
        memset(only, 0, words * sizeof(int32_t))
        if forced >= 0 and (found.allowed == NULL or (
                forced < found.words * 32 and found.allowed[forced >> 5] >> (forced & 31) & 1)):
            only[forced >> 5] = <int32_t> (<uint64_t> 1 << (forced & 31))
        found.allowed, found.words = only, words
    return True


cdef inline void index_edits(const int64_t *ids, int64_t n, int64_t vocab,
                             int64_t *first) noexcept nogil:
    """first[c] .. first[c + 1] are the ids in [c BLOCK, (c + 1) BLOCK)."""
    cdef int64_t i = 0, block
    for block in range((vocab + BLOCK - 1) // BLOCK + 1):
        while i < n and ids[i] < block * BLOCK:
            i += 1
        first[block] = i


cdef inline int64_t first_outside(const Text *text, int64_t vocab) noexcept nogil:
    """The place of the first token of a text that is not in the vocabulary; -1 without one."""
    cdef int32_t signs = 0, last = <int32_t> (vocab - 1)
    cdef int64_t i
    for i in range(text.n):  # without a branch: whether any of these is negative
        signs |= text.tokens[i] | (last - text.tokens[i])
    if signs >= 0:
        return -1
    i = 0
    while 0 <= text.tokens[i] <= last:
        i += 1
    return i


cdef inline double value_of(const Edit *edit, int place, int64_t row) noexcept nogil:
    return edit.values[place][row * edit.strides[place]]


cdef inline int64_t window_start(const Edit *edit, const Text *text, int64_t row) noexcept nogil:
    """The first token of the text that an edit looks at."""
    cdef double window = value_of(edit, WINDOW, row)
    cdef int64_t start = 0 if value_of(edit, WITH_PROMPT, row) != 0.0 else text.n_prompt
    if is_penalty(edit):
        window += value_of(edit, DECAY, row)
    return max(start, text.n - <int64_t> window) if window < text.n else start


cdef inline void touch(Workspace *w, int64_t token) noexcept nogil:
    w.bits[token >> 6] |= <uint64_t> 1 << (token & 63)
    w.any[token >> 12] |= <uint64_t> 1 << (token >> 6 & 63)


cdef inline int32_t place_of(const Workspace *w, int64_t token) noexcept nogil:
    """The place of a touched token among those."""
    cdef uint64_t below = (<uint64_t> 1 << (token & 63)) - 1
    return w.before[token >> 6] + count_bits(w.bits[token >> 6] & below)


cdef inline bint is_penalty(const Edit *edit) noexcept nogil:
    return edit.kind == REPETITION or edit.kind == FREQUENCY or edit.kind == PRESENCE


cdef inline bint repeats(const Edit *edit) noexcept nogil:
    """Whether an edit is about repetitions."""
    return edit.kind == DRY or edit.kind == NO_REPEAT


cdef inline bint applies(const Edit *edit, const Text *text, int64_t row) noexcept nogil:
    """Whether an edit may change anything in a row."""
    cdef double amount = value_of(edit, AMOUNT, row)
    return amount == amount and (edit.kind != BEFORE or text.n - text.n_prompt < amount)


cdef inline int64_t start_of(const Edit *edit, int64_t sequence) noexcept nogil:
    return 0 if sequence == 0 else edit.ends[sequence - 1]


cdef inline int64_t last_of(const Edit *edit, int64_t sequence) noexcept nogil:
    return edit.ids[edit.ends[sequence] - 1]


cdef inline void collect(Workspace *w, const Edit *edits, int n_edits, const Text *text,
                         int64_t row) noexcept nogil:
    """Touch what the edits may change."""
    cdef const Edit *edit
    cdef int64_t i
    cdef int one
    w.first = text.n
    w.n_matches = 0
    for one in range(n_edits):
        edit = edits + one
        if not applies(edit, text, row):
            continue
        if edit.kind == BIAS:
            for i in range(edit.n_sequences):
                if ends_with(text, edit, i):
                    touch(w, last_of(edit, i))
        elif edit.kind == BEFORE:
            for i in range(edit.n_ids):
                touch(w, edit.ids[i])
        elif repeats(edit):
            i = w.n_matches
            find_matches(w, edit, text, row)
            for i in range(i, w.n_matches):
                touch(w, w.matches[i].token)
            w.matches[w.n_matches] = Match(-1, 0)  # ends what the edit has found
            w.n_matches += 1
        elif is_penalty(edit):
            w.first = min(w.first, window_start(edit, text, row))
    for i in range(w.first, text.n):
        touch(w, text.tokens[i])


cdef inline bint ends_with(const Text *text, const Edit *edit, int64_t sequence) noexcept nogil:
    """Whether the text ends with a sequence but for its last token."""
    cdef int64_t start = start_of(edit, sequence), i, n = edit.ends[sequence] - 1 - start
    if n > text.n:
        return False
    for i in range(n):
        if text.tokens[text.n - n + i] != edit.ids[start + i]:
            return False
    return True


cdef inline void find_matches(Workspace *w, const Edit *edit, const Text *text,
                              int64_t row) noexcept nogil:
    """Every token that followed, in the window, the last tokens of the text, and how many of these
    there were: those of at least the length that matters. In linear time, whatever the text, by the
    Z algorithm on the reversed window."""
    cdef int64_t start = 0 if edit.kind == NO_REPEAT else window_start(edit, text, row)
    cdef int64_t n = text.n - start, k, length, longest = 0, least, limit, left = 0, right = 0
    cdef const int32_t *end = text.tokens + text.n - 1  # end[-k] is token k from the end
    cdef int32_t *lengths = w.lengths
    least = <int64_t> min(value_of(edit, AMOUNT, row) - 1.0 if edit.kind == NO_REPEAT
                          else value_of(edit, ALLOWED, row), 4294967296.0)  # no text is so long
    if n <= least and edit.kind == DRY:
        return
    for k in range(1, n):
        # Within [left, right) the window equals its end: there lengths repeat.
        length = lengths[k - left] if k < right else 0
        if length >= right - k:
            length = max(right - k, <int64_t> 0)
            while k + length < n and end[-length] == end[-k - length]:
                length += 1
            left = k
            right = k + length
        lengths[k] = <int32_t> length
        longest = max(longest, length)
    if n > 0:
        lengths[n if edit.kind == NO_REPEAT else 0] = 0
    limit = since_breaker(edit, text, n, longest) if edit.kind == DRY else longest
    if limit < least:
        return
    for k in range(1, n + 1 if edit.kind == NO_REPEAT else n):
        length = min(<int64_t> lengths[k], limit)
        if length >= least:
            w.matches[w.n_matches] = Match(end[1 - k], <int32_t> length)
            w.n_matches += 1


cdef inline int64_t since_breaker(const Edit *edit, const Text *text, int64_t n,
                                  int64_t longest) noexcept nogil:
    """How many tokens at the end of the window follow the last breaker, as far as that matters for
    repetitions of up to `longest` tokens. The breakers are sorted from their last ids on, so those
    that end alike are neighbours, the shortest first."""
    cdef const int32_t *end = text.tokens + text.n - 1
    cdef int64_t k, i, low, high
    for k in range(min(longest, n)):
        low, high = 0, edit.n_sequences
        for i in range(n - k):
            low = first_breaker(edit, low, high, i, end[-k - i])
            high = first_breaker(edit, low, high, i, <int64_t> end[-k - i] + 1)
            if low == high:
                break
            if size_of(edit, low) == i + 1:
                return k
    return longest


cdef inline int64_t first_breaker(const Edit *edit, int64_t low, int64_t high, int64_t i,
                                  int64_t token) noexcept nogil:
    """The first of some breakers, equal in their last i ids, whose id before these is at least
    `token`."""
    cdef int64_t middle
    if low < high and edit.ids[edit.ends[low] - 1 - i] >= token:
        return low
    if low < high and edit.ids[edit.ends[high - 1] - 1 - i] < token:
        return high
    while low < high:
        middle = (low + high) // 2
        if edit.ids[edit.ends[middle] - 1 - i] < token:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline int64_t size_of(const Edit *edit, int64_t sequence) noexcept nogil:
    return edit.ends[sequence] - start_of(edit, sequence)


cdef inline bint is_breaker(const Edit *edit, int32_t token) noexcept nogil:
    """Whether the token is a breaker by itself."""
    cdef int64_t sequence = first_breaker(edit, 0, edit.n_sequences, 0, token)
    return (sequence < edit.n_sequences and last_of(edit, sequence) == token
            and size_of(edit, sequence) == 1)


cdef inline int64_t count_touched(const Workspace *w) noexcept nogil:
    cdef int64_t group, n = 0
    cdef uint64_t words
    for group in range((w.vocab >> 12) + 1):
        words = w.any[group]
        while words != 0:
            n += count_bits(w.bits[group * 64 + first_bit(words)])
            words &= words - 1
    return n


cdef inline void list_touched(Workspace *w, int64_t *ids) noexcept nogil:
    """The touched tokens, ascending."""
    cdef int64_t group, word, n = 0
    cdef uint64_t words, bits
    for group in range((w.vocab >> 12) + 1):
        words = w.any[group]
        while words != 0:
            word = group * 64 + first_bit(words)
            words &= words - 1
            w.before[word] = <int32_t> n
            bits = w.bits[word]
            while bits != 0:
                ids[n] = word * 64 + first_bit(bits)
                n += 1
                bits &= bits - 1


cdef inline void forget_all(Workspace *w) noexcept nogil:
    memset(w.bits, 0, ((w.vocab >> 6) + (w.vocab >> 12) + 2) * sizeof(uint64_t))


cdef inline void forget_touched(Workspace *w, const int64_t *ids, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        w.bits[ids[i] >> 6] = 0
        w.any[ids[i] >> 12] = 0


cdef inline void apply_edits(Workspace *w, const Edit *edits, int n_edits, const Text *text,
                             int64_t row, double *x, int64_t n) noexcept nogil:
    """Change the logits x of the n touched tokens."""
    cdef const Edit *edit
    cdef int64_t i, at = 0
    cdef int one
    for i in range(w.first, text.n):
        w.places[i] = place_of(w, text.tokens[i])
    memcpy(w.came, x, n * sizeof(double))
    memset(w.shares, 0, n * sizeof(double))
    for one in range(n_edits):
        edit = edits + one
        if not applies(edit, text, row):
            continue
        if edit.kind == BIAS:
            for i in range(edit.n_sequences):
                if ends_with(text, edit, i):
                    add_bias(&x[place_of(w, last_of(edit, i))], edit.biases[i])
        elif edit.kind == BEFORE:
            for i in range(edit.n_ids):
                x[place_of(w, edit.ids[i])] = -INFINITY
        elif repeats(edit):
            at = apply_matches(w, edit, row, at, x)
        elif is_penalty(edit):
            penalise(w, edit, text, row, x, n)
    for i in range(n):
        if isfinite(w.came[i]) and x[i] > -INFINITY:
            x[i] = rounded_like(w.came[i], x[i])


cdef inline void add_bias(double *x, double bias) noexcept nogil:
    x[0] = -INFINITY if bias == -INFINITY else finite_like(x[0], x[0] + bias)


cdef inline double finite_like(double before, double x) noexcept nogil:
    """What a finite logit becomes is finite too: only a ban makes it -inf."""
    return max(min(x, DBL_MAX), -DBL_MAX) if isfinite(before) else x


cdef inline double rounded_like(double before, double x) noexcept nogil:
    """Where the logit was a float32, its edited value is one as well."""
    if <double> (<float> before) != before:
        return x
    return <double> <float> max(min(x, <double> FLT_MAX), -<double> FLT_MAX)


cdef inline void penalise(Workspace *w, const Edit *edit, const Text *text, int64_t row, double *x,
                          int64_t n) noexcept nogil:
    """Each token of the window counts as 1, and those before it as shares that fall to 0 over
    `decay` tokens. A frequency adds them up, the others take the largest."""
    cdef double amount = value_of(edit, AMOUNT, row), decay = value_of(edit, DECAY, row)
    cdef double window = value_of(edit, WINDOW, row)
    cdef double share, changed
    cdef double *one
    cdef int64_t i, start = window_start(edit, text, row), whole = start
    if window < text.n - start:
        whole = text.n - <int64_t> window
    for i in range(start, text.n):
        one = &w.shares[w.places[i]]
        share = 1.0 if i >= whole else 1.0 - (text.n - i - window) / decay
        one[0] = one[0] + share if edit.kind == FREQUENCY else max(one[0], share)
    for i in range(n):
        share = w.shares[i]
        w.shares[i] = 0.0
        if share <= 0.0:
            continue
        if edit.kind != REPETITION:
            x[i] = finite_like(x[i], x[i] - share * amount)
        else:
            changed = finite_like(x[i], x[i] / amount if x[i] > 0.0 else x[i] * amount)
            x[i] = changed if share == 1.0 else x[i] * (1.0 - share) + changed * share


cdef inline int64_t apply_matches(Workspace *w, const Edit *edit, int64_t row, int64_t at,
                                  double *x) noexcept nogil:
    """Forbid or penalise what would go on with a repetition. Returns where the matches of the next
    edit begin."""
    cdef double *lengths = w.shares
    cdef double penalty
    cdef int64_t i, end = at
    cdef int32_t place, most = most_exponent(value_of(edit, BASE, row))
    while w.matches[end].token >= 0:
        place = place_of(w, w.matches[end].token)
        lengths[place] = max(lengths[place], <double> w.matches[end].length)
        end += 1
    for i in range(at, end):
        place = place_of(w, w.matches[i].token)
        if edit.kind == NO_REPEAT:
            x[place] = -INFINITY
        elif lengths[place] > 0.0 and not is_breaker(edit, w.matches[i].token):
            penalty = lengths[place] - value_of(edit, ALLOWED, row)
            penalty = value_of(edit, AMOUNT, row) * power(value_of(edit, BASE, row),
                                                          <int> min(penalty, <double> most))
            x[place] = finite_like(x[place], x[place] - penalty)
        lengths[place] = 0.0
    return end + 1


cdef inline int32_t most_exponent(double base) noexcept nogil:
    """The largest exponent for which base ** exponent is a float32, as llama.cpp finds it."""
    cdef float largest = 88.7228391
    if not <float> base > <float> 1.000001:  # whose power no text is long enough to make too large
        return 2147483647
    return <int32_t> min(largest / <float> log_canonical(<float> base), 2147483647.0)


cdef inline double power(double base, int32_t exponent) noexcept nogil:
    """By squaring, so that it is the same everywhere."""
    cdef double result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


cdef inline int64_t forced_token(const Edit *edits, int n_edits, const Text *text) noexcept nogil:
    """The token that has to come next; -1 where none has to, -2 where two have to."""
    cdef int64_t token = -1, i
    cdef int one
    for one in range(n_edits):
        if edits[one].kind == FORCE:
            for i in range(edits[one].n_sequences):
                if edits[one].biases[i] == text.n - text.n_prompt:
                    token = edits[one].ids[i] if token in (-1, edits[one].ids[i]) else -2
    return token
