"""The settings of other libraries' configurations, as `Sampler` takes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

from sampler._inputs import kind_of
from sampler.stages import STAGES

# What `generate(do_sample=True)` takes for a field that is unset, where that is not off.
_HF_DEFAULTS = {"top_k": 50}

# Field -> the values that ask for nothing, besides None, False and empty ones. First the stages of
# a draw, which greedy decoding ignores: a greedy card that sets one of ours to anything else gets a
# warning.
_STAGES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 1.0),
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),  # 1.0 too cuts to 100 tokens
}
_SETTINGS = [name for name in _STAGES if name in STAGES]
_UNSUPPORTED_STAGES = [name for name in _STAGES if name not in STAGES]
# These change the logits before any draw, greedy ones too: the first that we have, then the others.
_EDITS: dict[str, tuple[Any, ...]] = {"suppress_tokens": ()}
_PROCESSORS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "remove_invalid_values": (),
}
# Not a draw per token, or, as a watermark, applied after it.
_ALGORITHMS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "assistant_ensemble_weight": (),
    "watermarking_config": (),
}
_OF_THE_DRAW = {
    "do_sample": (),
    **_STAGES,
    **_EDITS,
    **_PROCESSORS,
    **_ALGORITHMS,
}
# Arguments of Sampler that are not fields of a configuration.
_SAMPLER_ONLY = (
    *("seed", "rng", "step", "on_invalid", "min_tokens_to_keep", "ties", "threads"),
    *(name for name in STAGES if name not in _STAGES and name not in _EDITS),
)
# Sampling settings of vLLM, llama.cpp and others. generate() ignores them, but the card's author
# wanted an effect.
_OF_OTHERS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_SAMPLER_ONLY, ()),
    "min_tokens_to_keep": (1,),
    "seed": (-1,),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_tokens", "top_a"), (0,)),
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range"), (0,)),
    **dict.fromkeys(("smoothing_factor", "adaptive_target"), (0,)),
    **dict.fromkeys(
        ("repeat_penalty", "rep_pen", "temp", "typ_p", "tfs", "tfs_z", "best_of"), (1,)
    ),
    "top_n_sigma": (0, -1),
    **dict.fromkeys(("logit_bias", "bad_words", "allowed_token_ids", "use_beam_search"), ()),
}
_OFF = {**_OF_THE_DRAW, **_OF_OTHERS}
# Lengths, caches, outputs, special tokens: they do not change how a token is drawn.
_IGNORED_FIELDS = {
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

    A field that a ``GenerationConfig`` does not have is ignored, as ``generate()`` ignores it,
    unless it is a misspelling or another library's sampling setting that is on.

    Parameters
    ----------
    config : transformers.GenerationConfig, or the mapping that a generation_config.json holds
    changes : mapping
        Fields to replace before they are read (None switches one off), and arguments of `Sampler`.

    Returns
    -------
    dict
        Keyword arguments of `Sampler`.

    Raises
    ------
    TypeError
        If `config` is neither of these, or a change is not a field.
    ValueError
        If fields ask for what a Sampler does not do. One message says what to type for all.

    Warns
    -----
    UserWarning
        If sampling settings have no effect, because ``do_sample`` is not True.
    """
    fields = _fields_of(config)
    for name, default in _HF_DEFAULTS.items():
        if fields.get(name) is None:
            fields[name] = default
    known = fields.keys() | _OF_THE_DRAW.keys() | _IGNORED_FIELDS | set(_SAMPLER_ONLY)
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
    own = {name: fields.pop(name) for name in _SAMPLER_ONLY if name in changes}
    asked = {name: value for name, value in fields.items() if _asks(name, value)}
    refused = [
        name
        for name in asked
        if name not in (*_SETTINGS, *_EDITS) and (draws or name not in _UNSUPPORTED_STAGES)
    ]
    if refused:
        taken = asked.keys() | changes.keys() | ({"do_sample"} if draws is not None else set())
        raise ValueError(_refusal({name: asked[name] for name in refused}, changes, taken))
    if draws:
        settings = {name: fields.get(name) for name in _SETTINGS}
        settings["ties"] = "all"  # Hugging Face's rule
    else:
        if draws is None:
            _check_not_of_parts(config, fields, changes)
        _warn_of_greedy({k: v for k, v in asked.items() if k not in _EDITS}, changes)
        settings = {"temperature": 0.0}
    settings |= {name: asked[name] for name in _EDITS if name in asked}
    return settings | {name: value for name, value in own.items() if value is not None}


