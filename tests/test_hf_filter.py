"""Our filters before Hugging Face's draw, against the installed warpers and `generate`."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from law import check_chain, prefix_mass, rank
from sampler import (
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    Sampler,
    Temperature,
    TopH,
    TopK,
    TopP,
    TypicalP,
)
from sampler.hf import FilterLogitsProcessor, SamplingLogitsProcessor, filter_kwargs
from sampler.stages.settings import STAGES
from tiny import VOCAB, Records, prompts

inf, nan = math.inf, math.nan
TINY = float(np.finfo(np.float32).smallest_subnormal)


# ------------------------------------------------------------- against the installed warpers


def chain(settings):
    return [stage(settings[name]) for name, stage in STAGES.items() if name in settings]


THEIRS = {
    TopK: TopKLogitsWarper,
    TopP: TopPLogitsWarper,
    MinP: MinPLogitsWarper,
    TypicalP: TypicalLogitsWarper,
    EpsilonCutoff: EpsilonLogitsWarper,
    EtaCutoff: EtaLogitsWarper,
}


def warper(stage, floor, filter_value):
    if isinstance(stage, Temperature):
        return TemperatureLogitsWarper(stage.value)
    if isinstance(stage, TopH):
        return TopHLogitsWarper(stage.value, filter_value)  # which has no floor
    return THEIRS[type(stage)](stage.value, filter_value, floor)


def kept(scores, filter_value=-inf):
    return ((scores != filter_value) & (scores != -inf)).numpy()


def check_rows(rows, floor=1, filter_value=-inf, **settings):
    """Hold our processor against Hugging Face's warpers, after every stage of one chain.

    Our kept set has to be the law's. Where theirs is another one, `check_edge` has to find a reason
    in their float32, and later stages are not compared any more: nor where x / temperature
    overflows, which leaves them with NaN. Returns for each row whether all of the chain agreed.
    """
    stages, same = chain(settings), np.ones(len(rows), bool)
    names = [name for name in STAGES if name in settings]
    ours, theirs = rows, rows
    for i, stage in enumerate(stages):
        # Rows that are not compared any more may be NaN, which their entropy refuses.
        had, seen = kept(ours, filter_value), theirs.masked_fill(~torch.tensor(same)[:, None], 0)
        so_far = {name: settings[name] for name in names[: i + 1]}
        ours = FilterLogitsProcessor(
            **so_far, min_tokens_to_keep=floor, filter_value=filter_value
        )(None, rows)  # fmt: skip
        theirs = warper(stage, floor, filter_value)(None, seen)
        if isinstance(stage, Temperature):
            lost = ~(theirs < inf) | ((theirs == -inf) & (rows > -inf))
            same &= ~lost.any(dim=1).numpy()
        a, b = kept(ours, filter_value), kept(theirs, filter_value)
        # Temperature alone removes nothing: -inf stays what it is.
        blank = -inf if set(so_far) == {"temperature"} else filter_value
        assert (ours.numpy()[~a] == blank).all()
        for row in np.flatnonzero(same):
            both = a[row] & b[row]
            assert np.allclose(ours[row, both], theirs[row, both], rtol=1e-6, atol=TINY)
            if not np.array_equal(a[row], b[row]):
                temperature = settings.get("temperature", 1.0)
                if not (isinstance(stage, TopK) and stage.value < floor):  # a test of its own
                    check_edge(
                        rows[row], seen[row], stage, temperature, floor, had[row], a[row], b[row]
                    )
                same[row] = False
    for row, mask in zip(rows.numpy(), kept(ours, filter_value), strict=True):
        law = check_chain(row, stages, floor, "all")
        assert np.array_equal(np.sort(law.ids), np.flatnonzero(mask)), (settings, row)
    return same


def check_edge(row, seen, stage, temperature, floor, had, ours, theirs):
    """Assert that float32 explains why Hugging Face keeps `theirs`, where we keep `ours`.

    `seen` is what their warper was given, `had` what both had kept before the stage.

    They round x / temperature to float32, which moves a score by 2**-24 of itself, and a mass by at
    most 2**-23 of the largest score. Their softmax adds to that. In units of 2**-23 its largest
    error seen was 5 for distinct scores; for few distinct ones, whose float32 sum is rounded the
    same way again and again, vocab / 140 with eight lanes and vocab / 299 with sixteen. An entropy
    is a mean of logs, so the same error moves it by the error times the entropy at most.
    """
    # These look at scores, the others at float32 probabilities, which are equal more often.
    by_score = isinstance(stage, (TopK, TopP, TopH))
    decided_by = (seen if by_score else seen.softmax(dim=-1)).numpy()
    if not isinstance(stage, TypicalP):
        assert decided_by[theirs].min() >= decided_by[had & ~theirs].max(initial=-inf)
    few, many = sorted((ours.sum(), theirs.sum()))
    edge = set(decided_by[ours ^ theirs])
    if isinstance(stage, TopK):
        # Equal once divided by the temperature, in float32, but not before.
        assert len(edge) == 1
        assert row[ours].min() > row[had & ~ours].max()
        return
    if len(edge) == 1 and few == many:
        return  # equal in float32: which of them stay is arbitrary
    if edge == {0} and isinstance(stage, MinP):
        return  # so improbable that the floor may be filled with -inf instead
    x = row.double().numpy()
    order = rank(np.where(had, x, -inf))
    depth = ((x[order] - x[order[0]]) / temperature).astype(np.longdouble)
    error = 2**-23 * (16 + len(x) / 100 + (abs(float(seen.max())) if temperature != 1 else 0))
    if isinstance(stage, (EpsilonCutoff, EtaCutoff)):
        # Their floor keeps everything equal to the last of it.
        last = seen[torch.from_numpy(had)].sort(descending=True).values[: max(floor, 1)][-1]
        ours, theirs = (kept[order] for kept in (ours, theirs & ~(~ours & (seen >= last).numpy())))
    elif isinstance(stage, (TypicalP, TopH)):
        ours, theirs = ours[order], theirs[order]
    if isinstance(stage, (EtaCutoff, TopH)):  # their entropy subtracts the log of the mass
        error += 2**-23 * abs(float(seen.max()))
    check = {
        TopP: check_top_p,
        MinP: check_min_p,
        TypicalP: check_typical_p,
        EpsilonCutoff: check_cutoff,
        EtaCutoff: check_cutoff,
        TopH: check_top_h,
    }
    check[type(stage)](depth, stage, floor, ours, theirs, error)


def check_top_p(depth, stage, floor, ours, theirs, error):
    # The shorter kept set, and every other up to the longer one, has a mass of almost top_p.
    few, many = sorted((ours.sum(), theirs.sum()))
    assert few < many
    assert np.abs(prefix_mass(depth)[few - 1 : many - 1] - stage.value).max() <= error


def check_min_p(depth, stage, floor, ours, theirs, error):
    few, many = sorted((ours.sum(), theirs.sum()))
    assert few < many
    threshold = math.log(stage.value)
    assert np.abs(depth[few:many] - threshold).max() <= error + 2**-23 * abs(threshold)


def logs_and_entropy(depth):
    weights = np.exp(depth)
    logs = depth - np.log(weights.sum())
    return logs, -float(np.where(weights > 0, logs, 0) @ weights / weights.sum())


def check_cutoff(depth, stage, floor, ours, theirs, error):
    logs, entropy = logs_and_entropy(depth)
    threshold = math.log(stage.value)
    if isinstance(stage, EtaCutoff):
        threshold = min(threshold, threshold / 2 - entropy)
        error *= 2 + entropy
    error += 2**-23 * abs(threshold)
    assert np.abs(logs[ours ^ theirs] - threshold).max(initial=0) <= error


def check_typical_p(depth, stage, floor, ours, theirs, error):
    """Their set has to be the nearest tokens, and its mass to cross typical_p at the last ones."""
    logs, entropy = logs_and_entropy(depth)
    distance = np.abs(-logs - entropy)
    last = distance[theirs].max()
    slack = 2 * (error * (2 + entropy) + 2**-22 * (last + entropy))
    nearer = distance < last - slack
    assert theirs[nearer].all()
    mass = np.exp(logs)
    assert mass[theirs].sum() >= stage.value - error or theirs.all()
    if theirs.sum() > floor:
        assert mass[nearer].sum() < stage.value + error


def check_top_h(depth, stage, floor, ours, theirs, error):
    if theirs.sum() <= ours.sum() == min(floor, len(depth)):
        return  # theirs has no floor
    logs, entropy = logs_and_entropy(depth[:100])
    part = np.cumsum(np.where(np.exp(logs) > 0, -logs * np.exp(logs), 0))
    few, many = sorted((ours.sum(), theirs.sum()))
    assert few < many
    error *= 2 * (2 + entropy)
    assert np.abs(part[few:many] - stage.value * entropy).max() <= error


SETTINGS = [
    *({"temperature": value} for value in (0.7, 1.5, 1e-3, 1e-30, 1e30, inf)),
    *({"top_k": value} for value in (1, 2, 50, 10**6)),
    *({"top_p": value} for value in (0.0, 1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 2**-30)),
    *({"min_p": value} for value in (1e-6, 0.05, 0.5, 1.0)),
    *({"typical_p": value} for value in (1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 2**-30)),
    *({"epsilon_cutoff": value} for value in (1e-30, 3e-4, 0.02, 0.5, 0.99)),
    *({"eta_cutoff": value} for value in (1e-30, 3e-4, 0.02, 0.5, 0.99)),
    *({"top_h": value} for value in (1e-6, 0.1, 0.4, 0.9, 1.0)),
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1},
    {"temperature": 5.0, "top_p": 0.99, "min_p": 0.5},
    {"temperature": 0.1, "top_p": 0.9},
    {"top_k": 40, "min_p": 0.05},
    {"temperature": 1e30, "top_k": 30, "top_p": 0.5, "min_p": 1.0},
    {"temperature": 1e-30, "top_k": 7, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.7, "typical_p": 0.9},
    {"temperature": 1.5, "top_k": 500, "typical_p": 0.8, "epsilon_cutoff": 0.01},
    {"top_p": 0.95, "eta_cutoff": 0.02},
    {"temperature": 2.0, "top_h": 0.6, "top_p": 0.9},
    {"temperature": 1.2, "top_h": 0.9, "top_k": 60, "top_p": 0.99, "min_p": 0.001,
     "typical_p": 0.9, "epsilon_cutoff": 0.003, "eta_cutoff": 0.02},
]  # fmt: skip


def batch(vocab, seed=0):
    """Rows of every kind. The first is ordinary: no ties, nothing extreme."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, vocab)
    lone, few = np.full((2, vocab), -inf)
    lone[vocab // 2] = -7
    few[::10] = x[::10]
    bfloat16 = torch.tensor(x).bfloat16().double().numpy()
    rows = [x, rng.integers(-2, 3, vocab), bfloat16, np.zeros(vocab), lone, few, 1e30 * x, x + 1000]
    return torch.tensor(np.array(rows), dtype=torch.float32)


@pytest.mark.parametrize("vocab", [1, 2, 3, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_hugging_faces_warpers(setting, vocab):
    rows = batch(vocab, seed=vocab)
    same = check_rows(rows, **setting)
    # Elsewhere a reason in float32 has to be enough: at 1e30 theirs are all equally likely.
    nearly_off = setting.get("top_h") == 1 or setting.get("typical_p", 0) > 0.999
    assert same[0] or setting.get("temperature") == 1e30 or nearly_off


@pytest.mark.parametrize("vocab", [49152, 131072, 262144])
@pytest.mark.parametrize(
    "setting",
    [
        {"top_p": 0.95},
        {"min_p": 0.05},
        {"temperature": 0.7, "top_k": 1000, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 3.0, "top_p": 0.5},
        {"temperature": 1.3, "typical_p": 0.9},
        {"epsilon_cutoff": 3e-4},
        {"temperature": 1.5, "eta_cutoff": 1e-3},
        {"temperature": 1.5, "top_h": 0.7},
    ],
    ids=str,
)
def test_large_vocabularies(setting, vocab):
    check_rows(batch(vocab), **setting)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_real_rows(setting, real_logits):
    rows = torch.from_numpy(real_logits[:3].astype(np.float32))  # float16 rounding: ties
    check_rows(rows, **setting)


@pytest.mark.parametrize("floor", [1, 2, 5])
@pytest.mark.parametrize("filter_value", [-inf, -1e9])
@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9}, {"temperature": 0.5, "top_p": 0.7},
        {"temperature": 1.5, "top_k": 3, "top_p": 0.2, "min_p": 0.9}, {"typical_p": 0.1},
        {"epsilon_cutoff": 0.9}, {"eta_cutoff": 0.9}, {"top_h": 0.1},
        {"temperature": 1.5, "typical_p": 0.5, "epsilon_cutoff": 0.2, "eta_cutoff": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_floor_and_filter_value(setting, filter_value, floor):
    for vocab in (1, 3, 65, 1000):
        rows = batch(vocab)[[0, 1, 2, 3, 4, 5, 7]]  # 1e30 times anything passes -1e9
        check_rows(rows, floor, filter_value, **setting)


ROWS = st.integers(1, 40).flatmap(
    lambda vocab: st.lists(
        st.lists(
            st.one_of(
                st.integers(-3, 3).map(float),
                st.floats(-30, 30, width=32),
                st.floats(-(2.0**127), 2.0**127, width=32),
                st.just(-inf),
            ),
            min_size=vocab,
            max_size=vocab,
        ).filter(lambda row: max(row) > -inf),
        min_size=1,
        max_size=3,
    )
)
SETTING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.floats(0.05, 20), st.sampled_from((1e-30, 1e-3, 1e4, 1e30))),
        "top_k": st.integers(1, 50),
        "top_p": st.floats(0, 1, exclude_max=True),
        "min_p": st.floats(1e-30, 1),
        "typical_p": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "epsilon_cutoff": st.floats(1e-30, 1, exclude_max=True),
        "eta_cutoff": st.floats(1e-30, 1, exclude_max=True),
        "top_h": st.floats(0, 1, exclude_min=True),
    },
).filter(bool)


