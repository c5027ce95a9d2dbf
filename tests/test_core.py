"""The core on its own: canonical arithmetic, the fast mass's bound, signals, threads, memory."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from functools import reduce
from pathlib import Path

import mpmath
import numpy as np
import pytest

from interrupting import interrupted
from sampler import Sampler, Temperature, TopK, TopP, _core, _inputs
from sampler._engine import make_chain
from sampler.stages.settings import STAGES
from test_law import KINDS, SETTINGS, make_row
from test_odds import draw

FAST, FINE, EXACT = _core.TIERS.values()
NO_IDS = np.empty(0, np.int64)


def ulps(value, exact):
    """Distance in units of the last place of the exact value."""
    exact = mpmath.mpf(exact)
    return float(abs(mpmath.mpf(value) - exact) / mpmath.mpf(np.spacing(abs(float(exact)))))


def test_the_stages_of_the_core_are_those_of_python():
    in_the_core = {name for name, stage in STAGES.items() if stage.kind != "edit"}
    assert in_the_core | {"only"} == set(_core.STAGES)  # which `score(kept=)` puts in


@pytest.mark.parametrize("stage", [-1, len(_core.STAGES), 2**40])
def test_an_unknown_stage_is_refused(stage):
    with pytest.raises(ValueError, match=f"^unknown stage {stage} of 1 parameters$"):
        _core.Chain([(_core.STAGES["top_k"], 0, NO_IDS, 3), (stage, 0, NO_IDS, 0.5)])


def test_divisions_do_not_check_for_zero():
    # A directive that does not reach a .pxd would make them raise, and the exception is swallowed.
    generated = Path(_core.__file__).parent / "_core.c"
    if not generated.exists():
        pytest.skip("no generated C")
    functions = {}
    for text in re.split(r"\n(?=static )", generated.read_text()):
        if name := re.match(r"static [^({;=]*\b(__pyx_f_7sampler_\w+)\(", text):
            functions[name[1]] = text
    assert "__pyx_f_7sampler_4core_6select_select" in functions
    assert [name for name, text in functions.items() if "ZeroDivisionError" in text] == []


def test_canonical_exp_is_within_an_ulp():
    rng = np.random.default_rng(0)
    z = np.concatenate(
        [-rng.random(2000) * 745, -rng.random(500), -(10.0 ** -rng.uniform(0, 20, 300))]
    )
    with mpmath.workprec(200):
        worst = max(ulps(_core.canonical("exp", v), mpmath.exp(mpmath.mpf(v))) for v in z.tolist())
    assert worst < 1.1
    assert _core.canonical("exp", 0.0) == 1.0
    assert _core.canonical("exp", -np.inf) == 0.0
    assert _core.canonical("exp", -746.0) == 0.0
    assert _core.canonical("exp", -744.0) == 2 * 2.0**-1074


def test_canonical_log_is_within_three_ulps():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.random(1000) * 3, 2.0 ** rng.uniform(-1070, 1020, 1000), [5e-324, 2.0]])
    with mpmath.workprec(200):
        worst = max(ulps(_core.canonical("log", v), mpmath.log(mpmath.mpf(v))) for v in x.tolist())
    assert worst < 3.0
    assert _core.canonical("log", 1.0) == 0.0
    assert _core.canonical("log", 0.0) == -np.inf
    assert _core.canonical("log", np.inf) == np.inf
    assert np.isnan(_core.canonical("log", -1.0))


def check_bounds(row, temperature):
    """Assert that each tier's mass is within its bound, and return them all."""
    rows = _inputs.read(row).rows()
    masses = _core.masses(rows, temperature)
    exact, _ = masses[EXACT]
    for mass, error in masses.values():
        assert abs(mass - exact) <= error
    if FINE in masses:
        floors = np.array([row.min(), np.median(row)], np.float64)
        above = _core.masses(rows, temperature, floors)
        assert abs(above[floors[0]][0] - exact) <= above[floors[0]][1]
        upper = row[row >= floors[1]]  # the maximum is among them
        exact, _ = _core.masses(_inputs.read(upper).rows(), temperature)[EXACT]
        assert abs(above[floors[1]][0] - exact) <= above[floors[1]][1]
    return masses


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.05, 0.8, 1.0, 5.0, 1e4])
def test_masses_lie_within_their_bounds(kind, temperature, dtype):
    rng = np.random.default_rng(7)
    for size in (4096, 5000, 60_000):
        row = make_row(rng, kind, size, dtype)
        masses = check_bounds(row, temperature)
        exact, _ = masses[EXACT]
        # The bounds are worth having.
        assert masses[FINE][1] <= 1e-11 * exact
        if dtype == np.float32:
            assert masses[FAST][1] <= 1e-5 * exact
        assert (FAST in masses) == (dtype == np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 0.8, 1.0, 2.0, 10.0, 50.0])
