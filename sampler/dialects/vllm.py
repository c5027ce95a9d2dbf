"""vLLM: `SamplingParams`, and the bodies of its server."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

DIALECT = Dialect(
    engine="vLLM",
    version="0.33.0",
    keys={
        "temperature": Key("temperature", 1.0, floor=(0.01, 0.01)),
        "top_k": Key("top_k", 0, floor=(0, 0)),
        "top_p": Key("top_p", 1.0),
        "min_p": Key("min_p", 0.0),
        "repetition_penalty": Key("repetition_penalty", 1.0),
        "presence_penalty": Key("presence_penalty", 0.0),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "logit_bias": Key("logit_bias", bias_limit=100.0),
        "seed": Key("seed", None, none=(-1,)),
    },
    order="logit_bias repetition_penalty frequency_penalty presence_penalty temperature min_p "
    "top_k top_p",
    ties="all",
    inside="extra_body",
    others="n stop stop_token_ids ignore_eos max_tokens logprobs prompt_logprobs "
    "prompt_logprob_token_ids prompt_logprob_start logprob_token_ids flat_logprobs detokenize "
    "skip_special_tokens spaces_between_special_tokens include_stop_str_in_output output_kind "
    "stream_interval skip_clone output_text_buffer_length extra_args skip_reading_prefix_cache "
    "repetition_detection routed_experts_prompt_start model messages prompt prompt_embeds suffix "
    "echo stream stream_options user max_completion_tokens top_logprobs tools parallel_tool_calls "
    "include_reasoning reasoning_effort truncate_prompt_tokens truncation_side "
    "add_generation_prompt continue_final_message add_special_tokens documents chat_template "
    "chat_template_kwargs mm_processor_kwargs priority request_id session_id cache_salt "
    "return_token_ids return_tokens_as_token_ids vllm_xargs length_penalty max_new_tokens",
    ignored="guided_json guided_regex guided_choice guided_grammar guided_decoding_backend",
    refused={
        "structured_outputs": (),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "use_beam_search": (False,),
        "allowed_token_ids": (),
        "bad_words": ([],),
        "min_tokens": (0,),
        "thinking_token_budget": (-1,),
        "watermarking": (False,),
        "trace_decode_token_ids": ([],),
    },
)
