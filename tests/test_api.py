"""`Sampler`, `Samples`, `Distribution`: settings, errors, steps, streams, and what they tell."""

import copy
import json
import math
import pickle
import re
import threading
import weakref
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch

import sampler
from interrupting import interrupted
from law import FIGURES
from sampler import Distribution, MinP, Sampler, Temperature, TopK, TopP, _core, reference
from sampler.api import engine_of
from sampler.stages.settings import STAGES

LAST = 2**64 - 1
ROW = np.array([1.0, 3.0, 2.0, 0.0])
inf, nan = math.inf, math.nan


def random_rows(batch=6, vocab=300, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (batch, vocab))


def law(s, row):
    with np.errstate(over="ignore"):  # at tiny temperatures the twin's z may pass into -inf
        return reference.kept(row, s.stages, min_tokens_to_keep=s.min_tokens_to_keep, ties=s.ties)


# ------------------------------------------------------------------------------------- settings

REAL = {
    "temperature": (r"a float in \[0, inf\]", (-0.1, -inf, -5e-324)),
    "top_p": (r"a float in \[0, 1\]", (1.7, -0.1, inf, -inf, 1 + 2**-52, -5e-324)),
    "min_p": (r"a float in \[0, 1\]", (1.7, -0.1, inf, -inf, 1 + 2**-52, -5e-324)),
}
INTEGER = {
    "top_k": (r"an integer >= 0 \(0 or None is off\)", (-1, -(2**70))),
    "min_tokens_to_keep": ("an integer >= 1", (0, -1, -(2**70))),
    "seed": (r"an integer in \[0, 2\*\*64\)", (-1, 2**64, 2**70)),
    "step": (r"an integer in \[0, 2\*\*64\]", (-1, 2**64 + 1, 2**70)),  # 2**64: none is left
}
NO_NUMBER = ("0.5", b"1", {}, True, False, np.True_, np.False_, 1j, np.complex64(1),
             Decimal("0.5"), object(), "", np.str_("1"))  # fmt: skip
ARRAYS = ([1], (1,), np.array([1]), np.array([0.5, 0.5]), np.array(1), np.array(0.5),
          torch.tensor(1), torch.tensor(0.5))  # fmt: skip

BAD = [
    *((name, value, ValueError, wanted)
      for name, (wanted, bad) in (REAL | INTEGER).items() for value in bad),
    *((name, value, ValueError, wanted)
      for name, (wanted, _) in REAL.items() for value in (nan, np.float32(nan), -nan)),
    *((name, value, ValueError, wanted)
      for name, (wanted, _) in REAL.items() for value in (np.float32(-1), np.int64(-1), -1)),
    *((name, value, ValueError, wanted)
      for name, (wanted, _) in INTEGER.items() for value in (np.int64(-1), np.int8(-128))),
    *((name, value, TypeError, wanted)
      for name, (wanted, _) in (REAL | INTEGER).items() for value in NO_NUMBER),
    *((name, value, TypeError, INTEGER[name][0]) for name in ("seed", "step") for value in ARRAYS),
    *((name, value, TypeError, wanted)
      for name, (wanted, _) in INTEGER.items()
      for value in (1.0, 40.5, nan, inf, np.float64(2), Fraction(4, 2))),
    ("ties", "first", ValueError, "'id' or 'all'"),
    ("ties", "ID", ValueError, "'id' or 'all'"),
    ("ties", "", ValueError, "'id' or 'all'"),
    ("ties", 1, TypeError, "'id' or 'all'"),
    ("ties", True, TypeError, "'id' or 'all'"),
    ("ties", b"id", TypeError, "'id' or 'all'"),
    ("ties", ["id"], TypeError, "'id' or 'all'"),
    ("ties", np.array(["id", "all"]), TypeError, "'id' or 'all'"),
    ("on_invalid", "ignore", ValueError, "'raise' or 'flag'"),
    ("on_invalid", 0, TypeError, "'raise' or 'flag'"),
    ("on_invalid", ValueError, TypeError, "'raise' or 'flag'"),
    ("rng", 7, TypeError, "a numpy.random.Generator"),
    ("rng", np.random, TypeError, "a numpy.random.Generator"),
    ("rng", np.random.RandomState(0), TypeError, "a numpy.random.Generator"),
    ("rng", np.random.PCG64(0), TypeError, "a numpy.random.Generator"),
    ("rng", torch.Generator(), TypeError, "a numpy.random.Generator"),
    ("stages", 40, TypeError, "a sequence of stages"),
    ("stages", 0.8, TypeError, "a sequence of stages"),
    ("stages", TopK(40), TypeError, "a sequence of stages"),
    ("stages", TopK, TypeError, "a sequence of stages"),
    ("stages", "top_k", TypeError, "a sequence of stages"),
    ("stages", [40], TypeError, "stages such as"),
    ("stages", [None], TypeError, "stages such as"),
    ("stages", [TopK], TypeError, "stages such as"),
    ("stages", [TopK(40), "top_p"], TypeError, "stages such as"),
    ("stages", {"top_k": 40}, TypeError, "a sequence of stages"),
    ("stages", [[TopK(40)]], TypeError, "stages such as"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "wanted"), BAD)
