"""SillyTavern: presets for text completion.

A preset names no engine, and each takes it in its own way: this is text-generation-webui's, but
that `dynatemp` takes the place of `temp`. For another engine, load what SillyTavern sends to it.
"""

from dataclasses import replace

from sampler.dialects._table import Key
from sampler.dialects.text_generation_webui import DIALECT as WEBUI

__all__ = ["DIALECT"]

_NAMES = {
    "temperature": "temp",
    "dynamic_temperature": "dynatemp",
    "dynatemp_low": "min_temp",
    "dynatemp_high": "max_temp",
    "top_n_sigma": "nsigma",
    "repetition_penalty": "rep_pen",
    "repetition_penalty_range": "rep_pen_range",
    "frequency_penalty": "freq_pen",
    "presence_penalty": "presence_pen",
}
_DEFAULTS = {
    "temp": 0.7,
    "min_temp": 0.0,
    "max_temp": 2.0,
    "top_k": 40,
    "top_p": 0.5,
    "rep_pen": 1.2,
    "rep_pen_range": 0,
    "adaptive_target": -0.01,
}
_KEYS = {_NAMES.get(name, name): replace(key, names=()) for name, key in WEBUI.keys.items()}
_ORDER = WEBUI.order.split()

DIALECT = replace(
    WEBUI,
    engine="SillyTavern",
    version="1.19.0",
    keys={
        name: replace(key, default=_DEFAULTS.get(name, key.default)) for name, key in _KEYS.items()
    }
    | {
        "adaptive_target": Key("adaptive_p", -0.01, (-0.01, 0, -1)),
        "logit_bias": Key("logit_bias", []),
    },
    alone={"dynamic_temperature": " ".join(one for one in _ORDER if one != "temperature")},
    # The orders of other engines are passed over, as are the parts of stages that are off.
    others="genamt max_length max_tokens_second streaming add_bos_token skip_special_tokens "
    "spaces_between_special_tokens include_reasoning n preset name speculative_ngram custom_model "
    "generic_model bypass_status_check openrouter_allow_fallbacks send_banned_tokens "
    "json_schema_allow_empty extensions rep_pen_size length_penalty early_stopping samplers "
    "samplers_priorities sampler_order min_keep rep_pen_decay dry_penalty_last_n",
    strict=False,
    refused={
        "tfs": (1,),
        "encoder_rep_pen": (1,),
        "rep_pen_slope": (1,),
        "guidance_scale": (1,),
        "negative_prompt": ("",),
        "grammar_string": ("",),
        "json_schema": ({},),
        "penalty_alpha": (0,),
        "num_beams": (1,),
        "skew": (0,),
        "min_length": (0,),
        "banned_tokens": ("",),
        "global_banned_tokens": ("",),
        "ban_eos_token": (False,),
        "ignore_eos_token": (False,),
    },
)
