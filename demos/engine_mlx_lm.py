"""Sample in mlx-lm: a callable for `sampler=`, which takes log-probabilities and returns ids.

    pip install "mlx[cpu]" mlx-lm      # on a Mac: pip install mlx-lm
    python demos/engine_mlx_lm.py

mlx-lm hands over rows and nothing else, so the callable keeps the text itself, and one callable
serves one text. mlx-lm asks for a token more than it returns, for it works one token ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampler import Sampler
from sampler.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    import mlx.core as mx

PROMPT = "Once upon a time, there was a lighthouse"


class MLXSampler:
    """Draw the tokens of one text; `prompt` is what the text begins with."""

    def __init__(self, s: Sampler, prompt: Sequence[int]) -> None:
        self.s, self.history = s, History(prompt)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Take a row of shape (1, vocab), and return a token of shape (1,)."""
        import mlx.core as mx

        h = self.history
        row = logprobs.astype(mx.float32)  # NumPy has no bfloat16
        tokens = self.s.sample(row, history=[h], steps=[len(h)]).tokens
        h.accept(tokens[0])
        return mx.array(tokens)


def main() -> None:
    from mlx_lm import generate
    from mlx_lm import load as load_mlx

    from _model import load

    tokenizer = load()[1]
    model, _ = load_mlx(tokenizer.name_or_path)  # the folder
    prompt = tokenizer.encode(PROMPT)
    s = Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=7)
    text = generate(model, tokenizer, prompt, max_tokens=40, sampler=MLXSampler(s, prompt))
    print(PROMPT + text)


if __name__ == "__main__":
    main()
