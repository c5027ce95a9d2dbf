"""Edits that look at the logit or at the text: tables with the answers, relations, bad input.

That the core and the twin agree on random texts: `test_the_twin_on_random_texts`.
"""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sampler
from law import HISTORY, TABLE
from sampler import (
    DRY,
    BadWords,
    BeginSuppressTokens,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
    SequenceBias,
    SuppressTokens,
    TokenCount,
    TopP,
    reference,
)
from sampler.history import History
from test_masks import laid_out

inf, nan = math.inf, math.nan
ROW = [1.0, 3.0, -2.0, 0.0, 2.0]

EDITED = [
    # stages, prompt, output, the row after it (None: as it was)
    ([LogitBias({1: 0.5, 4: -inf})], [], [], [1.0, 3.5, -2.0, 0.0, -inf]),
    ([LogitBias({1: 0.5}), LogitBias({1: 0.25})], [], [], [1.0, 3.75, -2.0, 0.0, 2.0]),
    ([SequenceBias({(0, 1, 2): 4.0, (3,): 1.0, (1, 4): 9.0})], [0], [1], [1, 3, 2, 1, 11]),
    ([SequenceBias({(0, 1, 2): 4.0})], [1], [], None),
    ([SequenceBias({(1, 2): 1.0, (0, 1, 2): 2.0, (2,): -inf})], [0], [1], [1, 3, -inf, 0, 2]),
    # x / r above 0, x r below.
    ([RepetitionPenalty(2.0)], [1], [2], [1.0, 1.5, -4.0, 0.0, 2.0]),
    ([RepetitionPenalty(2.0, None, False)], [1], [2], [1.0, 3.0, -4.0, 0.0, 2.0]),
    ([RepetitionPenalty(2.0, 2)], [1, 4], [2], [1.0, 3.0, -4.0, 0.0, 1.0]),
    ([RepetitionPenalty(2.0, 2)], [4], [1, 4, 4], [1.0, 3.0, -2.0, 0.0, 1.0]),
    # One token counts wholly; of the others 1 - 1/2 and 1 - 2/2.
    ([RepetitionPenalty(2.0, 1, True, 2)], [], [4, 1, 0], [0.5, 2.25, -2.0, 0.0, 2.0]),
    ([FrequencyPenalty(0.5)], [1, 1], [1, 4, 4], [1.0, 2.5, -2.0, 0.0, 1.0]),
    ([FrequencyPenalty(0.5, None, True)], [1, 1], [1, 4, 4], [1.0, 1.5, -2.0, 0.0, 1.0]),
    ([FrequencyPenalty(-0.5, 2)], [], [1, 4, 4], [1.0, 3.0, -2.0, 0.0, 3.0]),
    ([FrequencyPenalty(1.0, 1, False, 4)], [], [4, 4, 4], [1.0, 3.0, -2.0, 0.0, -0.25]),
    ([PresencePenalty(0.5)], [0], [1, 4, 4], [1.0, 2.5, -2.0, 0.0, 1.5]),
    ([PresencePenalty(1.0, 1, False, 4)], [], [1, 4, 4], [1.0, 2.5, -2.0, 0.0, 1.0]),
    ([RepetitionPenalty(2.0), FrequencyPenalty(0.5), PresencePenalty(1.0)], [], [1, 1],
     [1.0, -0.5, -2.0, 0.0, 2.0]),
    # The text ends with 0 1, which 2 followed: n = 2. And with 1, which 4 followed: n = 1.
    ([DRY(1.0, 2.0, 2)], [], [0, 1, 2, 1, 4, 0, 1], [1.0, 3.0, -3.0, 0.0, 2.0]),
    ([DRY(1.0, 2.0, 1)], [], [0, 1, 2, 1, 4, 0, 1], [1.0, 3.0, -4.0, 0.0, 1.0]),
    ([DRY(1.0, 2.0, 2)], [0, 1, 2, 1, 4], [0, 1], None),
    ([DRY(1.0, 2.0, 2, None, True)], [0, 1, 2, 1, 4], [0, 1], [1.0, 3.0, -3.0, 0.0, 2.0]),
    ([DRY(1.0, 2.0, 2, 6, True)], [0, 1, 2, 1, 4], [0, 1], None),  # the window begins with 1
    # A breaker ends what may repeat, and is never penalised itself.
    ([DRY(1.0, 2.0, 1, breakers=[[0]])], [], [0, 1, 2, 1, 4, 0, 1], [1.0, 3.0, -3.0, 0.0, 1.0]),
    ([DRY(1.0, 2.0, 1, breakers=[[4], [2, 0]])], [], [0, 1, 2, 1, 4, 0, 1], [1, 3, -4, 0, 2]),
    ([DRY(1.0, 2.0, 1, breakers=[[0, 1]])], [], [0, 1, 2, 1, 4, 0, 1], None),
    ([DRY(1.0, 2.0, 4)], [], [0, 1, 2, 0], None),  # the text is not longer than 4
    ([DRY(0.25, 1.0, 1)], [], [3, 3, 3, 3], [1.0, 3.0, -2.0, -0.25, 2.0]),
    ([NoRepeatNgram(1)], [1], [2], [1.0, -inf, -inf, 0.0, 2.0]),
    ([NoRepeatNgram(2)], [1, 2], [4, 1], [1.0, 3.0, -inf, 0.0, 2.0]),
    ([NoRepeatNgram(3)], [1, 2, 4], [1, 2], [1.0, 3.0, -2.0, 0.0, -inf]),
    ([NoRepeatNgram(6)], [1, 2, 4], [1, 2], None),
    ([BadWords([[1, 2], [3], 4])], [], [1], [1.0, 3.0, -inf, -inf, -inf]),
    ([BadWords([[1, 2]])], [1], [0], None),
    ([SuppressTokens([0, 1])], [], [], [-inf, -inf, -2.0, 0.0, 2.0]),
    ([BeginSuppressTokens([0])], [3], [], [-inf, 3.0, -2.0, 0.0, 2.0]),
    ([BeginSuppressTokens([0])], [], [3], None),
    ([MinNewTokens(2, [1])], [3, 3, 3], [3], [1.0, -inf, -2.0, 0.0, 2.0]),
    ([MinNewTokens(2, [1])], [], [3, 3], None),
    ([TokenCount(3)], [], [], [1.0, 3.0, -2.0, -inf, -inf]),
    ([TokenCount(9)], [], [], None),
    ([ForcedTokens({1: 4, 2: 0})], [3], [3], [-inf, -inf, -inf, -inf, 2.0]),
    ([ForcedTokens({1: 4})], [3], [], None),
    ([LogitBias({1: 1e308}), LogitBias({1: 1e308})], [], [],
     [1.0, np.finfo(np.float32).max, -2.0, 0.0, 2.0]),
    ([SuppressTokens([1]), LogitBias({1: 5.0})], [], [], [1.0, -inf, -2.0, 0.0, 2.0]),
    # What is not a ban leaves a finite logit.
    ([LogitBias({2: -1e308}), RepetitionPenalty(1e10)], [2], [],
     [1.0, 3.0, -np.finfo(np.float32).max, 0.0, 2.0]),
    ([FrequencyPenalty(1e308)], [], [1, 1], [1.0, -np.finfo(np.float32).max, -2.0, 0.0, 2.0]),
    ([DRY(1e308, 9.0, 1)], [], [1, 1, 1, 1], [1.0, -np.finfo(np.float32).max, -2.0, 0.0, 2.0]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("stages", "prompt", "output", "wanted"), EDITED)
def test_table(stages, prompt, output, wanted, dtype):
    row = np.array(ROW, dtype)
    wanted = np.array(ROW if wanted is None else wanted)
    s, h = Sampler(stages, seed=0), History(prompt, output)
    found = s.filter(row, history=h)
    assert found.dtype == dtype
    assert found.tolist() == wanted.tolist()
    state = reference.kept(row, stages, history=(prompt, output))
    assert dict(zip(state.ids.tolist(), state.logits.tolist(), strict=True)) == {
        i: x for i, x in enumerate(wanted.tolist()) if x > -inf
    }
    # The same in a long row, of which the last tokens are touched as well.
    long = np.concatenate([row, np.full(3000, -9.0, dtype)])
    if not any(isinstance(stage, (TokenCount, ForcedTokens)) for stage in stages):
        both = s.filter(long, history=h)
        assert both[:5].tolist() == wanted.tolist()
        assert (both[5:] == -9.0).all()


def random_text(rng, vocab):
    few = min(vocab, int(rng.choice([2, 3, 8, vocab])))
    tokens = rng.integers(0, few, int(rng.integers(0, 120))).tolist()
    if rng.random() < 0.3:
        tokens = (tokens[:7] * 20)[: len(tokens)]  # word for word
    end = int(rng.integers(0, len(tokens) + 1))
    return tokens[:end], tokens[end:]


def random_edit(rng, vocab):
    def ids(n):
        return rng.integers(0, vocab, n).tolist()

    def sequences(n, most=4):
        return [ids(int(rng.integers(1, most))) for _ in range(n)]

    def biases(n):
        return rng.choice([1.5, -2.0, -inf, 0.1], n).tolist()

    window = None if rng.random() < 0.4 else int(rng.integers(1, 60))
    how = (window, bool(rng.integers(2)), int(rng.choice([0, 0, 5, 20])))
    return [
        lambda: LogitBias(dict(zip(ids(5), biases(5), strict=True))),
        lambda: SequenceBias(list(zip(sequences(6), biases(6), strict=True))),
        lambda: RepetitionPenalty(float(rng.choice([1.1, 0.7, 3.0])), *how),
        lambda: FrequencyPenalty(float(rng.choice([0.3, -0.7, 3.0])), *how),
        lambda: PresencePenalty(float(rng.choice([0.3, -0.7, 3.0])), *how),
        lambda: DRY(
            float(rng.choice([0.8, 2.0])), float(rng.choice([1.75, 1.0, 1.1, 3.0])),
            int(rng.integers(1, 4)), *how[:2], sequences(int(rng.integers(0, 3)), 3),
        ),
        lambda: NoRepeatNgram(int(rng.integers(1, 5))),
        lambda: BadWords(sequences(4)),
        lambda: SuppressTokens(ids(2)),
        lambda: BeginSuppressTokens(ids(2)),
        lambda: MinNewTokens(int(rng.integers(0, 40)), ids(2)),
        lambda: TokenCount(int(rng.integers(1, vocab + 3))),
        lambda: ForcedTokens({int(rng.integers(0, 5)): int(rng.integers(vocab))}),
    ][rng.integers(13)]()  # fmt: skip


def check_random_rows(seed):
    """A batch of rows, each with its text, against the twin and against copied rows."""
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([2, 3, 5, 8, 70, 600, 1500, 5000]))
    dtype = rng.choice([np.float16, np.float32, np.float64])
    edits = [random_edit(rng, vocab) for _ in range(rng.integers(1, 4))]
    stages = [*edits, *rng.permutation([TopP(0.9), MinP(0.01)])[: rng.integers(0, 3)]]
    rows = rng.normal(0, 3, (3, vocab)).astype(dtype)
    rows[rng.random(rows.shape) < 0.05] = -inf
    texts = [random_text(rng, vocab) for _ in rows]
    edited = [
        reference.edited(row.astype(np.float64), edits, reference.Text(*text))
        for row, text in zip(rows, texts, strict=True)
    ]
    histories = [History(*text) for text in texts]
    s = Sampler(stages, seed=seed, threads=int(rng.choice([1, 3])), on_invalid="flag")
    plain = s.replace(stages=stages[len(edits) :])
    given = {"history": histories, "steps": [3, 1, 4]}
    found = s.sample(laid_out(rng, rows), n=2, logprobs=3, raw=True, **given)
    wanted = plain.sample(np.array(edited), n=2, logprobs=3, raw=True, steps=[3, 1, 4])
    raw = plain.sample(rows, n=2, logprobs=3, raw=True, steps=[3, 1, 4])
    for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "top_ids", "top_logprobs",
                 "log_mass"):  # fmt: skip
        assert np.array_equal(getattr(found, name), getattr(wanted, name), equal_nan=True), name
    for row in range(3):  # alone, and with a mask of all tokens
        if found.n_kept[row, 0]:
            alone = s.sample(
                rows[row], history=histories[row], streams=row, steps=int([3, 1, 4][row]),
                mask=np.ones(vocab, bool),
            )  # fmt: skip
            assert alone.tokens == found.tokens[row, 0]
            assert alone.logprobs == found.logprobs[row, 0]
    left = found.n_kept[:, 0] > 0
    assert np.array_equal(found.raw_top_ids[left], raw.raw_top_ids[left])


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_twin_on_random_texts(seed):
    check_random_rows(seed)


