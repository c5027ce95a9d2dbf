"""`Sampler.from_generation_config`: what `generate` would do under it, or a refusal."""

import copy
import inspect
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from sampler import Sampler, Temperature, TopK, _names
from sampler.stages.settings import STAGES
from tiny import VOCAB, prompts

inf, nan = math.inf, math.nan
read = Sampler.from_generation_config
OUTPUTS = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}

# ------------------------------------------------------------------- what `generate` really does


class Instead(LogitsProcessor):
    """Give Hugging Face's warpers, which run after it, these rows."""

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
    {"typical_p": 0.9},
    {"top_k": 0, "typical_p": 0.5},
    {"top_k": 0, "epsilon_cutoff": 0.01},
    {"top_k": 0, "eta_cutoff": 0.02},
    {"top_k": 0, "top_h": 0.6},
    {"top_k": 0, "top_h": 1.0, "epsilon_cutoff": 0.01},  # which cuts to 100
    {"temperature": 1.5, "top_h": 0.9, "top_k": 60, "top_p": 0.95, "min_p": 0.01,
     "typical_p": 0.9, "epsilon_cutoff": 0.003, "eta_cutoff": 0.02},
]  # fmt: skip


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
    assert s.sample(rows()).n_kept[[0, 2]].tolist() == [50, 50]
    assert s.sample(rows()).n_kept[1] == (theirs[1] > -inf).sum() > 50  # ties