def test_bad_setting(name, value, error, wanted):
    form = rf"^`{name}` has to (?:be|hold) {wanted}.*, but (?:is|holds) "
    with pytest.raises(error, match=form):
        Sampler(**{name: value})
    with pytest.raises(error, match=form):
        Sampler(seed=1).replace(**{name: value, **({"seed": None} if name == "rng" else {})})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 1.7, "`top_p` has to be a float in [0, 1], but is 1.7"),
        ("min_p", nan, "`min_p` has to be a float in [0, 1], but is nan"),
        ("temperature", -1, "`temperature` has to be a float in [0, inf], but is -1"),
        ("top_k", -3, "`top_k` has to be an integer >= 0 (0 or None is off), but is -3"),
        ("top_k", True, "`top_k` has to be an integer >= 0 (0 or None is off), but is True"),
        ("top_k", 40.0, "`top_k` has to be an integer >= 0 (0 or None is off), but is 40.0"),
        ("seed", 2**64, f"`seed` has to be an integer in [0, 2**64), but is {2**64}"),
        ("ties", "any", "`ties` has to be 'id' or 'all', but is 'any'"),
        (
            "stages",
            0.8,
            "`stages` has to be a sequence of stages, but is 0.8: write Sampler(temperature=0.8)",
        ),
        (
            "stages",
            TopK(40),
            "`stages` has to be a sequence of stages, but is TopK(40): write Sampler([TopK(40)])",
        ),
    ],
)
def test_the_sentence(name, value, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        Sampler(**{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("stage", [Temperature, TopK, TopP, MinP])
def test_bad_stage(stage):
    wanted, bad = (REAL | INTEGER)[stage.setting]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^`{stage.setting}` has to be {wanted}, but is "):
            stage(value)
    for value in NO_NUMBER:
        with pytest.raises(TypeError, match=rf"^`{stage.setting}` has to be {wanted}, but is "):
            stage(value)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, Fraction])
def test_real_scalars(name, kind):
    s = Sampler(**{name: kind(0.5)}, seed=7)
    assert repr(s) == f"Sampler({name}=0.5, seed=7)"
    assert type(s.stages[list(STAGES).index(name)].value) is float


@pytest.mark.parametrize("kind", [int, np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_integer_scalars(kind):
    s = Sampler(temperature=kind(2), top_k=kind(3), top_p=kind(1), min_p=kind(0),
                min_tokens_to_keep=kind(2), seed=kind(7), step=kind(5))  # fmt: skip
    assert repr(s) == "Sampler(temperature=2.0, top_k=3, min_tokens_to_keep=2, seed=7, step=5)"
    r = s.sample(ROW, steps=kind(5), streams=kind(0), n=kind(2), logprobs=kind(2))
    assert r.tokens.size == r.top_ids.size == 2
    assert s.step == 5


def test_none_means_off():
    s = Sampler(None, temperature=None, top_k=None, top_p=None, min_p=None,
                min_tokens_to_keep=None, rng=None, seed=7)  # fmt: skip
    assert repr(s) == "Sampler(seed=7)"
    assert all(stage(None).is_off for stage in (Temperature, TopK, TopP, MinP))
    chain = [Temperature(None), TopK(None), TopP(None), MinP(None)]
    assert np.array_equal(Sampler(chain, seed=7).filter(ROW), ROW)
    assert Sampler(chain, seed=7)(ROW) == s(ROW)
    assert Sampler([], seed=7)(ROW) == s.sample(ROW, steps=0).tokens


def test_the_edges_of_the_ranges():
    for settings in (
        {"temperature": 0}, {"temperature": inf}, {"temperature": 5e-324}, {"temperature": -0.0},
        {"temperature": 1.79e308}, {"top_p": 0}, {"top_p": 1}, {"top_p": 5e-324},
        {"top_p": 1 - 2**-53}, {"min_p": 0}, {"min_p": 1}, {"min_p": 5e-324}, {"top_k": 2**70},
        {"min_tokens_to_keep": 2**70}, {"top_k": 2**63}, {"top_k": 1}, {"seed": 0},
        {"seed": LAST}, {"step": LAST},
    ):  # fmt: skip
        s = Sampler(**{"seed": 1, **settings})
        r = s.sample(ROW, n=3, logprobs=4)
        state = law(s, ROW)
        assert np.all(r.n_kept == len(state.ids)) and np.all(np.isfinite(r.logprobs)), settings


def test_settings_that_exclude_each_other():
    with pytest.raises(TypeError, match=r"give either `stages` or `top_p`, not both.*TopP"):
        Sampler([TopK(40)], top_p=0.9)
    with pytest.raises(TypeError, match="give either `stages` or `temperature`, not both"):
        Sampler([], temperature=inf)
    with pytest.raises(TypeError, match="give either `seed` or `rng`, not both"):
        Sampler(seed=1, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="positional"):
        Sampler([], 0.8)
    with pytest.raises(TypeError, match=r"unexpected keyword.*top_q"):
        Sampler(top_q=0.9)
    with pytest.raises(TypeError, match=r"unexpected keyword.*top_q"):
        Sampler().replace(top_q=0.9)


def test_stages_take_any_iterable_once():
    chain = (stage for stage in (TopK(2), Temperature(0.5)))
    s = Sampler(chain, seed=7)
    assert s.stages == (TopK(2), Temperature(0.5))
    assert np.array_equal(s.filter(ROW), [-inf, 6.0, 4.0, -inf])
    assert np.array_equal(s.filter(ROW), [-inf, 6.0, 4.0, -inf])


def test_seed():
    assert Sampler(seed=7).seed == 7
    seeds = {Sampler().seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(type(seed) is int and 0 <= seed <= LAST for seed in seeds)
    assert max(seeds) > 2**60
    first = Sampler()
    again = Sampler(seed=first.seed)
    row = random_rows()[0]
    assert [first(row) for _ in range(9)] == [again(row) for _ in range(9)]


def test_rng_gives_one_word_as_the_seed():
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    assert Sampler(rng=rng).seed == int(twin.integers(0, 2**64, dtype=np.uint64))
    assert rng.bit_generator.state == twin.bit_generator.state
    assert Sampler(rng=rng).seed == int(twin.integers(0, 2**64, dtype=np.uint64))
    s = Sampler(rng=rng)
    state = rng.bit_generator.state
    s(ROW)
    s.replace(top_k=2)
    assert rng.bit_generator.state == state


# -------------------------------------------------------------------------- copies and pictures

EXAMPLES = [
    Sampler(seed=7),
    Sampler(seed=LAST, step=LAST),
    Sampler(seed=0, temperature=0.0),
    Sampler(temperature=inf, top_k=2**70, top_p=0.1 + 0.2, min_p=5e-324, seed=7, step=9),
    Sampler(temperature=1e-30, min_tokens_to_keep=3, ties="all", on_invalid="flag", seed=7),
    Sampler([], seed=7),
    Sampler([TopK(40), TopP(0.95), Temperature(0.8)], seed=7),
    Sampler([Temperature(inf), MinP(0.1), Temperature(0)], seed=7, step=3, ties="all"),
    Sampler([Temperature(1), TopK(0)], seed=7, min_tokens_to_keep=2),
    Sampler(rng=np.random.default_rng(0), top_k=4),
    pytest.param(Sampler(), id="Sampler()"),  # its seed is another one in each process
]


@pytest.mark.parametrize("s", EXAMPLES, ids=repr)
@pytest.mark.parametrize(
    "again",
    [
        lambda s: eval(repr(s), vars(sampler)),
        lambda s: pickle.loads(pickle.dumps(s)),
        lambda s: pickle.loads(pickle.dumps(s, protocol=2)),
        copy.copy,
        copy.deepcopy,
        lambda s: s.replace(),
    ],
    ids=["repr", "pickle", "pickle 2", "copy", "deepcopy", "replace"],
)
def test_round_trip(s, again):
    other = again(s)
    assert other is not s
    assert repr(other) == repr(s)
    for name in ("stages", "min_tokens_to_keep", "ties", "on_invalid", "seed", "step"):
        assert getattr(other, name) == getattr(s, name), name
    rows = random_rows()
    if s.step < LAST:
        step = s.step
        assert np.array_equal(other(rows), s.sample(rows, steps=step).tokens)
        assert (s.step, other.step) == (step, step + 1)  # each has its own counter


@pytest.mark.parametrize(
    ("s", "text"),
    [
        (Sampler(seed=7), "Sampler(seed=7)"),
        (Sampler(top_p=0.9, seed=7, temperature=0.8),
         "Sampler(temperature=0.8, top_p=0.9, seed=7)"),
        (Sampler(temperature=inf, seed=7, step=2),
         "Sampler(temperature=float('inf'), seed=7, step=2)"),
        (Sampler([Temperature(inf), TopK(4)], seed=7),
         "Sampler([Temperature(float('inf')), TopK(4)], seed=7)"),
        (Sampler(ties="all", on_invalid="flag", min_tokens_to_keep=2, seed=7),
         "Sampler(min_tokens_to_keep=2, ties='all', seed=7, on_invalid='flag')"),
    ],
)  # fmt: skip
def test_repr(s, text):
    assert repr(s) == text


def test_round_trip_of_an_exhausted_sampler():
    s = Sampler(seed=7, step=LAST)
    s(ROW)
    assert s.step == 2**64
    read = eval(repr(s), vars(sampler))
    for other in (pickle.loads(pickle.dumps(s)), copy.copy(s), s.replace(top_k=2), read):
        with pytest.raises(ValueError, match="steps of this sampler are used up"):
            other(ROW)


def test_a_fresh_seed_stays_one():
    # generate_kwargs takes another seed in its place, and never in place of one that was given.
    rng = np.random.default_rng(0)
    for s, fresh in ((Sampler(), True), (Sampler(seed=7), False), (Sampler(rng=rng), False)):
        others = (
            s,
            s.replace(top_k=2),
            copy.copy(s),
            copy.deepcopy(s),
            pickle.loads(pickle.dumps(s)),
        )
        assert [engine_of(other).seed_is_fresh for other in others] == [fresh] * 5
        assert {other.seed for other in others} == {s.seed}
        assert not engine_of(s.replace(seed=3)).seed_is_fresh
        assert engine_of(s.replace(seed=None)).seed_is_fresh


def test_choices_are_plain_strings():
    s = Sampler(ties=np.str_("all"), on_invalid=np.str_("flag"), seed=7)
    assert repr(s) == "Sampler(ties='all', seed=7, on_invalid='flag')"


def test_replace():
    s = Sampler(temperature=0.8, top_k=4, ties="all", seed=7)
    s(ROW), s(ROW)
    t = s.replace(top_p=0.5)
    assert repr(t) == "Sampler(temperature=0.8, top_k=4, top_p=0.5, ties='all', seed=7, step=2)"
    assert repr(s) == "Sampler(temperature=0.8, top_k=4, ties='all', seed=7, step=2)"
    assert repr(s.replace(seed=8)) == "Sampler(temperature=0.8, top_k=4, ties='all', seed=8)"
    assert s.replace(seed=7).step == 0
    assert s.replace(seed=8, step=5).step == 5
    assert s.replace(step=5).seed == 7
    assert s.replace(seed=None).seed not in (7, s.replace(seed=None).seed)
    assert s.replace(rng=np.random.default_rng(0)).step == 0
    assert TopK() in s.replace(top_k=None).stages
    chain = s.replace(stages=[TopK(2), Temperature(0.5)])
    assert repr(chain) == "Sampler([TopK(2), Temperature(0.5)], ties='all', seed=7, step=2)"
    assert repr(chain.replace(ties="id")) == "Sampler([TopK(2), Temperature(0.5)], seed=7, step=2)"
    assert repr(chain.replace(stages=[])) == "Sampler([], ties='all', seed=7, step=2)"
    named = chain.replace(stages=None, top_k=3)
    assert repr(named) == "Sampler(top_k=3, ties='all', seed=7, step=2)"
    with pytest.raises(TypeError, match="give either `stages` or `top_k`"):
        chain.replace(top_k=3)
    with pytest.raises(TypeError, match="give either `seed` or `rng`"):
        s.replace(seed=1, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "name", ["seed", "step", "stages", "ties", "min_tokens_to_keep", "on_invalid", "top_p", "new"]
)
def test_immutable(name):
    s = Sampler(seed=7)
    with pytest.raises(AttributeError):
        setattr(s, name, 1)
    assert isinstance(s.stages, tuple)
    with pytest.raises(AttributeError):
        TopK(4).top_k = 5
    with pytest.raises(AttributeError):
        s.sample(ROW).tokens = 5


def test_stages_are_values():
    assert TopK(4) == TopK(np.int64(4)) != TopK(5)
    assert len({TopP(0.5), TopP(0.5), MinP(0.5)}) == 2
    assert repr([TopK(4), TopP(0.5), Temperature(inf), MinP(None)]) == (
        "[TopK(4), TopP(0.5), Temperature(float('inf')), MinP(0.0)]"
    )
    assert pickle.loads(pickle.dumps(TopK(4))) == copy.deepcopy(TopK(4)) == TopK(4)


def test_as_many_stages_as_one_likes():
    assert Sampler([TopK(3)] * 1000, seed=7).sample(ROW).n_kept == 3


# -------------------------------------------------------------------------------- invalid rows

BAD_ROWS = [
    ([1.0, nan, 2.0], "row {row} has nan at token 1"),
    ([nan, nan, nan], "row {row} has nan at token 0"),
    ([1.0, 2.0, inf], "row {row} has inf at token 2"),
    ([inf, nan, -inf], "row {row} has inf at token 0"),
    ([-inf, -inf, nan], "row {row} has nan at token 2"),
    ([-inf, -inf, -inf], "row {row} is -inf throughout"),
]
KINDS = ["float16", "bfloat16", "float32", "float64", ">f4", "torch"]


def as_kind(x, kind):
    if kind == "torch":
        return torch.tensor(np.asarray(x), dtype=torch.bfloat16)
    return np.asarray(x).astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_invalid_rows_are_named(bad, message, kind):
    for settings in ({}, {"top_k": 2}, {"temperature": 0.0}, {"top_p": 0.5, "temperature": 0.7}):
        s = Sampler(**settings, seed=1)
        for call in (s, s.sample, s.filter, lambda x: s.sample(x, n=2, logprobs=2)):  # noqa: B023
            with pytest.raises(ValueError, match=f"^`logits` have to .*{message.format(row=0)}$"):
                call(as_kind(bad, kind))
            batch = as_kind([[1.0, 2.0, 3.0]] * 3 + [bad, bad], kind)
            with pytest.raises(ValueError, match=f"^`logits` have to .*{message.format(row=3)}$"):
                call(batch)
        of_one = re.sub("^row {row} (?=has )|row {row} (?=is )", "", message)
        with pytest.raises(ValueError, match=f"^`row` has to .*, but {of_one}$"):
            s.distribution(as_kind(bad, kind))


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1024, 5000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [nan, inf])
def test_an_invalid_logit_is_found_anywhere(value, kind, vocab):
    for token in {0, vocab // 2, vocab - 1}:
        x = np.zeros((2, vocab))
        x[1, token] = value
        with pytest.raises(ValueError, match=rf"row 1 has {value} at token {token}$"):
            Sampler(seed=1)(as_kind(x, kind))
    with pytest.raises(ValueError, match="row 1 is -inf throughout"):
        Sampler(seed=1)(as_kind([[0.0] * vocab, [-inf] * vocab], kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"top_k": 20, "top_p": 0.9}, {"temperature": 0.0}])
def test_flagged_rows(settings, kind):
    good = random_rows(5, 3000).astype(np.float16).astype(np.float64)
    bad = good.copy()
    bad[1, 7], bad[3] = nan, -inf
    good[1], good[3] = good[0], good[0]
    rows, others = [1, 3], [0, 2, 4]
    s = Sampler(**settings, seed=1, on_invalid="flag")
    mixed, clean = as_kind(bad, kind), as_kind(good, kind)
    assert s(mixed)[rows].tolist() == [-1, -1]
    for n in (None, 3):
        a = s.sample(mixed, steps=4, n=n, logprobs=5, raw=True)
        b = s.sample(clean, steps=4, n=n, logprobs=5, raw=True)
        for name in FIGURES:
            left, right = getattr(a, name), getattr(b, name)
            left, right = np.asarray(left), np.asarray(right)
            assert left[others].tobytes() == right[others].tobytes(), name
        assert np.all(np.asarray(a.tokens[rows]) == -1)
        assert np.all(np.asarray(a.ranks[rows]) == 0)
        assert np.all(np.asarray(a.raw_ranks[rows]) == 0)
        assert np.all(np.asarray(a.n_kept[rows]) == 0)
        assert np.all(np.isnan(np.asarray(a.logprobs[rows])))
        assert np.all(np.isnan(np.asarray(a.entropy[rows])))
        assert np.all(np.isnan(np.asarray(a.raw_logprobs[rows])))
        assert np.all(np.isnan(np.asarray(a.log_mass[rows])))
        assert np.all(np.asarray(a.top_ids[rows]) == -1)
        assert np.all(np.asarray(a.raw_top_ids[rows]) == -1)
    filtered, same = s.filter(mixed), s.filter(clean)
    if kind == "torch":
        filtered, same = filtered.float().numpy(), same.float().numpy()
    assert np.all(filtered[rows] == -inf)
    assert filtered[others].tobytes() == same[others].tobytes()
    lone = mixed[1]
    assert s(lone) == -1
    assert type(s(lone)) is int
    assert s.sample(lone, n=2).tokens.tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"^`row` has to be .*, but has nan at token 7$"):
        s.distribution(lone)


@pytest.mark.parametrize("draw_alone", [True, False])
def test_flagged_rows_heed_signals(draw_alone):
    batch, row = 3000, np.zeros(2**20, np.float32)
    row[-1] = nan
    words = np.broadcast_to(row.view(np.uint32), (batch, len(row)))
    rows = _core.Rows(words, _core.KINDS["float32"], False)
    tokens = np.full((4, batch, 1), 7)
    logs, top = np.empty((4, batch, 1)), np.empty((2, batch, 0))
    ids, keys = np.empty((2, batch, 0), np.int64), _core.KeyedUniforms(0, 0)
    chain = _core.Chain([])
    with interrupted(tokens[0]):
        if draw_alone:
            _core.draw_tokens(chain, rows, keys, tokens[0], True)
        else:
            _core.sample_tokens(chain, rows, keys, tokens, logs, ids, top, True)
    assert tokens[0, 0, 0] == -1
    assert tokens[0, -1, 0] == 7  # it stopped long before the end


# ---------------------------------------------------------------------------------------- steps


def test_a_call_takes_one_step_for_the_whole_batch():
    s, rows = Sampler(seed=7), random_rows()
    for step in range(3):
        assert s.step == step
        assert np.array_equal(s(rows), s.sample(rows, steps=step).tokens)
    assert s.sample(rows, n=5, logprobs=2).tokens.shape == (6, 5)
    assert s.step == 4
    s(rows[0])
    assert s.step == 5
    s(rows[:0])
    assert s.step == 6


def test_what_never_moves_the_step():
    s, rows = Sampler(seed=7, step=3), random_rows()
    s.sample(rows, steps=9)
    s.sample(rows, steps=range(6), n=2)
    s.filter(rows)
    s.filter(rows, steps=2, streams=range(6), draws=3)
    s.score(rows, [0] * 6, steps=2, streams=range(6), draws=3)
    s.distribution(rows[0])
    s.distribution(rows[0], step=2, stream=3, draw=1)
    repr(s), pickle.dumps(s), s.replace(top_k=2)
    assert s.step == 3


def test_an_error_before_the_core_takes_no_step():
    s = Sampler(seed=7, step=3)
    for bad in (
        lambda: s([]),
        lambda: s("text"),
        lambda: s(np.zeros((2, 2, 2))),
        lambda: s(ROW, dtype="float8"),
        lambda: s.sample(ROW, n=0),
        lambda: s.sample(ROW, logprobs=-1),
        lambda: s.sample(ROW, streams=[1, 2]),
        lambda: s.sample(ROW, streams=[0.5]),
        lambda: s.sample(ROW, steps=-1),
    ):
        with pytest.raises((TypeError, ValueError)):
            bad()
        assert s.step == 3


def test_the_last_step():
    s = Sampler(seed=7, step=LAST - 1)
    s(ROW)
    assert s.step == LAST
    token = s(ROW)
    assert token == s.sample(ROW, steps=LAST).tokens
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^all 2\*\*64 steps of this sampler are used up"):
            s(ROW)
        with pytest.raises(ValueError, match=r"^all 2\*\*64 steps of this sampler are used up"):
            s.sample(ROW)
    assert s.sample(ROW, steps=0).tokens == Sampler(seed=7)(ROW)


def test_threads_use_every_step_once():
    threads, calls = 8, 150
    row = np.zeros(2**13)  # a token tells its uniform to 13 bits
    s = Sampler(seed=7)
    tokens = [[] for _ in range(threads)]
    start = threading.Barrier(threads)

    def work(mine):
        start.wait()
        mine.extend(s(row) for _ in range(calls))

    workers = [threading.Thread(target=work, args=(mine,)) for mine in tokens]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert s.step == threads * calls
    sequential = Sampler(seed=7)
    expected = Counter(sequential(row) for _ in range(threads * calls))
    assert Counter(token for mine in tokens for token in mine) == expected


def test_threads_of_different_vocabularies():
    # Scratch memory goes from hand to hand between calls of different sizes.
    rows = [random_rows(3, vocab, vocab) for vocab in (1, 70, 3000, 20000)]
    s = Sampler(top_p=0.95, temperature=3.0, seed=7)
    expected = [s.sample(x, steps=1, n=3, logprobs=4, raw=True) for x in rows]
    wrong = []

    def work(turn):
        for i in range(40):
            x = (turn + i) % len(rows)
            got = s.sample(rows[x], steps=1, n=3, logprobs=4, raw=True)
            wrong.extend(
                (x, name)
                for name in FIGURES
                if getattr(got, name).tobytes() != getattr(expected[x], name).tobytes()
            )

    workers = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# -------------------------------------------------------------------------------------- streams


def tokens_at(s, row, stream, step, draws=1):
    d = s.distribution(row)
    return [d.draw(reference.uniform(s.seed, stream, step, j)) for j in range(draws)]


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "top_p": 0.95}, {"top_k": 40}])
def test_row_of_a_batch_is_the_lone_row_with_its_stream(settings):
    s, rows = Sampler(**settings, seed=7), random_rows(9)
    batch = s.sample(rows, steps=3, logprobs=3, raw=True)
    n = s.sample(rows, steps=3, n=4)
    assert np.array_equal(batch.tokens, s.sample(rows, steps=3, streams=range(9)).tokens)
    for i, row in enumerate(rows):
        lone = s.sample(row, steps=3, streams=i, logprobs=3, raw=True)
        for name in FIGURES:
            one = np.asarray(getattr(lone, name))
            assert one.tobytes() == getattr(batch, name)[i].tobytes(), name
        assert n.tokens[i].tolist() == s.sample(row, steps=3, streams=[i], n=4).tokens.tolist()
        assert lone.tokens == tokens_at(s, row, i, 3)[0]
    order = [5, 0, 8, 3]
    assert np.array_equal(s.sample(rows[order], steps=3, streams=order).tokens, batch.tokens[order])


