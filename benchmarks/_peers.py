"""Who is timed: every way to turn a row of logits into a token.

A peer loads a row, or a batch, into the container that its users have their logits in, which is not
timed, and makes a call for a setting: from what it has loaded to a token, which is. Each is written
as its documentation or its users write it, as fast as that allows.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from _rows import TOP_K, Row, Setting
from sampler import Sampler

Draw = Callable[[Any], Any]


class Peer:
    """What a peer has in common with the others; the defaults are NumPy's."""

    name: str
    package = "numpy"  # what has to be importable
    batches = True  # takes a batch at once; otherwise a loop calls it row by row
    draws = True  # False: a part of the work, for reference

    @property
    def id(self) -> str:
        """The name without spaces, for pytest's -k."""
        return self.name.replace(",", "").replace(" ", "-")

    def can(self, setting: Setting) -> bool:
        """Whether it does what the setting says: most have only the first four."""
        return not (setting.top_n_sigma or setting.xtc)

    def load(self, rows: Row) -> Any:
        """Put a row or a batch where the peer wants it."""
        return rows

    def draw(self, setting: Setting) -> Draw:
        """Make the call that is timed."""
        raise NotImplementedError

    def draw_each(self, setting: Setting) -> Draw:
        """Make the call for a batch."""
        call = self.draw(setting)
        return call if self.batches else lambda batch: [call(row) for row in batch]


class _AllSettings(Peer):
    def can(self, setting: Setting) -> bool:
        return True


class Ours(_AllSettings):
    name = "sampler"

    def draw(self, setting: Setting) -> Draw:
        return Sampler(**setting.keywords, seed=0)


class _Torch(Peer):
    package = "torch"

    def load(self, rows: Row) -> Any:
        import torch

        return torch.from_numpy(rows)


class HuggingFace(_Torch):
    """The processors that `generate(do_sample=True)` makes, its softmax and its multinomial."""

    name = "Hugging Face"
    package = "transformers"

    def draw(self, setting: Setting) -> Draw:
        import torch
        import transformers as hf

        chain = hf.LogitsProcessorList()
        if setting.temperature != 1.0:
            chain.append(hf.TemperatureLogitsWarper(setting.temperature))
        if setting.top_k:
            chain.append(hf.TopKLogitsWarper(setting.top_k))
        if setting.top_p < 1.0:
            chain.append(hf.TopPLogitsWarper(setting.top_p))
        if setting.min_p:
            chain.append(hf.MinPLogitsWarper(setting.min_p))

        def call(scores: Any) -> Any:
            scores = chain(None, scores if scores.ndim == 2 else scores[None])
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]

        return call


class TorchOps(_Torch):
    """What people write: topk or sort, softmax, cumsum, multinomial."""

    name = "torch ops"

    def draw(self, setting: Setting) -> Draw:
        import torch

        def call(x: Any) -> Any:
            ids = None
            if setting.top_k:
                x, ids = torch.topk(x, min(setting.top_k, x.shape[-1]))
            elif setting.top_p < 1.0:
                x, ids = torch.sort(x, descending=True)
            p = torch.softmax(x / setting.temperature, dim=-1)
            if setting.top_p < 1.0:
                p[torch.cumsum(p, dim=-1) - p >= setting.top_p] = 0.0
            if setting.min_p:
                p[p < setting.min_p * p.amax(dim=-1, keepdim=True)] = 0.0
            token = torch.multinomial(p, num_samples=1)
            return (token if ids is None else ids.gather(-1, token))[..., 0]

        return call


class TorchTopK(_Torch):
    """One stage of the others, and no draw."""

    name = "torch.topk alone"
    draws = False

    def can(self, setting: Setting) -> bool:
        return setting == TOP_K

    def draw(self, setting: Setting) -> Draw:
        import torch

        return lambda x: torch.topk(x, setting.top_k)


class NumPy(_AllSettings):
    """What people write, written well: partition or sort no more than needed, bisect the sums."""

    name = "NumPy"
    batches = False

    def draw(self, setting: Setting) -> Draw:
        rng = np.random.default_rng(0)
        # p >= min_p max(p), without a softmax.
        depth = setting.temperature * math.log(setting.min_p) if setting.min_p else None

        def call(row: Row) -> Any:
            ids = None
            if setting.top_k and setting.top_k < len(row):
                ids = np.argpartition(row, -setting.top_k)[-setting.top_k :]
            elif depth is not None:
                ids = np.flatnonzero(row >= row.max() + depth)
            elif setting.top_n_sigma:
                ids = np.flatnonzero(row >= row.max() - setting.top_n_sigma * row.std())
            x = row if ids is None else row[ids]
            if setting.top_p < 1.0:
                order = np.argsort(x)[::-1]
                x, ids = x[order], order if ids is None else ids[order]
            weights = np.exp((x - x.max()) / setting.temperature)
            if setting.xtc and rng.random() < setting.xtc[1]:
                likely = np.flatnonzero(weights >= setting.xtc[0] * weights.sum())
                if len(likely) > 1:
                    weights[np.delete(likely, weights[likely].argmin())] = 0.0
            sums = np.cumsum(weights, dtype=np.float64)
            if setting.top_p < 1.0:
                sums = sums[: np.searchsorted(sums, setting.top_p * sums[-1]) + 1]
            i = np.searchsorted(sums, rng.random() * sums[-1], side="right")
            return i if ids is None else ids[i]

        return call