def _fields_of(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict") and hasattr(config, "do_sample"):
        return dict(config.to_dict())
    kind = kind_of(config)
    if isinstance(config, (str, PathLike)):
        kind += ": read a file with json.load, a model's by GenerationConfig.from_pretrained"
    raise TypeError(f"`config` has to be a GenerationConfig or a mapping, but is a {kind}")


def _asks(name: str, value: Any) -> bool:
    if value is None or value is False or (isinstance(value, (Sequence, Mapping)) and not value):
        return False
    off = _OFF.get(_meant(name))
    # Of an array, which has one value per row, `in` would compare each.
    return off is not None and bool(getattr(value, "ndim", 0) or value not in off)


def _meant(name: str) -> str:
    """Return the field that `name` is, or is a misspelling of."""
    if name in _OFF or name in _IGNORED_FIELDS:
        return name
    # 0.86 lets the fields of published cards pass, text_temperature for example.
    near = get_close_matches(str(name).lower().replace("-", "_"), _OF_THE_DRAW, n=1, cutoff=0.86)
    return near[0] if near else name


def _refusal(asked: Mapping[str, Any], changes: Mapping[str, Any], taken: set[str]) -> str:
    # Of many fields only the first are shown: misspelled ones, then what generate() does not apply.
    order = sorted(asked, key=lambda name: (_meant(name) == name, name in _PROCESSORS, name))
    more: dict[str, Any] = {}
    for name in order:
        more[name] = None
        meant, value = _meant(name), asked[name]
        is_ours = meant in _SETTINGS or meant in _EDITS or (meant == "do_sample" and value is True)
        if meant not in taken and is_ours:
            more.setdefault(meant, value)
    applied = [name for name in order if name in _PROCESSORS]
    lost = [name for name in order if name not in _PROCESSORS]
    if not applied:
        do = "Instead" if len(more) > len(order) else "To go without"
    else:
        these = "these" if len(applied) > 1 else "this"
        if lost:
            few = len(lost) < len(applied)
            these = f"all but {', '.join(lost)}" if few else ", ".join(applied)
        do = f"model.generate() applies {these} before the draw"
    return (
        "`config` asks for what a Sampler does not do: "
        f"{', '.join(_shown({name: asked[name] for name in order}))}. {do}: {_call(changes, more)}"
    )


def _warn_of_greedy(asked: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    if "do_sample" in changes:  # the caller asks for greedy, whatever the card has
        asked = {name: value for name, value in asked.items() if name in changes}
    if asked:
        *others, last = _shown(asked)
        these = f"{', '.join(others)} {last if len(asked) > 3 else f'and {last}'} have"
        stages = dict.fromkeys(name for name in asked if name in _UNSUPPORTED_STAGES)
        rest = {name: value for name, value in changes.items() if name not in asked}
        warnings.warn(
            "`do_sample` is not True, so the sampler is greedy, as generate() is: "
            f"{these if others else f'{last} has'} no effect. "
            f"To sample: {_call(changes, {'do_sample': True, **stages})}; "
            f"to stay greedy without this warning: {_call(rest, {'do_sample': False})}",
            stacklevel=4,
        )


def _check_not_of_parts(config: Any, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value.keys() & {"do_sample", *_SETTINGS}:
            part = f"[{name!r}]" if isinstance(config, Mapping) else f".{name}"
            raise ValueError(
                "`config` has sampling settings for each part of the model. Choose one: "
                f"{_call(changes, {}, part)}"
            )


def _call(changes: Mapping[str, Any], more: Mapping[str, Any], part: str = "") -> str:
    """Return the call to type."""
    arguments = [
        f"{name}={value!r}" if name.isidentifier() else f"**{{{name!r}: {value!r}}}"
        for name, value in {**changes, **more}.items()
    ]
    return f"Sampler.from_generation_config({', '.join([f'config{part}', *arguments])})"


def _shown(asked: Mapping[str, Any]) -> list[str]:
    shown, misspelled = [], 0
    for name, value in asked.items():
        text = repr(value)
        if len(text) > 24:
            text = f"{text[:20]}...{text[-1]}"
        meant = _meant(name)
        if name in _SAMPLER_ONLY:
            text += " (an argument, not a field)"
        elif meant != name:
            text += f" ({meant}?)"
            misspelled += 1
        elif name in _OF_OTHERS:
            text += " (transformers ignores it)"
        shown.append(f"{name}={text}")
    first = len(shown) if len(shown) <= 3 else max(2, misspelled)
    rest = len(shown) - first
    return [*shown[:first], f"and {rest} more"] if rest else shown