@pytest.mark.parametrize(
    "streams",
    [
        [5, 5, LAST],
        (0, 1, 2**63),
        range(2**64 - 3, 2**64),
        np.array([5, 5, LAST], np.uint64),
        np.array([3, 2, 1], np.int32),
        np.array([3, 2, 1], np.uint64)[::-1],
        [np.uint64(LAST), 3, np.int8(1)],
        torch.tensor([3, 2, 1]),
    ],
)
def test_streams(streams):
    s, rows = Sampler(seed=7), random_rows(3)
    values = [int(v) for v in ([1, 2, 3] if hasattr(streams, "__next__") else streams)]
    r = s.sample(rows, streams=streams, steps=LAST)
    assert r.tokens.tolist() == [
        tokens_at(s, row, v, LAST)[0] for row, v in zip(rows, values, strict=True)
    ]


def test_a_stream_for_each_row_and_a_step_for_each_row():
    s, rows = Sampler(seed=7), random_rows(3)
    steps = [LAST, 0, 12]
    r = s.sample(rows, steps=steps, streams=[4, 4, 4], n=2)
    assert r.tokens.tolist() == [tokens_at(s, rows[i], 4, steps[i], 2) for i in range(3)]
    assert s.sample(rows, steps=7).tokens.tolist() == s.sample(rows, steps=[7] * 3).tokens.tolist()
    lone = s.sample(rows[0], steps=[5], streams=[9])
    assert lone.tokens == tokens_at(s, rows[0], 9, 5)[0]