class _Llama(_AllSettings):
    package = "llama_cpp"
    batches = False


class LlamaCpp(_Llama):
    """llama.cpp's chain in its own order, temperature last, over a fresh array of candidates.

    So its top-p and min-p look at the logits at temperature 1, which saves it a pass. The nearly
    flat setting would not be flat that way: there, temperature comes first. The array is filled as
    fast as NumPy can: ids and logits into their fields; the chain itself sets the probabilities.
    """

    name = "llama.cpp"

    def draw(self, setting: Setting) -> Draw:
        import llama_cpp as llama

        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        flat = setting.temperature > 1.0
        if flat:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(setting.temperature))
        if setting.top_n_sigma:
            llama.llama_sampler_chain_add(
                chain, llama.llama_sampler_init_top_n_sigma(setting.top_n_sigma)
            )
        if setting.top_k:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_k(setting.top_k))
        if setting.top_p < 1.0:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(setting.top_p, 1))
        if setting.min_p:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_min_p(setting.min_p, 1))
        if setting.xtc:
            threshold, probability = setting.xtc
            llama.llama_sampler_chain_add(
                chain, llama.llama_sampler_init_xtc(probability, threshold, 1, 0)
            )
        if not flat:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(setting.temperature))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(0))
        candidates = Candidates()
        apply = llama.llama_sampler_apply

        def call(row: Row) -> int:
            array = candidates.fill(row)
            apply(chain, ctypes.byref(array))
            return array.data[array.selected].id

        return call


class LlamaFill(_Llama):
    """The part of it that is Python's, and no draw."""

    name = "llama.cpp, filling alone"
    draws = False

    def can(self, setting: Setting) -> bool:
        return setting == TOP_K

    def draw(self, setting: Setting) -> Draw:
        return Candidates().fill


class Candidates:
    """A `llama_token_data_array` that is filled again for every draw."""

    def __init__(self) -> None:
        self.vocab = -1

    def fill(self, row: Row) -> Any:
        if len(row) != self.vocab:
            self._make(len(row))
        self.id[:] = self.ids  # the chain has moved them
        self.logit[:] = row
        array = self.array
        array.data, array.size, array.selected, array.sorted = self.first, self.vocab, -1, False
        return array

    def _make(self, vocab: int) -> None:
        import llama_cpp as llama

        self.vocab, self.ids = vocab, np.arange(vocab, dtype=np.int32)
        fields = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        self.data = np.zeros(vocab, fields)
        self.id, self.logit = self.data["id"], self.data["logit"]
        self.first = self.data.ctypes.data_as(llama.llama_token_data_p)
        self.array = llama.llama_token_data_array()


class Jax(Peer):
    """Compiled for the setting and the shape, and waited for."""

    name = "jax"
    package = "jax"

    def load(self, rows: Row) -> Any:
        import jax

        return jax.device_put(rows)

    def draw(self, setting: Setting) -> Draw:
        import jax
        import jax.numpy as jnp

        @jax.jit
        def compiled(key: Any, step: Any, x: Any) -> Any:
            z, ids = x / setting.temperature, None
            if setting.top_k:
                z, ids = jax.lax.top_k(z, min(setting.top_k, x.shape[-1]))
            elif setting.top_p < 1.0:
                ids = jnp.argsort(-z, axis=-1)
                z = jnp.take_along_axis(z, ids, axis=-1)
            if setting.top_p < 1.0:
                p = jax.nn.softmax(z, axis=-1)
                z = jnp.where(jnp.cumsum(p, axis=-1) - p < setting.top_p, z, -jnp.inf)
            if setting.min_p:
                floor = z.max(axis=-1, keepdims=True) + math.log(setting.min_p)
                z = jnp.where(z >= floor, z, -jnp.inf)
            token = jax.random.categorical(jax.random.fold_in(key, step), z, axis=-1)
            if ids is None:
                return token
            return jnp.take_along_axis(ids, token[..., None], axis=-1)[..., 0]

        key, steps = jax.random.key(0), itertools.count()
        return lambda x: compiled(key, next(steps), x).block_until_ready()


