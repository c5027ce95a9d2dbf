"""The OpenAI API: the bodies of chat completions and completions."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

DIALECT = Dialect(
    engine="OpenAI",
    version="that of the package openai 3.57.0; the order of its steps is not published",
    keys={
        "temperature": Key("temperature", 1.0),
        "top_p": Key("top_p", 1.0),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "presence_penalty": Key("presence_penalty", 0.0),
        "logit_bias": Key("logit_bias"),
        "seed": Key("seed"),
    },
    order="logit_bias frequency_penalty presence_penalty temperature top_p",
    others="messages model audio max_tokens max_completion_tokens metadata modalities moderation n "
    "logprobs top_logprobs parallel_tool_calls prediction prompt_cache_key prompt_cache_options "
    "prompt_cache_retention safety_identifier service_tier stop store stream stream_options user "
    "web_search_options functions tools reasoning_effort verbosity prompt suffix echo",
    refused={
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "best_of": (1,),
    },
)
