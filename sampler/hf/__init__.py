"""The Hugging Face layer: our draw inside ``model.generate()``, or our filters before theirs.

The one line::

    model.generate(**inputs, **generate_kwargs(s, attention_mask=inputs["attention_mask"]))

`generate` runs under ``do_sample=False``. `SamplingLogitsProcessor` is terminal: it draws each
row's token and returns scores that leave it no rival, so the argmax that follows picks it,
whatever of Hugging Face's sampling runs after it. Its filters, softmax and multinomial never run.

`FilterLogitsProcessor` and `filter_kwargs` are the other way round: our temperature and filters,
Hugging Face's draw. `generate` is a loop of our own; `score` returns for an existing text what a
sampler would have reported while drawing it.

One concern per file: `_sampling` is our draw, with its `_record` of a generation, the `_masks` of
its prompts and the `_grammar` of its outputs; `_texts` reads the text so far from the rows, and
`_breakers` makes what ends a repetition in it out of strings; `_filtering`, `_scoring`,
`_generation` and `_expansion` have what their names say; `_use` warns of a processor that is never
called; `_transformers` is what all of this leans on inside transformers.
"""

from sampler._build import install

try:
    from sampler.hf._breakers import dry_breakers
    from sampler.hf._expansion import expand_inputs
    from sampler.hf._filtering import FilterLogitsProcessor, filter_kwargs
    from sampler.hf._generation import GenerateOutput, generate
    from sampler.hf._grammar import json_grammar
    from sampler.hf._sampling import SamplingLogitsProcessor, generate_kwargs
    from sampler.hf._scoring import score
except ImportError as error:
    raise ImportError(
        f"sampler.hf needs torch, and transformers 5 or newer ({error}); they come with "
        f"{install('hf')}"
    ) from error

__all__ = [
    "FilterLogitsProcessor",
    "GenerateOutput",
    "SamplingLogitsProcessor",
    "dry_breakers",
    "expand_inputs",
    "filter_kwargs",
    "generate",
    "generate_kwargs",
    "json_grammar",
    "score",
]

# Pickles and messages name the public path.
for _public in __all__:
    globals()[_public].__module__ = __name__
