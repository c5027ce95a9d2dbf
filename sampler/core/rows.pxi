"""The rows of a call, as Python hands them over, and their edits. Part of `_core.pyx`."""

cimport cython
from cpython cimport array
from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from sampler.core.edits cimport (
    EDIT_PARAMETERS, Edit, Text, Workspace, find_edits, first_outside, index_edits, make_workspace
)
from sampler.core.job cimport Job
from sampler.core.kernels cimport (
    BLOCK, FLOAT16, FLOAT32, FLOAT64, MOST_TOKENS, Edits as CEdits, Row, make_row
)


cdef enum:
    # Of texts: how many tokens are copied at once, from how many on the GIL is released, and what
    # one takes, in logits.
    TOKENS_PER_LOOK = 1 << 19
    LEAST_TOKENS = 1 << 12
    WORK_PER_TOKEN = 8


@cython.final
cdef class Edits:
    """Logits that have another value, the same in every row.

    Parameters
    ----------
    vocab : int
        How many logits a row has.
    ids, values : buffers of shape (n,), int64 and float64
        Ids ascending, each once, in [0, vocab); the values numbers that the rows' dtype has, or
        -inf.
    """

    cdef CEdits edits
    cdef int64_t _vocab
    cdef int64_t *_first
    cdef const int64_t[::1] _ids
    cdef const double[::1] _values

    def __cinit__(self, int64_t vocab, const int64_t[::1] ids, const double[::1] values):
        cdef int64_t i, n = ids.shape[0]
        self._vocab = vocab
        self._ids, self._values = ids, values
        if values.shape[0] != n:
            raise ValueError("one value for each id")
        for i in range(n):
            if not (ids[i - 1] if i > 0 else -1) < ids[i] < vocab:
                raise ValueError("the ids have to ascend, in [0, vocab)")
        if n == 0:
            return
        self._first = <int64_t *> malloc(((vocab + BLOCK - 1) // BLOCK + 1) * sizeof(int64_t))
        if self._first == NULL:
            raise MemoryError()
        index_edits(&ids[0], n, vocab, self._first)
        self.edits.ids, self.edits.values, self.edits.first = &ids[0], &values[0], self._first

    def __dealloc__(self):
        free(self._first)


@cython.final
cdef class Changes:
    """Edits that look at the text so far or at the logits: see core/edits.pxd.

    Parameters
    ----------
    vocab : int
        How many logits a row has.
    edits : sequence of (int, sequence, ndarray, ndarray, ndarray)
        For each its number, of `EDITS`; its parameters, each a number or a float64 array of one
        per row, the first NaN where the edit is off; its ids, int64, each in [0, vocab), in
        sequences one after another; where each of these ends, int64; a bias for each, float64.
    batch : int
        Of the arrays; 0 without any.
    """

    cdef Edit *edits
    cdef int count
    cdef int64_t vocab
    cdef int64_t batch  # of the arrays; 0 without any
    cdef list _kept  # what the edits point to

    def __cinit__(self, int64_t vocab, edits, int64_t batch=0):
        cdef Edit *edit
        cdef _Values values
        cdef const int64_t[::1] ids, ends
        cdef const double[::1] biases
        cdef int place
        self.vocab, self.batch = vocab, batch
        self._kept = []
        self.edits = <Edit *> calloc(max(len(edits), 1), sizeof(Edit))
        if self.edits == NULL:
            raise MemoryError()
        for kind, parameters, some_ids, some_ends, some_biases in edits:
            edit = &self.edits[self.count]
            self.count += 1
            edit.kind = kind
            for place in range(EDIT_PARAMETERS):
                values = _Values(parameters[place] if place < len(parameters) else 0.0, batch)
                edit.values[place], edit.strides[place] = values.at, values.stride
                self._kept.append(values)
            ids, ends, biases = some_ids, some_ends, some_biases
            self._kept.append((some_ids, some_ends, some_biases))
            edit.n_ids, edit.n_sequences = ids.shape[0], ends.shape[0]
            if ends.shape[0] > 0:
                edit.ends, edit.ids = &ends[0], &ids[0]
            if biases.shape[0] > 0:
                edit.biases = &biases[0]

    def __dealloc__(self):
        free(self.edits)


cdef struct RowChanges:
    const Edit *edits
    int count


@cython.final
@cython.no_gc  # what it holds refers to nothing else
cdef class Rows:
    """A batch of rows of logits: an array, the kind of its floats, and their byte order.

    Parameters
    ----------
    words : buffer of shape (batch, vocab) or (vocab,)
        Of items of 2, 4 or 8 bytes, as the kind wants. Any strides, read-only or not; never
        written to.
    kind : int
        Of `KINDS`.
    swapped : bool
        Whether the items are in the other byte order.
    """

    cdef readonly int64_t batch
    cdef readonly int64_t vocab
    cdef Py_buffer _buffer
    cdef bint _held
    cdef int _kind
    cdef bint _swapped
    cdef ptrdiff_t _row_stride
    cdef ptrdiff_t _stride
    cdef Edits _edits
    cdef CEdits *_masked  # the edits of each row, where they differ
    cdef Py_buffer _mask
    cdef bint _is_masked  # whether `_mask` is held
    cdef void **_changed  # the memory of `_masked`, where the rows' edits differ
    cdef const double *_memory  # of `_remembered`
    cdef object _remembered
    cdef list _held_per_row  # the edits and masks of the rows, where each has its own
    cdef const int64_t[::1] _only
    cdef const int64_t[::1] _only_ids

    def __cinit__(self, words, int kind, bint swapped):
        cdef int last
        self._only = None
        if not FLOAT16 <= kind <= FLOAT64:
            raise ValueError(f"unknown kind {kind}")
        PyObject_GetBuffer(words, &self._buffer, PyBUF_STRIDES)
        self._held = True
        last = self._buffer.ndim - 1
        if not 0 <= last <= 1:
            raise ValueError("rows have to be an array of one or two axes")
        if self._buffer.itemsize != (8 if kind == FLOAT64 else 4 if kind == FLOAT32 else 2):
            raise ValueError("the items have to be of the size of their kind")
        self.batch = self._buffer.shape[0] if last == 1 else 1
        self._row_stride = self._buffer.strides[0]
        self.vocab = self._buffer.shape[last]
        self._stride = self._buffer.strides[last]
        self._kind = kind
        self._swapped = swapped
        if self.vocab > MOST_TOKENS:
            raise ValueError(f"a row has to have at most 2**27 tokens, but has {self.vocab}")
        if self.vocab == 0:
            raise ValueError("a row has to have at least one token")

    def __dealloc__(self):
        cdef int64_t row
        if self._held:
            PyBuffer_Release(&self._buffer)
        if self._is_masked:
            PyBuffer_Release(&self._mask)
        if self._changed != NULL:
            for row in range(self.batch):
                free(self._changed[row])
            free(self._changed)
        free(self._masked)

    def edit(self, Edits edits not None, mask=None):
        """Let every call on these rows read them with edits: once.

        mask : buffer of shape (batch, any), int32, contiguous rows of at least one word. Bit j & 31
        of word j >> 5 is whether token j may be drawn; tokens beyond are not, and bits beyond the
        tokens are not looked at. Never written to.
        """
        if self._edits is not None or edits._vocab != self.vocab:
            raise ValueError("the edits have to be of these rows, and the first")
        self._edits = edits
        if mask is not None:
            self._hold(mask)
            self._mask_rows(edits.edits)

    def change(self, changes not None, texts=None, mask=None):
        """Let every call on these rows read them as the changes have them: once.

        changes : Changes, or a list of one Changes, Edits or None for each row. texts : sequence of
        (array.array of int32, int), one for each row: its tokens, of which so many are the prompt;
        None where no change looks at a text. mask : as for `edit`, or a list of one array of words
        or None for each row.

        Returns None, or (row, token) for the first id of a text that is not in the vocabulary.
        """
        cdef Workspace w
        cdef CEdits none
        cdef RowChanges *changed = NULL
        cdef Text *copies = NULL
        cdef int32_t *copied = NULL
        cdef int64_t row, first, room = 0, used, n, place = -1, longest = 0
        cdef array.array tokens
        cdef int64_t looked = 0
        global _idle_workspace
        if self._masked != NULL or not (texts is None or len(texts) == self.batch):
            raise ValueError("the changes have to be of these rows, and the first")
        memset(&none, 0, sizeof(CEdits))
        if mask is not None and not isinstance(mask, list):
            self._hold(mask)
        self._mask_rows(none)
        self._held_per_row = []
        if isinstance(mask, list):
            self._mask_each(mask)
        self._changed = <void **> calloc(max(<int64_t> 1, self.batch), sizeof(void *))
        if self._changed == NULL:
            raise MemoryError()
        if texts is not None:
            lengths = [len(one[0]) for one in texts]
            longest = max(lengths, default=0)
            room = max(longest, min(sum(lengths), TOKENS_PER_LOOK))
        with _lock:
            w = _idle_workspace
            memset(&_idle_workspace, 0, sizeof(Workspace))
        try:
            changed = <RowChanges *> calloc(max(<int64_t> 1, self.batch), sizeof(RowChanges))
            copies = <Text *> calloc(max(<int64_t> 1, self.batch), sizeof(Text))
            copied = <int32_t *> malloc(max(<int64_t> 1, room) * sizeof(int32_t))
            if changed == NULL or copies == NULL or copied == NULL:
                raise MemoryError()
            self._find_changes(changes, changed, &w, longest)
            first = 0
            while first < self.batch:
                # Copies of as many texts as there is room for: a thread may write to a text while
                # the rows are worked on.
                row, used = first, 0
                while row < self.batch:
                    n = 0 if texts is None else lengths[row]
                    if used + n > room and row > first:
                        break
                    copies[row] = Text(copied + used, 0, n)
                    if texts is not None:
                        tokens, copies[row].n_prompt = texts[row]
                        n = copies[row].n = min(n, <int64_t> len(tokens))
                        memcpy(copied + used, tokens.data.as_ints, n * sizeof(int32_t))
                    used += n
                    row += 1
                if used < LEAST_TOKENS:
                    first = self._change_rows(first, row, changed, copies, &w, &place)
                else:
                    with nogil:
                        first = self._change_rows(first, row, changed, copies, &w, &place)
                        look_at_signals(used * WORK_PER_TOKEN, &looked)
                if place >= 0:
                    return first, copies[first].tokens[place]
                if first < row:
                    raise MemoryError()
        finally:
            free(changed)
            free(copies)
            free(copied)
            if 40 * w.longest > MOST_IDLE_BYTES:  # a token takes about that
                free(w.memory)
                memset(&w, 0, sizeof(Workspace))
            with _lock:
                _idle_workspace, w = w, _idle_workspace
            free(w.memory)  # of another thread's call, if there was one

    cdef int _find_changes(self, changes, RowChanges *changed, Workspace *w,
                           int64_t longest) except -1:
        """Note the changes of each row, and make room for them. Those that are the same in every
        call are its edits already."""
        cdef Changes one = None
        cdef Edits same
        cdef CEdits edits
        cdef int64_t row
        cdef bint differ = isinstance(changes, list)
        if differ and len(changes) != self.batch:
            raise ValueError("the changes have to be of these rows")
        for row in range(self.batch):
            found = changes[row] if differ else changes
            if found is None:
                continue
            if isinstance(found, Edits):
                same = found
                if same._vocab != self.vocab:
                    raise ValueError("the edits have to be of these rows")
                edits = same.edits
                edits.allowed, edits.words = self._masked[row].allowed, self._masked[row].words
                self._masked[row] = edits
            else:
                if found is not one:
                    one = found
                    if (one.vocab != self.vocab
                            or one.batch != 0 and (differ or one.batch != self.batch)):
                        raise ValueError("the changes have to be of these rows")
                    if not make_workspace(w, one.edits, one.count, self.vocab, longest):
                        raise MemoryError()
                changed[row] = RowChanges(one.edits, one.count)
            if differ:
                self._held_per_row.append(found)
        return 0

    cdef int64_t _change_rows(self, int64_t first, int64_t end, const RowChanges *changed,
                              const Text *texts, Workspace *w, int64_t *place) noexcept nogil:
        """What `change` does with some rows; returns the first that it has not done: where the
        token at that place of its text is not in the vocabulary, or memory is out."""
        cdef Row raw
        cdef int64_t row
        for row in range(first, end):
            if changed[row].edits == NULL:
                continue
            place[0] = first_outside(&texts[row], self.vocab)
            if place[0] >= 0:
                return row
            raw = make_row(<const char *> self._buffer.buf + row * self._row_stride, self._stride,
                           self.vocab, self._kind, self._swapped)
            if not find_edits(w, changed[row].edits, changed[row].count, &texts[row], row, &raw,
                              &self._masked[row], &self._changed[row]):
                return row
        return end

    def remember(self, const double[::1] memory not None):
        """Let every call on these rows tell a stage with memory what the state of each row says:
        once."""
        if self._remembered is not None or memory.shape[0] != self.batch:
            raise ValueError("the memory has to be of these rows, and the first")
        self._remembered = memory
        self._memory = &memory[0] if self.batch > 0 else NULL

    def keep_only(self, const int64_t[::1] bounds not None, const int64_t[::1] ids not None):
        """Let the stage `only` keep, in row i, ids[bounds[i]] to ids[bounds[i + 1] - 1]: once.

        bounds : shape (batch + 1,), from 0, never falling; ids : ascending in each row, in
        [0, vocab), as many as the last bound.
        """
        cdef int64_t row, i
        if self._only is not None or bounds.shape[0] != self.batch + 1 or bounds[0] != 0:
            raise ValueError("the bounds have to be of these rows, and the first")
        for row in range(self.batch):
            if not bounds[row] <= bounds[row + 1] <= ids.shape[0]:
                raise ValueError("the bounds have to rise, to as many ids as there are")
            for i in range(bounds[row], bounds[row + 1]):
                if not (ids[i - 1] if i > bounds[row] else -1) < ids[i] < self.vocab:
                    raise ValueError("the ids have to ascend, in [0, vocab)")
        self._only, self._only_ids = bounds, ids

    cdef int _mask_each(self, list masks) except -1:
        """Give every row its own mask, or none."""
        cdef const int32_t[::1] words
        cdef int64_t row
        if len(masks) != self.batch:
            raise ValueError("one mask for each of these rows")
        for row in range(self.batch):
            if masks[row] is None:
                continue
            words = masks[row]
            if words.shape[0] < 1:
                raise ValueError("the mask has to have words for each of these rows")
            self._masked[row].allowed = &words[0]
            self._masked[row].words = min(words.shape[0], (self.vocab + 31) // 32)
            self._held_per_row.append(masks[row])
        return 0

    cdef int _hold(self, mask) except -1:
        cdef int64_t words
        PyObject_GetBuffer(mask, &self._mask, PyBUF_STRIDES)
        self._is_masked = True
        words = self._mask.shape[1] if self._mask.ndim == 2 else 0
        if (words < 1 or self._mask.shape[0] != self.batch or self._mask.itemsize != 4
                or self._mask.strides[1] != 4):
            raise ValueError("the mask has to have words for each of these rows")
        return 0

    cdef int _mask_rows(self, CEdits edits) except -1:
        """Give every row these edits, and its part of the mask, if there is one."""
        cdef int64_t i
        self._masked = <CEdits *> malloc(max(<int64_t> 1, self.batch) * sizeof(CEdits))
        if self._masked == NULL:
            raise MemoryError()
        for i in range(self.batch):
            self._masked[i] = edits
            if not self._is_masked:
                continue
            self._masked[i].allowed = <const int32_t *> (<const char *> self._mask.buf
                                                         + i * self._mask.strides[0])
            self._masked[i].words = min(self._mask.shape[1], (self.vocab + 31) // 32)
        return 0

    cdef void init_job(self, Job *job) noexcept:
        """Begin a job on these rows, in which nothing else is set."""
        memset(job, 0, sizeof(Job))
        job.repeat = 1
        job.data = <const char *> self._buffer.buf
        job.row_stride = self._row_stride
        job.stride = self._stride
        job.batch = self.batch
        job.vocab = self.vocab
        job.kind = self._kind
        job.swapped = self._swapped
        job.memory = self._memory
        if self._only is not None:
            job.only = &self._only[0]
            job.only_ids = &self._only_ids[0] if self._only_ids.shape[0] > 0 else NULL
        if self._masked != NULL:
            job.edits = self._masked
            job.edits_step = 1
        elif self._edits is not None:
            job.edits = &self._edits.edits
