"""SGLang: `sampling_params`, and the bodies of its server."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

DIALECT = Dialect(
    engine="SGLang",
    version="0.5.23",
    keys={
        "temperature": Key("temperature", 1.0, floor=(1e-6, 0.0)),
        "top_k": Key("top_k", -1, (-1, 2**30)),
        "top_p": Key("top_p", 1.0),
        "min_p": Key("min_p", 0.0),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "presence_penalty": Key("presence_penalty", 0.0),
        "repetition_penalty": Key("repetition_penalty", 1.0),
        "logit_bias": Key("logit_bias"),
        "sampling_seed": Key("seed", names=("seed",)),
    },
    # Top-k and top-p see the whole row, and what both keep stays: top-p, then top-k.
    order="frequency_penalty presence_penalty repetition_penalty logit_bias temperature top_p "
    "top_k min_p",
    fixed={"repetition_penalty.include_prompt": False},
    ties="all",
    inside="sampling_params extra_body",
    others="max_new_tokens stop stop_token_ids stop_regex n ignore_eos skip_special_tokens "
    "spaces_between_special_tokens no_stop_trim stream_interval text input_ids input_embeds "
    "image_data video_data audio_data modalities rid session_id session_params return_logprob "
    "logprob_start_len top_logprobs_num token_ids_logprob return_text_in_logprobs stream "
    "log_metrics return_hidden_states lora_path lora_id messages prompt suffix echo best_of model "
    "logprobs top_logprobs max_tokens max_completion_tokens stream_options user tools "
    "parallel_tool_calls reasoning_effort continue_final_message separate_reasoning "
    "stream_reasoning chat_template_kwargs extra_key cache_salt priority custom_params",
    refused={
        "json_schema": ("",),
        "regex": ("",),
        "ebnf": ("",),
        "structural_tag": ("",),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "beam_width": (1,),
        "custom_logit_processor": (),
        "watermark": (),
        "min_new_tokens": (0,),
        "min_tokens": (0,),
        "max_thinking_tokens": (),
    },
)
