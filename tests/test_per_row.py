"""Settings with one value per row: each row's result is that of the row alone with its numbers."""

import copy
import dataclasses
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sampler
import tiny
from law import TABLE, random_value
from sampler import XTC, MinP, Sampler, Samples, Temperature, TopK, TopP, _core, reference
from sampler._checks import Ids
from sampler.api import engine_of
from sampler.hf import FilterLogitsProcessor, generate_kwargs
from sampler.stages.settings import STAGES
from test_law import make_row

inf, nan = float("inf"), float("nan")
NUMBERS = [one for one in STAGES.values() if one.kind != "edit"]
EVERY = pytest.mark.parametrize("stage", NUMBERS)
ISAS = sampler.build_info()["isas"]

# name -> the same values in another container; of a bfloat16, another dtype
CONTAINERS = {
    "float16": lambda rows: rows.astype(np.float16),
    "bfloat16": lambda rows: rows.astype(ml_dtypes.bfloat16),
    "float32": lambda rows: rows.astype(np.float32),
    "float64": lambda rows: rows,
    "swapped": lambda rows: rows.astype(">f4"),
    "strided": lambda rows: np.repeat(rows.astype(np.float32), 3, axis=1)[:, ::3],
    "backwards": lambda rows: rows.astype(np.float32)[::-1, ::-1].copy()[::-1, ::-1],
    "columns": np.asfortranarray,
    "tensor": lambda rows: torch.from_numpy(rows).float(),
    "tensor of bfloat16": lambda rows: torch.from_numpy(rows).bfloat16(),
}


def bits(result):
    """The bytes of a result, whatever holds it."""
    if isinstance(result, Samples):
        return [bits(getattr(result, field.name)) for field in dataclasses.fields(Samples)]
    if isinstance(result, torch.Tensor):
        return result.double().numpy().tobytes()
    return None if result is None else np.asarray(result).tobytes()


def row_of(result, row):
    return result[row]


def everything(s, rows, tokens, streams, steps):
    """All that a sampler says of rows."""
    return {
        "draw": s.sample(rows, streams=streams, steps=steps),
        "draws": s.sample(rows, n=3, logprobs=4, raw=True, streams=streams, steps=steps),
        "score": s.score(rows, tokens, logprobs=2, raw=True, streams=streams, steps=steps),
        "filter": s.filter(rows, streams=streams, steps=steps),
    }


def value_at(values, row):
    return values[row] if isinstance(values, list) else values


def make(stage, values):
    """The stage of what its keyword may be, or of one such value per row."""
    if not isinstance(values, list):
        return stage.of(values)
    columns = zip(*(stage.of(value).values for value in values), strict=True)
    if stage is XTC:  # ids are for every row
        threshold, probability, _, expected = map(list, columns)
        return stage(threshold, probability, (), expected)
    return stage(*map(list, columns))


def random_values(rng, stage, batch):
    """A number, or one per row: off in some, in others as law.TABLE has them."""

    def one():
        chance = rng.random()
        if chance < 0.25:
            return stage.off
        if chance < 0.3 and stage is TopK:
            return 10**6  # above any vocabulary here
        value = stage.of(random_value(rng, stage, 0.45)).value
        return (*value[:2], (), value[3]) if stage is XTC and value is not None else value

    return one() if rng.random() < 0.2 else [one() for _ in range(batch)]


def check_rows(rng, rows, chain, floors=1, **more):
    """Assert that a batch under `chain`, (stage, values) in order, is its rows alone."""
    batch, vocab = rows.shape
    tokens = rng.integers(0, vocab, (batch, 2))
    streams, steps = rng.integers(0, 2**63, (2, batch))
    s = Sampler([make(stage, values) for stage, values in chain], min_tokens_to_keep=floors, **more)
    whole = everything(s, rows, tokens, streams, steps)
    called = s.replace(step=9)(rows)
    for i in range(batch):
        own = [stage.of(value_at(values, i)) for stage, values in chain]
        alone = Sampler(own, min_tokens_to_keep=value_at(floors, i), **more)
        lone = everything(alone, rows[i], tokens[i], streams[i : i + 1], steps[i : i + 1])
        for what, result in lone.items():
            assert bits(row_of(whole[what], i)) == bits(result), (what, i, own)
        assert called[i] == alone.sample(rows[i], streams=i, steps=9).tokens, (i, own)


