"""The settings of other libraries' configurations, as `Sampler` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampler._inputs import kind_of

# What `generate(do_sample=True)` takes for a field that is unset.
_UNSET = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}

# Field -> the values that switch it off. Of draws that `generate(do_sample=True)` makes with any
# other value, no stage of a Sampler has the law.
_STAGES_NOT_COVERED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),  # 1.0 too cuts to 100 tokens
}
# These change the logits before any draw, greedy ones too.
_PROCESSORS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "remove_invalid_values": (),
}
# Another algorithm than a draw a token.
_ALGORITHMS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "assistant_ensemble_weight": (),
}
_OFF = {**_STAGES_NOT_COVERED, **_PROCESSORS, **_ALGORITHMS}
# Lengths, caches, outputs, special tokens: nothing of how a token is drawn.
_NOT_OF_THE_DRAW = {
    *("max_length", "max_new_tokens", "max_time", "stop_strings", "token_healing"),
    *("early_stopping", "length_penalty", "num_return_sequences", "renormalize_logits"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("return_legacy_cache", "prefill_chunk_size", "compile_config", "disable_compile"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "continuous_batching_config", "generation_kwargs"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("speculation_type", "use_mtp", "transformers_version"),
}


def from_generation_config(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the `Sampler` that draws as ``generate()`` would under a ``GenerationConfig``.

    Parameters
    ----------
    config : transformers.GenerationConfig, or the mapping that a generation_config.json holds
    changes : mapping
        Fields to replace before they are read; None switches one off.

    Returns
    -------
    dict
        Keyword arguments of `Sampler`.

    Raises
    ------
    TypeError
        If `config` is neither of these, or a change is of no field.
    ValueError
        If fields ask for what a Sampler does not do, or are unknown; all are named.
    """
    fields = _fields_of(config)
    for name, default in _UNSET.items():
        if fields.get(name) is None:
            fields[name] = default
    known = fields.keys() | _OFF.keys() | _NOT_OF_THE_DRAW | {"do_sample"}
    for name in changes:
        if name not in known:
            raise TypeError(
                f"`{name}` has to be a field of a GenerationConfig or a setting of a Sampler, but "
                "is neither"
            )
    fields |= changes  # where None means off
    draws = fields.pop("do_sample", None)
    if not isinstance(draws, (bool, type(None))):
        raise TypeError(f"`do_sample` has to be a bool, but is {draws!r}")
    settings = {name: fields.pop(name) for name in _UNSET}
    refused, unknown = [], []
    for name, value in fields.items():
        if str(name).startswith("_") or name in _NOT_OF_THE_DRAW or value is None or value is False:
            continue
        if name not in _OFF:
            unknown.append(name)
        elif value not in _OFF[name] and (draws or name not in _STAGES_NOT_COVERED):
            refused.append(name)
    if unknown:
        raise ValueError(
            f"`config` has to hold fields of a GenerationConfig, but has {_list(unknown, fields)}; "
            f"to go without, pass {unknown[0]}=None"
        )
    if refused:
        instead = f"to go without, pass {refused[0]}=None"
        if any(name in _PROCESSORS for name in refused):
            instead += ", also where `model.generate()` will do it, before the draw"
        raise ValueError(
            "`config` has to ask for what a Sampler does, but has "
            f"{_list(refused, fields)}; {instead}"
        )
    if not draws:
        return {"temperature": 0.0}
    # Hugging Face's rule.
    return {**settings, "ties": "all"}


def _fields_of(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict") and hasattr(config, "do_sample"):
        return dict(config.to_dict())
    kind = kind_of(config)
    raise TypeError(f"`config` has to be a GenerationConfig or a mapping, but is a {kind}")


def _list(names: list[str], fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={fields[name]!r}" for name in names)
