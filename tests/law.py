"""Promise 1, stated as code: does what a sampler kept follow from what it had?"""

import numpy as np

from sampler import MinP, Sampler, Temperature, TopK, TopP

BAND = 1e-12


def rank(x):
    """Token ids by (logit descending, id ascending), -inf left out."""
    ids = np.argsort(-x, kind="stable")
    return ids[x[ids] > -np.inf]


def prefix_mass(z):
    """Running share of the mass of tempered logits in rank order, in long double."""
    weights = np.exp((z - z[0]).astype(np.longdouble))
    mass = np.cumsum(weights)
    return mass / mass[-1]


def check_chain(row, stages, min_tokens_to_keep=1, ties="id", distribution=None):
    """Assert that every stage of the chain keeps what the law says, given what came before it.

    Runs the sampler on each prefix of the chain, so a stage is judged on its own and the band of
    one does not excuse another. Returns the whole chain's distribution.
    """
    x = np.asarray(row).astype(np.float64)
    order = rank(x)
    had, temperature = len(order), 1.0
    d = None
    for i, stage in enumerate(stages):
        s = Sampler(stages[: i + 1], min_tokens_to_keep=min_tokens_to_keep, ties=ties, seed=0)
        d = s.distribution(row)
        assert np.array_equal(d.ids, order[: len(d)]), f"{stage} keeps no prefix in rank"
        check_stage(x[order], stage, had, len(d), temperature, min_tokens_to_keep, ties)
        if isinstance(stage, Temperature):  # greedy is greedy, even after infinity
            greedy = temperature == 0 or stage.value == 0
            temperature = 0.0 if greedy else max(temperature * stage.value, 5e-324)
        had = len(d)
    return d if d is not None else Sampler(seed=0).distribution(row)


def check_stage(x, stage, had, kept, temperature, floor, ties):
    """Assert that `stage` may keep `kept` of the first `had` of x, the logits in rank order."""
    if temperature == 0:
        assert kept == had == 1
        return
    if isinstance(stage, Temperature):
        assert kept == (1 if stage.value == 0 else had)
        return
    assert 1 <= kept <= had
    floor = min(floor, had)
    if stage.is_off:
        assert kept == had
    elif isinstance(stage, TopK):
        k = min(stage.value, had)
        if ties == "all":
            k = int(np.sum(x[:had] >= x[k - 1]))
        assert kept == max(k, floor)
    elif isinstance(stage, TopP):
        depth = np.zeros(had) if np.isinf(temperature) else (x[:had] - x[0]) / temperature
        mass = prefix_mass(depth)
        assert mass[kept - 1] >= stage.value - BAND
        if kept > floor:
            assert kept == 1 or mass[kept - 2] < stage.value + BAND
    elif isinstance(stage, MinP):
        if np.isinf(temperature):
            assert kept == had
            return
        threshold = x[0] + temperature * np.log(stage.value)
        slack = BAND * abs(threshold)
        if kept > floor:
            assert x[kept - 1] >= threshold - slack
        if kept < had:
            assert x[kept] < threshold + slack
