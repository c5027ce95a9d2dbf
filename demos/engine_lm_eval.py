"""Let lm-evaluation-harness sample: its generation tasks, with every token drawn by a Sampler.

    pip install "lm-eval[hf]"
    python demos/engine_lm_eval.py

`SamplerLM` is the harness's Hugging Face model, with another `_model_generate`. The settings are
the sampler's; what a task says of sampling (`do_sample`, `temperature` and the like) is not looked
at. Each request has a stream of its own, in the order in which the harness asks, so a score depends
on the seed and not on the batch size. The task here is six sums.
"""

from __future__ import annotations

from typing import Any

import datasets
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM, stop_sequences_criteria

from sampler import Sampler
from sampler.hf import generate_kwargs

SUMS = {
    "task": "sums",
    "custom_dataset": lambda **_: datasets.DatasetDict(
        test=datasets.Dataset.from_list([{"a": a, "b": b} for a in (1, 2, 3) for b in (4, 5)])
    ),
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "1 + 1 = 2\n2 + 2 = 4\n3 + 3 = 6\n{{a}} + {{b}} =",
    "doc_to_target": "{{a + b}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
    ],
}


class SamplerLM(HFLM):
    """`HFLM` that draws with `sampler`; everything else is as there."""

    def __init__(self, pretrained: Any, *, sampler: Sampler, **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)
        self.sampler, self.requests = sampler, 0

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        batch, length = context.shape
        streams = range(self.requests, self.requests + batch)
        self.requests += batch
        return self.model.generate(
            input_ids=context,
            attention_mask=attention_mask,
            max_length=max_length,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, length, batch),
            pad_token_id=self.tokenizer.pad_token_id,
            **generate_kwargs(
                self.sampler, attention_mask=attention_mask, streams=streams, logprobs=None
            ),
        )


def main() -> None:
    from _model import load

    model, tokenizer = load()
    for temperature in (0.2, 1.5):
        s = Sampler(temperature=temperature, seed=7)
        lm = SamplerLM(model, sampler=s, tokenizer=tokenizer, batch_size=4, device="cpu")
        results = simple_evaluate(lm, tasks=[SUMS], bootstrap_iters=0)["results"]["sums"]
        print(f"temperature {temperature}: {results['exact_match,strip']:.2f} of the sums right")


if __name__ == "__main__":
    main()
