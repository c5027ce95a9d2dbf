"""mlx-lm: `make_sampler` and `make_logits_processors`, and the bodies of its server."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

DIALECT = Dialect(
    engine="mlx-lm",
    version="0.32.2",
    keys={
        "temp": Key("temperature", 0.0, names=("temperature", "--temp")),
        "top_p": Key("top_p", 0.0, (0, 1), names=("--top-p",)),
        "min_p": Key("min_p", 0.0, names=("--min-p",)),
        "min_tokens_to_keep": Key("min_tokens_to_keep", 1, names=("--min-tokens-to-keep",)),
        "top_k": Key("top_k", 0, floor=(0, 0), names=("--top-k",)),
        "xtc_probability": Key("xtc", 0.0, names=("--xtc-probability",)),
        "xtc_threshold": Key("xtc.threshold", 0.1, names=("--xtc-threshold",)),
        "xtc_special_tokens": Key("xtc.protected"),
        "logit_bias": Key("logit_bias"),
        "repetition_penalty": Key("repetition_penalty", None, (0,)),
        "repetition_context_size": Key("repetition_penalty.window", 20, none=(0,)),
        "presence_penalty": Key("presence_penalty"),
        "presence_context_size": Key("presence_penalty.window", 20, none=(0,)),
        "frequency_penalty": Key("frequency_penalty"),
        "frequency_context_size": Key("frequency_penalty.window", 20, none=(0,)),
        "seed": Key("seed", names=("--seed",)),
    },
    order="logit_bias repetition_penalty presence_penalty frequency_penalty top_p min_p xtc top_k "
    "temperature",
    sees_prompt="presence_penalty frequency_penalty",
    form="flags",
    others="model draft_model num_draft_tokens adapters messages prompt role_mapping tools stream "
    "stream_options max_tokens max_completion_tokens stop logprobs top_logprobs "
    "chat_template_kwargs",
)
