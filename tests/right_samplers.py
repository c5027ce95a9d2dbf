"""Right draws and a right sampler, for the tests of `sampler.testing`."""

import numpy as np

LAW = np.array([0.4, 0.3, 0.2, 0.0, 0.1])


def drawn(probs, n, seed=0):
    return np.random.default_rng(seed).choice(len(probs), n, p=probs)


ROW = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)


def gumbel(seed):
    rng = np.random.default_rng(seed)
    return lambda logits: (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