@pytest.mark.slow
def test_the_twin_on_many_random_texts():
    for seed in range(20_000):
        check_random_rows(seed)


def test_memory_that_is_used_again():
    # Planted: a workspace of another vocabulary, text or chain taken as it is; bits left after an
    # error. Each sampler meets long and short texts, several vocabularies, and rows that fail.
    rng = np.random.default_rng(3)
    samplers = {}
    for turn in range(150):
        vocab = int(rng.choice([5, 70, 5000]))
        name = int(rng.integers(4))
        kept = samplers.setdefault(name, [random_edit(np.random.default_rng(name), 5)])
        s = samplers.setdefault((name, "s"), Sampler(kept, seed=1, on_invalid="flag"))
        rows = rng.normal(0, 2, (int(rng.integers(1, 4)), vocab))
        texts = [rng.integers(0, vocab, int(rng.choice([0, 3, 90, 900]))).tolist() for _ in rows]
        histories = [History((), text) for text in texts]
        if turn % 5 == 0 and s.replace().stages[0].needs_history:
            bad = [*histories[:-1], History((), [*texts[-1], 1, 1, vocab])]
            with pytest.raises(ValueError, match=rf"but one is {vocab} in row {len(rows) - 1}$"):
                s.filter(rows, history=bad)
        wanted = [reference.edited(row, kept, reference.Text((), text))
                  for row, text in zip(rows, texts, strict=True)]  # fmt: skip
        left = [i for i, row in enumerate(wanted) if (row > -inf).any()]
        assert s.filter(rows, history=histories)[left].tolist() == [
            wanted[i].tolist() for i in left
        ]


