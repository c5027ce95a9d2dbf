"""Breakers of `DRY`, out of strings and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sampler._inputs import kind_of

_LONGEST = 20  # tokens of what follows the first: as in llama.cpp


def dry_breakers(
    tokenizer: Any, *, strings: Iterable[str] = ("\n", ":", '"', "*")
) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of tokens that write one of the strings, for the setting `dry`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer, or an object with ``__len__``, `batch_decode` and `encode`
    strings : iterable of str
        What ends a repetition; by default what llama.cpp has. None of them empty.

    Returns
    -------
    tuple of tuple of int
        Every token that has a string in it; and every token that ends with the beginning of one,
        with the tokens that the tokenizer makes of the rest, at most 20.

    Raises
    ------
    TypeError
        If `strings` are not strings, or `tokenizer` is none.
    ValueError
        If a string is empty, or no token has anything of one.

    See Also
    --------
    sampler.DRY : takes them.

    Examples
    --------
    ::

        breakers = dry_breakers(tokenizer)
        s = Sampler(dry=(0.8, 1.75, 2, None, False, breakers))
    """
    if isinstance(strings, str) or not isinstance(strings, Iterable):
        raise TypeError(f"`strings` have to be an iterable of strings, but are {strings!r}")
    strings = list(strings)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"`strings` have to hold strings, but hold {string!r}")
        if not string:
            raise ValueError("`strings` have to hold no empty string, but one is")
    if not all(hasattr(tokenizer, name) for name in ("__len__", "batch_decode", "encode")):
        raise TypeError(f"`tokenizer` has to be a tokenizer, but is {kind_of(tokenizer)}")
    pieces = tokenizer.batch_decode(np.arange(len(tokenizer))[:, None].tolist())
    found: dict[tuple[int, ...], None] = {}
    for string in strings:
        before = len(found)
        rests = {
            string[:n]: tokenizer.encode(string[n:], add_special_tokens=False)[:_LONGEST]
            for n in range(1, len(string))
        }
        for token, piece in enumerate(pieces):
            if string in piece:
                found[(token,)] = None
            else:
                for beginning, rest in rests.items():
                    if piece.endswith(beginning):
                        found[(token, *rest)] = None
        if len(found) == before and not any(string in piece for piece in pieces):
            raise ValueError(f"no token of `tokenizer` has anything of {string!r}")
    return tuple(found)
