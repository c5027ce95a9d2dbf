"""What the C headers of this folder define, for Cython. Each function is described there."""

from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "philox.h" nogil:
    double philox_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t draw,
                          uint64_t lane)

cdef extern from "canonical.h" nogil:
    enum:
        LANES
    const int64_t MOST_TOKENS

    ctypedef struct Mass:
        double high
        double low

    const Mass NO_MASS

    ctypedef struct Tempering:
        double max
        double temperature
        double scale
        bint uniform

    double high_part(double weight)
    double low_part(double weight, double high)
    void mass_add(Mass *mass, double high, double low)
    double mass_value(Mass mass)
    Mass mass_times(double weight, int64_t times)
    double exp_canonical(double z)
    double log_canonical(double x)
    double nearest(double x)
    float fused_emulated(float a, float b, float c)
    Tempering make_tempering(double max, double temperature)
    double tempered(const Tempering *tempering, double x)

cdef extern from "rows.h" nogil:
    enum:
        BLOCK
        WORD
        FLOORS
        FLOAT16
        BFLOAT16
        FLOAT32
        FLOAT64
        SOFTMAX
        LOG_SOFTMAX
        LOGSUMEXP
    const double FAST_FLOOR_ERROR
    const double FAST_MOMENT_ERROR
    const double FINE_WEIGHT_ERROR
    const double FINE_FLOOR_ERROR
    const double FINE_DEPTH_FLOOR_ERROR
    const double LOG_SLACK

    ctypedef struct Cut:
        double value
        int64_t last

    const Cut KEEP_ALL
    const Cut KEEP_NOTHING

    ctypedef struct Candidates:
        int64_t n
        double *values
        int64_t *ids
        double *weights

    ctypedef struct Split:
        int64_t count
        Mass mass
        double least
        double most

    ctypedef struct Edits:
        const int64_t *ids
        const double *values
        const int64_t *first
        const int32_t *allowed
        int64_t words

    ctypedef struct Row:
        int64_t n
        int kind
        const Kernels *kernels
        const void *maxima
        const Edits *edits
        const uint64_t *allowed

    int count_bits(uint64_t bits)
    int first_bit(uint64_t bits)
    int64_t blocks_in(const Row *row)
    int64_t block_start(const Row *row, int64_t b)
    int64_t most_blocks(int64_t n)
    int64_t maxima_in(int64_t blocks)
    int64_t whole_words(int64_t n)
    bint keeps(Cut cut, double x, int64_t id)
    double least_of(const Row *row, double value, bint above)
    double halfway(const Row *row, double low, double high)

cdef extern from "dispatch.h" nogil:
    # Over rows, for one element type: kernels.h, masses.h and softmax.h.
    ctypedef struct Kernels:
        int64_t (*scan)(const Row *, void *) noexcept nogil
        double (*top)(const Row *) noexcept nogil
        double (*bound)(const Row *, int64_t, void *) noexcept nogil
        int64_t (*gather)(const Row *, double, double, int64_t, double *, int64_t *) noexcept nogil
        int64_t (*find)(const Row *, double, int64_t) noexcept nogil
        double (*at)(const Row *, int64_t) noexcept nogil
        void (*look_up)(const Row *, const int64_t *, int64_t, double *) noexcept nogil
        int64_t (*pick)(const Row *, int64_t, int64_t, double, double, double *) noexcept nogil
        int64_t (*count)(const Row *, Cut) noexcept nogil
        void (*counts)(const Row *, const double *, int64_t *) noexcept nogil
        void (*fast_masses)(const Row *, const Tempering *, Cut, double *,
                            double *) noexcept nogil
        double (*fast_moment)(const Row *, const Tempering *, Cut, bint, double *,
                              double *) noexcept nogil
        void (*deviations)(const Row *, Cut, double *) noexcept nogil
        void (*fine_masses)(const Row *, const Tempering *, Cut, double *) noexcept nogil
        double (*fine_masses_and_depth)(const Row *, const Tempering *, Cut,
                                        double *) noexcept nogil
        void (*fine_masses_above)(const Row *, const Tempering *, Cut, double *, const double *,
                                  double *) noexcept nogil
        Mass (*exact_mass)(const Row *, const Tempering *, Cut, Mass *) noexcept nogil
        void (*fine_masses_of_two)(const Row *, const Tempering *, const Tempering *,
                                   double *) noexcept nogil
        int64_t (*read)(const Row *, const Tempering *, Cut, int64_t, double *,
                        double *) noexcept nogil
        void (*filter)(const Row *, const Tempering *, Cut, double, bint, double,
                       void *) noexcept nogil
        void (*softmax)(const Row *, ptrdiff_t, int64_t, const double *, ptrdiff_t, int, char *,
                        ptrdiff_t) noexcept nogil

    # Over candidates, for one instruction set: isa.h.
    ctypedef struct Isa:
        void (*weigh)(const Tempering *, const double *, int64_t, double *) noexcept nogil
        void (*temper)(const Tempering *, const double *, int64_t, double *) noexcept nogil
        Mass (*sum)(const double *, int64_t) noexcept nogil
        Mass (*depth)(const Tempering *, const double *, const double *, int64_t) noexcept nogil
        void (*split)(const double *, const double *, int64_t, double, Split *) noexcept nogil
        void (*align)(const Row *, uint64_t *) noexcept nogil

    const Isa *isa
    const char *SAMPLER_COMPILER
    int SAMPLER_ISAS
    const char *isa_name(int number)
    bint isa_runs(int number)
    void set_isa(int number)
    Row make_row(const char *data, ptrdiff_t stride, int64_t n, int kind, bint swapped)
    void edit_row(Row *row, const Edits *edits)

cdef extern from "pool.h" nogil:
    enum:
        MOST_WORKERS

    void pool_start(int count, void (*task)(void *, int) noexcept, void *job)
    void pool_wait(int count)
    int64_t fetch_add(int64_t *value, int64_t step)

cdef extern from "pool.h":
    int pool_enter(int wanted)
    void pool_leave()
    long getpid()
