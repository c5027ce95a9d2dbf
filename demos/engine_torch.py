"""Write a batch of texts in a PyTorch loop with a cache of keys and values.

    python demos/engine_torch.py

The step of a draw is the length of its text, and the stream is the row: so the tokens are those of
`model.generate(**generate_kwargs(s))`, with or without padding. A penalty or another setting that
looks at the text gets it from the histories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sampler import Sampler
from sampler.history import History

if TYPE_CHECKING:
    import torch

PROMPTS = ["The lighthouse", "Once upon a time, there was a", "My favourite recipe is"]


def write(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    s: Sampler,
    max_new_tokens: int,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """Return the new tokens of each row of a left-padded batch."""
    import torch

    histories = History.from_batch(input_ids, attention_mask)
    going = list(range(len(histories)))  # rows that have not ended
    ids, mask, cache = input_ids, attention_mask, {}
    for _ in range(max_new_tokens):
        places = mask.cumsum(dim=1).sub(1).clamp(min=0)[:, -ids.shape[1] :]  # padding has none
        with torch.no_grad():
            o = model(ids, attention_mask=mask, position_ids=places, **cache, use_cache=True)
        name = "cache" if "cache" in o else "past_key_values"  # before transformers 5.24
        cache = {name: o[name]}
        texts = [histories[row] for row in going]
        drawn = s.sample(
            o.logits[going, -1], history=texts, streams=going, steps=[len(h) for h in texts]
        ).tokens
        for h, token in zip(texts, drawn.tolist(), strict=True):
            h.accept(token)
        going = [row for row in going if histories[row].output[-1] != eos_token_id]
        if not going:
            break
        # An ended row goes on with its end, so that the batch and its cache keep their shape.
        ids = torch.tensor([h.output[-1:] for h in histories])
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return [h.output for h in histories]


def main() -> None:
    from _model import load

    model, tokenizer = load()
    inputs = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    s = Sampler(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=7)
    end = tokenizer.eos_token_id
    texts = write(model, **inputs, s=s, max_new_tokens=30, eos_token_id=end)
    for prompt, new in zip(PROMPTS, texts, strict=True):
        print(f"{prompt}{tokenizer.decode(new)}\n")


if __name__ == "__main__":
    main()