@pytest.mark.parametrize("name", ["streams", "steps", "draws"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([0, 1], ValueError),
        ([0, 1, 2, 3], ValueError),
        ([], ValueError),
        ([0, 1, -1], ValueError),
        ([0, 1, 2**64], ValueError),
        (-1, ValueError),
        (2**64, ValueError),
        (np.array([0, 1, -1]), ValueError),
        ([0, 1, 2.0], TypeError),
        ([0, 1, True], TypeError),
        ([0, 1, None], TypeError),
        ([0, 1, "2"], TypeError),
        ([0, 1, nan], TypeError),
        ([[0], [1], [2]], TypeError),
        (np.zeros((3, 1), int), TypeError),
        (np.array([0.0, 1.0, 2.0]), TypeError),
        (np.array([True, False, True]), TypeError),
        (np.array(1.0), TypeError),
        (1.0, TypeError),
        (nan, TypeError),
        (True, TypeError),
        ("012", TypeError),
        (b"012", TypeError),
        (object(), TypeError),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError),
    ],
)
def test_bad_streams_and_steps(name, value, error):
    s, rows = Sampler(seed=7), random_rows(3)
    for call in (s.sample, s.filter, partial(s.score, tokens=[0, 0, 0])):
        with pytest.raises(error, match=f"^`{name}` has to "):
            call(rows, **{name: value})
    assert s.step == 0


