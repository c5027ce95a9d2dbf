"""Every setting of every stage at every place of a chain, against the law and the twin."""

import itertools

import numpy as np
import pytest

from law import HISTORY, TABLE, check_chain, coins_of, given, in_order, remembered
from sampler import MinP, Sampler, SuppressTokens, Temperature, TopK, TopP, reference

# Edits come first in any chain: of those one is enough, and each has its turn before the others.
OTHERS = {stage: case for stage, case in TABLE.items()
          if stage.kind != "edit" or stage is SuppressTokens}  # fmt: skip
EDITS = [stage.of(value) for stage, case in TABLE.items() if stage.kind == "edit"
         for value in (*case.values, *case.gentle)]  # fmt: skip
SETTINGS = [stage.of(value) for stage, case in OTHERS.items() for value in case.values]
# What has memory is last.
FIRST = {stage: case for stage, case in OTHERS.items() if stage.kind != "memory"}
BEFORE = [stage.of(value) for stage, case in FIRST.items() for value in case.gentle]
AFTER = [stage.of(case.after) for stage, case in FIRST.items()]
FLOORS, TIES = (1, 2, 3, 70), ("id", "all")


def rows(size):
    """One row of distinct logits, one with ties at the top, one all equal, one mostly -inf."""
    rng = np.random.default_rng(size)
    distinct = rng.normal(0, 2, size)
    tied = np.round(distinct)
    tied[:3] = tied.max()
    few = np.where(np.arange(size) % 3 == 1, distinct, -np.inf)
    return distinct, tied, np.full(size, 0.5), few


def check(row, stages, floor, ties):
    stages = in_order(stages)
    settings = {"min_tokens_to_keep": floor, "ties": ties}
    text = (HISTORY.prompt, HISTORY.output)
    more = {**settings, "coins": coins_of(stages), "history": text}
    more["remembered"] = remembered(stages)
    state = reference.kept(row, stages, **more)
    s = Sampler(stages, seed=0, **settings)
    r = s.sample(row, logprobs=1, raw=True, steps=0, **given(stages))
    case = (stages, settings)
    assert s.distribution(row, **given(stages)).ids.tolist() == state.ids.tolist(), case
    assert r.n_kept == len(state.ids), case
    assert r.tokens in state.ids, case
    wanted = reference.log_mass(row, stages, **more)
    assert abs(r.log_mass - wanted) <= 2.0**-32, case


@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_every_edit_before_others(edit):
    for row in rows(7):
        for number, stage in enumerate(SETTINGS):
            floor, ties = FLOORS[number % 3], TIES[number % 2]
            check(row, [edit, stage], floor, ties)
            check(row, [EDITS[number % len(EDITS)], edit, stage], floor, ties)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("stage", SETTINGS, ids=repr)
def test_every_setting_at_every_place(stage, place):
    # Planted: min_tokens_to_keep ignored by min_p as the third or a later active stage.
    table = rows(7)
    every = list(itertools.product(BEFORE, repeat=place))
    # Of so many, each stage meets others: all of them in two places or fewer.
    step = max(1, len(every) // 40)
    for number, before in enumerate(every[SETTINGS.index(stage) % step :: step]):
        after = AFTER[number % len(AFTER)]
        for stages in ([*before, stage], [*before, stage, after]):
            # Few rows where the chains are many: each meets every floor and every row at last.
            for floor, ties in itertools.product(FLOORS[:3], TIES):
                chosen = table if place < 2 else [table[(number + floor) % len(table)]]
                for row in chosen:
                    check(row, stages, floor, ties)


@pytest.mark.parametrize("size", [300, 5000])
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("stage", SETTINGS, ids=repr)
def test_every_setting_at_every_place_of_a_long_row(stage, place, size):
    for number, row in enumerate(rows(size)):
        for ties in TIES if size < 1000 else TIES[number % 2 :][:1]:
            before = [BEFORE[(number + i) % len(BEFORE)] for i in range(place)]
            for floor in (1, 70):
                stages = in_order([*before, stage, AFTER[number % len(AFTER)]])
                check_chain(row, stages, floor, ties)


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("place", range(1, 6))
def test_the_floor_holds_wherever_a_truncation_stands(place, n):
    # The harshest settings, after any number of stages that do next to nothing.
    row = np.array([3.0, 2.5, 2.0, 1.0, 0.5, 0.0, -1.0])
    for before in itertools.product((Temperature(0.8), TopK(6), TopP(0.999), MinP(1e-3)), repeat=2):
        for harsh in (TopK(1), TopP(0.0), MinP(1.0), MinP(0.99)):
            stages = [*(before * 3)[:place], harsh]
            s = Sampler(stages, seed=1, min_tokens_to_keep=n)
            left = 6 if TopK(6) in stages else 7
            assert s.sample(row).n_kept == min(n, left), stages
            assert np.sum(np.isfinite(s.filter(row))) == min(n, left), stages
    s = Sampler(temperature=0.8, top_k=3, min_p=0.99, min_tokens_to_keep=3, seed=1)
    assert s.sample([3.0, 2.0, 1.0, 0.0]).n_kept == 3