@settings(max_examples=400)
@given(rows=ROWS, setting=SETTING, floor=st.sampled_from((1, 1, 2, 5)))
@example(rows=[[0.0] * 7], setting={"top_p": 3 / 7}, floor=1)
@example(rows=[[0.0] * 4], setting={"top_p": 0.5}, floor=1)
@example(rows=[[1.0, 1.0, 0.0]], setting={"top_k": 1, "top_p": 0.3}, floor=1)
@example(rows=[[0.0, -200.0, -300.0, -400.0]], setting={"min_p": 1e-30}, floor=3)
def test_small_rows(rows, setting, floor):
    check_rows(torch.tensor(rows, dtype=torch.float32), floor, **setting)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_extremes_stay_finite(setting):
    """What is kept has a finite score, also where x / temperature passes the range of float32."""
    rows = torch.tensor([[1e30, -1e30, -inf, 0.0, 3e38], [-3e38, 3e38, 1.0, -1.0, 2.0]])
    out = FilterLogitsProcessor(**setting)(None, rows)
    for row, scores in zip(rows, out, strict=True):
        law = check_chain(row.numpy(), chain(setting), ties="all")
        assert np.flatnonzero(scores > -inf).tolist() == sorted(law.ids)
        assert torch.isfinite(scores[torch.from_numpy(law.ids)]).all()
        assert scores[law.ids[row[law.ids].argmax()]] == scores.max()