def test_the_bounds_on_real_rows(temperature, real_logits):
    for row in real_logits[::3]:
        check_bounds(row.astype(np.float32), temperature)


@pytest.mark.parametrize("depth", [0.1, 1.3, 5.7, 9.1, 12.3, 17.9, 24.7])
def test_the_bounds_where_every_token_rounds_alike(depth):
    # Errors of one sign add up: the depth counts, in blocks of little mass.
    for temperature in (0.3, 0.7, 0.83, 1.0, 1.7):
        for max_ in (0.0, 3.3, -41.7):
            for more in np.linspace(0.0, 0.1, 12):
                row = np.full(8192, max_ - (depth + more) * temperature, np.float32)
                row[0] = max_
                check_bounds(row, temperature)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e4, 1e30])
def test_the_bounds_at_the_ends_of_the_range(temperature):
    noise = np.random.default_rng(5).normal(0.0, 1.0, 5000)
    for scale in (1e-38, 1e-10, 1.0, 1e10, 5e37):
        check_bounds((noise * scale).astype(np.float32), temperature)
        check_bounds(noise * scale, temperature)


@pytest.mark.parametrize("depth", [30.0, 31.0, 31.3, 47.0, 48.4, 48.6, 90.0, 5000.0])
def test_the_bounds_at_the_depths_where_weights_are_left_out(depth):
    row = np.full(100_000, -depth, np.float32)
    row[-1] = 0.0
    row[5] = np.nextafter(np.float32(-depth), np.float32(0.0))
    check_bounds(row, 1.0)
    check_bounds(row.astype(np.float64), 1.0)


def coefficients(function):
    """The coefficients of a polynomial in the source, the highest power first."""
    source = (Path(__file__).parents[1] / "sampler" / "core" / "masses.h").read_text()
    body = source.split(f"FN({function})(", 1)[1].split("uint", 1)[0]
    first = re.search(r"(?:float|double) p = ([^;]+);", body)
    rest = re.findall(r"p = MULADD_\w+\(p, f, ([^)]+)\)", body)
    texts = [text.rstrip("f") if "x" not in text else text for text in (first[1], *rest)]
    return [float.fromhex(text) if "x" in text else float(text) for text in texts]


@pytest.mark.slow
def test_the_fast_polynomial_at_every_float():
    # docs/design.md: at most 2.5e-7, fused or not. Below 2**-13 it is 1 + f ln 2, rounded.
    numbers = [np.float32(c) for c in coefficients("fast_weight")]
    assert len(numbers) == 6
    ends = [int(np.float32(x).view(np.uint32)) for x in (2.0**-13, 0.5)]
    worst = 0.0
    for start in range(ends[0], ends[1] + 1, 1 << 22):
        bits = np.arange(start, min(start + (1 << 22), ends[1] + 1), dtype=np.uint32)
        for f in (bits.view(np.float32), -bits.view(np.float32)):
            exact = np.exp2(f.astype(np.float64))
            for fused in (False, True):
                p = np.full(f.shape, numbers[0])
                for c in numbers[1:]:
                    if fused:  # the product is exact in double; rounding twice is no worse here
                        p = (p.astype(np.float64) * f + np.float64(c)).astype(np.float32)
                    else:
                        p = p * f + c
                worst = max(worst, float(np.max(np.abs(p / exact - 1.0))))
    assert 2e-7 < worst < 2.5e-7


def test_the_fine_polynomial():
    numbers = coefficients("fine_weight")
    assert len(numbers) == 9
    f = np.linspace(-0.5, 0.5, 20_001)
    with mpmath.workprec(120):
        errors = [
            abs(reduce(lambda p, c: p * x + c, numbers, mpmath.mpf(0)) / mpmath.mpf(2) ** x - 1)
            for x in map(mpmath.mpf, f.tolist())
        ]
    assert 1e-12 < max(errors) < 1.1e-12


