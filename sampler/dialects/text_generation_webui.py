"""text-generation-webui: presets as YAML, and the bodies of its server.

As the Transformers loader and the `_HF` ones take them; others know fewer settings.
"""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

_PENALTIES = "repetition_penalty presence_penalty frequency_penalty"
_NAMES = {
    **{name: name for name in (*_PENALTIES.split(), "dry", "top_n_sigma")},
    **{name: name for name in ("temperature", "dynamic_temperature")},
    "quadratic_sampling": "smoothing",
    **{name: name for name in ("top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff")},
    "tfs": "",
    **{name: name for name in ("top_a", "min_p", "adaptive_p", "mirostat", "xtc")},
    "encoder_repetition_penalty": "",
    "no_repeat_ngram": "no_repeat_ngram_size",
}

DIALECT = Dialect(
    engine="text-generation-webui",
    version="presets.py of 2025, with the API of 2026",
    keys={
        "temperature": Key("temperature", 1.0),
        "dynamic_temperature": Key("dynamic_temperature!", False),
        "dynatemp_low": Key("dynamic_temperature.low", 1.0),
        "dynatemp_high": Key("dynamic_temperature.high", 1.0),
        "dynatemp_exponent": Key("dynamic_temperature.exponent", 1.0),
        "smoothing_factor": Key("smoothing", 0.0),
        "smoothing_curve": Key("smoothing.curve", 1.0),
        "top_n_sigma": Key("top_n_sigma", 0.0, floor=(0, 0)),
        "top_k": Key("top_k", 0),
        "top_p": Key("top_p", 1.0),
        "min_p": Key("min_p", 0.0),
        "typical_p": Key("typical_p", 1.0),
        "xtc_threshold": Key("xtc.threshold", 0.1),
        "xtc_probability": Key("xtc", 0.0),
        "epsilon_cutoff": Key("epsilon_cutoff", 0.0, per=1e4),
        "eta_cutoff": Key("eta_cutoff", 0.0, per=1e4),
        "top_a": Key("top_a", 0.0),
        "dry_multiplier": Key("dry", 0.0, floor=(0, 0)),
        "dry_allowed_length": Key("dry.allowed_length", 2),
        "dry_base": Key("dry.base", 1.75),
        "dry_sequence_breakers": Key("dry.breakers", ["\n", ":", '"', "*"]),
        "repetition_penalty": Key("repetition_penalty", 1.0),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "presence_penalty": Key("presence_penalty", 0.0, names=("additive_repetition_penalty",)),
        "repetition_penalty_range": Key(
            " ".join(f"{name}.window" for name in (*_PENALTIES.split(), "dry")), 1024, none=(0,)
        ),
        "no_repeat_ngram_size": Key("no_repeat_ngram_size", 0),
        "mirostat_mode": Key("mirostat", 0),
        "mirostat_tau": Key("mirostat.tau", 5.0),
        "mirostat_eta": Key("mirostat.eta", 0.1),
        "adaptive_target": Key("adaptive_p", 0.0, (0, -1)),
        "adaptive_decay": Key("adaptive_p.decay", 0.9),
        "logit_bias": Key("logit_bias"),
        "seed": Key("seed", -1, none=(-1,)),
    },
    order=f"logit_bias {' '.join(_NAMES.values())}",
    order_key="sampler_priority",
    order_names=_NAMES,
    unlisted="first",
    last_key="temperature_last",
    greedy_key="do_sample",
    sees_prompt=f"{_PENALTIES} dry",
    ties="all",
    others="max_new_tokens max_tokens max_completion_tokens auto_max_new_tokens max_tokens_second "
    "max_updates_second prompt_lookup_num_tokens static_cache truncation_length add_bos_token "
    "skip_special_tokens stream stream_options stop custom_stopping_strings enable_thinking "
    "reasoning_effort model prompt messages best_of echo suffix user n logprobs top_logprobs tools "
    "tool_choice functions function_call mode instruction_template instruction_template_str "
    "character name1 name2 bot_name user_name user_bio context greeting chat_template_str "
    "chat_instruct_command continue_ length_penalty early_stopping",
    refused={
        "tfs": (1.0,),
        "encoder_repetition_penalty": (1.0,),
        "guidance_scale": (1.0,),
        "negative_prompt": ("",),
        "penalty_alpha": (0,),
        "num_beams": (1,),
        "grammar_string": ("",),
        "min_length": (0,),
        "ban_eos_token": (False,),
        "custom_token_bans": ("",),
        "preset": (),
    },
)