def test_one_stream_does_not_serve_a_batch():
    # Equal rows would draw equal tokens, which nobody means.
    for stream in (1, np.uint64(1), np.array(1)):
        with pytest.raises(ValueError, match=r"^`streams` has to be .*one per row, but is 1$"):
            Sampler(seed=7).sample(random_rows(3), streams=stream)


@pytest.mark.parametrize("name", ["n", "logprobs"])
@pytest.mark.parametrize("value", [-1, nan, 1.0, True, "2", [2], np.array(2), np.array([2]), 1j])
def test_bad_counts(name, value):
    s = Sampler(seed=7)
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` has to be an integer >= "):
        s.sample(ROW, **{name: value})
    with pytest.raises(ValueError, match=r"^`n` has to be an integer >= 1, but is 0"):
        s.sample(ROW, n=0)
    assert s.step == 0


@pytest.mark.parametrize("name", ["stream", "step"])
@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "2", [2], np.array(2)])
def test_bad_stream_of_a_distribution(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` has to be an integer in "):
        Sampler(seed=7).distribution(ROW, **{name: value})


@pytest.mark.parametrize("name", ["n", "logprobs"])
def test_a_count_beyond_memory_takes_no_step(name, monkeypatch):
    s = Sampler(seed=7)
    with pytest.raises((MemoryError, ValueError)):
        s.sample(ROW, **{name: 2**62})
    assert s.step == 0

    def empty(shape, *rest):
        if 2**30 in np.atleast_1d(shape):
            raise MemoryError
        return make(shape, *rest)

    make = np.empty
    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(MemoryError):
        s.sample(ROW, **{name: 2**30})
    assert s.step == 0


