"""A language model in NumPy: the counts of pairs of words, from which a Sampler writes a text.

    python demos/engine_numpy.py

The logits of the next word are the logs of how often each word followed the last one in the text
that the model has read, here the licence of this project. A word that never followed has logit
-inf and is never drawn. Needs NumPy and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sampler import Sampler
from sampler.history import History

TEXT = Path(__file__).parents[1] / "LICENSE"


def model(words: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the vocabulary, and its logits of shape (vocab, vocab): row i follows word i."""
    vocabulary, ids = np.unique(words, return_inverse=True)
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    np.add.at(counts, (ids, np.roll(ids, -1)), 1)  # the first word follows the last
    with np.errstate(divide="ignore"):
        return vocabulary.tolist(), np.log(counts)


def write(logits: np.ndarray, s: Sampler, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return the new tokens of a text that begins with `prompt`."""
    h = History(prompt)
    token = prompt[-1]
    for _ in range(max_new_tokens):
        token = s.sample(logits[token], history=h, steps=len(h)).tokens
        h.accept(token)
    return h.output


def main() -> None:
    vocabulary, logits = model(TEXT.read_text().split())
    s = Sampler(temperature=0.8, top_p=0.95, seed=7)
    print(*[vocabulary[i] for i in write(logits, s, [vocabulary.index("You")], 60)])


if __name__ == "__main__":
    main()
