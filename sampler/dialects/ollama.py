"""Ollama: the PARAMETER lines of a Modelfile, and the options of a request."""

from sampler.dialects._table import Dialect, Key

__all__ = ["DIALECT"]

_PENALTIES = "repetition_penalty frequency_penalty presence_penalty"

DIALECT = Dialect(
    engine="Ollama",
    version="commit 00f6d620 of 2026, which hands GGUF models to llama.cpp's server",
    keys={
        "temperature": Key("temperature", 0.8, floor=(0, 0)),
        "top_k": Key("top_k", 40, floor=(0, 0)),
        "top_p": Key("top_p", 0.9),
        "min_p": Key("min_p", 0.0),
        "typical_p": Key("typical_p", 1.0, (0, 1)),
        "repeat_last_n": Key(
            "repetition_penalty.window frequency_penalty.window presence_penalty.window",
            64, (0,), (-1,),
        ),
        "repeat_penalty": Key("repetition_penalty", 1.1),
        "presence_penalty": Key("presence_penalty", 0.0),
        "frequency_penalty": Key("frequency_penalty", 0.0),
        "seed": Key("seed", None, none=(-1,)),
    },
    order=f"{_PENALTIES} top_k typical_p top_p min_p temperature",
    sees_prompt=_PENALTIES,
    form="modelfile",
    inside="options",
    others="num_predict num_keep num_ctx num_batch num_gpu main_gpu num_thread use_mmap stop "
    "draft_num_predict numa low_vram f16_kv logits_all vocab_only use_mlock embedding_only num_gqa "
    "rope_frequency_base rope_frequency_scale model prompt suffix messages images system template "
    "context raw stream keep_alive think tools shift truncate logprobs top_logprobs",
    ignored="mirostat mirostat_tau mirostat_eta penalize_newline",
    refused={"format": ("",), "tfs_z": (1.0,)},
)  # fmt: skip
