"""What the layer leans on inside transformers: a new release can break it here.

The settings that switch Hugging Face's own sampling off, facts about the installed version, and
`Caller`, which looks up the stack at what is running. `_generation` also calls methods of a
model as transformers' own loop does. docs/design.md lists everything, and
tests/test_hf_internals.py checks it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import signature
from types import CodeType, FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import candidate_generator
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sampler.api import Sampler

# Every setting of Hugging Face's own sampling at a value that does nothing. None for top_k, min_p
# and top_h: under do_sample=False a number is taken for a setting that is ignored, and warned of.
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
OUR_DRAW: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "renormalize_logits": False,
    **NEUTRAL,
}
# Other ways to choose a token. They would have no effect on a draw of our own, silently.
OTHER_ALGORITHMS: dict[str, Any] = {"dola_layers": None, "penalty_alpha": None}
# What a sampler may do in place of a processor of Hugging Face's: its setting, and the argument of
# generate() at a value that makes no such processor.
_OURS: dict[str, tuple[str, Any]] = {
    "sequence_bias": ("sequence_bias", None),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 0),
    "bad_words": ("bad_words_ids", None),
    "suppress_tokens": ("suppress_tokens", None),
    "begin_suppress_tokens": ("begin_suppress_tokens", None),
    "min_new_tokens": ("min_new_tokens", None),
}
# Those of these arguments that do something else when they are applied again.
NOT_TWICE = ("sequence_bias", "repetition_penalty")
UNSUPPORTED = (*OTHER_ALGORITHMS, "constraints", "force_words_ids")
# The names that a model's cache has had; "cache" is that of transformers 5.24.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
# In the first releases of transformers 5 the model finds out by itself what its cache lacks.
TAKES_LENGTH = (
    "next_sequence_length" in signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
# What is running while a processor is called: `Caller` looks for these.
_RUNS_PROCESSORS = LogitsProcessorList.__call__.__code__
_SAMPLES = GenerationMixin._sample.__code__
_VERIFIES = GenerationMixin._assisted_decoding.__code__
_PROPOSES = {
    kind.get_candidates.__code__
    for kind in vars(candidate_generator).values()
    if isinstance(kind, type) and hasattr(kind, "get_candidates")
}
_NESTS = {_SAMPLES, _VERIFIES, _RUNS_PROCESSORS, StoppingCriteriaList.__call__.__code__}
OUR_LOOPS: set[CodeType] = set()  # `_generation` adds its own
# What the cache is called in an output: from transformers 5.24 on, and before.
CACHE_FIELD = "cache" if hasattr(GenerateDecoderOnlyOutput, "cache") else "past_key_values"
# Whether transformers knows which image belongs to which prompt when it repeats inputs.
EXPANDS_MEDIA = hasattr(GenerationMixin, "_expand_multimodal_outputs")


def cache_of(model_kwargs: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a model's forward; None without one."""
    return next((model_kwargs[name] for name in CACHE_NAMES if name in model_kwargs), None)


def can_crop(cache: Any) -> bool:
    """Whether the last tokens of a cache can be taken out."""
    cache = getattr(cache, "self_attention_cache", cache)  # of a decoder
    return hasattr(cache, "crop") and all(
        hasattr(layer, "crop") and getattr(layer, "is_croppable", True)
        for layer in getattr(cache, "layers", ())
    )


def ours(sampler: Sampler) -> dict[str, Any]:
    """Return the arguments of generate() that switch off what a sampler does itself."""
    on = {stage.setting for stage in sampler.stages if not stage.is_off}
    return dict(named for setting, named in _OURS.items() if setting in on)


def overrides(model: Any, method: str) -> bool:
    """Whether a model's class overrides a method of transformers' own generation."""
    return getattr(type(model), method, None) is not getattr(GenerationMixin, method)


def is_prepared(config: Any) -> bool:
    """Whether a configuration is one that generate() hands to its loop."""
    return hasattr(config, "_eos_token_tensor")


def pads(stopping_criteria: StoppingCriteriaList) -> bool:
    """Whether finished rows are padded: only where there is an end token."""
    return any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)


def has_own_positions(model: Any) -> bool:
    """Whether a model makes positions from its mask, to place images in several dimensions."""
    return any(hasattr(part, "get_rope_index") for part in model.modules())


class Caller:
    """What of transformers is calling a processor, which is not among its arguments.

    Attributes
    ----------
    processors : LogitsProcessorList or None
        The list that the calling generation runs, each generation another; None outside of one.
    proposes : bool
        Whether candidates of assisted decoding are proposed: drawn from a draft model's logits, or,
        by prompt lookup, from made-up scores, to learn which tokens are forbidden.
    text_length : int
        Where candidates are proposed, the length of the text that they would go on with.
    verifies : bool
        Whether candidates are verified, for which assisted decoding comes back to them.
    """

    def __init__(self) -> None:
        self.processors: Any = None
        self.proposes = self.verifies = False
        self.text_length = 0
        self._loop: FrameType | None = None
        frame: FrameType | None = sys._getframe(2)
        # Outwards to the loop of the generation. One that runs inside another, in a processor of
        # the caller's for example, has nothing to do with that one; a draft model's does.
        while frame is not None:
            code = frame.f_code
            if code in _PROPOSES:
                self.proposes = True
            elif code is _VERIFIES and self.proposes:
                known = frame.f_locals
                self.processors, self._loop = known["logits_processor"], None
                self.text_length = known["input_ids"].shape[1]
                break
            elif self._loop is not None and not self.proposes and code in _NESTS:
                break
            elif code is _VERIFIES:
                self.verifies = True
                break
            elif code is _SAMPLES:
                self._loop = frame
            elif code is _RUNS_PROCESSORS:
                self.processors = frame.f_locals["self"]
            elif code in OUR_LOOPS:
                break
            frame = frame.f_back

    @property
    def key(self) -> int:
        """Another number for each list of processors; 0 for none."""
        return 0 if self.processors is None else id(self.processors)

    def unfinished(self) -> npt.NDArray[np.bool_] | None:
        """Which rows of a batch go on, where that is known: the others are being padded.

        Python keeps what it shows of a running function until it shows it again, and with it the
        logits of a step: do not ask while they are those of the prompt.
        """
        if self._loop is None:
            return None
        known = self._loop.f_locals
        unfinished: npt.NDArray[np.bool_] = known["unfinished_sequences"].cpu().numpy() != 0
        # Without an end token, rows that a criterion has stopped go on with the others.
        return unfinished | (not known["has_eos_stopping_criteria"])