@pytest.mark.parametrize("stages", [
    [DRY(1.0)], [NoRepeatNgram(2)], [BadWords([[1, 2]])], [RepetitionPenalty(2.0, 1)],
], ids=repr)  # fmt: skip
def test_an_id_outside_is_an_error_wherever_it_stands(stages):
    for tokens in ([9, 1], [1, 9, 1, 1]):
        with pytest.raises(
            ValueError, match=r"^`history` has to hold ids in \[0, 5\), but one is 9$"
        ):
            Sampler(stages, seed=1)(ROW, history=History(tokens))


def test_many_breakers():
    # Looked up by their last ids, whatever the order they are given in.
    rng = np.random.default_rng(4)
    breakers = [rng.integers(0, 9, int(rng.integers(1, 4))).tolist() for _ in range(40)]
    row = np.zeros(12)
    for n in (0, 1, 3, 40):
        for _ in range(20):
            output = rng.integers(0, 12, 60).tolist() + [10, 11, 9] * 3
            edit = DRY(1.0, 1.5, 1, breakers=breakers[:n])
            wanted = reference.edited(row, [edit], reference.Text((), output))
            found = Sampler([edit], seed=1).filter(row, history=History((), output))
            assert found.tolist() == wanted.tolist()


def test_breakers_that_end_alike():
    # Each is found wherever it stands, and the nearest one counts.
    breakers = [[1], [2, 3], [0, 2, 3], [0, 0, 2, 3], [4, 4, 4, 4]]
    row = np.zeros(12)
    for end in itertools.product(range(5), repeat=4):
        output = [6, 7, *end, 8, 9] * 3
        edit = DRY(1.0, 1.5, 1, breakers=breakers)
        wanted = reference.edited(row, [edit], reference.Text((), output))
        found = Sampler([edit], seed=1).filter(row, history=History((), output))
        assert found.tolist() == wanted.tolist(), end