def random_batch(rng, batch, vocab):
    kinds = ["normal", "flat", "equal", "peaked", "rounded", "sparse", "far", "sorted"]
    return np.stack([make_row(rng, rng.choice(kinds), vocab, np.float16) for _ in range(batch)])


@pytest.mark.usefixtures("isas")
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([1, 3, 64, 257, 513, 1025, 3000, 9000]),
    container=st.sampled_from(list(CONTAINERS)),
)
def test_rows_of_a_batch_are_the_rows_alone(isa, seed, vocab, container):
    rng = np.random.default_rng(seed)
    _core.choose_isa(isa)
    batch = int(rng.integers(1, 7))
    rows = CONTAINERS[container](random_batch(rng, batch, vocab).astype(np.float64))
    # What has memory takes one token per row: see test_memory.py.
    some = [stage for stage in NUMBERS if stage.kind != "memory"]
    stages = rng.choice(some, rng.integers(0, 5))
    chain = [(stage, random_values(rng, stage, batch)) for stage in stages]
    floors = 1 if rng.random() < 0.5 else rng.choice([1, 1, 3, 70], batch).tolist()
    ties, threads = str(rng.choice(["id", "all"])), int(rng.choice([1, 2]))
    check_rows(rng, rows, chain, floors, ties=ties, threads=threads, seed=seed)


@pytest.mark.parametrize("threads", [1, 2, 7, "auto"])
def test_many_rows_on_many_threads(threads):
    # Greedy, uniform, off, more than there are, and what is usual: one after another.
    rng = np.random.default_rng(5)
    batch = 64
    rows = rng.normal(0.0, 2.5, (batch, 20_000)).astype(np.float32)
    chain = [
        (Temperature, [[0.0, inf, 1.0, 0.7, 5.0][i % 5] for i in range(batch)]),
        (TopK, [[0, 50, 30_000, 1][i % 4] for i in range(batch)]),
        (TopP, [[1.0, 0.9, 0.0][i % 3] for i in range(batch)]),
        (MinP, [[0.0, 0.05][i % 2] for i in range(batch)]),
    ]
    for more in ({"ties": "id"}, {"ties": "all", "on_invalid": "flag"}):
        check_rows(rng, rows, chain, [1, 2, 60, 1] * 16, threads=threads, seed=7, **more)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_an_invalid_row_leaves_the_others_their_settings(place):
    rng = np.random.default_rng(place)
    rows = rng.normal(0.0, 2.5, (12, 3000))
    rows[place, 7] = nan
    chain = [(TopK, list(range(1, 13))), (Temperature, rng.uniform(0.5, 2, 12).tolist())]
    check_rows(rng, rows, chain, on_invalid="flag", seed=7)
    with pytest.raises(ValueError, match=f"row {place} has nan at token 7"):
        Sampler([make(stage, values) for stage, values in chain])(rows)


def counted(call):
    """What a call adds to the core's counts of how its questions were settled."""
    before = _core.counts()
    call()
    after = _core.counts()
    return {(q, t): n - before[q][t] for q, tiers in after.items() for t, n in tiers.items()}


