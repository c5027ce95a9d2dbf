"""A text of our loop that may go back: what is kept to draw again from, and what may be shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sampler._inputs import kind_of
from sampler.hf._transformers import cache_of, can_crop
from sampler.phrases import Phrases


class Guard:
    """The one row of a generation, and what of the model belongs to each of its places.

    `text` is that of the phrases.
    """

    def __init__(self, phrases: Phrases, rows: torch.Tensor) -> None:
        self.text = phrases.start(rows[0].tolist())
        # The scores and the arguments of the model, where the text may come back to.
        self._places: dict[int, tuple[torch.Tensor, dict[str, Any]]] = {}
        self._n_put = 0
        self._like = rows

    def keep(self, scores: torch.Tensor, model_kwargs: Mapping[str, Any]) -> None:
        """Keep what the next token is drawn from."""
        cache = cache_of(model_kwargs)
        if cache is not None and not can_crop(cache):
            raise _fixed(cache)
        if not len(self.text) and hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()  # or layers with a window forget what is outside of it
        self._places[len(self.text)] = scores, dict(model_kwargs)

    def take(self, tokens: torch.Tensor, *, is_last: bool) -> int:
        """Take the token that was drawn; return how many the text goes back by."""
        back = self.text.accept(int(tokens[0]))
        if not back and is_last:
            back = self.text.end()
        shown = self.text.n_shown
        self._places = {place: one for place, one in self._places.items() if place >= shown}
        return back

    def go_back(self, n: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the scores and the arguments of the model as they were, n tokens ago."""
        scores, model_kwargs = self._places[len(self.text)]
        self._places = {p: one for p, one in self._places.items() if p <= len(self.text)}
        cache = cache_of(model_kwargs)
        if cache is not None and n > 1:  # the last token is not in it yet
            try:
                cache.crop(1 - n)
            except (RuntimeError, ValueError) as error:
                raise _fixed(cache) from error
        return scores, dict(model_kwargs)

    def to_show(self) -> Iterator[torch.Tensor]:
        """Give the tokens that are new and stay."""
        for token in self.text.tokens[self._n_put : self.text.n_shown]:
            self._n_put += 1
            yield self._like.new_tensor([token])

    def warn_if_given_up(self) -> None:
        """Say that the text ends since nothing but banned phrases would follow."""
        if self.text.gave_up:
            warnings.warn(
                f"the text ends after {len(self.text)} tokens: every token that was tried there "
                f"({self.text.draw}) began a banned phrase",
                stacklevel=8,  # to the caller of `generate`
            )


def _fixed(cache: Any) -> ValueError:
    """Return the error for a cache out of which nothing can be taken."""
    return ValueError(
        f"`banned_phrases` need a cache that can go back, but {kind_of(cache)} cannot: give "
        "use_cache=False, which costs a pass over the whole text for each token, or another "
        "cache_implementation"
    )
