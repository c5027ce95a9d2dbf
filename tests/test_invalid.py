"""Every invalid value in every dtype at every place of a block: named by its row and token."""

import ml_dtypes
import numpy as np
import pytest

import sampler
from sampler import Sampler, _core

INFO = sampler.build_info()
# dtype -> (of its words, sign bit, +inf, the quiet bit of a NaN)
FORMATS = {
    "float16": (np.float16, np.uint16, 1 << 15, 0x7C00, 0x0200),
    "bfloat16": (ml_dtypes.bfloat16, np.uint16, 1 << 15, 0x7F80, 0x0040),
    "float32": (np.float32, np.uint32, 1 << 31, 0x7F800000, 0x00400000),
    "float64": (np.float64, np.uint64, 1 << 63, 0x7FF << 52, 1 << 51),
}
BLOCK, LANES, GROUP = 512, 16, 128


def bad_words(name):
    """+inf, and NaNs of both signs: quiet and signalling, the least and the largest payload."""
    _, _, sign, infinity, quiet = FORMATS[name]
    nans = [infinity | quiet, infinity | 1, infinity | quiet | 1, infinity | quiet - 1,
            infinity | quiet | quiet - 1]  # fmt: skip
    return [infinity, *nans, *(sign | nan for nan in nans)]


def layouts(words, swapped):
    """The same words as they may lie in memory: in place at any offset, in steps, backwards."""
    size = words.shape[1]
    for lead in (0, 1, 24, 31):
        whole = np.zeros((2, size + lead + 32), words.dtype)
        at = -(whole.ctypes.data // words.itemsize) % 32 + lead if lead else 0
        view = whole[:, at : at + size]
        view[:] = words
        yield view
    wide = np.zeros((2, 3 * size), words.dtype)
    wide[:, ::3] = words
    yield wide[:, ::3]
    yield words[:, ::-1].copy()[:, ::-1]
    if swapped:
        yield words.astype(words.dtype.newbyteorder())


def places(size):
    """Each lane of the first groups, around every end of a block, all of the last one's tail."""
    near = {e + d for e in range(0, size + 1, BLOCK) for d in (-17, -16, -2, -1, 0, 1, 15, 16)}
    ends = set(range(LANES)) | set(range(GROUP - 1, GROUP + 2)) | set(range(size - 70, size))
    return sorted(p for p in near | ends if 0 <= p < size)


def check(rows, token, value):
    for s in (Sampler(seed=1), Sampler(top_k=5, seed=1)):
        with pytest.raises(
            ValueError, match=f"finite or -inf, but row 1 has {value} at token {token}$"
        ):
            s(rows)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fill", [0.0, -1.0, -np.inf, 3.0])
def test_every_invalid_value_in_every_layout(name, fill):
    # Planted: a negative NaN of bfloat16 (0xFFC0) overlooked in whole blocks.
    kind, word, _, infinity, _ = FORMATS[name]
    size = 3 * BLOCK + 70
    clean = np.full((2, size), fill).astype(kind)
    clean[:, 5] = 1.0
    for number, bad in enumerate(bad_words(name)):
        for token in (0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 77, size - 70, size - 1):
            words = clean.view(word).copy()
            words[1, token] = bad
            for layout in layouts(words, swapped=name != "bfloat16"):
                native = layout.dtype.isnative
                rows = layout.view(kind) if native else layout.view(np.dtype(kind).newbyteorder())
                check(rows, token, "inf" if bad == infinity else "nan")
        assert number < 11


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [4096, 4096 + 70])
def test_every_invalid_value_at_every_place(name, size, isas):
    kind, word, *_ = FORMATS[name]
    words = np.zeros((2, size), word)
    rows = words.view(kind)
    for isa in isas:
        _core.choose_isa(isa)
        Sampler(seed=1)(rows)
        for bad in bad_words(name):
            for token in places(size):
                words[1, token] = bad
                s = Sampler(seed=1, on_invalid="flag")
                assert (s(rows) < 0).tolist() == [False, True], (isa, hex(bad), token)
                words[1, token] = 0
        words[1, 4000] = bad_words(name)[-1]
        check(rows, 4000, "nan")
        words[1, 4000] = 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1, 70, BLOCK, 4096, 4096 + 70])
def test_rows_without_a_finite_logit(name, size, isas):
    kind, word, sign, infinity, _ = FORMATS[name]
    for isa in isas:
        _core.choose_isa(isa)
        words = np.full((2, size), sign | infinity, word)
        words[0, -1] = 0
        for layout in layouts(words, swapped=name != "bfloat16"):
            native = layout.dtype.isnative
            rows = layout.view(kind) if native else layout.view(np.dtype(kind).newbyteorder())
            with pytest.raises(ValueError, match=r"but row 1 is -inf throughout$"):
                Sampler(seed=1)(rows)
        for bad in bad_words(name):  # named all the same
            words[1, size // 2] = bad
            check(words.view(kind), size // 2, "inf" if bad == infinity else "nan")
