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
from transformers.modeling_outputs import CausalLMOutputWithPast

import sampler.hf
from sampler import Sampler
from sampler.hf import _transformers
from tiny import CACHE_NAME, NEVER, prompts


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
    # `is_prepared` knows by `_eos_token_tensor` that model.generate() is calling, and `_loop` pads
    # with `_pad_token_tensor`; `_loop` takes all of these by name.
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
    assert _transformers.is_prepared(config)
    assert not _transformers.is_prepared(model.generation_config)
    assert hasattr(config, "_pad_token_tensor")
    assert config.num_beams == 1
    assert config.do_sample is False


def test_the_name_of_the_cache(model):
    # `_loop` returns what it finds under the first of these names.
    assert CACHE_NAME in _transformers.CACHE_NAMES
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


class Spy:
    """A processor that keeps what `Caller` sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(_transformers.Caller())
        return scores


def test_a_list_of_processors_for_each_generation(model):
    # `Record` knows its generation by the list that runs.
    spy, lists = Spy(), []
    for _ in range(2):
        spy.seen.clear()
        model.generate(
            **prompts(1), logits_processor=LogitsProcessorList([spy]), do_sample=False,
            max_new_tokens=3,
        )  # fmt: skip
        lists.append({id(caller.processors) for caller in spy.seen})
        keep = spy.seen[0].processors  # or its address might be used again
        assert isinstance(keep, LogitsProcessorList)
        lists.append(keep)
    assert len(lists[0]) == len(lists[2]) == 1
    assert lists[1] is not lists[3]


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {}], ids=str
)
def test_proposed_and_verified_candidates(model, how):
    # What is proposed is not of the text, and candidates are verified in slices of one tensor.
    spy, row = Spy(), prompts(1, 6)["input_ids"].repeat(1, 5)
    model.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=12,
        logits_processor=LogitsProcessorList([spy]), eos_token_id=NEVER,
        **(how or {"assistant_model": model}),
    )  # fmt: skip
    proposed = [caller.proposes for caller in spy.seen]
    assert any(proposed)
    assert not all(proposed)
    assert [caller.verifies for caller in spy.seen] == [not one for one in proposed]
    assert len({id(caller.processors) for caller in spy.seen}) == 1
    # The first are for the prompt, where a processor has not been called yet.
    assert proposed[0]
    lengths = [caller.text_length for caller in spy.seen if caller.proposes]
    assert lengths[0] == 30
    assert sorted(lengths) == lengths
    assert lengths[-1] > 30


def test_rows_that_are_finished(model):
    # `samples` ends a row where generate() pads it.
    known = []

    def spy(input_ids, scores):
        known.append(_transformers.Caller().unfinished().tolist())
        return scores

    inputs = prompts(3)
    text = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, 7:].tolist()
    more = {"logits_processor": LogitsProcessorList([spy]), "do_sample": False}
    model.generate(**inputs, **more, max_new_tokens=6)
    assert known == [[True] * 3] * 6
    known.clear()
    model.generate(**inputs, **more, max_new_tokens=6, eos_token_id=text[0][2])
    assert [row[0] for row in known] == [True] * 3 + [False] * (len(known) - 3)


def test_assisted_decoding_has_one_row(model):
    # So a row of a batch is never a candidate.
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
    # `pads` looks for a criterion that has `eos_token_id`, as transformers does.
    criteria = model._get_stopping_criteria(
        generation_config=prepared(model, eos_token_id=5), stopping_criteria=StoppingCriteriaList()
    )
    assert _transformers.pads(criteria)
    assert not _transformers.pads(criteria[:1])


def prepared(model, **settings):
    config = type(model.generation_config)(max_length=9, **settings)
    model._prepare_special_tokens(config, device="cpu")
    return config


def test_transformers_repeats_images_by_prompt():
    # Otherwise `_loop` refuses several texts of prompts with images.
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    assert (version >= (5, 18)) == _transformers.EXPANDS_MEDIA


def test_models_that_place_images_say_so():
    # `score` leaves positions to these, and tests/test_hf_models.py compares its figures.
    assert hasattr(transformers.Qwen2VLModel, "get_rope_index")
    assert not hasattr(transformers.LlamaModel, "get_rope_index")


def test_public_names_are_one_word_deep():
    # Pickles and error messages hold the path of a class: not that of a private file.
    for name in sampler.hf.__all__:
        value = getattr(sampler.hf, name)
        if isinstance(value, type):
            assert (value.__module__, value.__qualname__) == ("sampler.hf", name)
    with pytest.raises(TypeError, match=r"but holds a sampler\.hf\.SamplingLogitsProcessor$"):
        sampler.hf.generate_kwargs(
            Sampler(seed=7), logits_processor=[sampler.hf.SamplingLogitsProcessor(Sampler(seed=7))]
        )
