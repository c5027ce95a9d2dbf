"""llama.cpp: the JSON of its server, and the flags of its commands."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

_PENALTIES = "repetition_penalty frequency_penalty presence_penalty"
_NAMES = {
    "penalties": _PENALTIES,
    "dry": "dry",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "typ_p": "typical_p",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc": "xtc",
    "temperature": "temperature dynamic_temperature",
    "adaptive_p": "adaptive_p",
}

DIALECT = Dialect(
    engine="llama.cpp",
    version="commit 0c1e57098 of autumn 2026, that of llama-cpp-python 0.3.36",
    keys={
        "temperature": Key(
            "temperature", 0.8, floor=(0, 0), names=("temp", "--temp", "--temperature")
        ),
        "dynatemp_range": Key("dynamic_temperature.range", 0.0, (0,), names=("--dynatemp-range",)),
        "dynatemp_exponent": Key("dynamic_temperature.exponent", 1.0, names=("--dynatemp-exp",)),
        "top_k": Key("top_k", 40, floor=(0, 0), names=("--top-k",)),
        "top_p": Key("top_p", 0.95, names=("--top-p",)),
        "min_p": Key("min_p", 0.05, floor=(0, 0), names=("--min-p",)),
        "typical_p": Key("typical_p", 1.0, names=("--typical", "--typical-p")),
        "top_n_sigma": Key(
            "top_n_sigma", -1.0, (-1,), floor=(0, 0), names=("--top-nsigma", "--top-n-sigma")
        ),
        "xtc_probability": Key("xtc", 0.0, names=("--xtc-probability",)),
        "xtc_threshold": Key("xtc.threshold", 0.1, names=("--xtc-threshold",)),
        "repeat_penalty": Key("repetition_penalty", 1.0, names=("--repeat-penalty",)),
        "repeat_last_n": Key(
            "repetition_penalty.window frequency_penalty.window presence_penalty.window",
            64, (0,), (-1,), names=("--repeat-last-n",),
        ),
        "frequency_penalty": Key("frequency_penalty", 0.0, names=("--frequency-penalty",)),
        "presence_penalty": Key("presence_penalty", 0.0, names=("--presence-penalty",)),
        "dry_multiplier": Key("dry", 0.0, names=("--dry-multiplier",)),
        "dry_base": Key("dry.base", 1.75, names=("--dry-base",)),
        "dry_allowed_length": Key("dry.allowed_length", 2, names=("--dry-allowed-length",)),
        "dry_penalty_last_n": Key(
            "dry.window", 64, (0,), (-1,), names=("--dry-penalty-last-n",)
        ),
        "dry_sequence_breakers": Key(
            "dry.breakers", ["\n", ":", '"', "*"], names=("--dry-sequence-breaker",)
        ),
        "mirostat": Key("mirostat", 0, names=("--mirostat",)),
        "mirostat_tau": Key("mirostat.tau", 5.0, names=("--mirostat-ent",)),
        "mirostat_eta": Key("mirostat.eta", 0.1, names=("--mirostat-lr",)),
        "adaptive_target": Key("adaptive_p", -1.0, (-1,), names=("--adaptive-target",)),
        "adaptive_decay": Key("adaptive_p.decay", 0.9, names=("--adaptive-decay",)),
        "logit_bias": Key("logit_bias", none=(False,), names=("--logit-bias", "-l")),
        "seed": Key("seed", None, none=(-1, 2**32 - 1), names=("--seed", "-s")),
        "min_keep": Key("min_tokens_to_keep", 0, none=(0,), names=("--min-keep",)),
    },
    order=f"logit_bias {_PENALTIES} dry top_n_sigma top_k typical_p top_p min_p xtc temperature "
    "dynamic_temperature mirostat",
    order_key="samplers",
    order_names=dict(zip("edskypmxta", _NAMES.values(), strict=True)) | _NAMES,
    alone={"mirostat": "logit_bias temperature"},
    sees_prompt=f"{_PENALTIES} dry",
    form="flags",
    more_flags={
        **dict.fromkeys(("--samplers", "--sampling-seq", "--sampler-seq"), "samplers"),
        **dict.fromkeys(("--grammar", "--grammar-file"), "grammar"),
        **dict.fromkeys(("--json-schema", "--json-schema-file", "-j", "-jf"), "json_schema"),
        "--ignore-eos": "ignore_eos",
    },
    others="prompt n_predict max_tokens max_completion_tokens n_indent n_keep n_discard n_cmpl n "
    "n_cache_reuse t_max_predict_ms t_max_prompt_ms stop stream stream_options cache_prompt "
    "return_tokens return_progress sse_ping_interval timings_per_token verbose response_fields "
    "n_probs logprobs top_logprobs post_sampling_probs id_slot lora backend_sampling echo "
    "chat_format reasoning_format parse_tool_calls chat_parser continue_final_message "
    "generation_prompt preserved_tokens model image_data multimodal_data n_ctx messages "
    "chat_template_kwargs reasoning_effort parallel_tool_calls user",
    refused={
        "grammar": ("",),
        "grammar_lazy": (False,),
        "grammar_triggers": ([],),
        "json_schema": (),
        "response_format": (),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "ignore_eos": (False,),
        "reasoning_budget_tokens": (-1,),
        "tfs_z": (1.0,),
    },
)  # fmt: skip