def test_every_row_is_settled_as_if_alone():
    # What follows from a chain's stages chooses the tiers, which change the time alone.
    rng = np.random.default_rng(6)
    rows = rng.normal(0.0, 2.0, (8, 9000)).astype(np.float32)
    chain = {
        "temperature": [0.0, 5.0, 0.9, 1.0, 0.9, 5.0, 1.0, 2.0],
        "top_k": [0, 0, 2000, 0, 0, 0, 7, 0],
        "top_p": [1.0, 1.0, 1.0, 0.9, 0.9, 0.95, 1.0, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-4],
    }
    for order in (range(8), range(7, -1, -1)):
        values = {name: [of[i] for i in order] for name, of in chain.items()}
        whole = counted(lambda values=values: Sampler(**values, seed=7).sample(rows, steps=1))
        alone = dict.fromkeys(whole, 0)
        for i, row in enumerate(rows):
            own = Sampler(**{name: of[i] for name, of in values.items()}, seed=7)
            for key, n in counted(
                lambda own=own, i=i, row=row: own.sample(row, streams=i, steps=1)
            ).items():
                alone[key] += n
        assert whole == alone


def test_every_row_keeps_what_the_law_keeps():
    rng = np.random.default_rng(3)
    rows = rng.normal(0.0, 2.5, (40, 700))
    s = Sampler(
        temperature=rng.uniform(0, 3, 40), top_k=rng.integers(0, 90, 40),
        top_p=rng.uniform(0.2, 1, 40), min_p=rng.uniform(0, 0.2, 40),
        min_tokens_to_keep=rng.integers(1, 9, 40), seed=7,
    )  # fmt: skip
    r, filtered = s.sample(rows), s.filter(rows)
    for i, row in enumerate(rows):
        stages = [stage.at(i) for stage in s.stages]
        state = reference.kept(row, stages, min_tokens_to_keep=int(s.min_tokens_to_keep[i]))
        assert r.n_kept[i] == len(state.ids)
        assert set(np.flatnonzero(np.isfinite(filtered[i]))) == set(state.ids.tolist())


# ------------------------------------------------------------------------------------- the values

VALUES = {
    "temperature": [0.5, 1.0, inf], "top_k": [40, 0, 3], "top_p": [0.9, 1.0, 0.0],
    "min_p": [0.0, 0.25, 1.0], "min_tokens_to_keep": [1, 5, 2],
}  # fmt: skip


def setting_of(s, name):
    if name == "min_tokens_to_keep":
        return s.min_tokens_to_keep
    return s.stages[list(STAGES).index(name)].value


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "container",
    [list, tuple, np.array, lambda v: np.array(v, np.float32), lambda v: np.array(v, ">f8"),
     lambda v: np.array(v, object), lambda v: np.array([v, v]).T[:, 0], torch.tensor,
     lambda v: torch.tensor(v, dtype=torch.float64), lambda v: torch.tensor(v).bfloat16(),
     lambda v: [np.float64(x) if x == inf else Fraction(x) if x % 1 else int(x) for x in v]],
)  # fmt: skip
def test_values_are_read_only_copies(name, container):
    values = VALUES[name] if name != "top_p" else [0.5, 1.0, 0.0]
    given = container(values)
    s = Sampler(**{name: given}, seed=7)
    stored = setting_of(s, name)
    assert (type(stored), stored.dtype, stored.tolist()) == (np.ndarray, np.float64, values)
    if not isinstance(given, tuple):
        given[0] = given[1]
    assert stored.tolist() == values
    with pytest.raises(ValueError, match="read-only"):
        stored[0] = 1.0


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("container", [np.array, torch.tensor, np.int64, np.uint8])
def test_arrays_without_an_axis_are_numbers(name, container):
    s = Sampler(**{name: container(1)}, seed=7)
    assert type(setting_of(s, name)) is (int if name in ("top_k", "min_tokens_to_keep") else float)
    assert repr(s) == repr(Sampler(**{name: 1}, seed=7))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Temperature([0.5, 1.0, inf]), "Temperature([0.5, 1.0, float('inf')])"),
        (TopK(np.array([40, 0])), "TopK([40, 0])"),
        (TopK([2**70]), f"TopK([{2**53}])"),  # no row is longer
        (TopP((0.1 + 0.2,)), "TopP([0.30000000000000004])"),
        (MinP([]), "MinP([])"),
        (MinP([-0.0, 0]), "MinP([0.0, 0.0])"),
    ],
)
def test_stages_are_values(stage, text):
    assert repr(stage) == text
    for again in (
        eval(repr(stage), vars(sampler)),
        pickle.loads(pickle.dumps(stage)),
        copy.copy(stage),
        copy.deepcopy(stage),
        dataclasses.replace(stage),
    ):
        assert again == stage
        assert hash(again) == hash(stage)
        assert not again.value.flags.writeable
    assert stage != type(stage)([*stage.value, 1])
    assert stage != type(stage)(1)