class Mlx(Peer):
    """Compiled for the setting and the shape, and waited for."""

    name = "mlx"
    package = "mlx"

    def load(self, rows: Row) -> Any:
        import mlx.core as mx

        return mx.array(rows)

    def draw(self, setting: Setting) -> Draw:
        import mlx.core as mx

        @functools.partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
        def compiled(x: Any) -> Any:
            z, ids = x / setting.temperature, None
            if setting.top_k and setting.top_k < x.shape[-1]:
                ids = mx.argpartition(-z, setting.top_k - 1, axis=-1)[..., : setting.top_k]
                z = mx.take_along_axis(z, ids, axis=-1)
            if setting.top_p < 1.0:
                order = mx.argsort(-z, axis=-1)
                ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
                z = mx.take_along_axis(z, order, axis=-1)
                p = mx.softmax(z, axis=-1)
                z = mx.where(mx.cumsum(p, axis=-1) - p < setting.top_p, z, -math.inf)
            if setting.min_p:
                floor = z.max(axis=-1, keepdims=True) + math.log(setting.min_p)
                z = mx.where(z >= floor, z, -math.inf)
            token = mx.random.categorical(z, axis=-1)
            if ids is None:
                return token
            return mx.take_along_axis(ids, token[..., None], axis=-1)[..., 0]

        def call(x: Any) -> Any:
            token = compiled(x)
            mx.eval(token)
            return token

        return call


_ALL = (
    Ours(),
    HuggingFace(),
    TorchOps(),
    TorchTopK(),
    NumPy(),
    LlamaCpp(),
    LlamaFill(),
    Jax(),
    Mlx(),
)
PEERS = [peer for peer in _ALL if importlib.util.find_spec(peer.package)]
MISSING = [peer.name for peer in _ALL if peer.draws and peer not in PEERS]
OURS = PEERS[0]


def check(peer: Peer, setting: Setting) -> None:
    """See that a peer does what settings of this kind ask, by drawing from a row of twelve."""
    if peer.draws:
        like = Setting(
            1.0 if setting.xtc else 2.0 if setting.temperature > 1.0 else 0.8,
            top_k=5 if setting.top_k else 0,
            top_p=0.8 if setting.top_p < 1.0 else 1.0,
            min_p=0.3 if setting.min_p else 0.0,
            top_n_sigma=1.0 if setting.top_n_sigma else 0.0,
            xtc=(0.2, 0.5) if setting.xtc else None,
        )
        _check(peer, like)


@functools.cache
def _check(peer: Peer, setting: Setting) -> None:
    row = np.random.default_rng(0).permutation(
        np.array([2, 1.8, 1.5, 1.2, 0.7, 0.4, -0.4, -0.9, -1.3, -1.5, -1.8, -2], np.float32)
    )
    temperature_last = isinstance(peer, LlamaCpp) and setting.temperature < 1.0
    law = _law(setting, row, temperature_last=temperature_last)
    draw, loaded = peer.draw(setting), peer.load(row)
    drawn = [int(draw(loaded)) for _ in range(1000)]
    seen = np.bincount(drawn, minlength=len(row)) / 1000
    # Five standard errors; a kept token is so likely that it cannot be missing either.
    close = np.abs(seen - law) <= 5 * np.sqrt(law * (1 - law) / 1000)
    assert close.all(), f"{peer.name} does not do {setting}: {seen.round(3)}, not {law.round(3)}"


def _law(setting: Setting, row: Row, *, temperature_last: bool) -> np.ndarray:
    """The probability of each token, in float64, by sorting."""
    x = row.astype(np.float64)
    order = np.argsort(-x)
    z = x[order] / (1.0 if temperature_last else setting.temperature)
    if setting.top_k:
        z = z[: setting.top_k]
    p = np.exp(z) / np.exp(z).sum()
    if setting.top_p < 1.0:
        z = z[: np.searchsorted(np.cumsum(p), setting.top_p) + 1]
    z = z[np.exp(z - z[0]) >= setting.min_p]
    if setting.top_n_sigma:  # at temperature 1, as XTC below
        z = z[z >= z[0] - setting.top_n_sigma * x.std()]
    z = z / (setting.temperature if temperature_last else 1.0)
    law = np.zeros(len(row))
    law[order[: len(z)]] = np.exp(z) / np.exp(z).sum()
    if setting.xtc:
        threshold, probability = setting.xtc
        without = law.copy()
        without[order[: np.sum(law >= threshold) - 1]] = 0.0
        law = probability * without / without.sum() + (1 - probability) * law
    return law