def test_a_floor_above_top_k_is_not_widened_by_ties():
    rows = torch.tensor([[2.0, 5.0, 2.0, 2.0]])
    theirs = TopKLogitsWarper(1, min_tokens_to_keep=2)(None, rows)
    assert kept(theirs).tolist() == [[True] * 4]  # Hugging Face takes it for top_k=2
    ours = FilterLogitsProcessor(top_k=1, min_tokens_to_keep=2)(None, rows)
    assert kept(ours).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("setting", "row", "ours", "theirs"),
    [
        ({"epsilon_cutoff": 0.9}, [3.0, 1.0, 1.0, 1.0], {0, 1}, {0, 1, 2, 3}),
        ({"eta_cutoff": 0.9}, [3.0, 1.0, 1.0, 1.0], {0, 1}, {0, 1, 2, 3}),
        ({"top_h": 0.1}, [9.0, 2.0, 1.0, 0.0], {0, 1}, {0}),
        ({"typical_p": 0.3}, [2.0, 0.0, 0.0, 0.0], {0, 1, 2, 3}, None),  # 0 is nearest
    ],
    ids=str,
)
def test_a_floor_of_two_is_exact(setting, row, ours, theirs):
    rows = torch.tensor([row])
    found = FilterLogitsProcessor(**setting, min_tokens_to_keep=2)(None, rows)
    assert set(np.flatnonzero(kept(found)[0])) == ours
    (stage,) = chain(setting)
    found = set(np.flatnonzero(kept(warper(stage, 2, -inf)(None, rows))[0]))
    assert found == theirs or (theirs is None and 0 in found and len(found) == 2)