def test_stages_differ_by_any_row():
    assert TopP([0.5, 0.9]) != TopP([0.5, 0.8])
    assert TopP([0.5]) != TopP(0.5)
    assert len({TopK([1, 2]), TopK((1, 2)), TopK([2, 1]), MinP([1, 1]), TopP([1, 1])}) == 4


@EVERY
def test_off_is_off_in_every_row(stage):
    assert make(stage, [stage.off] * 3).is_off
    on = stage.of(TABLE[stage].values[0])
    assert not make(stage, [stage.off, on, stage.off]).is_off
    assert make(stage, [stage.off, on]).at(0) == stage(stage.off)
    assert make(stage, [stage.off, on]).at(1) == on
    assert on.at(1) == on
    for value, one in zip(
        make(stage, [stage.off, on]).at(1).values, stage.parameters.values(), strict=True
    ):
        if not isinstance(one.range, Ids):
            assert type(value) is one.range.kind


def test_round_trip():
    rows = np.random.default_rng(0).normal(0, 2, (3, 500))
    for s in (
        Sampler(**VALUES, seed=7, step=3),
        Sampler([Temperature([0.5, 2, 0]), TopK(50), Temperature([1, 3, inf])], seed=7, ties="all"),
        Sampler(top_p=[1.0, 1.0, 1.0], seed=7),
    ):
        for again in (
            eval(repr(s), vars(sampler)), pickle.loads(pickle.dumps(s)), copy.copy(s),
            copy.deepcopy(s), s.replace(), s.replace(step=0).replace(step=s.step),
        ):  # fmt: skip
            assert (repr(again), again.stages) == (repr(s), s.stages)
            assert bits(again.sample(rows, steps=1)) == bits(s.sample(rows, steps=1))
    s = Sampler(**VALUES, seed=7)
    assert repr(s.replace(top_p=0.5, temperature=None)) == (
        "Sampler(top_k=[40, 0, 3], top_p=0.5, min_p=[0.0, 0.25, 1.0], "
        "min_tokens_to_keep=[1, 5, 2], seed=7)"
    )


# -------------------------------------------------------------------------------------- bad input

