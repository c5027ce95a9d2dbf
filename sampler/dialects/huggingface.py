"""Hugging Face transformers: `GenerationConfig`. `Sampler.from_generation_config` reads it."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

DIALECT = Dialect(
    engine="Hugging Face transformers",
    version="5.24.0",
    keys={
        "temperature": Key("temperature", 1.0),
        "top_h": Key("top_h"),
        "top_k": Key("top_k", 50),
        "top_p": Key("top_p", 1.0),
        "min_p": Key("min_p"),
        "typical_p": Key("typical_p", 1.0),
        "epsilon_cutoff": Key("epsilon_cutoff", 0.0),
        "eta_cutoff": Key("eta_cutoff", 0.0),
        "sequence_bias": Key("sequence_bias"),
        "repetition_penalty": Key("repetition_penalty", 1.0),
        "no_repeat_ngram_size": Key("no_repeat_ngram_size", 0),
        "bad_words_ids": Key("bad_words"),
        "suppress_tokens": Key("suppress_tokens"),
        "begin_suppress_tokens": Key("begin_suppress_tokens"),
        "min_new_tokens": Key("min_new_tokens"),
        "eos_token_id": Key("min_new_tokens.eos_token_id"),
    },
    order="sequence_bias repetition_penalty no_repeat_ngram_size bad_words min_new_tokens "
    "suppress_tokens begin_suppress_tokens temperature top_h top_k top_p min_p typical_p "
    "epsilon_cutoff eta_cutoff",
    greedy_key="do_sample",
    samples=False,
    ties="all",
)
