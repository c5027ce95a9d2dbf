"""`Sampler.from_generation_config`: what `generate` would do under it, or a refusal."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from sampler import Sampler, config
from tiny import VOCAB, prompts

inf, nan = math.inf, math.nan
read = Sampler.from_generation_config
OUTPUTS = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}

# ------------------------------------------------------------------- what `generate` really does


class Instead(LogitsProcessor):
    """Give Hugging Face's warpers, which run behind it, these rows."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, input_ids, scores):
        return self.rows


def rows():
    """One ordinary row, one of few distinct scores, one mostly -inf."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, VOCAB)
    few = np.where(np.arange(VOCAB) % 3, -inf, x)
    return torch.tensor(np.array([x, rng.integers(-2, 3, VOCAB), few]), dtype=torch.float32)


def generate(model, **fields):
    """What `generate` makes of `rows` under these fields: its scores, and the tokens."""
    out = model.generate(
        **prompts(),
        generation_config=GenerationConfig(**OUTPUTS, **fields),
        logits_processor=LogitsProcessorList([Instead(rows())]),
    )
    return out.scores[0], out.sequences[:, -1]


def check_scores(ours, theirs):
    assert np.array_equal(ours[0] > -inf, theirs[0] > -inf)
    # Which of tied tokens Hugging Face's top_p keeps is arbitrary: but as many, and equal ones.
    assert torch.allclose(ours.sort().values, theirs.sort().values, rtol=1e-6)


SAMPLES = [
    {},
    {"temperature": 0.6},
    {"temperature": 5.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 0},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_k": 0, "top_p": 0.5},
    {"min_p": 0.1},
    {"top_k": 0, "min_p": 0.01, "temperature": 2.0},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.8, "min_p": 0.05},
    {"temperature": None, "top_k": None, "top_p": None, "min_p": None},
]


@pytest.mark.parametrize("fields", SAMPLES, ids=str)
def test_what_generate_keeps(model, fields):
    theirs, _ = generate(model, do_sample=True, **fields)
    check_scores(read({"do_sample": True, **fields}).filter(rows()), theirs)
    as_object = GenerationConfig(do_sample=True, **OUTPUTS, **fields)
    check_scores(read(as_object).filter(rows()), theirs)
    # What to_dict leaves unset may also be missing.
    check_scores(read(as_object.to_diff_dict()).filter(rows()), theirs)


def test_the_hidden_top_k(model):
    theirs, _ = generate(model, do_sample=True)
    s = read({"do_sample": True}, seed=7)
    assert repr(s) == "Sampler(top_k=50, ties='all', seed=7)"
    assert (theirs > -inf).sum(dim=1)[[0, 2]].tolist() == [50, 50]
    assert s.sample(rows()).kept[[0, 2]].tolist() == [50, 50]
    assert s.sample(rows()).kept[1] == (theirs[1] > -inf).sum() > 50  # ties


@pytest.mark.parametrize("fields", [{}, {"do_sample": False}, {"do_sample": None}], ids=str)
def test_greedy_without_do_sample(model, fields):
    ignored = {"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5,
               "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.5}  # fmt: skip
    _, tokens = generate(model, **fields)
    for more in ({}, ignored):
        s = read({**fields, **more}, seed=7)
        assert repr(s) == "Sampler(temperature=0.0, seed=7)"
        assert s(rows())[[0, 2]].tolist() == tokens[[0, 2]].tolist()


# ---------------------------------------------------------------------- what is off, or no matter

OFF = {
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "suppress_tokens": [], "begin_suppress_tokens": [], "min_length": 0, "min_new_tokens": 0,
    "guidance_scale": 1.0, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "remove_invalid_values": False, "top_p": 1.0, "temperature": 1.0,
}  # fmt: skip
NO_MATTER = {
    "max_length": 30, "max_time": 60.0, "renormalize_logits": True, "use_cache": False,
    "output_attentions": False, "output_logits": True, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": [2, 3], "length_penalty": 2.0, "early_stopping": True,
    "num_return_sequences": 1, "token_healing": False, "transformers_version": "5.0.0",
    "cache_implementation": "dynamic", "_from_model_config": True,
}  # fmt: skip


def test_what_is_off_or_does_not_matter(model):
    theirs, _ = generate(model, do_sample=True, **OFF)
    check_scores(read({"do_sample": True}).filter(rows()), theirs)
    want = "Sampler(top_k=50, ties='all', seed=7)"
    assert repr(read({"do_sample": True, **OFF, **NO_MATTER}, seed=7)) == want
    assert repr(read({"do_sample": True, "num_return_sequences": 5}, seed=7)) == want


def test_top_h_is_never_off(model):
    theirs, _ = generate(model, do_sample=True, top_k=0, top_h=1.0)
    assert (theirs[0] > -inf).sum() <= 100
    with pytest.raises(ValueError, match="top_h"):
        read({"do_sample": True, "top_k": 0, "top_h": 1.0})


def test_what_model_makers_ship():
    llama = {
        "bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009],
        "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.42.3",
    }  # fmt: skip
    want = "Sampler(temperature=0.6, top_k=50, top_p=0.9, ties='all', seed=7)"
    assert repr(read(llama, seed=7)) == want
    qwen = {
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True,
        "eos_token_id": [151645, 151643], "repetition_penalty": 1.05, "temperature": 0.7,
        "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.05"):
        read(qwen)
    want = "Sampler(temperature=0.7, top_k=20, top_p=0.8, ties='all', seed=7)"
    assert repr(read(qwen, repetition_penalty=None, seed=7)) == want


# ------------------------------------------------------------------------------------- refusals

STAGES = {"typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.5}
PROCESSORS = {
    "repetition_penalty": 1.1, "encoder_repetition_penalty": 0.9, "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[5]], "sequence_bias": [[[5], 2.0]],
    "suppress_tokens": [5], "begin_suppress_tokens": [5], "forced_bos_token_id": 5,
    "forced_eos_token_id": 5, "min_length": 4, "min_new_tokens": 4,
    "exponential_decay_length_penalty": (5, 1.1), "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.0}, "remove_invalid_values": True,
}  # fmt: skip
ALGORITHMS = {
    "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6,
    "dola_layers": "low", "constraints": [object()], "force_words_ids": [[5]],
    "assistant_ensemble_weight": 0.5,
}  # fmt: skip


def refusal(name, value):
    return f"`config` has to ask for what a Sampler does, but has {name}={value!r}; to go without, "


@pytest.mark.parametrize(("name", "value"), (STAGES | PROCESSORS | ALGORITHMS).items())
def test_what_a_sampler_does_not_do(name, value):
    fields = {"do_sample": True, "top_p": 0.9, name: value}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        read(fields)
    message = refusal(name, value) + f"pass {name}=None"
    behind = ", also where `model.generate()` will do it, before the draw"
    assert str(caught.value) == message + (behind if name in PROCESSORS else "")
    with pytest.raises(ValueError, match=f"{name}="):
        read({"do_sample": True}, **{name: value})
    want = "Sampler(top_k=50, top_p=0.9, ties='all', seed=7)"
    assert repr(read(fields, **{name: None}, seed=7)) == want
    greedy = {**fields, "do_sample": False}
    if name in STAGES:  # greedy ignores them
        assert repr(read(greedy, seed=7)) == "Sampler(temperature=0.0, seed=7)"
    else:
        with pytest.raises(ValueError, match=f"{name}="):
            read(greedy)


@pytest.mark.parametrize(
    "name", ["typical_p", "top_h", "repetition_penalty", "guidance_scale", "forced_eos_token_id"]
)
def test_zero_is_not_off(name):
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match=f"{name}={zero}"):
            read({"do_sample": True, name: zero})


def test_all_of_them_are_named():
    everything = STAGES | PROCESSORS | ALGORITHMS
    with pytest.raises(ValueError, match=r"^`config` has to ask for what a Sampler does") as caught:
        read({"do_sample": True, **everything})
    for name, value in everything.items():
        assert f"{name}={value!r}" in str(caught.value)
    without = dict.fromkeys(everything)
    assert read({"do_sample": True, **everything}, **without).stages[1].value == 50
    # These tables forget nothing that the module refuses.
    assert STAGES.keys() == config._STAGES_NOT_COVERED.keys()
    assert PROCESSORS.keys() == config._PROCESSORS.keys()
    assert ALGORITHMS.keys() == config._ALGORITHMS.keys()


@pytest.mark.parametrize("name", GenerationConfig().to_dict())
def test_every_field_of_the_installed_transformers_is_known(name):
    try:
        read({"do_sample": True, name: "a value"})
    except (TypeError, ValueError) as error:
        assert "fields of a GenerationConfig" not in str(error)  # noqa: PT017  may also not raise


def test_unknown_fields():
    for fields in ({"do_sample": True, "top_q": 0.9, "heat": "low"}, {"top_q": 0.9, "heat": "low"}):
        with pytest.raises(ValueError, match=r"^`config` has to hold fields of a Gen") as caught:
            read(fields, top_p=0.5)
        assert "top_q=0.9" in str(caught.value)
        assert "heat='low'" in str(caught.value)
    with pytest.raises(ValueError, match=r"has top_q=0\.9; to go without, pass top_q=None$"):
        read({"top_q": 0.9, "heat": None})
    assert read({"do_sample": True, "top_q": 0.9}, top_q=None).stages[1].value == 50


def test_unknown_changes():
    for fields in ({}, {"heat": "low"}):
        with pytest.raises(TypeError, match=r"^`top_q` has to be a field of a GenerationConfig or"):
            read(fields, top_q=0.9)
        with pytest.raises(TypeError, match=r"^`top_q` has to be a field of a GenerationConfig or"):
            read(fields, top_q=None)


def test_bad_types():
    class Half:
        do_sample = True

    for wrong in (7, None, "{}", [("do_sample", True)], object(), Half(), GenerationConfig):
        with pytest.raises(TypeError, match=r"^`config` has to be a GenerationConfig or a mapping"):
            read(wrong)
    for wrong in (1, 0, "true", [True], 1.0):
        for fields, changes in (({"do_sample": wrong}, {}), ({}, {"do_sample": wrong})):
            with pytest.raises(TypeError, match=r"^`do_sample` has to be a bool, but is "):
                read(fields, **changes)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("temperature", -1, ValueError), ("temperature", nan, ValueError),
        ("temperature", "1", TypeError), ("top_k", -1, ValueError), ("top_k", 5.0, TypeError),
        ("top_k", True, TypeError), ("top_p", 1.1, ValueError), ("min_p", -0.1, ValueError),
        ("seed", -1, ValueError), ("ties", "first", ValueError), ("on_invalid", 0, TypeError),
    ],
)  # fmt: skip
def test_values_out_of_range(name, value, error):
    with pytest.raises(error, match=f"^`{name}` has to be .*, but is "):
        read({"do_sample": True}, **{name: value})


# -------------------------------------------------------------------------------------- changes


def test_changes():
    fields = {"do_sample": True, "temperature": 0.6, "top_k": 20}
    for changes, want in (
        ({}, "Sampler(temperature=0.6, top_k=20, ties='all', seed=7)"),
        ({"temperature": 0.9}, "Sampler(temperature=0.9, top_k=20, ties='all', seed=7)"),
        ({"top_p": 0.5}, "Sampler(temperature=0.6, top_k=20, top_p=0.5, ties='all', seed=7)"),
        ({"top_k": 0}, "Sampler(temperature=0.6, ties='all', seed=7)"),
        ({"temperature": None, "top_k": None}, "Sampler(ties='all', seed=7)"),
        ({"ties": "id"}, "Sampler(temperature=0.6, top_k=20, seed=7)"),
        ({"temperature": 0}, "Sampler(temperature=0.0, top_k=20, ties='all', seed=7)"),
        ({"do_sample": False}, "Sampler(temperature=0.0, seed=7)"),
        ({"do_sample": None}, "Sampler(temperature=0.0, seed=7)"),
        ({"min_tokens_to_keep": 2, "step": 5, "on_invalid": "flag", "temperature": 1.0},
         "Sampler(top_k=20, min_tokens_to_keep=2, ties='all', seed=7, step=5, on_invalid='flag')"),
    ):  # fmt: skip
        for form in (fields, GenerationConfig(**fields)):
            assert repr(read(form, **changes, seed=7)) == want
    want = "Sampler(temperature=0.8, top_k=50, ties='all', seed=7)"
    assert repr(read({}, do_sample=True, temperature=0.8, seed=7)) == want


def test_seeds():
    fields = {"do_sample": True}
    assert read(fields).seed != read(fields).seed
    rng = np.random.default_rng(3)
    assert read(fields, rng=np.random.default_rng(3)).seed == Sampler(rng=rng).seed
    with pytest.raises(TypeError, match="`seed` and `rng` exclude each other"):
        read(fields, seed=7, rng=rng)
    with pytest.raises(ValueError, match="seed=3"):  # a sampler's, and no field of a configuration
        read({**fields, "seed": 3})


def test_the_callers_configuration_stays_as_it_is():
    fields = {"do_sample": True, "top_k": 5, "eos_token_id": [2, 3], "repetition_penalty": 1.5}
    changes = {"repetition_penalty": None, "do_sample": False, "eos_token_id": None, "seed": 7}
    before = copy.deepcopy(fields)
    read(fields, **changes)
    assert fields == before
    as_object = GenerationConfig(**fields)
    before = as_object.to_dict()
    read(as_object, **changes)
    assert as_object.to_dict() == before
