"""What other libraries call things: the tables for reading configurations and for messages."""

from __future__ import annotations

from typing import Any

from sampler.stages.settings import STAGES

# Names of llama.cpp, vLLM, mlx-lm, NumPy, torch and the habits of many: ours that means the same.
SAME = {
    **dict.fromkeys(("temp", "t", "temperatures"), "temperature"),
    **dict.fromkeys(("k", "topk", "top_k_sampling"), "top_k"),
    **dict.fromkeys(("p", "topp", "nucleus", "nucleus_p", "top_p_sampling"), "top_p"),
    **dict.fromkeys(("minp", "min_prob", "min_probability"), "min_p"),
    "min_keep": "min_tokens_to_keep",
    **dict.fromkeys(("dynatemp_low", "dynatemp_high", "dynatemp_exponent"), "dynamic_temperature"),
    **dict.fromkeys(("min_temp", "max_temp", "temp_exponent"), "dynamic_temperature"),
    **dict.fromkeys(("dynatemp", "dynatemp_exp", "dynatemp_range"), "dynamic_temperature"),
    **dict.fromkeys(("smoothing_factor", "smoothing_curve", "quadratic_sampling"), "smoothing"),
    **dict.fromkeys(("typical", "typ_p"), "typical_p"),
    **dict.fromkeys(("epsilon", "eps_cutoff"), "epsilon_cutoff"),
    "eta": "eta_cutoff",
    **dict.fromkeys(("tfs", "tfs_z"), "tail_free"),
    **dict.fromkeys(("top_nsigma", "nsigma"), "top_n_sigma"),
    **dict.fromkeys(("xtc_threshold", "xtc_probability", "xtc_special_tokens"), "xtc"),
    **dict.fromkeys(("mirostat_mode", "mirostat_tau", "mirostat_eta"), "mirostat"),
    **dict.fromkeys(("adaptive_target", "adaptive_decay"), "adaptive_p"),
    **dict.fromkeys(("repeat_penalty", "rep_pen", "rep_p"), "repetition_penalty"),
    **dict.fromkeys(("freq_pen", "penalty_freq"), "frequency_penalty"),
    **dict.fromkeys(("presence_pen", "penalty_present"), "presence_penalty"),
    **dict.fromkeys(("dry_multiplier", "dry_base", "dry_allowed_length"), "dry"),
    "min_tokens": "min_new_tokens",
    **dict.fromkeys(("banned_tokens", "suppressed_tokens", "bad_tokens"), "suppress_tokens"),
    **dict.fromkeys(("random_seed", "manual_seed", "random_state", "rng_seed"), "seed"),
    "generator": "rng",
    **dict.fromkeys(("n_threads", "num_threads", "workers", "num_workers", "n_jobs"), "threads"),
    **dict.fromkeys(("num_samples", "n_samples", "size", "num_draws"), "n"),
    **dict.fromkeys(("top_logprobs", "n_probs", "return_logprobs", "num_logprobs"), "logprobs"),
    **dict.fromkeys(("allowed_token_ids", "allowed_tokens", "bitmask", "token_mask"), "mask"),
    **dict.fromkeys(("dim", "dims", "axes"), "axis"),
    "keepdim": "keepdims",
}
# What others call the arguments of `generate()`: Hugging Face's name.
SAME_IN_GENERATE = {
    **dict.fromkeys(("max_tokens", "n_predict", "num_predict", "max_len"), "max_new_tokens"),
    **dict.fromkeys(("stop", "stop_words", "stop_sequences"), "stop_strings"),
    **dict.fromkeys(("beams", "n_beams", "beam_size", "beam_width"), "num_beams"),
    "greedy": "do_sample",
}

# What many give by position, per function, and has to be given by name.
BY_NAME = {
    "Sampler": ("temperature", "top_k", "top_p", "min_p"),
    "Sampler.sample": ("n",),
    "generate_kwargs": ("attention_mask",),
    "generate": ("sampler",),
    "score": ("prompt_length",),
}

# What is in sampler.hf, and looked for in sampler.
IN_HF = (
    *("FilterLogitsProcessor", "GenerateOutput", "SamplingLogitsProcessor", "expand_inputs"),
    *("filter_kwargs", "generate", "generate_kwargs", "json_grammar", "score", "dry_breakers"),
)

# Those that are one parameter of ours, and which.
PARTS = {
    "smoothing_factor": "factor",
    "smoothing_curve": "curve",
    **dict.fromkeys(("dynatemp_low", "min_temp"), "low"),
    **dict.fromkeys(("dynatemp_high", "max_temp"), "high"),
    **dict.fromkeys(("dynatemp_exponent", "dynatemp_exp", "temp_exponent"), "exponent"),
    "dry_multiplier": "multiplier",
    "dry_base": "base",
    "dry_allowed_length": "allowed_length",
    "xtc_threshold": "threshold",
    "xtc_probability": "probability",
    "xtc_special_tokens": "protected",
    "mirostat_mode": "version",
    "mirostat_tau": "tau",
    "mirostat_eta": "eta",
    "adaptive_target": "target",
    "adaptive_decay": "decay",
}