@pytest.mark.parametrize("fields", [{}, {"do_sample": False}, {"do_sample": None}], ids=str)
def test_greedy_without_do_sample(model, fields):
    ignored = {"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5,
               "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.5}  # fmt: skip
    _, tokens = generate(model, **fields)
    greedy = "Sampler(temperature=0.0, seed=7)"
    s = read(fields, seed=7)
    assert repr(s) == greedy
    assert s(rows())[[0, 2]].tolist() == tokens[[0, 2]].tolist()
    with pytest.warns(UserWarning, match=r"greedy, as generate\(\) is") as caught:
        assert repr(read({**fields, **ignored}, seed=7)) == greedy
    call = call_in(str(caught[0].message).partition("To sample: ")[2].partition(";")[0])
    assert evaluate(call, {**fields, **ignored}) == Sampler(**ignored, ties="all", seed=7)


GREEDY_WARNING = (
    "`do_sample` is not True, so the sampler is greedy, as generate() is: {ignores} no effect. "
    "To sample: Sampler.from_generation_config(config, seed=7, do_sample=True); "
    "to stay greedy without this warning: Sampler.from_generation_config(config, seed=7, "
    "do_sample=False)"
)


def test_sampling_settings_without_do_sample_are_said_once_per_line():
    for form in (dict, GenerationConfig):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # Python's own: once per line that calls
            for _ in range(2):
                read(form(temperature=0.6, top_p=0.9), seed=7)
        assert [str(w.message) for w in caught] == [
            GREEDY_WARNING.format(ignores="temperature=0.6 and top_p=0.9 have")
        ]
        assert caught[0].filename == __file__


@pytest.mark.parametrize("name", _names.HF_STAGES)
def test_who_asks_for_greedy_is_not_warned(name):
    value = 5 if name == "top_k" else 0.5
    for card in ({name: value}, {name: value, "do_sample": False}):
        assert repr(read(card, do_sample=False, seed=7)) == "Sampler(temperature=0.0, seed=7)"
        with pytest.warns(UserWarning, match=f": {name}={value} has no effect. To sample"):
            read(card)
    for changes in ({"do_sample": False, name: value}, {name: value}):
        with pytest.warns(UserWarning, match=f": {name}={value} has no effect. To s") as caught:
            read({}, **changes, seed=7)
        call = call_in(str(caught[0].message).partition(" warning: ")[2])
        assert repr(evaluate(call, {})) == "Sampler(temperature=0.0, seed=7)"  # and no warning


def test_defaults_and_off_values_are_not_warned_of():
    quiet = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
    for card in (quiet, {"temperature": 0.0, "top_k": 0, "min_p": 0.0, "do_sample": False}):
        assert repr(read(card, seed=7)) == "Sampler(temperature=0.0, seed=7)"


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
    # Their float32 sum may pass the entropy itself before all 100 are in.
    assert 90 <= (theirs[0] > -inf).sum() <= 100
    assert read({"do_sample": True, "top_k": 0, "top_h": 1.0}).sample(rows()).n_kept[0] == 100


# -------------------------------------------------------------------------------- model cards

# Configurations of well-known models, in the form in which they are published: "gives" is the
# sampler, of the call to type where the card is refused; "refuses" and "ignores" are the settings
# that the error and the warning name; "sampling" is what the call in the warning gives.
CARDS = json.loads((Path(__file__).parent / "data" / "generation_configs.json").read_text())


def call_in(message):
    return re.search(r"Sampler\.from_generation_config\(.*\)$", message).group()


def evaluate(call, config):
    return eval(call, {"Sampler": Sampler, "config": config})


def check_call(call, config, card):
    """What the call gives, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert repr(evaluate(call, config)) == card["gives"]
    if "ignores" not in card:
        assert not caught
        return
    (warning,) = caught
    message = str(warning.message)
    assert f"as generate() is: {card['ignores']} have no effect. To sample: " in message
    call = call_in(message.partition(";")[0])
    assert repr(evaluate(call, config)) == card["sampling"]


@pytest.mark.parametrize("name", CARDS)
def test_published_cards(name):
    card = CARDS[name]
    plain = "Sampler.from_generation_config(config, seed=7)"
    for form in (card["config"], GenerationConfig.from_dict(card["config"])):
        if "refuses" not in card and "parts" not in card:
            check_call(plain, form, card)
            continue
        with pytest.raises(ValueError, match=r"^`config` ") as caught:
            evaluate(plain, form)
        message = str(caught.value)
        assert len(message) < 335  # 300, and what long names add
        if "refuses" in card:
            found = re.match(r"`config` asks for what [\w() ]+: (.+?)\. [TIm]", message)
            assert found.group(1) == card["refuses"]
        check_call(call_in(message), form, card)


def test_there_are_cards_of_all_kinds():
    assert len(CARDS) >= 40
    for kind, count in (("refuses", 7), ("ignores", 4), ("parts", 1)):
        assert sum(kind in card for card in CARDS.values()) >= count
    assert sum(card["gives"].startswith("Sampler(temperature=0.0") for card in CARDS.values()) > 15


# ------------------------------------------------------------------------------------- refusals

PROCESSORS = {
    "encoder_repetition_penalty": 0.9, "encoder_no_repeat_ngram_size": 3, "forced_bos_token_id": 5,
    "forced_eos_token_id": 5, "min_length": 4,
    "exponential_decay_length_penalty": (5, 1.1), "guidance_scale": 1.5,
    "remove_invalid_values": True,
}  # fmt: skip
ALGORITHMS = {
    "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6,
    "dola_layers": "low", "constraints": [object()], "force_words_ids": [[5]],
    "assistant_ensemble_weight": 0.5, "watermarking_config": {"bias": 2.0},
}  # fmt: skip


def refusal(name, value, do):
    shown = repr(value) if len(repr(value)) <= 24 else f"{value!r:.20}...{repr(value)[-1]}"
    return (
        f"`config` asks for what a Sampler does not do: {name}={shown}. {do}: "
        f"Sampler.from_generation_config(config, {name}=None)"
    )


@pytest.mark.parametrize(("name", "value"), (PROCESSORS | ALGORITHMS).items())
def test_what_a_sampler_does_not_do(name, value):
    fields = {"do_sample": True, "top_p": 0.9, name: value}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is compared
        read(fields)
    before = "model.generate() applies this before the draw"
    assert str(caught.value) == refusal(
        name, value, before if name in PROCESSORS else "To go without"
    )
    with pytest.raises(ValueError, match=f"{name}="):
        read({"do_sample": True}, **{name: value})
    want = "Sampler(top_k=50, top_p=0.9, ties='all', seed=7)"
    assert repr(read(fields, **{name: None}, seed=7)) == want
    greedy = {"do_sample": False, name: value}
    with pytest.raises(ValueError, match=f"{name}="):
        read(greedy)


@pytest.mark.parametrize("name", ["guidance_scale", "forced_eos_token_id"])
def test_zero_is_not_off(name):
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match=f"{name}={zero}"):
            read({"do_sample": True, name: zero})


def test_all_of_them_are_named_in_one_message():
    everything = PROCESSORS | ALGORITHMS
    with pytest.raises(ValueError, match=r"^`config` asks for what a Sampler does not") as caught:
        read({"do_sample": True, **everything})
    call = call_in(str(caught.value))
    for name in everything:
        assert f"{name}=None" in call
    assert TopK(50) in evaluate(call, {"do_sample": True, **everything}).stages
    # These tables forget nothing that the module refuses.
    assert _names.HF_STAGES.keys() <= STAGES.keys()
    assert PROCESSORS.keys() == _names.PROCESSORS.keys()
    assert ALGORITHMS.keys() == _names.ALGORITHMS.keys()
    arguments = set(inspect.signature(Sampler).parameters) - {"stages"}
    fields = {*_names.HF_STAGES, *_names.EDITS} - {"bad_words_ids"}  # an argument by another name
    assert arguments == fields | {*_names.SAMPLER_ONLY}


def test_the_call_to_type_keeps_the_changes():
    fields = {"do_sample": True, "num_beams": 4, "min_length": 5, "top-P": 0.5}
    with pytest.raises(ValueError, match=r"num_beams=4") as caught:
        read(fields, temperature=0.7, min_length=9, ties="id", seed=7)
    assert str(caught.value) == (
        "`config` asks for what a Sampler does not do: top-P=0.5 (top_p?), num_beams=4, "
        "min_length=9. model.generate() applies min_length before the draw: "
        "Sampler.from_generation_config(config, temperature=0.7, min_length=None, ties='id', "
        "seed=7, **{'top-P': None}, top_p=0.5, num_beams=None)"
    )
    s = evaluate(call_in(str(caught.value)), fields)
    assert repr(s) == "Sampler(temperature=0.7, top_k=50, top_p=0.5, seed=7)"


def test_a_field_that_changes_the_draw_may_be_empty():
    for empty in ([], {}, (), None, False):
        fields = {"do_sample": True, **dict.fromkeys(PROCESSORS | ALGORITHMS, empty)}
        assert repr(read(fields, seed=7)) == "Sampler(top_k=50, ties='all', seed=7)"


@pytest.mark.parametrize("name", GenerationConfig().to_dict())
def test_every_field_of_the_installed_transformers_is_known(name):
    assert name in _names.OF_THE_DRAW or name in _names.IGNORED_FIELDS or name.startswith("_")


# What generate() ignores: fields of published cards, of models of transformers' own, of servers.
HARMLESS = [
    "alignment_heads", "architectures", "assistant_token_id", "attn_implementation",
    "audio_window_size", "begin_audio_token_id", "bos_token", "bot_token_id", "char_to_id",
    "chat_format", "chat_template", "codebook_size", "composer_to_feature_token",
    "compression_ratio_threshold", "condition_on_prev_tokens", "depth_decoder_do_sample",
    "depth_decoder_temperature", "depth_decoder_top_k", "dtype", "eos_token", "eos_threshold",
    "forced_decoder_ids", "frames_after_eos", "gmask_token_id", "id_to_text", "is_multilingual",
    "lang_to_id", "language", "logprob_threshold", "logprobs", "max_denoising_steps",
    "max_initial_timestamp_index", "max_tokens", "max_window_size", "min_eos_p", "min_frames",
    "model_type", "n", "num_codebooks", "num_diffusion_steps", "no_repeat_ngram_window_size",
    "no_speech_threshold", "no_timestamps_token_id", "num_ctx", "num_predict",
    "prev_sot_token_id", "prompt_condition_type", "ras_win_len", "repeat_last_n",
    "repetition_penalty_range", "return_timestamps", "sample_rate", "sampler_config",
    "sliding_window_len", "speed", "stop", "stop_sequences", "stop_token_ids", "stop_words_ids",
    "subtalker_dosample", "subtalker_temperature", "subtalker_top_k", "subtalker_top_p",
    "system_prompt", "t2u_lang_code_to_id", "talker_temperature", "talker_top_k", "talker_top_p",
    "task", "task_to_id", "text_temperature", "thinking_budget", "top_logprobs", "torch_dtype",
    "trust_remote_code", "user_token_id", "vocoder_lang_code_to_id", "1",
]  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_extras_pass(name):
    for value in (0.5, 7, "a text", [[1, 2]], {"en": 3}, True, None):
        s = read({"do_sample": True, name: value}, seed=7)
        assert repr(s) == "Sampler(top_k=50, ties='all', seed=7)"
        assert (
            repr(read({name: value}, **{name: None}, seed=7)) == "Sampler(temperature=0.0, seed=7)"
        )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"), ("Temperature", "temperature"), ("top_K", "top_k"),
        ("topK", "top_k"), ("topp", "top_p"), ("top-p", "top_p"), ("min-p", "min_p"),
        ("typical", "typical_p"), ("repitition_penalty", "repetition_penalty"),
        ("repetition_penality", "repetition_penalty"), ("num_beam", "num_beams"),
        ("no_repeat_ngrams_size", "no_repeat_ngram_size"), ("do_samples", "do_sample"),
        ("suppress_token", "suppress_tokens"),
    ],
)  # fmt: skip
def test_misspelled_fields(name, meant):
    for fields in ({"do_sample": True, name: 7}, {name: 7}):
        with pytest.raises(ValueError, match=r"^`config` asks for what a Sampler does n") as caught:
            read(fields, seed=7)
        message = str(caught.value)
        if meant in (*_names.HF_STAGES, *_names.EDITS):
            assert f"{name}=7 ({meant}?). Instead: " in message
            none = f"{name}=None" if name.isidentifier() else f"**{{{name!r}: None}}"
            assert message.endswith(f"(config, seed=7, {none}, {meant}=7)")
        else:
            assert f"{name}=7 ({meant}?). To go without: " in message
            want = repr(read({"do_sample": fields.get("do_sample")}, seed=7))
            assert repr(evaluate(call_in(message), fields)) == want
    off = {"temperature": 1.0, "top_k": 50, "min_p": 0.0, "num_beams": 1, "repetition_penalty": 1.0,
           "no_repeat_ngram_size": 0, "typical_p": 1.0, "top_p": 1}.get(meant)  # fmt: skip
    assert TopK(50) in read({"do_sample": True, name: off}).stages


def test_a_misspelled_field_is_offered_under_its_right_name():
    fields = {"do_samples": True, "temprature": 0.3, "topp": 0.9, "Top_K": 5, "num_beams": 4,
              "min_length": 5}  # fmt: skip
    with pytest.raises(ValueError, match=r"^`config` asks") as caught:
        read(fields, seed=7)
    assert str(caught.value).startswith(
        "`config` asks for what a Sampler does not do: Top_K=5 (top_k?), do_samples=True "
        "(do_sample?), temprature=0.3 (temperature?), topp=0.9 (top_p?), and 2 more. "
        "model.generate() applies min_length before the draw: "
    )
    want = "Sampler(temperature=0.3, top_k=5, top_p=0.9, ties='all', seed=7)"
    assert repr(evaluate(call_in(str(caught.value)), fields)) == want
    # Where the right field is there as well, it counts.
    for right, changes in (({"temperature": 0.8}, {}), ({}, {"temperature": 0.8})):
        fields = {"do_sample": True, "temprature": 0.3, **right}
        with pytest.raises(ValueError, match=r"To go without: .*temprature=None\)$") as caught:
            read(fields, **changes)
        assert Temperature(0.8) in evaluate(call_in(str(caught.value)), fields).stages
    fields = {"do_sample": False, "do_samples": True}
    with pytest.raises(ValueError, match=r"To go without: .*do_samples=None\)$"):
        read(fields)


def test_what_generate_applies_is_named_where_that_is_shorter():
    for fields, said in (
        ({"num_beams": 4, "penalty_alpha": 0.6, "min_length": 5}, "min_length"),
        ({"num_beams": 4, "min_length": 5}, "min_length"),
        ({"num_beams": 4, "min_length": 5, "guidance_scale": 2.0}, "all but num_beams"),
        ({"min_length": 5, "guidance_scale": 2.0}, "these"),
    ):
        with pytest.raises(ValueError, match=rf"model\.generate\(\) applies {said} before the dra"):
            read({"do_sample": True, **fields})


@pytest.mark.parametrize("path", ["generation_config.json", Path("generation_config.json")])
def test_a_path_is_not_a_configuration(path):
    with pytest.raises(TypeError, match=r"but is a [.\w]+: .*json\.load, .*\.from_pretrained"):
        read(path)


@pytest.mark.parametrize(
    ("name", "off", "on"),
    [
        ("mirostat_mode", 0, 2),
        ("repeat_penalty", 1.0, 1.1), ("dry_multiplier", 0.0, 0.8), ("xtc_probability", 0.0, 0.1),
        ("min_tokens", 0, 3), ("tfs_z", 1, 0.9),
        ("use_beam_search", False, True), ("best_of", 1, 4), ("temp", 1.0, 0.7),
        ("dynatemp_range", 0.0, 0.5),
    ],
)  # fmt: skip
def test_settings_of_other_libraries(name, off, on):
    for value in (off, None):
        assert TopK(50) in read({"do_sample": True, name: value}).stages
    fields = {"do_sample": True, name: on}
    with pytest.raises(
        ValueError, match=r"\(transformers ignores it\)\. (To go without|Instead): "
    ) as caught:
        read(fields, seed=7)
    assert f"{name}={on!r} (trans" in str(caught.value)
    ours = f"temperature={on}, " if name == "temp" else ""
    want = f"Sampler({ours}top_k=50, ties='all', seed=7)"
    assert repr(evaluate(call_in(str(caught.value)), fields)) == want


@pytest.mark.parametrize(
    ("name", "off", "on"),
    [
        ("top_a", 0.0, 0.2), ("top_n_sigma", -1.0, 1.0), ("tail_free", 1.0, 0.9),
        ("p_less", False, True), ("xtc", None, (0.1, 0.5)), ("smoothing", None, 0.3),
        ("dynamic_temperature", False, True), ("frequency_penalty", 0.0, 0.5),
        ("presence_penalty", 0, -1.5), ("logit_bias", {}, {5: 2.0}), ("bad_words", [], [[5]]),
        ("forced_tokens", {}, {0: 3}), ("dry", None, 0.8),
    ],
)  # fmt: skip
def test_stages_that_generate_does_not_have_are_arguments(name, off, on):
    for value in (off, None):
        assert TopK(50) in read({"do_sample": True, name: value}).stages
    several = STAGES[name].has_several or not isinstance(on, (bool, float))
    do = "To go without" if several else "Instead"
    with pytest.raises(ValueError, match=rf"{name}=.* \(an argument, not a field\)\. {do}: ") as e:
        read({"do_sample": True, name: on})
    made = evaluate(call_in(str(e.value)), {"do_sample": True, name: on})
    assert made.stages == Sampler(**({} if several else {name: on}), top_k=50).stages
    if name != "dynamic_temperature":  # whose field is another engine's switch
        s = read({"do_sample": True, name: on}, **{name: on}, seed=7)
        assert s == Sampler(**{name: on}, top_k=50, ties="all", seed=7)


def test_tensors_and_other_keys_pass():
    ids = torch.tensor([2, 3])
    fields = {"do_sample": True, "eos_token_id": ids, "stop_ids": ids, 1: ids}
    assert repr(read(fields, seed=7)) == "Sampler(top_k=50, ties='all', seed=7)"
    with pytest.raises(ValueError, match=r"force_words_ids=tensor"):
        read({"force_words_ids": ids})


@pytest.mark.parametrize("ids", [[2, 3], torch.tensor([2, 3])])
def test_suppressed_tokens_are_ours_greedy_or_not(ids):
    want = "Sampler(suppress_tokens=(2, 3), temperature=0.0, seed=7)"
    assert repr(read({"suppress_tokens": ids}, seed=7)) == want
    assert repr(read({}, suppress_tokens=ids, seed=7)) == want
    assert repr(read({"suppress_tokens": ids}, do_sample=False, seed=7)) == want
    want = "Sampler(suppress_tokens=(2, 3), top_k=50, ties='all', seed=7)"
    assert repr(read({"do_sample": True, "suppress_tokens": ids}, seed=7)) == want
    assert read({"suppress_tokens": ids}, suppress_tokens=None, seed=7).stages[0].is_off


@pytest.mark.parametrize(
    ("field", "setting"),
    [
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        ({"bad_words_ids": [[5], [6, 7]]}, {"bad_words": [[5], [6, 7]]}),
        # As generate() does: an end that is forbidden alone is left alone.
        ({"bad_words_ids": [[2], [5, 2], [3]], "eos_token_id": [2, 3]}, {"bad_words": [[5, 2]]}),
        ({"bad_words_ids": [[2]], "eos_token_id": 2}, {}),
        ({"sequence_bias": [[[5, 6], 2.0], [[7], -1.5]]},
         {"sequence_bias": {(5, 6): 2, (7,): -1.5}}),
        ({"sequence_bias": {(5, 6): 2.0}}, {"sequence_bias": {(5, 6): 2.0}}),
        ({"min_new_tokens": 4, "eos_token_id": 2}, {"min_new_tokens": (4, (2,))}),
        ({"min_new_tokens": 4, "eos_token_id": torch.tensor([3, 2])},
         {"min_new_tokens": (4, (2, 3))}),
        ({"suppress_tokens": [5, 6]}, {"suppress_tokens": (5, 6)}),
        ({"begin_suppress_tokens": torch.tensor([5, 6])}, {"begin_suppress_tokens": (5, 6)}),
    ],
    ids=str,
)  # fmt: skip
def test_edits_are_ours(field, setting):
    assert read({"do_sample": True, "top_k": 0, **field}, seed=7) == Sampler(
        **setting, ties="all", seed=7
    )
    assert read(field, seed=7) == Sampler(**setting, temperature=0.0, seed=7)
    assert read({}, **field, do_sample=False, seed=7) == read(field, seed=7)
    off = dict.fromkeys(field)
    assert read(field, **off, seed=7) == Sampler(temperature=0.0, seed=7)


def test_a_change_may_be_what_a_sampler_takes():
    card = {"repetition_penalty": 1.1, "min_new_tokens": 3, "bad_words_ids": [[5]]}
    own = {"repetition_penalty": (1.2, 64), "min_new_tokens": (4, (9,)), "bad_words": [[6]]}
    assert read(card, **own, seed=7) == Sampler(**own, temperature=0.0, seed=7)


def test_edits_that_would_not_be_what_generate_does():
    # Where the configuration has no end, generate() may be given one, or forbids nothing.
    with pytest.raises(ValueError, match=r"min_new_tokens=4, but has no `eos_token_id`") as caught:
        read({"min_new_tokens": 4}, seed=7)
    assert evaluate(call_in(str(caught.value)), {}) == Sampler(temperature=0.0, seed=7)
    assert read({"min_new_tokens": 4}, eos_token_id=2).min_new_tokens == (4, (2,))
    # After a first token that is forced, generate() counts from the second.
    card = {"forced_bos_token_id": 1, "begin_suppress_tokens": [5]}
    for changes in ({}, {"forced_bos_token_id": None}):
        with pytest.raises(ValueError, match=r"begin_suppress_tokens=\[5\]") as caught:
            read(card, **changes, seed=7)
        assert evaluate(call_in(str(caught.value)), card) == Sampler(temperature=0.0, seed=7)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("repetition_penalty", 0, ValueError), ("repetition_penalty", -1.1, ValueError),
        ("repetition_penalty", nan, ValueError), ("repetition_penalty", [1.1, 1.2], TypeError),
        ("no_repeat_ngram_size", -1, ValueError), ("no_repeat_ngram_size", 2.5, TypeError),
        ("bad_words_ids", [[-1]], ValueError), ("bad_words_ids", [["no"]], TypeError),
        ("sequence_bias", [[[5], nan]], ValueError), ("sequence_bias", {"no": 1.0}, TypeError),
        ("begin_suppress_tokens", [-1], ValueError),
    ],
)  # fmt: skip
def test_edits_out_of_range(field, value, error):
    name = {"bad_words_ids": "bad_words"}.get(field, field)
    with pytest.raises(error, match=rf"^`{name}"):
        read({"do_sample": True, field: value})


def test_settings_for_each_part_of_a_model():
    part = {"temperature": 0.7, "do_sample": True}
    for fields in ({"semantic_config": part}, {"semantic_config": {"temperature": 0.7}}):
        for form, where in ((fields, "['semantic_config']"),
                            (GenerationConfig(**fields), ".semantic_config")):  # fmt: skip
            with pytest.raises(ValueError, match=r"^`config` has sampling settings") as caught:
                read(form, do_sample=None, top_k=5, seed=7)
            assert f"(config{where}, do_sample=None, top_k=5, seed=7)" in str(caught.value)
    # The settings of all count where there are such.
    assert TopK(9) in read({"do_sample": True, "top_k": 9, "talker_config": part}).stages
    assert repr(read({"talker_config": part}, do_sample=False, seed=7)).endswith("re=0.0, seed=7)")
    assert repr(read({"speaker_config": {"rate": 2}}, seed=7)) == "Sampler(temperature=0.0, seed=7)"


def test_unknown_changes():
    unknown = (
        r"^from_generation_config\(\) got an unexpected keyword argument 'top_q': did you mean"
    )
    for fields in ({}, {"heat": "low"}):
        with pytest.raises(TypeError, match=unknown):
            read(fields, top_q=0.9)
        with pytest.raises(TypeError, match=unknown):
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
        ("typical_p", 0, ValueError), ("top_h", 0, ValueError), ("top_h", 1.1, ValueError),
        ("epsilon_cutoff", 1.0, ValueError), ("eta_cutoff", -0.1, ValueError),
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
    with pytest.raises(TypeError, match="give either `seed` or `rng`, not both"):
        read(fields, seed=7, rng=rng)
    for name, value in (("seed", 3), ("min_tokens_to_keep", 2), ("ties", "id")):
        with pytest.raises(ValueError, match=r"\(an argument, not a field\)") as caught:
            read({**fields, name: value})
        assert evaluate(call_in(str(caught.value)), {**fields, name: value}).ties == "all"
    assert read({**fields, "seed": 3}, seed=4).seed == 4
    assert read({**fields, "min_tokens_to_keep": 1, "seed": -1}).min_tokens_to_keep == 1
    assert read(fields, min_tokens_to_keep=None, ties=None, seed=None).min_tokens_to_keep == 1


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


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_a_list_in_a_configuration_is_no_setting_per_row(name):
    # Found: an empty list became a setting for no row at all, [0.5, 0.9] one for two.
    off = Sampler.from_generation_config({"do_sample": True, name: None, "top_k": 50}, seed=7)
    if name != "top_k":
        s = Sampler.from_generation_config({"do_sample": True, name: [], "top_k": 50}, seed=7)
        assert s == off
    with pytest.raises(
        TypeError, match=rf"^`{name}` has to be a number in a configuration, but is \[0.5, 0.9\]$"
    ):
        Sampler.from_generation_config({"do_sample": True, name: [0.5, 0.9]}, seed=7)
    s = Sampler.from_generation_config({"do_sample": True}, seed=7, **{name: [1, 1]})
    assert getattr(s, name).tolist() == [1.0, 1.0]