def test_every_setting_is_shown():
    for name, stage in STAGES.items():
        assert f"\n    {name} : {stage.range.noun}, " in FilterLogitsProcessor.__doc__
        for make in (FilterLogitsProcessor, filter_kwargs):
            parameter = inspect.signature(make).parameters[name]
            assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, stage.off)
    assert "{settings}" not in FilterLogitsProcessor.__doc__


def test_greedy_has_no_warper():
    rows = batch(65)
    out = FilterLogitsProcessor(temperature=0.0, min_tokens_to_keep=3)(None, rows)
    first = rows.numpy().argmax(axis=1)  # the lowest id among ties
    assert np.isfinite(out.numpy()).sum(axis=1).tolist() == [1] * len(rows)
    assert out.numpy().argmax(axis=1).tolist() == first.tolist()
    assert torch.equal(out.max(dim=1).values, rows.max(dim=1).values)


# -------------------------------------------------------------------------------- out of place

FULL = {"temperature": 0.7, "top_h": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01,
        "typical_p": 0.95, "epsilon_cutoff": 1e-3, "eta_cutoff": 2e-3}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_k": 300}, FULL], ids=str)
@pytest.mark.parametrize("filter_value", [-inf, -1e9])
def test_the_scores_are_never_written_to(settings, filter_value):
    rows = batch(300)
    before = rows.clone()
    out = FilterLogitsProcessor(**settings, filter_value=filter_value)(None, rows)
    assert torch.equal(rows, before)
    assert out.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
    assert out.is_contiguous()
    out[:] = 7.0
    assert torch.equal(rows, before)