def test_nested_breakers_of_a_looping_text_take_time_in_proportion():
    # Found: the square of their number, 43 s.
    breakers = [(1,) + (0,) * k for k in range(1, 200)]
    s = Sampler(dry=DRY(0.8, 1.75, 2, None, True, breakers), seed=0)
    h = History([], [2] + [0] * 20_000)
    begun = time.process_time()
    found = s.filter(np.zeros(300), history=h)
    assert time.process_time() - begun < 10
    assert found[0] < -1e30


@pytest.mark.parametrize("least", [17, 19, 40])
def test_long_repetitions_alone_count(least):
    # Planted: lengths above 16 taken for 16.
    row = np.zeros(60)
    for size in (least - 1, least, least + 1):
        run = list(range(1, size + 1))
        h = History((), [*run, 50, *run])
        lowered = Sampler(dry=DRY(1.0, 2.0, least), seed=1).filter(row, history=h)[50]
        assert lowered == (-(2.0 ** (size - least)) if size >= least else 0.0)
        banned = Sampler(no_repeat_ngram_size=least + 1, seed=1).filter(row, history=h)[50]
        assert banned == (-inf if size >= least else 0.0)


def test_a_breaker_that_begins_before_the_window_does_not_count():
    # Planted: one token before it.
    tokens = [7, 1, 2, 3, 9, 1, 2, 3]
    for window, breaker in itertools.product(range(1, 9), ([7, 1], [1, 2], [9, 1], [2, 3])):
        edit = DRY(1.0, 2.0, 1, window, True, [breaker])
        wanted = reference.edited(np.zeros(12), [edit], reference.Text((), tokens))
        found = Sampler([edit], seed=1).filter(np.zeros(12), history=History((), tokens))
        assert found.tolist() == wanted.tolist()


