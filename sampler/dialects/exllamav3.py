"""exllamav3 with TabbyAPI: the bodies of its server, and its files of sampler overrides."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

_PENALTIES = "repetition_penalty presence_penalty frequency_penalty"

DIALECT = Dialect(
    engine="exllamav3",
    version="1.6.5 of October 2026, and TabbyAPI of that autumn",
    keys={
        "temperature": Key("temperature", 1.0),
        "top_k": Key("top_k", 0, floor=(0, 0)),
        "top_p": Key("top_p", 1.0),
        "min_p": Key("min_p", 0.0),
        "xtc_probability": Key("xtc", 0.0),
        "xtc_threshold": Key("xtc.threshold", 0.1),
        "repetition_penalty": Key("repetition_penalty", 1.0, names=("rep_pen",)),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "presence_penalty": Key("presence_penalty", 0.0),
        "penalty_range": Key(
            " ".join(f"{name}.window" for name in _PENALTIES.split()), -1, (0,), (-1,),
            names=("repetition_range", "repetition_penalty_range", "rep_pen_range"),
        ),
        "repetition_decay": Key(" ".join(f"{name}.decay" for name in _PENALTIES.split()), 0),
        "dry_multiplier": Key("dry", 0.0),
        "dry_base": Key("dry.base", 1.75),
        "dry_allowed_length": Key("dry.allowed_length", 2),
        "dry_range": Key("dry.window", 0, none=(0, -1)),
        "dry_penalty_last_n": Key("dry.window", None, (0,), (-1,)),
        "dry_sequence_breakers": Key("dry.breakers", list(".,!?<>[](){}\n\t\"")),
        "banned_tokens": Key("suppress_tokens", names=("custom_token_bans",)),
        "logit_bias": Key("logit_bias"),
        "adaptive_target": Key("adaptive_p", 1.0, (1,)),
        "adaptive_decay": Key("adaptive_p.decay", 0.9),
    },
    order=f"logit_bias {_PENALTIES} dry suppress_tokens temperature top_k top_p min_p xtc "
    "adaptive_p",
    last_key="temperature_last",
    last_before="xtc",
    sees_prompt=f"{_PENALTIES} dry",
    fixed={"xtc.expected": True},
    ties="all",
    wraps="override",
    others="max_tokens max_completion_tokens max_length stop stop_sequence token_healing "
    "add_bos_token logprobs top_logprobs loop_detect_window stall_guard_tokens model prompt "
    "messages stream stream_options n best_of echo suffix user skip_special_tokens "
    "generate_window speculative_ngram add_generation_prompt template_vars prompt_template "
    "response_prefix tools tool_choice functions",
    ignored="max_temp min_temp dynatemp_high dynatemp_low temp_exponent dynatemp_exponent "
    "smoothing_factor top_a tfs skew typical typical_p mirostat_mode mirostat mirostat_tau "
    "mirostat_eta ban_eos_token ignore_eos allowed_tokens allowed_token_ids",
    refused={
        "min_tokens": (0,),
        "min_length": (0,),
        "json_schema": (),
        "regex_pattern": ("",),
        "grammar_string": ("",),
        "response_format": ({"type": "text"},),
        "banned_strings": ([],),
        "reasoning_override": (),
        "cfg_scale": (1.0,),
        "guidance_scale": (1.0,),
        "negative_prompt": ("",),
    },
)  # fmt: skip