def test_scores_of_any_layout():
    processor, rows = FilterLogitsProcessor(**FULL, filter_value=-1e9), batch(300)
    want = processor(None, rows)
    wide = torch.full((len(rows), 900), nan)
    wide[:, ::3] = rows
    assert torch.equal(processor(None, wide[:, ::3]), want)
    assert torch.equal(processor(None, rows.T.contiguous().T), want)
    expanded = rows[0].expand(4, 300)  # four times the same memory
    assert torch.equal(processor(None, expanded), want[[0, 0, 0, 0]])
    assert torch.equal(expanded[3], rows[0])
    with torch.inference_mode():
        frozen = rows.clone()
    assert torch.equal(processor(None, frozen), want)
    graph = rows.clone().requires_grad_()
    with torch.no_grad():  # as in generate()
        assert torch.equal(processor(None, graph), want)
    with pytest.raises(TypeError, match=r"^`scores` requires grad, and FilterLogitsProcessor"):
        processor(None, graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, FULL], ids=str)
def test_other_dtypes(dtype, settings):
    rows = batch(300)[:6].to(dtype)
    out = FilterLogitsProcessor(**settings)(None, rows)
    assert out.dtype == dtype
    wide = FilterLogitsProcessor(**settings)(None, rows.double())
    assert wide.dtype == torch.float64
    # Through float32, as the core writes it: a second rounding, of half an ULP at most.
    assert torch.equal(out > -inf, wide > -inf)
    both = out > -inf
    assert torch.allclose(out[both].double(), wide[both], rtol=torch.finfo(dtype).eps)


def test_a_batch_is_its_rows():
    processor, rows = FilterLogitsProcessor(**FULL), batch(300)
    together = processor(None, rows)
    for i, row in enumerate(rows):
        assert torch.equal(processor(torch.tensor([[3, 4]]), row[None])[0], together[i])


# ------------------------------------------------------------------------------- its arguments