def test_a_forced_token_beyond_a_narrow_mask():
    row, h = np.zeros(100), History()
    for token, allowed in ((63, True), (64, False), (99, False)):
        s = Sampler(forced_tokens={0: token}, seed=1)
        words = np.full(2, -1, np.int32)
        if allowed:
            assert s(row, mask=words, history=h) == token
        else:
            with pytest.raises(ValueError, match="leave no token"):
                s(row, mask=words, history=h)


def test_a_float32_stays_one_whatever_the_dtype():
    # Planted: rounding by the dtype of the row.
    x32 = np.array([1.1, 3.3, -2.7, 0.1], np.float32)
    x64 = np.array([1.1, 3.3, -2.7, 0.1])
    s, h = Sampler(repetition_penalty=1.3, seed=1), History([0, 1, 2, 3])
    small = s.filter(x32, history=h)
    assert s.filter(x32.astype(np.float64), history=h).tolist() == small.tolist()
    assert s.filter(x64, history=h).tolist() == [1.1 / 1.3, 3.3 / 1.3, -2.7 * 1.3, 0.1 / 1.3]
    assert (
        small.tolist()
        == np.array([float(x) / 1.3 if x > 0 else float(x) * 1.3 for x in x32], np.float32).tolist()
    )


@pytest.mark.parametrize("stage", [one for one in TABLE if one.kind == "edit"])
def test_an_edit_makes_its_row_before_all_else(stage):
    # Token, log-probability and moments are those of the edited row; raw figures of the row itself.
    row = np.random.default_rng(5).normal(0, 2, 7)
    for value in (*TABLE[stage].values, *TABLE[stage].gentle):
        edit = stage.of(value)
        text = (HISTORY.prompt, HISTORY.output)
        new = reference.edited(row, [edit], reference.Text(*text))
        s = Sampler([edit, TopP(0.9)], seed=1)
        r = s.sample(row, n=20, raw=True, logprobs=7, history=HISTORY, steps=0)
        plain = Sampler([TopP(0.9)], seed=1)
        wanted = plain.sample(new, n=20, raw=True, logprobs=7, steps=0)
        assert r.tokens.tolist() == wanted.tokens.tolist()
        assert r.logprobs.tolist() == wanted.logprobs.tolist()
        assert r.log_mass.tolist() == wanted.log_mass.tolist()
        raw = plain.sample(row, logprobs=7, raw=True)
        assert r.raw_top_ids.tolist() == raw.raw_top_ids.tolist()


