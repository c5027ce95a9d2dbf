"""What `sampler.hf` leans on inside transformers: private, or known to move between releases.

docs/design.md lists these. Each test says what breaks in sampler.hf if it fails.
"""

import copy
import inspect

import pytest
import torch
import transformers
from transformers import (
    DynamicCache,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import candidate_generator
from transformers.modeling_outputs import CausalLMOutputWithPast

import sampler.hf
from sampler import Sampler
from tiny import CACHE_NAME, prompts


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("_prefill", ["input_ids", "generation_config", "model_kwargs"]),
        ("prepare_inputs_for_generation", ["input_ids"]),
        (
            "_update_model_kwargs_for_generation",
            ["outputs", "model_kwargs", "is_encoder_decoder"],
        ),
        (
            "_expand_inputs_for_generation",
            ["expand_size", "is_encoder_decoder", "input_ids"],
        ),
    ],
)
def test_methods_of_the_loop(method, arguments):
    # `_loop` calls these four with these names.
    assert set(arguments) <= set(inspect.signature(getattr(GenerationMixin, method)).parameters)


def test_what_a_custom_generate_is_given(model):
    # `generate` tells by `_eos_token_tensor` that model.generate() is calling, and pads with
    # `_pad_token_tensor`; `_loop` takes all of these by name.
    seen = {}

    def spy(model, input_ids, **kwargs):
        seen.update(kwargs, model=model, input_ids=input_ids)
        return input_ids

    inputs = prompts(2)
    model.generate(**inputs, custom_generate=spy, do_sample=False, max_new_tokens=2)
    assert isinstance(seen["logits_processor"], LogitsProcessorList)
    assert callable(seen["stopping_criteria"])
    assert {"use_cache", "attention_mask"} <= seen.keys()
    config = seen["generation_config"]
    assert hasattr(config, "_eos_token_tensor")
    assert hasattr(config, "_pad_token_tensor")
    assert config.num_beams == 1
    assert config.do_sample is False


def test_the_name_of_the_cache(model):
    # `_loop` returns what it finds under the first of these names.
    assert CACHE_NAME in sampler.hf._CACHE_NAMES
    out = model(**prompts(1))
    assert isinstance(out[CACHE_NAME], DynamicCache)
    assert CACHE_NAME in CausalLMOutputWithPast.__dataclass_fields__


def test_outputs_hold_their_fields(model):
    # `GenerateOutput` is such a class, with `samples` and `seed` as attributes next to the fields.
    more = {"max_new_tokens": 1, "return_dict_in_generate": True}
    for seed in (7, 8):
        out = sampler.hf.generate(model, **prompts(2), sampler=Sampler(seed=seed), **more)
        assert list(out.keys()) == ["sequences", CACHE_NAME]
        assert out.cache is out.past_key_values is out[CACHE_NAME]
        copied = copy.deepcopy(out)
        assert (copied.seed, copied.samples.tokens.shape) == (seed, (2, 1))


def test_prompt_lookup_asks_with_scores_of_1(monkeypatch):
    # `_is_made_up` knows such a question by them.
    lookup = candidate_generator.PromptLookupCandidateGenerator
    source = inspect.getsource(lookup.get_candidates)
    assert "torch.ones(" in source
    assert "self.logits_processor(" in source


def test_candidates_are_verified_in_slices():
    # `_Text` knows a verification by rows that are the beginning of longer ones.
    source = inspect.getsource(GenerationMixin._assisted_decoding)
    assert "candidate_input_ids[:, : cur_len + i]" in source


def test_assisted_decoding_has_one_row(model):
    # `_Text` looks for candidates in a lone row only.
    with pytest.raises(ValueError, match="batch_size = 1"):
        model.generate(**prompts(2), prompt_lookup_num_tokens=2, do_sample=False, max_new_tokens=2)


def test_callers_processors_run_after_the_configured_ones(model):
    # So a penalty of the configuration acts on what is drawn from.
    config = model.generation_config
    mine = LogitsProcessorList([lambda ids, scores: scores])
    done = model._get_logits_processor(
        generation_config=type(config)(repetition_penalty=2.0, do_sample=False),
        input_ids_seq_length=3, encoder_input_ids=torch.ones(1, 3).long(),
        prefix_allowed_tokens_fn=None, logits_processor=mine, device="cpu", model_kwargs={},
    )  # fmt: skip
    assert done[-1] is mine[0]
    assert len(done) == 2


def test_end_tokens_are_known_by_an_attribute(model):
    # `_loop` pads where a criterion has `eos_token_id`, as transformers does.
    criteria = model._get_stopping_criteria(
        generation_config=prepared(model, eos_token_id=5), stopping_criteria=StoppingCriteriaList()
    )
    assert [hasattr(criterion, "eos_token_id") for criterion in criteria] == [False, True]


def prepared(model, **settings):
    config = type(model.generation_config)(max_length=9, **settings)
    model._prepare_special_tokens(config, device="cpu")
    return config


def test_warpers_of_the_filters():
    # `FilterLogitsProcessor` composes these on other devices, by these arguments.
    for warper in ("TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"):
        arguments = inspect.signature(getattr(sampler.hf, warper)).parameters
        assert {"filter_value", "min_tokens_to_keep"} <= set(arguments)


def test_transformers_repeats_images_by_prompt():
    # Otherwise `_loop` refuses several texts of prompts with images.
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    assert (version >= (5, 18)) == sampler.hf._EXPANDS_MEDIA


def test_models_that_place_images_say_so():
    # `score` leaves positions to these, and tests/test_hf_models.py compares its figures.
    assert hasattr(transformers.Qwen2VLModel, "get_rope_index")
    assert not hasattr(transformers.LlamaModel, "get_rope_index")