def test_an_explicit_chain():
    s = Sampler([TopK(6), TopP(0.8), Temperature(0.3)], seed=7)
    rows = batch(65)[[0, 5]]
    out = FilterLogitsProcessor(s)(None, rows)
    truncated = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(6)(None, rows))
    want = TemperatureLogitsWarper(0.3)(None, truncated)
    assert np.array_equal(kept(out), kept(want))
    assert torch.allclose(out, want, rtol=1e-6)
    # In Hugging Face's order the temperature would have come first, and left less to top_p.
    other = FilterLogitsProcessor(temperature=0.3, top_k=6, top_p=0.8)(None, rows)
    assert not np.array_equal(kept(out), kept(other))
    assert s.step == 0


def test_ties_are_the_samplers():
    rows = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    all_ties = Sampler(top_k=1, ties="all", min_tokens_to_keep=3)
    for processor, out in (
        (FilterLogitsProcessor(top_k=1), [-inf, 2.0, 2.0, -inf]),
        (FilterLogitsProcessor(Sampler(top_k=1)), [-inf, 2.0, -inf, -inf]),
        (FilterLogitsProcessor(all_ties, filter_value=-5.0), [1.0, 2.0, 2.0, -5.0]),
    ):
        assert processor(None, rows).tolist() == [out]


def test_off_changes_nothing():
    rows = batch(65)
    none = dict.fromkeys((*STAGES, "min_tokens_to_keep"))
    for processor in (
        FilterLogitsProcessor(),
        FilterLogitsProcessor(None, **none),
        FilterLogitsProcessor(Sampler(), **none),
    ):
        assert torch.equal(processor(None, rows), rows)


@pytest.mark.parametrize("make", [FilterLogitsProcessor, filter_kwargs])
def test_bad_arguments(make):
    for sampler in (7, 0, {"top_k": 5}, Sampler, "sampler", TopK(4), [TopK(4)]):
        with pytest.raises(TypeError, match=r"^`sampler` has to be a Sampler, but is "):
            make(sampler)
    for setting in (*FULL.items(), ("min_tokens_to_keep", 2)):
        with pytest.raises(TypeError, match=r"^give either a sampler or settings, not both"):
            make(Sampler(seed=7), **dict([setting]))
    with pytest.raises(
        TypeError, match=rf"^{make.__name__}.* unexpected keyword argument 'top_q': did"
    ):
        make(top_q=0.5)
    for name, value, error, wanted in (
        ("temperature", -0.1, ValueError, r"a float in \[0, inf\]"),
        ("temperature", nan, ValueError, r"a float in \[0, inf\]"),
        ("temperature", "1", TypeError, r"a float in \[0, inf\]"),
        ("top_k", -1, ValueError, "an integer >= 0"),
        ("top_k", 5.0, TypeError, "an integer >= 0"),
        ("top_k", True, TypeError, "an integer >= 0"),
        ("top_p", 1.7, ValueError, r"a float in \[0, 1\]"),
        ("top_p", -0.1, ValueError, r"a float in \[0, 1\]"),
        ("top_p", nan, ValueError, r"a float in \[0, 1\]"),
        ("min_p", 1.7, ValueError, r"a float in \[0, 1\]"),
        ("min_p", ["0.1"], TypeError, r"a float in \[0, 1\]"),
        ("typical_p", 0, ValueError, r"a float in \(0, 1\]"),
        ("top_h", 0.0, ValueError, r"a float in \(0, 1\]"),
        ("epsilon_cutoff", 1.0, ValueError, r"a float in \[0, 1\)"),
        ("eta_cutoff", nan, ValueError, r"a float in \[0, 1\)"),
        ("min_tokens_to_keep", 0, ValueError, "an integer >= 1"),
        ("min_tokens_to_keep", 1.0, TypeError, "an integer >= 1"),
        ("filter_value", nan, ValueError, "a float"),
        ("filter_value", inf, ValueError, "a float"),
        ("filter_value", 1e39, ValueError, "a float"),
        ("filter_value", -1e39, ValueError, "a float"),
        ("filter_value", "-inf", TypeError, "a float"),
        ("filter_value", None, TypeError, "a float"),
        ("filter_value", True, TypeError, "a float"),
    ):
        with pytest.raises(error, match=rf"^`{name}` has to be {wanted}.*, but is "):
            make(**{name: value})