def test_settings_per_row():
    rows = np.tile(ROW, (4, 1))
    histories = [History([1], [2, 2]), History([0], [1]), History(), History([3, 3])]
    s = Sampler(
        repetition_penalty=([1.0, 2.0, 2.0, 1.5], [1, 2, 3, 4], [True, False, True, True]),
        frequency_penalty=[0.5, 0.0, 1.0, 0.25], no_repeat_ngram_size=[0, 2, 1, 2], seed=4,
    )  # fmt: skip
    found = s.filter(rows, history=histories)
    for row in range(4):
        alone = Sampler([stage.at(row) for stage in s.stages], seed=4)
        assert alone.filter(rows[row], history=histories[row]).tolist() == found[row].tolist()
    assert found[0].tolist() == [1.0, 3.0, -3.0, 0.0, 2.0]
    # Of a window in some rows and none in others.
    for window in ([None, 1, None, 2], (3, 1, None, None)):
        s = Sampler(presence_penalty=(1.0, window, True), dry=DRY(1.0, window=window), seed=4)
        found = s.filter(rows, history=histories)
        assert eval(repr(s), vars(sampler)) == s
        for row in range(4):
            alone = Sampler([stage.at(row) for stage in s.stages], seed=4)
            assert alone.filter(rows[row], history=histories[row]).tolist() == found[row].tolist()


def test_invalid_logits_stay_invalid():
    # NaN or +inf where a penalty looks; only a ban hides it.
    for bad in (nan, inf):
        row = np.array([1.0, bad, 0.0])
        s, h = Sampler(repetition_penalty=2.0, seed=1), History([1])
        with pytest.raises(ValueError, match=r"^`logits` have to be finite or -inf"):
            s(row, history=h)
        assert Sampler(repetition_penalty=2.0, suppress_tokens=[1], seed=1)(row, history=h) != 1
        assert Sampler(no_repeat_ngram_size=1, seed=1)(row, history=h) != 1


def test_a_long_text_that_repeats_itself():
    # 128k tokens word for word, in time in proportion to them.
    loop = np.random.default_rng(0).integers(0, 900, 40)
    h = History((), np.tile(loop, 3300))
    stages = [DRY(1.0, 1.1, 2), NoRepeatNgram(50)]
    row = np.zeros(1000)
    found = Sampler(stages, seed=1).filter(row, history=h)
    assert found[loop[0]] == -inf  # what goes on with it
    assert (found[np.setdiff1d(np.arange(1000), loop)] == 0.0).all()
    penalised = Sampler([stages[0]], seed=1).filter(row, history=h)
    most = int(np.float32(88.7228391) / np.log(np.float32(1.1)))
    assert penalised[loop[0]] == pytest.approx(-(1.1**most), rel=1e-6)