# ------------------------------------------------------------------------------------- several


def test_draws_have_their_place_in_the_counter():
    s, rows = Sampler(seed=7, temperature=2.0), random_rows(4)
    r = s.sample(rows, steps=3, streams=[0, 5, LAST, 2], n=20)
    for i, stream in enumerate((0, 5, LAST, 2)):
        assert r.tokens[i].tolist() == tokens_at(s, rows[i], stream, 3, 20)
    assert np.array_equal(r.tokens[:, 0], s.sample(rows, steps=3, streams=[0, 5, LAST, 2]).tokens)
    fewer = s.sample(rows, steps=3, streams=[0, 5, LAST, 2], n=6)
    assert np.array_equal(r.tokens[:, :6], fewer.tokens)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("top", [None, 0, 3, 9])
@pytest.mark.parametrize("n", [None, 1, 5])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
def test_shapes(batch, n, top, raw):
    x = np.zeros(4) if batch is None else np.zeros((batch, 4))
    r = Sampler(top_k=2, seed=7).sample(x, n=n, logprobs=top, raw=raw)
    lead = () if batch is None else (batch,)
    counts = ("tokens", "ranks", "n_kept", "raw_ranks")
    for name in (*counts, "logprobs", "entropy", "raw_logprobs", "log_mass"):
        value = getattr(r, name)
        if not raw and name.startswith(("raw", "log_mass")):
            assert value is None
            continue
        shape = lead if n is None else (*lead, n)
        if shape == ():
            assert type(value) is (int if name in counts else float), name
            continue
        assert value.shape == shape, name
        assert value.dtype == (np.int64 if name in counts else np.float64), name
    for name in ("top_ids", "top_logprobs", "raw_top_ids", "raw_top_logprobs"):
        value = getattr(r, name)
        if not top or not (raw or name.startswith("top")):
            assert value is None
        else:
            assert value.shape == (*lead, top), name
            assert value.dtype == (np.float64 if name.endswith("logprobs") else np.int64), name


def test_call_returns_plain_tokens():
    s = Sampler(seed=7)
    assert type(s(ROW)) is int
    tokens = s(ROW[None])
    assert isinstance(tokens, np.ndarray)
    assert tokens.dtype == np.int64
    assert tokens.shape == (1,)
    json.dumps(s(torch.tensor(ROW)))
    assert isinstance(s(torch.tensor(ROW)[None]), torch.Tensor)


SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"temperature": inf},
    {"top_k": 7},
    {"top_k": 7, "ties": "all"},
    {"top_p": 0.8, "temperature": 2.5},
    {"min_p": 0.05, "min_tokens_to_keep": 4},
    {"stages": [TopK(20), TopP(0.9), Temperature(0.6)]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab", [1, 5, 300, 6000])
def test_samples_tell_the_law(settings, tied, vocab):
    s = Sampler(**settings, seed=7)
    rows = random_rows(4, vocab, seed=vocab)
    if tied:
        rows = np.round(rows)
    if vocab > 4:
        rows[:, ::5] = -inf
    top = 12
    r = s.sample(rows, steps=2, n=6, logprobs=top, raw=True)
    for i, row in enumerate(rows):
        state, raw = law(s, row), reference.kept(row, [])
        logprobs = dict(zip(state.ids.tolist(), reference.logprobs(state), strict=True))
        raw_logprobs = dict(zip(raw.ids.tolist(), reference.logprobs(raw), strict=True))
        place = {token: 1 + j for j, token in enumerate(raw.ids.tolist())}
        for j, token in enumerate(r.tokens[i].tolist()):
            assert token == reference.draw(state, vocab, reference.uniform(7, i, 2, j))
            assert r.logprobs[i, j] == pytest.approx(logprobs[token], abs=1e-12, rel=1e-13)
            assert r.raw_logprobs[i, j] == pytest.approx(raw_logprobs[token], abs=1e-12, rel=1e-13)
            assert r.ranks[i, j] == r.raw_ranks[i, j] == place[token]
            assert r.n_kept[i, j] == len(state.ids)
        for ids, logs, of, known in (
            (r.top_ids[i], r.top_logprobs[i], state, logprobs),
            (r.raw_top_ids[i], r.raw_top_logprobs[i], raw, raw_logprobs),
        ):
            count = min(top, len(of.ids))
            assert ids[:count].tolist() == of.ids[:count].tolist()
            assert np.allclose(logs[:count], [known[t] for t in ids[:count].tolist()], 1e-13, 1e-12)
            assert np.all(ids[count:] == -1)
            assert np.all(logs[count:] == -inf)


def test_logprobs_do_not_depend_on_what_is_asked():
    s, rows = Sampler(top_p=0.9, seed=7), random_rows(3, 5000)
    full = s.sample(rows, steps=1, n=3, logprobs=8, raw=True)
    few = s.sample(rows, steps=1, logprobs=2, raw=True)
    bare = s.sample(rows, steps=1, logprobs=2)
    for name in FIGURES:
        value = getattr(bare, name)
        if name.startswith(("raw", "log_mass")):
            assert value is None, name
        else:
            assert value.tobytes() == getattr(few, name).tobytes(), name
    assert few.logprobs.tobytes() == full.logprobs[:, 0].tobytes()
    assert few.raw_logprobs.tobytes() == full.raw_logprobs[:, 0].tobytes()
    assert few.top_logprobs.tobytes() == full.top_logprobs[:, :2].tobytes()
    assert np.array_equal(few.ranks, full.ranks[:, 0])


# ------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_is_the_law(settings):
    s = Sampler(**settings, seed=7)
    for row in (*random_rows(2, 400), np.round(random_rows(1, 400)[0]), ROW):
        d, state = s.distribution(row), law(s, row)
        exact = reference.probabilities(state, len(row)).astype(np.float64)
        assert d.ids.tolist() == state.ids.tolist()
        assert len(d) == len(state.ids)
        assert d.ids.dtype == np.int64
        assert d.probs.dtype == d.logprobs.dtype == np.float64
        assert np.allclose(d.probs, exact[d.ids], 1e-13, 0)
        assert np.allclose(d.logprobs, reference.logprobs(state), 1e-13, 1e-12)
        assert math.fsum(d.probs) == pytest.approx(1, abs=1e-14)
        assert np.all(np.diff(d.probs) <= 0)
        dense = d.dense()
        assert dense.shape == row.shape
        assert np.array_equal(dense[d.ids], d.probs)
        assert np.count_nonzero(dense) == np.count_nonzero(d.probs)
        assert type(d.entropy) is float
        assert d.entropy == pytest.approx(-np.sum(d.probs * d.logprobs), abs=2.0**-30)


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [([0.0] * 8, math.log(8)), ([5.0], 0.0), ([0.0, -inf, 0.0], math.log(2)), ([0.0, -1e4], 0.0)],
)
def test_entropy(logits, entropy):
    assert Sampler().distribution(logits).entropy == pytest.approx(entropy, abs=2.0**-30)