@pytest.mark.parametrize("on_invalid", ["raise", "flag"])
@pytest.mark.parametrize("value", [nan, inf])
def test_invalid_rows_always_raise(value, on_invalid):
    processor = FilterLogitsProcessor(Sampler(top_k=3, on_invalid=on_invalid), filter_value=-1e9)
    rows = torch.zeros(3, 9)
    rows[1, 5] = value
    with pytest.raises(ValueError, match=rf"^`\w+` have to .*, but row 1 has {value} at token 5"):
        processor(None, rows)
    rows[1] = -inf
    with pytest.raises(ValueError, match=r"^`\w+` have to .*, but row 1 is -inf throughout"):
        processor(None, rows)


@pytest.mark.parametrize(
    ("scores", "error", "words"),
    [
        (torch.zeros(2, 9).long(), TypeError, "torch.int64"),
        (torch.zeros(2, 9).to_sparse(), TypeError, "dense"),
        (torch.zeros(2, 3, 9), ValueError, "2-D"),
        (torch.zeros(2, 0), ValueError, "at least one token"),
    ],
)
def test_bad_scores(scores, error, words):
    with pytest.raises(error, match=rf"^`\w+` have to .*{words}"):
        FilterLogitsProcessor(top_k=3)(None, scores)


# ------------------------------------------------------------------------- in model.generate()

NEW = 12