NO_END = "`min_new_tokens` has to have the ids that end a text: min_new_tokens="


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: LogitBias({1: nan}), ValueError,
     "`logit_bias` has to be a mapping to finite floats, or -inf to forbid, but is nan"),
    (lambda: LogitBias({1: inf}), ValueError,
     "`logit_bias` has to be a mapping to finite floats, or -inf to forbid, but is inf"),
    (lambda: LogitBias({-1: 0.0}), ValueError, None),
    (lambda: LogitBias({"a": 0.0}), TypeError, None),
    (lambda: LogitBias({1: "a"}), TypeError, None),
    (lambda: LogitBias({(1, 2): 0.5}), TypeError,
     "`logit_bias` has to be a mapping of int to float, but has the key (1, 2)"),
    (lambda: LogitBias({"5": -1.0}), TypeError,
     "`logit_bias` has to be a mapping of int to float, but has the key '5'"),
    (lambda: ForcedTokens({1.0: 2}), TypeError,
     "`forced_tokens` has to be a mapping of int to int, but has the key 1.0"),
    (lambda: MinNewTokens(60), ValueError,
     f"{NO_END}(60, [tokenizer.eos_token_id])"),
    (lambda: BadWords(["apple"]), TypeError, None),
    (lambda: LogitBias(5), TypeError, "`logit_bias` has to be a mapping of int to float, but is 5"),
    (lambda: LogitBias([5]), TypeError, None),
    (lambda: LogitBias({9: 1.0}), ValueError,
     "`logit_bias` has to hold ids in [0, 5), but one is 9"),
    (lambda: SequenceBias({(): 1.0}), TypeError, None),
    (lambda: SequenceBias({(1, -2): 1.0}), ValueError, None),
    (lambda: SequenceBias({(9, 1): 1.0}), ValueError,
     "`sequence_bias` has to hold ids in [0, 5), but one is 9"),
    (lambda: RepetitionPenalty(0.0), ValueError,
     "`repetition_penalty.penalty` has to be a float in (0, inf), but is 0.0"),
    (lambda: RepetitionPenalty(-1.0), ValueError, None),
    (lambda: RepetitionPenalty(nan), ValueError, None),
    (lambda: RepetitionPenalty(1.1, 0), ValueError,
     "`repetition_penalty.window` has to be an integer >= 1, but is 0"),
    (lambda: RepetitionPenalty(1.1, 2.5), TypeError, None),
    (lambda: RepetitionPenalty(1.1, 3, 2), TypeError, None),
    (lambda: RepetitionPenalty(1.1, 3, True, -1), ValueError, None),
    (lambda: Sampler(repetition_penalty=(1.1, 2, True, 0, 5)), TypeError,
     ("`repetition_penalty` has to be (penalty, window, include_prompt, decay), but is "
      "(1.1, 2, True, 0, 5)")),
    (lambda: FrequencyPenalty(inf), ValueError,
     "`frequency_penalty.penalty` has to be a finite float, but is inf"),
    (lambda: PresencePenalty("1"), TypeError, None),
    (lambda: DRY(-1.0), ValueError, None),
    (lambda: DRY(1.0, 0.5), ValueError,
     "`dry.base` has to be a finite float >= 1, but is 0.5"),
    (lambda: DRY(1.0, 2.0, 0), ValueError, None),
    (lambda: DRY(1.0, breakers=[[]]), TypeError, None),
    (lambda: DRY(1.0, breakers="ab"), TypeError, None),
    (lambda: DRY(1.0, breakers=[[9]]), ValueError,
     "`dry.breakers` has to hold ids in [0, 5), but one is 9"),
    (lambda: MinNewTokens(3, [9]), ValueError,
     "`min_new_tokens.eos_token_id` has to hold ids in [0, 5), but one is 9"),
    (lambda: Sampler(min_new_tokens=5), ValueError,
     f"{NO_END}(5, [tokenizer.eos_token_id])"),
    (lambda: NoRepeatNgram(-1), ValueError, None),
    (lambda: NoRepeatNgram(2.5), TypeError, None),
    (lambda: BadWords([[]]), TypeError, None),
    (lambda: BadWords([[1, -1]]), ValueError, None),
    (lambda: BadWords(["ab"]), TypeError, None),
    (lambda: BadWords(3), TypeError, None),
    (lambda: MinNewTokens(-1, [2]), ValueError, None),
    (lambda: TokenCount(0), ValueError, "`n_tokens` has to be an integer >= 1, but is 0"),
    (lambda: TokenCount([3, 4]), TypeError,
     "`n_tokens` has to be one number for all rows, but is an array"),
    (lambda: ForcedTokens({0: 9}), ValueError,
     "`forced_tokens` has to hold ids in [0, 5), but one is 9"),
    (lambda: ForcedTokens({-1: 2}), ValueError, None),
    (lambda: ForcedTokens({1: 0.5}), TypeError, None),
])  # fmt: skip
def test_bad_input(call, error, message):
    wanted = r"^`[\w.]+` has to be" if message is None else None
    with pytest.raises(error, match=wanted) as caught:
        Sampler([call()], seed=1)(np.zeros(5), history=History([1, 1]))
    assert message is None or str(caught.value) == message


def test_a_ban_of_everything():
    for stages, mask in (
        ([SuppressTokens(range(5))], None),
        ([NoRepeatNgram(1)], None),
        ([ForcedTokens({0: 2})], [0, 1]),
        ([ForcedTokens({5: 1}), ForcedTokens({5: 2}), ForcedTokens({5: 1})], None),
        ([ForcedTokens({5: 2}), SuppressTokens([2])], None),
        ([LogitBias(dict.fromkeys(range(5), -inf))], None),
    ):
        s = Sampler(stages, seed=1)
        output = range(5) if mask is None else ()
        how = {"history": History(range(5), output), "mask": mask}
        with pytest.raises(ValueError, match=r"^the mask and the bans leave no token in row 0$"):
            s(ROW, **how)
        assert s.replace(on_invalid="flag")(ROW, **how) == -1
