"""Breakers of DRY out of strings."""

import pytest

from sampler import DRY
from sampler.hf import dry_breakers


class Tokenizer:
    """One that knows a few pieces, and takes the longest that fits."""

    pieces = ("a", "b", "\n", ".\n\n", " a:", "x<", "/s", "<", "/", "s", ">")

    def __len__(self):
        return len(self.pieces)

    def batch_decode(self, rows):
        return ["".join(self.pieces[i] for i in row) for row in rows]

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        ids = []
        while text:
            fits = [i for i, piece in enumerate(self.pieces) if text.startswith(piece)]
            ids.append(max(fits, key=lambda i: len(self.pieces[i])))
            text = text[len(self.pieces[ids[-1]]) :]
        return ids


def test_every_way_to_write_a_string():
    # Planted: only tokens that are the string.
    assert dry_breakers(Tokenizer(), strings=["\n"]) == ((2,), (3,))
    assert dry_breakers(Tokenizer(), strings=["\n", ":"]) == ((2,), (3,), (4,))
    # "</s>" begins with "<", which two tokens end with, and goes on with "/s" and ">".
    assert dry_breakers(Tokenizer(), strings=["</s>"]) == ((5, 6, 10), (7, 6, 10))
    made = DRY(0.8, breakers=dry_breakers(Tokenizer(), strings=["\n", "</s>"]))
    assert made.breakers == ((2,), (3,), (5, 6, 10), (7, 6, 10))


@pytest.mark.parametrize(("tokenizer", "strings", "error", "message"), [
    (Tokenizer(), "\n", TypeError, r"^`strings` have to be an iterable of strings, but are '\\n'$"),
    (Tokenizer(), 5, TypeError, r"^`strings` have to be an iterable of strings, but are 5$"),
    (Tokenizer(), ["a", 5], TypeError, r"^`strings` have to hold strings, but hold 5$"),
    (Tokenizer(), [""], ValueError, r"^`strings` have to hold no empty string, but one is$"),
    (Tokenizer(), ["?"], ValueError, r"^no token of `tokenizer` has anything of '\?'$"),
    (5, ["a"], TypeError, r"^`tokenizer` has to be a tokenizer, but is an int$"),
])  # fmt: skip
def test_bad_input(tokenizer, strings, error, message):
    with pytest.raises(error, match=message):
        dry_breakers(tokenizer, strings=strings)