def draw(model, seed=7, **kwargs):
    """The new tokens of three prompts, and torch's random state after them."""
    inputs = prompts()
    torch.manual_seed(seed)
    out = model.generate(**inputs, **{"max_new_tokens": NEW, **kwargs})
    return out[:, inputs["input_ids"].shape[1] :].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "setting",
    [
        {}, {"temperature": 0.7}, {"temperature": 3.0}, {"top_k": 5}, {"top_p": 0.6},
        {"min_p": 0.2}, {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"typical_p": 0.7, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02}, {"top_h": 0.6},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_return_sequences": 3},
        {"repetition_penalty": 3.0},  # before the filters, in both
        {"num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_the_text_is_hugging_faces_own(model, setting, more):
    # Under beams Hugging Face keeps two tokens at least: one may end the text.
    floor = 2 if "num_beams" in more and "top_h" not in setting else 1  # theirs has none
    ours = filter_kwargs(**setting, min_tokens_to_keep=floor)
    texts, state = draw(model, **ours, **more)
    assert (texts, state) == draw(model, do_sample=True, **{"top_k": 0, **setting}, **more)
    assert (texts, state) == draw(model, **ours, **more)  # the same processor once more
    assert len(texts) == 3 * more.get("num_return_sequences", 1)
    if setting.get("temperature", 1.0) >= 1.0 and more == {}:
        assert texts != draw(model, 8, **ours)[0]


def ranks(model, **kwargs):
    """Of each token drawn, its rank among the model's logits, and how many scores were finite."""
    inputs = prompts()
    torch.manual_seed(7)
    out = model.generate(
        **inputs, **kwargs, max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True,
        output_scores=True,
    )  # fmt: skip
    tokens = out.sequences[:, -NEW:]
    logits, scores = torch.stack(out.logits, dim=1), torch.stack(out.scores, dim=1)
    drawn = logits.gather(2, tokens[..., None])
    return (1 + (logits > drawn).sum(dim=-1)).numpy(), torch.isfinite(scores).sum(dim=-1).numpy()


def test_the_hidden_top_k_does_not_act(model):
    drawn, finite = ranks(model, **filter_kwargs(temperature=1e6))
    assert (finite == VOCAB).all()
    assert (drawn > 50).mean() > 0.5
    # With Hugging Face's own temperature it does.
    drawn, finite = ranks(model, do_sample=True, temperature=1e6)
    assert (finite == 50).all()
    assert (drawn <= 50).all()


class Nothing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize("processor", [Nothing(), FilterLogitsProcessor(temperature=1e6)])
def test_a_naive_plug_in_is_filtered_twice(model, processor):
    kwargs = {"do_sample": True, "logits_processor": LogitsProcessorList([processor])}
    drawn, finite = ranks(model, **kwargs)
    assert (finite == 50).all()
    assert (drawn <= 50).all()


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.7}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9},
        {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1}, {"top_h": 0.5}, {"do_sample": True},
        {"logits_processor": LogitsProcessorList()},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_given_twice(model, setting):
    (name,) = setting
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{name}'"):
        model.generate(**prompts(), **filter_kwargs(temperature=0.8), **setting)


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": False}, {"temperature": 0.1}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.9},
        {"typical_p": 0.1}, {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1}, {"top_h": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_the_models_own_settings_do_not_interfere(model, own, monkeypatch):
    (name,) = own
    kwargs = filter_kwargs(temperature=2.0, top_p=0.95)
    texts, _ = draw(model, **kwargs)
    free, _ = draw(model, do_sample=True)
    monkeypatch.setattr(model.generation_config, name, own[name])
    assert draw(model, **kwargs)[0] == texts
    if name != "do_sample":
        assert draw(model, do_sample=True)[0] != free  # where nobody overrules it, it acts


def test_generate_is_silent(model):
    with Records() as heard:
        draw(model, **filter_kwargs(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01))
        draw(model, **filter_kwargs(Sampler([TopK(4), Temperature(0.5)])), num_beams=2)
        assert heard.records == []


def test_what_filter_kwargs_gives():
    s = Sampler([TopK(4), Temperature(0.5)], seed=7)
    for kwargs, made in (
        (filter_kwargs(s, filter_value=-5.0), s.stages),
        (filter_kwargs(**FULL, min_tokens_to_keep=3, filter_value=-5.0), Sampler(**FULL).stages),
    ):
        assert kwargs["do_sample"] is True
        assert isinstance(kwargs["logits_processor"], LogitsProcessorList)
        (processor,) = kwargs["logits_processor"]
        assert isinstance(processor, FilterLogitsProcessor)
        assert processor.sampler.stages == made
        assert processor.sampler.min_tokens_to_keep == (1 if made is s.stages else 3)
        assert processor.filter_value == -5.0


def test_errors_call_them_scores():
    processor = FilterLogitsProcessor(top_k=3)
    scores = torch.zeros(2, 9)
    scores[1, 3] = math.nan
    with pytest.raises(ValueError, match=r"^`scores` have .* row 1 has nan at token 3$"):
        processor(None, scores)
    rows = [torch.zeros(3), torch.zeros(4)]
    with pytest.raises(TypeError, match=r"pass torch.nested.to_padded_tensor\(scores, -torch"):
        processor(None, torch.nested.nested_tensor(rows, layout=torch.jagged))


# ------------------------------------------------------------------------- continuous batching


def test_continuous_batching(caplog):
    assert FilterLogitsProcessor.supports_continuous_batching is True
    assert SamplingLogitsProcessor.supports_continuous_batching is False
    cb = pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    ours, refused = FilterLogitsProcessor(**FULL), SamplingLogitsProcessor(Sampler(seed=7))
    held = cb.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([ours]))
    assert list(held.logits_processor) == [ours]
    rows = batch(65)
    assert torch.equal(held(None, rows, None), ours(None, rows))
    assert caplog.messages == []
    held = cb.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([refused, ours]))
    assert list(held.logits_processor) == [ours]
    (warning,) = caplog.messages
    assert "SamplingLogitsProcessor isn't supported" in warning


def test_a_filter_value_that_the_dtype_cannot_hold():
    with pytest.raises(ValueError, match=r"^`filter_value` has to be a finite torch\.float16"):
        FilterLogitsProcessor(top_k=1, filter_value=-1e9)(None, torch.zeros(2, 9).half())


def test_coins_fall_as_torch_seeds_them():
    # Planted: every call with the coin of the sampler's first step.
    scores = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 3))
    processor = FilterLogitsProcessor(xtc=(0.15, 0.5))

    def removed():
        return torch.stack([processor(None, scores)[:, 0] == -inf for _ in range(100)])

    torch.manual_seed(3)
    first, second = removed(), removed()
    torch.manual_seed(3)
    assert torch.equal(removed(), first)
    assert not torch.equal(second, first)
    # Of 300 fair coins, each row its own: 6 standard deviations, false once in 5e8 runs.
    assert abs(int(first.sum()) - 150) < 52
    assert not torch.equal(first[:, 0], first[:, 1])