def test_an_underflowing_token_stays_kept():
    d = Sampler(seed=7).distribution([0.0, -1e5, -inf, -800.0])
    assert d.ids.tolist() == [0, 3, 1]
    assert d.probs.tolist() == [1.0, 0.0, 0.0]
    assert d.logprobs.tolist() == [0.0, -800.0, -1e5]
    assert np.all(np.isfinite(d.logprobs))
    assert d.entropy == 0.0
    assert set(d.draw(np.linspace(0, 1 - 2**-53, 99)).tolist()) == {0}
    r = Sampler(seed=7, temperature=1e-300).sample([0.0, -1e300], logprobs=2)
    assert r.n_kept == 2
    assert np.all(np.isfinite(r.top_logprobs))
    # The first token by id underflows: not even u = 0 draws it.
    assert Sampler().distribution([-800.0, 0.0]).draw(0.0) == 1
    assert Sampler().distribution([-inf, 0.0]).draw(0.0) == 1


def test_draw():
    d = Sampler().distribution(np.log([0.125, 0.5, 0.25, 0.125]))
    us = [0.0, 0.1, 0.2, 0.6, 0.7, 0.8, 0.9, 1 - 2**-53]
    tokens = [0, 0, 1, 1, 2, 2, 3, 3]
    assert [d.draw(u) for u in us] == tokens
    assert type(d.draw(0.5)) is int
    assert d.draw(us).tolist() == tokens
    square = d.draw(np.array(us).reshape(2, 4))
    assert square.shape == (2, 4)
    assert square.dtype == np.int64
    assert square.ravel().tolist() == tokens
    assert d.draw([]).shape == (0,)
    assert d.draw(np.float32(0.6)) == 1
    assert d.draw(0) == 0
    assert d.draw(torch.tensor([0.1, 0.9])).tolist() == [0, 3]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_draws_what_the_sampler_draws(settings):
    s = Sampler(**settings, seed=7)
    for row in random_rows(3, 5000):
        d = s.distribution(row)
        for step in range(40):
            u = reference.uniform(7, 0, step)
            token = reference.draw(law(s, row), 5000, u)
            assert d.draw(u) == s.sample(row, steps=step).tokens == token


@pytest.mark.parametrize(
    "u", [1.0, -0.1, -5e-324, nan, inf, [0.5, 1.0], [0.5, nan], np.array(1.0), None, 2, -1]
)
def test_bad_u(u):
    with pytest.raises((ValueError, TypeError), match=r"^`u` has to be in \[0, 1\), but is "):
        Sampler().distribution(ROW).draw(u)


@pytest.mark.parametrize("u", ["0.5", "x", b"0.5", ["0.5"], False, True, 0.5j, [False], object()])
def test_u_of_the_wrong_type(u):
    with pytest.raises((ValueError, TypeError), match=r"^`u` has to be "):
        Sampler().distribution(ROW).draw(u)


def test_distribution_is_read_from_no_view():
    row = ROW.copy()
    d = Sampler().distribution(row)
    row[:] = 0
    assert d.ids.tolist() == [1, 2, 0, 3]
    dense = d.dense()
    dense[:] = 0
    assert d.dense().sum() == pytest.approx(1)
    assert isinstance(d, Distribution)


def test_repr_of_a_distribution():
    d = Sampler(top_k=2).distribution(ROW)
    assert repr(d) == "Distribution({1: 0.731, 2: 0.269}, kept=2, vocab=4)"
    assert repr(Sampler().distribution([0.0] * 8)) == (
        "Distribution({0: 0.125, 1: 0.125, 2: 0.125, 3: 0.125, ...}, kept=8, vocab=8)"
    )


# --------------------------------------------------------------------------------------- filter

DIGITS = {
    "float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149), "float64": (53, -1074)
}  # of precision; lowest exponent # fmt: skip
ARRAYS = ["float16", "bfloat16", "float32", "float64", ">f2", ">f4", ">f8"]


