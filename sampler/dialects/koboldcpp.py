"""KoboldCpp: the bodies of its API, and saved settings of its interface.

Not read: a first top-k of 3,000 tokens that it always has, to save time.
"""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

_PENALTIES = "repetition_penalty presence_penalty"
_TEMPERED = "temperature dynamic_temperature smoothing"

DIALECT = Dialect(
    engine="KoboldCpp",
    version="1.102, and gpttype_adapter.cpp of late 2026",
    keys={
        "temperature": Key("temperature", 0.75, floor=(0, 0)),
        "dynatemp_range": Key("dynamic_temperature.range", 0.0, (0,)),
        "dynatemp_exponent": Key("dynamic_temperature.exponent", 1.0),
        "smoothing_factor": Key("smoothing", 0.0, floor=(0, 0)),
        "smoothing_curve": Key("smoothing.curve", 1.0),
        "nsigma": Key("top_n_sigma", 0.0, floor=(0, 0)),
        "top_k": Key("top_k", 100, floor=(0, 0)),
        "top_a": Key("top_a", 0.0, floor=(0, 0)),
        "top_p": Key("top_p", 0.92),
        "min_p": Key("min_p", 0.0, floor=(0, 0)),
        "typical": Key("typical_p", 1.0, names=("typ_s",)),
        "tfs": Key("tail_free", 1.0, names=("tfs_s",)),
        "rep_pen": Key(
            "repetition_penalty", 1.0, floor=(1, 1), names=("repeat_penalty", "repetition_penalty")
        ),
        "rep_pen_range": Key(
            "repetition_penalty.window presence_penalty.window", 320, floor=(1, 1)
        ),
        "presence_penalty": Key("presence_penalty", 0.0),
        "mirostat": Key("mirostat", 0, names=("miro_type",)),
        "mirostat_tau": Key("mirostat.tau", 5.0, names=("miro_tau",)),
        "mirostat_eta": Key("mirostat.eta", 0.1, names=("miro_eta",)),
        "dry_multiplier": Key("dry", 0.0, floor=(0, 0)),
        "dry_base": Key("dry.base", 1.75),
        "dry_allowed_length": Key("dry.allowed_length", 2),
        "dry_penalty_last_n": Key("dry.window", 320, none=(0, -1)),
        "dry_sequence_breakers": Key("dry.breakers"),
        "xtc_threshold": Key("xtc.threshold", 0.2),
        "xtc_probability": Key("xtc", 0.0, floor=(0, 0)),
        "adaptive_target": Key("adaptive_p", -1.0, (-1, 0), names=("adaptivep_target",)),
        "adaptive_decay": Key("adaptive_p.decay", 0.9, names=("adaptivep_decay",)),
        "logit_bias": Key("logit_bias", {}, bias_limit=100.0),
        "sampler_seed": Key("seed", -1, none=(-1, 0)),
    },
    order=f"logit_bias dry {_PENALTIES} top_k top_a tail_free typical_p top_p min_p {_TEMPERED} "
    "top_n_sigma xtc mirostat adaptive_p",
    order_key="sampler_order",
    order_names={
        0: "top_k",
        1: "top_a",
        2: "top_p min_p",
        3: "tail_free",
        4: "typical_p",
        5: f"{_TEMPERED} top_n_sigma",
        6: _PENALTIES,
    },
    alone={"mirostat": f"logit_bias {_PENALTIES} temperature smoothing"},
    sees_prompt=f"{_PENALTIES} dry",
    others="prompt memory max_context_length max_length genamt stop_sequence trim_stop genkey "
    "stream images audio render_special bypass_eos logprobs quiet adapter n model "
    "replace_instruct_placeholders frmttriminc frmtrmblln frmtrmspch frmtadsnsp singleline "
    "single_line use_story use_memory use_authors_note use_world_info use_userscripts soft_prompt "
    "disable_input_formatting disable_output_formatting gui_settings can_abort streaming "
    "api_server preset extensions seed frequency_penalty",
    strict=False,
    refused={
        "grammar": ("",),
        "guidance_scale": (1.0,),
        "negative_prompt": ("",),
        "banned_tokens": ([],),
        "banned_strings": ([],),
        "custom_token_bans": ("",),
        "ban_eos_token": (False,),
        "use_default_badwordsids": (False,),
        "rep_pen_slope": (1.0,),
        "using_openai_tools": (False,),
        "reasoning_effort": ("", "high"),
    },
)