OFF = ": in an array write the default, which is off"
P, K = "a float in [0, 1]", "an integer >= 0 (0 or None is off)"
BAD = [
    ("top_p", [0.9, 0.5, 0.1, 1.7], ValueError, f"{P}, but is 1.7 in row 3"),
    ("top_p", np.array([0.9, -1, 7]), ValueError, f"{P}, but is -1.0 in row 1"),
    ("min_p", torch.tensor([0.5, nan]), ValueError, f"{P}, but is nan in row 1"),
    ("min_p", [0, 2], ValueError, f"{P}, but is 2 (0.02?) in row 1"),
    ("temperature", [1, -1, 1], ValueError, "a float in [0, inf], but is -1 in row 1"),
    ("temperature", [nan], ValueError, "a float in [0, inf], but is nan in row 0"),
    ("temperature", [0.5, None], TypeError, f"a float in [0, inf], but is None in row 1{OFF}"),
    ("temperature", [0.5, True], TypeError, "a float in [0, inf], but is True in row 1"),
    ("temperature", (1.0, "2"), TypeError, "a float in [0, inf], but is '2' in row 1"),
    ("temperature", np.array([True]), TypeError, "a float in [0, inf], but is True in row 0"),
    ("temperature", [1j], TypeError, "a float in [0, inf], but is 1j in row 0"),
    ("temperature", [1, [2]], None, "a float in [0, inf]"),
    ("top_k", [5, -1], ValueError, f"{K}, but is -1 in row 1"),
    ("top_k", [5, 2.5], TypeError, f"{K}, but is 2.5 in row 1"),
    ("top_k", np.array([5.0, 2.5]), TypeError, f"{K}, but is 2.5 in row 1"),
    ("top_k", np.array([inf]), TypeError, f"{K}, but is inf in row 0"),
    ("top_k", torch.tensor([nan]), TypeError, f"{K}, but is nan in row 0"),
    ("top_k", [3, None], TypeError, f"{K}, but is None in row 1{OFF}"),
    ("min_tokens_to_keep", [1, 0], ValueError, "an integer >= 1, but is 0 in row 1"),
    ("top_p", np.ones((2, 1)), ValueError, f"{P}, or one per row, but has shape (2, 1)"),
    ("top_p", [[0.5]], ValueError, f"{P}, or one per row, but has shape (1, 1)"),
    ("top_p", np.array("0.5"), TypeError, f"{P}, but is '0.5'"),
    ("top_p", torch.tensor(True), TypeError, f"{P}, but is True"),
    ("top_p", torch.tensor(1.5), ValueError, f"{P}, but is 1.5"),
]


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD, ids=str)
def test_a_bad_entry_is_named_with_its_row(name, value, error, text):
    makers = [lambda v: Sampler(**{name: v}), lambda v: Sampler().replace(**{name: v})]
    if name in STAGES:
        makers += [STAGES[name], lambda v: FilterLogitsProcessor(**{name: v})]
    for make in makers:
        with pytest.raises(error or (TypeError, ValueError)) as caught:
            make(value)
        assert str(caught.value).startswith(f"`{name}` has to be {text}")


def test_a_tensor_elsewhere_or_with_a_gradient():
    with pytest.raises(TypeError, match="`top_p` have to hold numbers, but are on the meta"):
        Sampler(top_p=torch.ones(2, device="meta"))
    with pytest.raises(TypeError, match=r"^`temperature` requires grad"):
        Sampler(temperature=torch.ones(2, requires_grad=True))


def test_arrays_have_to_be_of_one_length():
    wanted = "^`top_k` and `min_p` have to be for the same rows, but are for 3 and 2$"
    with pytest.raises(ValueError, match=wanted):
        Sampler(temperature=2.0, top_k=[1, 2, 3], min_p=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"^`top_k` and `top_k` .* 3 and 2$"):
        Sampler([TopK([1, 2, 3]), TopK([1, 2])])
    with pytest.raises(ValueError, match=r"^`min_p` and `min_tokens_to_keep` .* 1 and 2$"):
        Sampler(min_p=[0.1], min_tokens_to_keep=[1, 2])


@pytest.mark.parametrize("values", [[0.5, 0.9], [1.0, 1.0], [0.5]])
def test_an_array_needs_a_batch_of_its_length(values):
    s = Sampler(temperature=0.8, top_p=values, seed=7)
    calls = {
        "call": s,
        "sample": s.sample,
        "score": lambda rows: s.score(rows, np.zeros(len(rows) if rows.ndim == 2 else (), int)),
        "filter": s.filter,
        "processor": lambda rows: FilterLogitsProcessor(s)(None, torch.from_numpy(rows)),
        "generate": lambda rows: generate_kwargs(s)["logits_processor"][-1](
            torch.zeros(len(rows), 4, dtype=torch.int64), torch.from_numpy(rows)
        ),
    }
    n = len(values)
    length = f"{n} rows" if n > 1 else "1 row"
    for what, call in calls.items():
        for batch in (0, 1, 2, 3):
            if batch != n:
                found = f"^`top_p` has to be for {batch} rows?, but is for {n}$"
                with pytest.raises(ValueError, match=found):
                    call(np.zeros((batch, 9), np.float32))
        call(np.zeros((n, 9), np.float32))
        if what not in ("processor", "generate"):
            with pytest.raises(ValueError, match="lone row") as caught:
                call(np.zeros(9, np.float32))
            assert str(caught.value) == (
                f"`top_p` has to be a number for a lone row, but is for {length}"
            )
    with pytest.raises(ValueError, match=f"^`top_p` has to be .* lone row, but is for {length}$"):
        s.distribution(np.zeros(9))
    assert s.step == 2  # the refused calls took none