def numbers(x):
    """Any result of filter, as float64."""
    return x.double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x).astype(np.float64)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filter_is_the_law(settings, kind):
    s = Sampler(**settings, seed=7)
    rows = as_kind(random_rows(3, 2000), kind)
    rows[:, ::7] = -inf
    got = s.filter(rows)
    assert isinstance(got, np.ndarray)
    assert got.dtype == rows.dtype
    assert got.shape == rows.shape
    t = math.prod(stage.value for stage in s.stages if isinstance(stage, Temperature))
    for i in range(3):
        x = rows[i].astype(np.float64)
        ids = law(s, x).ids
        assert np.flatnonzero(np.isfinite(got[i].astype(np.float64))).tolist() == sorted(ids)
        want = x[ids] / (t or 1.0)
        # Rounded to nearest (by way of float32, hence the little more than a half).
        digits, lowest = DIGITS[rows.dtype.name]
        step = np.exp2(np.maximum(np.frexp(want)[1] - digits, lowest))
        assert np.all(np.abs(got[i][ids].astype(np.float64) - want) <= 0.501 * step)
    removed = np.isneginf(got.astype(np.float64))
    assert np.all(removed | np.isfinite(got.astype(np.float64)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ndim", [1, 2])
def test_filter_keeps_tensors(dtype, ndim):
    x = torch.tensor(random_rows(3, 200), dtype=dtype)
    if ndim == 1:
        x = x[0]
    s = Sampler(temperature=0.7, top_k=90)
    got = s.filter(x)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert got.device.type == "cpu"
    twin = as_kind(numbers(x), str(dtype).removeprefix("torch."))
    assert np.array_equal(numbers(got), numbers(s.filter(twin)))  # rounded alike
    out = torch.full_like(x, 9)
    assert s.filter(x, out=out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize("words", [np.uint16, np.int16])
def test_filter_of_raw_words(words):
    x = random_rows(3, 200)
    raw = x.astype(ml_dtypes.bfloat16).view(words)
    s = Sampler(temperature=0.7, top_k=90)
    want = s.filter(x.astype(ml_dtypes.bfloat16))
    got = s.filter(raw, dtype="bfloat16")
    assert got.dtype == words
    assert got.tobytes() == want.tobytes()
    out = np.zeros_like(raw)
    assert s.filter(raw, out=out, dtype="bfloat16") is out
    assert out.tobytes() == want.tobytes()
    assert s.filter(raw, out=raw, dtype="bfloat16") is raw
    assert raw.tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", ARRAYS)
def test_filter_out(kind):
    x = as_kind(random_rows(3, 200), kind)
    s = Sampler(temperature=0.5, top_k=5)
    want = s.filter(x)
    wide = np.zeros((3, 400), x.dtype)
    outs = (np.zeros_like(x), wide[:, ::2], np.zeros((200, 3), x.dtype).T, np.zeros_like(x)[::-1])
    for out in outs:
        assert s.filter(x, out=out) is out
        assert np.array_equal(out, want)
    assert not wide[:, 1::2].any()
    for view in (slice(None), slice(None, None, -1)):
        y = x.copy()
        assert np.shares_memory(s.filter(y, out=y[view]), y)
        assert np.array_equal(y[view], want)


def test_filter_into_its_own_tensor():
    x = torch.tensor(random_rows(3, 200), dtype=torch.bfloat16)
    s = Sampler(temperature=0.5, top_k=5)
    want = s.filter(x)
    pointer = x.data_ptr()
    assert s.filter(x, out=x) is x
    assert x.data_ptr() == pointer
    assert torch.equal(x, want)


OUT = np.zeros((2, 4))


def locked(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((2, 5)), ValueError),
        (np.zeros((3, 4)), ValueError),
        (np.zeros(4), ValueError),
        (np.zeros((1, 2, 4)), ValueError),
        (np.zeros((2, 4), np.float32), ValueError),
        (np.zeros((2, 4), ">f8"), ValueError),
        (np.zeros((2, 4), np.int64), TypeError),
        (np.zeros((2, 4), np.longdouble), TypeError),
        (locked(OUT), ValueError),
        (np.ma.zeros((2, 4)), TypeError),
        (OUT.tolist(), TypeError),
        ("out", TypeError),
        (1.0, TypeError),
        (torch.zeros(2, 4), ValueError),
        (torch.zeros(2, 4, dtype=torch.float64, device="meta"), TypeError),
        (np.broadcast_to(np.zeros(4), (2, 4)), ValueError),
    ],
)
def test_bad_out(out, error):
    with pytest.raises(error, match=r"^`out` ha(?:s|ve) to be "):
        Sampler().filter(np.zeros((2, 4)), out=out)


def test_an_invalid_row_leaves_out_alone():
    out = np.full((2, 3), 9.0)
    with pytest.raises(ValueError, match="row 1 has nan"):
        Sampler().filter([[1.0, 2.0, 3.0], [1.0, nan, 3.0]], out=out)
    assert np.all(out == 9.0)


@pytest.mark.parametrize("kind", ARRAYS)
def test_filter_at_the_limits_of_temperature(kind):
    x = as_kind([1.0, 3.0, -2.0, 3.0, -inf], kind)
    greedy = Sampler(temperature=0).filter(x)
    assert numbers(greedy).tolist() == [-inf, 3.0, -inf, -inf, -inf]
    flat = numbers(Sampler(temperature=inf).filter(x))
    assert flat[:4].tolist() == [0.0] * 4
    assert flat[4] == -inf
    cold = numbers(Sampler(temperature=1e-300).filter(x))
    assert np.isneginf(cold).tolist() == [False] * 4 + [True]
    assert cold[1] == cold[3] > cold[0] >= cold[2]


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("temperature", [0.01, 1e-10, 1e-40, 1e-300])
def test_filter_past_the_range_of_the_dtype(temperature, sign, kind):
    big = {2: 3e4, 4: 1e38, 8: 1e308}[as_kind(0.0, kind).itemsize]
    if kind == "bfloat16":
        big = 1e38
    x = as_kind(sign * big * np.array([1.0, 0.5, 0.75, 0.25]), kind)
    for settings in ({}, {"top_k": 2}):
        s = Sampler(temperature=temperature, **settings)
        got = numbers(s.filter(x))
        kept = law(s, x.astype(np.float64)).ids
        assert np.flatnonzero(np.isfinite(got)).tolist() == sorted(kept)
        assert got.argmax() == kept[0]
        assert not np.any(np.isnan(got))
        assert np.all(np.diff(got[kept]) <= 0)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_filtered_logits_have_the_law_as_their_softmax(settings, kind):
    row = as_kind(random_rows(1, 500)[0], kind)
    s = Sampler(**settings)
    again = Sampler().distribution(s.filter(row))
    d = s.distribution(row)
    assert sorted(again.ids) == sorted(d.ids)
    assert np.allclose(again.dense(), d.dense(), 1e-5 if kind == "float32" else 1e-12, 0)


def test_filter_draws_nothing():
    x = random_rows()
    s = Sampler(top_p=0.5, seed=7)
    want = s.filter(x)
    for streams, step in ((range(6), 3), ([LAST] * 6, [LAST] * 6), (None, 0)):
        assert np.array_equal(s.filter(x, streams=streams, steps=step), want)
    assert s.step == 0


# ---------------------------------------------------------------------------------- the package


def test_public_names():
    assert sorted(sampler.__all__) == sorted(
        [*sampler.stages.__all__, "Distribution", "Sampler", "Samples", "__version__", "build_info",
         "cross_entropy", "cross_entropy_grad", "log_softmax", "logsumexp", "sigmoid",
         "softmax", "softmax_dtemperature", "softmax_jacobian", "softmax_jvp", "softmax_vjp"]
    )  # fmt: skip
    assert all(hasattr(sampler, name) for name in sampler.__all__)
    assert isinstance(sampler.__version__, str)
    assert sampler.__version__


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16])
def test_filter_gives_raw_words_of_torch_back_as_they_came(dtype):
    words = torch.tensor([1.0, 3.0, 2.0]).to(torch.bfloat16).view(dtype)
    kept = Sampler(top_k=2, seed=1).filter(words, dtype="bfloat16")
    assert kept.dtype == dtype
    assert kept.view(torch.bfloat16).tolist() == [-inf, 3.0, 2.0]


@pytest.mark.parametrize("streams", [{5, 6}, {5: 1, 6: 2}, iter([5, 6])])
def test_streams_without_an_order_are_refused(streams):
    with pytest.raises(TypeError, match=r"^`streams` has to be integers in \[0, 2\*\*64\)"):
        Sampler(seed=1).sample(np.zeros((2, 3)), streams=streams)


def test_a_sampler_can_be_weakly_referenced():
    s = Sampler(seed=1)
    assert weakref.ref(s)() is s