@pytest.mark.parametrize("stages", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_path_changes_no_answer(kind, stages):
    rng = np.random.default_rng(11)
    rows = np.stack([make_row(rng, kind, 9000, np.float32)] * 40)
    u = rng.random((40, 1))
    plain = draw(stages, rows, u)
    for tier in (FINE, EXACT):
        assert np.array_equal(plain, draw(stages, rows, u, tier))


def test_a_draw_at_a_boundary_is_settled_by_the_canonical_mass():
    row = np.random.default_rng(3).normal(0.0, 2.0, 20_000).astype(np.float32)
    d = Sampler(seed=0).distribution(row)
    cumulative = d._cumulative / d._cumulative[-1]
    u = np.concatenate([cumulative[5:19_000:37] + e for e in (-1e-9, -1e-11, 1e-11, 1e-9)])
    rows = np.broadcast_to(row, (len(u), len(row)))
    assert np.array_equal(draw([], rows, u[:, None])[:, 0], d.draw(u))


def test_threads_share_a_sampler_and_the_gil_is_free():
    rows = np.random.default_rng(0).normal(0.0, 3.0, (64, 50_000)).astype(np.float32)
    s = Sampler(temperature=0.8, top_p=0.9, seed=5)
    expected = [s.sample(rows, steps=i).tokens for i in range(8)]
    found = {}

    def work(i):
        found[i] = s.sample(rows, steps=i).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(8):
        assert np.array_equal(found[i], expected[i])

    # Another thread sees the first of many tokens, and stops the call.
    tokens = np.full((600_000, 1), -7)
    words = np.broadcast_to(rows[0].view(np.uint32), (600_000, 50_000))
    big = _core.Rows(words, _core.KINDS["float32"], False)
    with interrupted(tokens):
        _core.draw_tokens(make_chain(s.stages), big, _core.KeyedUniforms(0, 0), tokens, False)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("call", ["s(rows)", "s.sample(rows[0], n=10**8)"])
def test_ctrl_c_is_seen(call):
    code = textwrap.dedent(f"""
        import signal
        import numpy as np
        from sampler import Sampler
        # A shell's background job inherits an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        s = Sampler(temperature=0.8, top_p=0.9, seed=1)
        rows = np.broadcast_to(np.linspace(0, 9, 100_000, dtype=np.float32), (3_000_000, 100_000))
        s(rows[:2])
        try:
            print("ready", flush=True)
            {call}
        except KeyboardInterrupt:
            print("interrupted", s(rows[0]) >= 0, flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, child.kill)  # deaf to signals, it would hang the test
    watchdog.start()
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.5)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted True\n"
        # 50 ms and the machine's mood, not the many seconds of the call.
        assert time.monotonic() - start < 10
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def test_memory_does_not_grow():
    resource = pytest.importorskip("resource")
    row = np.random.default_rng(0).normal(0.0, 3.0, 8192).astype(np.float32)
    s = Sampler(temperature=0.8, top_p=0.9, seed=5)

    def call():
        s(row)
        s.sample(row, n=3, logprobs=5)
        s.filter(row)
        s.distribution(row)

    for _ in range(200):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3000):
        call()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # In KiB (bytes on macOS): a leak of one row per call would be 96 MB.
    assert grown < 8192 * (1024 if sys.platform == "darwin" else 1)


def test_a_row_longer_than_the_exact_sums_allow_is_refused():
    row = np.broadcast_to(np.float32(0.0), (2**27 + 1,))
    with pytest.raises(ValueError, match="at most 2\\*\\*27 tokens"):
        Sampler(seed=0)(row)


def test_scratch_grows_and_serves_smaller_rows_after_larger_ones():
    s = Sampler([Temperature(0.9), TopP(0.9)], seed=2)
    rng = np.random.default_rng(4)
    rows = {size: rng.normal(0.0, 2.0, size).astype(np.float32) for size in (10, 300_000, 5000, 64)}
    first = {size: s.sample(row, steps=0).tokens for size, row in rows.items()}
    again = {size: s.sample(row, steps=0).tokens for size, row in reversed(rows.items())}
    assert first == again


@pytest.mark.parametrize("more", [1, 63, 500, 4000])
@pytest.mark.parametrize("vocab", [10, 1535, 50_000])
def test_scratch_has_room_for_the_row_at_hand(vocab, more):
    # Planted: not regrown for a row up to 500 tokens longer. Nothing went wrong, often.
    s = Sampler(top_p=0.9, seed=1)
    _core.idle_scratch(give_back=True)
    s(np.zeros(vocab, np.float32))
    assert _core.idle_scratch() == [(vocab, 0, 0, 0)]
    for size, n in ((vocab, 5), (vocab, 5 + more), (vocab + more, 5), (3, 2)):
        s.sample(np.zeros(size, np.float32), n=n)
        room = max(size, vocab if n == 5 or size == vocab else vocab + more)
        items = 5 if (size, n) == (vocab, 5) else 5 + more
        assert _core.idle_scratch() == [(room, room, items, 0)]
    s.replace(smoothing=0.5)(np.zeros(vocab, np.float32))
    assert _core.idle_scratch() == [(room, room, items, vocab)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("vocab", [1, 257, 1535, 4096, 33_024])
def test_every_buffer_at_its_exact_size(vocab, dtype):
    # What this is for shows under an address sanitizer: make test-asan.
    rng = np.random.default_rng(vocab)
    chains = (
        [TopP(0.9)], [Temperature(0.7), TopK(50)], [TopK(vocab // 2 + 1), TopP(0.999)],
        [Temperature(9.0), TopP(0.5)],
    )  # fmt: skip
    for lead in (0, 12):  # a row may begin anywhere, and ends where its memory does
        for make in (rng.random, lambda n: rng.integers(0, 3, n), lambda n: -np.arange(n) / n):
            _core.idle_scratch(give_back=True)
            for longer in (0, 500):
                n = vocab + longer
                row = np.concatenate([np.zeros(lead), make(n)]).astype(dtype)[lead:]
                for stages in chains:
                    s = Sampler(stages, seed=1)
                    s(row)
                    tokens = s.sample(row, n=3, logprobs=n).tokens
                    s.filter(row)
                    assert set(tokens) <= set(s.distribution(row).ids)


def test_the_last_kept_token_alone_in_its_block():
    # The fast mass once left it out: 4097 logits, the last of them the last of the cut.
    row = np.ones(4097, np.float32)
    row[0] = 0.5
    u = np.full((1, 1), 0.5)
    assert draw([TopK(4096)], row, u) == draw([TopK(4096)], row, u, tier=EXACT) == 2049


def test_fast_and_exact_paths_agree_where_cuts_end_anywhere():
    rng = np.random.default_rng(21)
    for _ in range(300):
        size = int(rng.integers(4, 9)) * 1024 + int(rng.choice([-1, 0, 1, 2, 63, 64, 65, 700]))
        row = np.round(rng.normal(0.0, rng.choice([0.01, 1.0]), size)).astype(np.float32)
        stages = [TopK(int(rng.integers(1, size + 2))), Temperature(float(rng.uniform(0.2, 9)))]
        u = rng.random((8, 1))
        rows = np.broadcast_to(row, (8, size))
        assert np.array_equal(draw(stages, rows, u), draw(stages, rows, u, tier=EXACT))


@pytest.mark.parametrize("size", [1, 4])
def test_short_rows_heed_signals(size):
    # A row of one token costs a microsecond: counted by logits alone, signals waited for 0.6 s.
    row = np.zeros(size, np.uint32)
    rows = _core.Rows(np.broadcast_to(row, (4_000_000, size)), _core.KINDS["float32"], False)
    tokens = np.full((4_000_000, 1), -7)
    with interrupted(tokens, signals=5) as counts:
        _core.draw_tokens(_core.Chain([]), rows, _core.KeyedUniforms(0, 0), tokens, False)
    assert min(np.diff(counts)) < 50_000


@pytest.mark.parametrize(("n", "batch"), [(200_000, 40), (600_000, 15)])
def test_many_draws_from_each_of_a_few_rows_heed_signals(n, batch):
    # Draws counted for nothing once, so that the next look came after 900 such rows; and where a
    # look between draws had ended a row, the next one was begun all the same.
    rows = _core.Rows(np.zeros((batch, 16), np.float32), _core.KINDS["float32"], False)
    tokens = np.full((batch, n), -7)
    with interrupted(tokens):
        _core.draw_tokens(_core.Chain([]), rows, _core.KeyedUniforms(0, 0), tokens, False)
    assert tokens[-1, 0] == -7  # it stopped long before the end


def test_idle_memory_is_given_back():
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc")
    s, row = Sampler(seed=1), np.zeros(64, np.float32)

    def resident():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    s.sample(row, n=100)
    before = resident()
    s.sample(row, n=4_000_000)  # 96 MB of scratch, for the ranks
    assert resident() - before < 48 << 20


# ---------------------------------------------------------------------- fused without a fused adder


def rounded(x):
    """An exact fraction as the nearest float32, ties to even."""
    low = np.float32(float(x))  # rounded twice, perhaps
    around = [np.nextafter(low, np.float32(-np.inf)), low, np.nextafter(low, np.float32(np.inf))]
    nearest = min(abs(Fraction(float(v)) - x) for v in around)
    closest = [v for v in around if abs(Fraction(float(v)) - x) == nearest]
    return min(closest, key=lambda v: int(v.view(np.int32)) & 1)


def test_emulated_fused_multiply_adds_round_once():
    rng = np.random.default_rng(0)
    cases = [tuple(np.float32(v) for v in row) for row in rng.normal(0, 1, (3000, 3))]
    # Sums a hair from the middle between two floats, where rounding to double first goes wrong.
    for _ in range(3000):
        c = np.float32(rng.integers(2**23, 2**24)) * np.float32(rng.choice([-1, 1]))
        a = np.float32(1 + 2.0**-23 * rng.integers(0, 100))
        b = np.float32(rng.choice([-0.5, 0.5, 1.5]) * (1 + 2.0**-23 * rng.integers(-3, 3)))
        cases += [(a, b, c), (a, b * np.float32(2.0**-40), c), (a, -b, c)]
    twice = 0
    for a, b, c in cases:
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        want = rounded(exact)
        assert _core.fused(a, b, c) == want
        twice += np.float32(float(a) * float(b) + float(c)) != want
    assert twice >= 5  # or the cases show nothing