def test_an_empty_array_is_for_a_batch_without_rows():
    s = Sampler(top_p=[], seed=7)
    assert s(np.zeros((0, 5))).shape == (0,)
    with pytest.raises(ValueError, match=r"^`top_p` has to be for 1 row, but is for 0$"):
        s(np.zeros((1, 5)))


def test_the_core_refuses_what_is_not_for_its_rows():
    number, no_ids = _core.STAGES["top_p"], np.empty(0, np.int64)
    with pytest.raises(ValueError, match=r"^one value per row$"):
        _core.Chain([(number, 0, no_ids, np.ones(3))], per_row=("top_p", 2))
    with pytest.raises(ValueError, match=r"^one value per row$"):
        _core.Chain([(number, 0, no_ids, np.ones(3))])
    chain = _core.Chain([(number, 0, no_ids, np.ones(3))], per_row=("top_p", 3))
    rows = _core.Rows(np.zeros((2, 5), np.float32), _core.KINDS["float32"], False)
    with pytest.raises(ValueError, match=r"^one chain per row$"):
        _core.draw_tokens(chain, rows, _core.KeyedUniforms(0, 0), np.zeros((2, 1), np.int64), False)


# ---------------------------------------------------------------------------------- Hugging Face


def test_filter_values_go_by_the_row():
    # Where nothing is on in a row, what was -inf stays: as for the row alone.
    scores = torch.tensor([[1.0, -inf, 3.0, 2.0]] * 3)
    chains = {"top_k": [2, 0, 3], "temperature": [1.0, 2.0, 0.0]}
    whole = FilterLogitsProcessor(**chains, filter_value=-5.0)(None, scores)
    for i in range(3):
        own = {name: values[i] for name, values in chains.items()}
        alone = FilterLogitsProcessor(**own, filter_value=-5.0)(None, scores[i : i + 1])
        assert whole[i].tolist() == alone[0].tolist()
    assert whole[:, 1].tolist() == [-5.0, -inf, -5.0]


def test_sampler_and_floors_exclude_each_other():
    with pytest.raises(TypeError, match=r"^give either"):
        FilterLogitsProcessor(Sampler(seed=7), min_tokens_to_keep=[1, 2])


def test_generate_draws_each_row_by_its_settings(model):
    prompts = tiny.prompts(batch=3)["input_ids"]
    settings_ = {"temperature": [0.0, 0.7, 3.0], "top_k": [0, 3, 50]}
    more = {"max_new_tokens": 6, "pad_token_id": 0}
    whole = model.generate(prompts, **generate_kwargs(Sampler(**settings_, seed=7)), **more)
    for i in range(3):
        own = {name: values[i] for name, values in settings_.items()}
        alone = generate_kwargs(Sampler(**own, seed=7), streams=[i])
        assert model.generate(prompts[i : i + 1], **alone, **more)[0].tolist() == whole[i].tolist()


def test_a_configuration_takes_arrays_as_changes():
    for values in ([0.5, 0.7], np.array([0.5, 0.7]), torch.tensor([0.5, 0.75]).double()):
        s = Sampler.from_generation_config({"do_sample": True}, temperature=values, seed=7)
        assert Temperature(values) in s.stages
    with pytest.warns(UserWarning, match="no effect"):
        s = Sampler.from_generation_config({}, top_k=np.array([3, 4]), seed=7)
    assert engine_of(s).per_row is None