# Half of the distance from low to high, around the temperature.
SPREAD = "dynatemp_range"

# Those that are not one setting of ours: what to do.
ADVICE = {
    **dict.fromkeys(
        ("temperature_last", "temp_last"),
        "put the temperature last in a chain, as in Sampler([TopP(0.95), Temperature(0.8)])",
    ),
    **dict.fromkeys(
        ("samplers", "sampler_priority", "sampler_order", "sampler_seq"),
        "the order is a chain, as in Sampler([TopK(40), TopP(0.95), Temperature(0.8)])",
    ),
    "dry_sequence_breakers": (
        "breakers are ids, as in dry=DRY(0.8, breakers=sampler.hf.dry_breakers(tokenizer, strings))"
    ),
    **dict.fromkeys(
        ("dry_range", "dry_penalty_last_n"), "it is the window, as in dry=DRY(0.8, window=1024)"
    ),
    **dict.fromkeys(
        ("penalty_last_n", "repeat_last_n", "repetition_penalty_range", "rep_pen_range"),
        "it is the window of a penalty, as in repetition_penalty=(1.1, 64)",
    ),
    **dict.fromkeys(
        ("banned_phrases", "banned_strings", "anti_slop"),
        "write sampler.hf.generate(model, **inputs, sampler=s, tokenizer=tokenizer, "
        "banned_phrases=[...])",
    ),
    "prompt_ignore_length": "repetition_penalty=(1.1, None, False) leaves out the prompt",
    **dict.fromkeys(
        ("grammar", "guided_json", "json_schema", "response_format", "guided_grammar"),
        "write sampler.hf.generate(model, **inputs, sampler=s, grammar=sampler.hf.json_grammar("
        "schema, tokenizer)); on arrays, give the call a mask=",
    ),
    **dict.fromkeys(
        ("min_k", "best_of", "skew"),
        "no stage of a Sampler does this",
    ),
}

# What `generate(do_sample=True)` takes for a field that is unset, where that is not off.
HF_DEFAULTS = {"top_k": 50}

# Field -> the values that ask for nothing, as None, False and empty ones do. First the stages of
# a draw, which greedy decoding ignores: a greedy card that sets another value gets a warning.
HF_STAGES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 1.0),
    "top_k": (0, 50),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),  # 1.0 too cuts to 100 tokens
}
# These change the logits before any draw, greedy ones too: the first that we have, then the others.
EDITS: dict[str, tuple[Any, ...]] = {
    "sequence_bias": (),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "min_new_tokens": (0,),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
}
EDITS_OF_ONE = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")  # number
# The first token and the last that a length allows are not places in the output, and a least length
# counts the prompt and its padding.
PROCESSORS: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "remove_invalid_values": (),
}
APPLIED = (*EDITS, *PROCESSORS)  # by generate(), before the draw
# Not a draw per token, or, as a watermark, applied after it.
ALGORITHMS: dict[str, tuple[Any, ...]] = {
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
OF_THE_DRAW = {
    "do_sample": (),
    **HF_STAGES,
    **EDITS,
    **PROCESSORS,
    **ALGORITHMS,
}
# Arguments of Sampler that are not fields of a configuration.
SAMPLER_ONLY = (
    *("seed", "rng", "step", "on_invalid", "min_tokens_to_keep", "ties", "threads", "device"),
    *(name for name in STAGES if name not in HF_STAGES and name not in EDITS),
)
# Sampling settings of vLLM, llama.cpp and others. generate() ignores them, but the card's author
# wanted an effect.
OF_OTHERS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(SAMPLER_ONLY, ()),
    "min_tokens_to_keep": (1,),
    "seed": (-1,),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_tokens", "top_a"), (0,)),
    "tail_free": (1,),
    **dict.fromkeys(("mirostat", "mirostat_mode", "dry_multiplier", "xtc_probability"), (0,)),
    **dict.fromkeys(("smoothing_factor", "adaptive_target", "dynatemp_range", "skew"), (0,)),
    **dict.fromkeys(("repeat_penalty", "rep_pen", "temp", "tfs", "tfs_z", "best_of"), (1,)),
    **dict.fromkeys(("typ_p", "min_keep"), (0, 1)),
    **dict.fromkeys(("dynatemp_low", "dynatemp_high", "min_temp", "max_temp"), (0, 1)),
    **dict.fromkeys(("dynatemp_exponent", "dynatemp_exp", "temp_exponent", "dynatemp"), (1,)),
    **dict.fromkeys(("top_n_sigma", "nsigma", "top_nsigma"), (0, -1)),
    **dict.fromkeys(("temperature_last", "temp_last", "min_k"), (0,)),
    **dict.fromkeys(("samplers", "sampler_priority", "sampler_order", "sampler_seq"), ()),
    **dict.fromkeys(("logit_bias", "bad_words", "allowed_token_ids", "use_beam_search"), ()),
}
OFF = {**OF_THE_DRAW, **OF_OTHERS}
# Lengths, caches, outputs, special tokens: they do not change how a token is drawn.
IGNORED_FIELDS = {
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
