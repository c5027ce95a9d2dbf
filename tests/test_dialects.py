"""Settings of engines: what they mean, written and read back, and what is wrong with them."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from sampler import (
    DRY,
    XTC,
    AdaptiveP,
    BeginSuppressTokens,
    DynamicTemperature,
    EpsilonCutoff,
    FrequencyPenalty,
    LogitBias,
    MinP,
    Mirostat,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
    Smoothing,
    SuppressTokens,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    dialects,
)
from sampler._checks import Range
from sampler.dialects._table import are_one_law
from sampler.history import History
from sampler.stages.settings import STAGES

inf = math.inf
DATA = Path(__file__).with_name("data") / "dialects"
ENGINES = [name for name in dialects.names() if name != dialects.OWN]
EVERY = pytest.mark.parametrize("engine", ENGINES)


class Letters:
    """A tokenizer of single characters."""

    characters = '\n:"*.,!?<>[](){}\tabc'

    def __len__(self):
        return len(self.characters)

    def batch_decode(self, ids):
        return [self.characters[one] for (one,) in ids]

    def encode(self, text, add_special_tokens=False):
        return [self.characters.index(one) for one in text]


def breakers(strings):
    return [[Letters.characters.index(one)] for one in strings]


QUOTES = breakers('\n:"*')
ALL_BREAKERS = breakers('.,!?<>[](){}\n\t"')
# What each file means, worked out by hand from the engine's source; None where it is refused.
MEANT = {
    "exllamav3/overrides_coding.yml": [
        SuppressTokens([128, 330]), Temperature(0.3), TopK(20), TopP(0.95),
    ],
    "exllamav3/overrides_roleplay.yml": [
        RepetitionPenalty(1.05, 2048, True, 512), DRY(0.8, 1.75, 2, None, True, ALL_BREAKERS),
        MinP(0.05), Temperature(1.1),
    ],
    "exllamav3/request_chat.json": [
        LogitBias({1734: -2.5, 198: 1}), PresencePenalty(0.4, None, True),
        DRY(0.8, 1.75, 3, 4096, True, QUOTES), MinP(0.1), Temperature(1.25),
        XTC(0.1, 0.5, (), True),
    ],
    "exllamav3/request_completion.json": [
        RepetitionPenalty(1.08, 1024, True, 256), Temperature(0.9), TopK(50), TopP(0.92),
        MinP(0.02),
    ],
    "exllamav3/request_greedy.json": [
        RepetitionPenalty(1.1), SuppressTokens([128, 330]), Temperature(0),
    ],
    "huggingface/gemma3.json": [TopK(64), TopP(0.95)],
    "huggingface/llama3_1.json": [Temperature(0.6), TopK(50), TopP(0.9)],
    "huggingface/qwen2_5.json": [RepetitionPenalty(1.05), Temperature(0.7), TopK(20), TopP(0.8)],
    "huggingface/qwen3.json": [Temperature(0.6), TopK(20), TopP(0.95)],
    "huggingface/whisper_shortened.json": [
        SuppressTokens([1, 2, 7, 8, 9, 10, 14, 25]), BeginSuppressTokens([220, 50257]),
        Temperature(0),
    ],
    "koboldcpp/api_docs.json": [
        RepetitionPenalty(1.1, 256), TopK(100), TopP(0.9), Temperature(0.5),
    ],
    "koboldcpp/dynatemp.json": [
        LogitBias({2: -100, 15043: 5}), PresencePenalty(0.3, 512, True), TopK(40), TopP(0.95),
        DynamicTemperature(0.5, 1.5), Smoothing(0.25, 1.5), TopNSigma(1.0),
    ],
    "koboldcpp/kobold_bot.json": None,  # rep_pen_slope
    "koboldcpp/lite_saved_settings.json": None,  # the same
    "koboldcpp/story.json": [
        DRY(0.8, 1.75, 2, None, True, QUOTES), MinP(0.05), Temperature(1.25), XTC(0.1, 0.5),
    ],
    "llama_cpp/cli_chat.txt": [
        RepetitionPenalty(1.1, 64), TopK(40), TopP(0.9), MinP(0.05), Temperature(0.7),
    ],
    "llama_cpp/cli_order.txt": [LogitBias({15043: -1.5}), Temperature(1.5), TopNSigma(1.5)],
    "llama_cpp/cli_qwen.txt": [
        PresencePenalty(1.5, 64, True), TopK(20), TopP(0.95), Temperature(0.6),
    ],
    "llama_cpp/server_full.json": [
        LogitBias({15043: 1.0, 2: -inf}), RepetitionPenalty(1.05, 256),
        PresencePenalty(1.5, 256, True), TopK(20), TopP(0.8), DynamicTemperature(0.7 - 0.3, 1.0),
    ],
    "llama_cpp/server_story.json": [
        DRY(0.8, 1.75, 2, 1024, True, QUOTES), MinP(0.05), XTC(0.1, 0.5), Temperature(1.1),
    ],
    "mlx_lm/chat_request.json": [TopP(0.95), MinP(0.05), TopK(20), Temperature(0.6)],
    "mlx_lm/completion_request.json": [
        LogitBias({198: 1.5}), PresencePenalty(0.5, None, True), Temperature(0.8),
    ],
    "mlx_lm/sampler_basic.json": [RepetitionPenalty(1.1, 20), TopP(0.9), Temperature(0.7)],
    "mlx_lm/sampler_greedy.json": [
        LogitBias({2: -100}), RepetitionPenalty(1.3, 64), TopP(0.95), TopK(40), Temperature(0),
    ],
    "mlx_lm/sampler_xtc.json": [
        PresencePenalty(0.4, 20, True), FrequencyPenalty(0.1, 128, True), MinP(0.02),
        XTC(0.1, 0.5, (2, 13)),
    ],
    "ollama/Modelfile.coder": [
        RepetitionPenalty(1.05, 256), TopK(15), TopP(0.85), Temperature(0.05),
    ],
    "ollama/Modelfile.gemma": [PresencePenalty(0.5, None, True), TopK(64), TopP(0.95), MinP(0.01)],
    "ollama/Modelfile.mario": [RepetitionPenalty(1.1, 64), TopK(40), TopP(0.9)],
    "ollama/request_chat.json": [TopK(1), TopP(0.9), Temperature(0)],
    "ollama/request_generate.json": [
        RepetitionPenalty(1.2, 33), FrequencyPenalty(1.0, 33, True), PresencePenalty(1.5, 33, True),
        TopK(20), TypicalP(0.7), TopP(0.9), Temperature(0.8),
    ],
    "openai/bias.json": [LogitBias({2201: 100, 9891: 100, 50256: -100})],
    "openai/chat_basic.json": [Temperature(0.7), TopP(0.95)],
    "openai/extraction.json": [Temperature(0)],
    "openai/penalties.json": [FrequencyPenalty(0.5), PresencePenalty(0.6), Temperature(1.1)],
    "openai/structured.json": None,  # response_format
    "sglang/chat_request.json": [PresencePenalty(1.5), Temperature(0.6), TopP(0.95), TopK(20)],
    "sglang/generate_basic.json": [Temperature(0)],
    "sglang/generate_bias.json": None,  # min_new_tokens
    "sglang/generate_joint.json": [
        FrequencyPenalty(0.2), RepetitionPenalty(1.1, None, False), Temperature(0.8), TopP(0.9),
        TopK(40),
    ],
    "sglang/generate_min_p.json": [
        PresencePenalty(0.5), Temperature(1.5), TopP(0.95), TopK(100), MinP(0.1),
    ],
    "sillytavern/Deterministic.json": [Temperature(0)],
    "sillytavern/MinP-XTC-DRY_llamacpp.json": [  # as text-generation-webui takes it
        RepetitionPenalty(1.05, 1024), DRY(0.8, 1.75, 2, 1024, True, QUOTES), MinP(0.05),
        XTC(0.1, 0.5), Temperature(1.15),
    ],
    "sillytavern/Roleplay_tabby.json": None,  # banned_tokens
    "sillytavern/Smooth_Dynatemp_ooba.json": [
        RepetitionPenalty(1.07), FrequencyPenalty(0.1, None, True), EpsilonCutoff(3e-4), MinP(0.02),
        DynamicTemperature(0.5, 1.5, 0.85), Smoothing(0.25, 1.5),
    ],
    "sillytavern/Storywriter_koboldcpp.json": None,  # tfs
    "text_generation_webui/Debug-deterministic.yaml": [Temperature(0)],
    "text_generation_webui/Instruct.yaml": [MinP(0.2)],
    "text_generation_webui/Midnight_Enigma.yaml": [
        RepetitionPenalty(1.18, 1024), Temperature(0.98), TopK(100), TopP(0.37),
    ],
    "text_generation_webui/My_roleplay.yaml": [
        PresencePenalty(0.1, 2048, True), DRY(0.8, 1.75, 2, 2048, True, None), MinP(0.02),
        EpsilonCutoff(3e-4), XTC(0.1, 0.5), Temperature(1.2), Smoothing(0.2, 1.0),
    ],
    "text_generation_webui/Yara.yaml": [
        RepetitionPenalty(1.19, 1024), Temperature(0.82), TopK(72), TopP(0.21),
    ],
    "text_generation_webui/min_p.yaml": [MinP(0.05)],
    "vllm/chat_request.json": [
        LogitBias({1734: -100, 198: 2.5}), RepetitionPenalty(1.1), Temperature(0.01), TopK(40),
        TopP(0.9),
    ],
    "vllm/creative.json": [
        RepetitionPenalty(1.05), FrequencyPenalty(0.2), PresencePenalty(0.3), Temperature(1.2),
        MinP(0.05), TopP(0.98),
    ],
    "vllm/greedy_eval.json": None,  # min_tokens
    "vllm/qwen3_thinking.json": [Temperature(0.6), TopK(20), TopP(0.95)],
    "vllm/server.yaml": [RepetitionPenalty(1.05), Temperature(0.7), TopK(20), TopP(0.8)],
}  # fmt: skip
TIES_ALL = {"exllamav3", "huggingface", "sglang", "sillytavern", "text_generation_webui", "vllm"}


def chain_of(s):
    return [one for one in s.stages if not one.is_off]


def same_chain(found, meant):
    """Whether two chains are one law: the same stages, in orders that are the same law."""
    by_setting = {one.setting: one for one in meant}
    return are_one_law([one.setting for one in found], [one.setting for one in meant]) and all(
        one == by_setting[one.setting] for one in found
    )


def test_there_are_five_files_of_each_engine():
    found = [str(one.relative_to(DATA)) for one in sorted(DATA.rglob("*")) if one.is_file()]
    assert sorted(MEANT) == sorted(found)
    for engine in ENGINES:
        assert sum(name.startswith(f"{engine}/") for name in found) >= 5


@pytest.mark.parametrize("name", MEANT)
def test_a_file_is_what_its_engine_makes_of_it(name):
    engine, meant = name.split("/")[0], MEANT[name]
    file, more = DATA / name, {}
    if name.endswith("My_roleplay.yaml"):
        more = {"dry_sequence_breakers": []}  # it has one of several letters
    if meant is None:
        with pytest.raises(ValueError, match=r"that are not read: .*To go without, give"):
            Sampler.load(file, like=engine, tokenizer=Letters())
        return
    s = Sampler.load(file, like=engine, tokenizer=Letters(), **more)
    assert same_chain(chain_of(s), meant), chain_of(s)
    if s.temperature != 0:
        assert s.ties == ("all" if engine in TIES_ALL else "id")


@EVERY
def test_what_is_left_out_has_the_engine_s_default(engine):
    table = dialects.dialect(engine)
    usual = Sampler.load({}, like=engine, seed=1)
    spelled = {name: key.default for name, key in table.keys.items() if key.default is not None}
    if engine != "huggingface":  # which looks at do_sample first
        assert Sampler.load(spelled, like=engine, tokenizer=Letters(), seed=1) == usual
    defaults = {
        "llama_cpp": [TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8)],
        "ollama": [RepetitionPenalty(1.1, 64), TopK(40), TopP(0.9), Temperature(0.8)],
        "koboldcpp": [TopK(100), TopP(0.92), Temperature(0.75)],
        "mlx_lm": [Temperature(0)],
        "huggingface": [Temperature(0)],
        "sillytavern": [RepetitionPenalty(1.2), Temperature(0.7), TopK(40), TopP(0.5)],
    }
    assert same_chain(chain_of(usual), defaults.get(engine, []))


def test_the_hidden_top_k():
    assert Sampler.load({"do_sample": True}, like="hf").top_k == 50
    config = GenerationConfig(do_sample=True, temperature=0.6)
    assert Sampler.load(config, like="hf", seed=1) == Sampler.from_generation_config(config, seed=1)


# ------------------------------------------------------------------------------ round trips

PENALTY = st.tuples(
    st.sampled_from([1.1, 0.9, 2.0]), st.sampled_from([None, 20, 64]), st.booleans(),
    st.sampled_from([0, 5]),
)  # fmt: skip
VALUES = {
    "logit_bias": st.dictionaries(st.integers(0, 9), st.sampled_from([1.5, -2.0, -inf])),
    "repetition_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "dry": st.tuples(
        st.just(0.8), st.sampled_from([1.75, 2.0]), st.integers(1, 3),
        st.sampled_from([None, 64, 20]), st.booleans(), st.sampled_from([(), ((3,),)]),
    ),
    "no_repeat_ngram_size": st.integers(0, 3),
    "suppress_tokens": st.lists(st.integers(0, 9)),
    "temperature": st.sampled_from([0.0, 0.005, 0.5, 0.8, 1.0, 2.0, inf]),
    "dynamic_temperature": st.sampled_from([(0.5, 1.5), (0.0, 2.0, 2.0), (0.3, 0.4)]),
    "smoothing": st.sampled_from([0.2, (0.3, 1.5)]),
    "top_n_sigma": st.sampled_from([0.0, 1.0, 1.5]),
    "top_h": st.sampled_from([None, 0.4]),
    "top_k": st.sampled_from([0, 1, 40, 50, 100]),
    "top_p": st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]),
    "min_p": st.sampled_from([0.0, 0.05, 0.1, 1.0]),
    "typical_p": st.sampled_from([0.5, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.0, 3e-4, 0.01]),
    "eta_cutoff": st.sampled_from([0.0, 2e-3]),
    "top_a": st.sampled_from([0.0, 0.2]),
    "tail_free": st.sampled_from([0.9, 1.0]),
    "p_less": st.booleans(),
    "xtc": st.sampled_from([(0.1, 0.5), (0.2, 1.0, (3,)), (0.1, 0.5, (), True), (0.6, 0.5)]),
    "mirostat": st.sampled_from([2, (1, 3.0, 0.2)]),
    "adaptive_p": st.sampled_from([0.5, (0.3, 0.5)]),
}  # fmt: skip


@st.composite
def samplers(draw):
    names = draw(st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=6))
    if "adaptive_p" in names and "mirostat" in names:
        names.remove("mirostat")
    stages = {name: STAGES[name].of(draw(VALUES[name])) for name in names}
    arguments = {
        "ties": draw(st.sampled_from(["id", "all"])),
        "min_tokens_to_keep": draw(st.sampled_from([1, 3])),
        "seed": draw(st.sampled_from([None, 1, 2**64 - 1])),
    }
    if draw(st.booleans()) and not {"temperature", "dynamic_temperature"} <= stages.keys():
        return Sampler(**stages, **arguments)
    kinds = {"edit": 0, "scale": 1, "cut": 1, "memory": 2}
    chain = sorted(stages.values(), key=lambda one: kinds[one.kind])
    return Sampler(chain, **arguments)


@given(samplers())
def test_our_own_form_is_read_back(s):
    text = json.dumps(s.to_dict(), allow_nan=False)
    assert Sampler.from_dict(json.loads(text)) == s
    assert Sampler.load(text) == s
    assert Sampler.load(yaml.safe_dump(s.to_dict()) + "\n") == s
    assert s.dump().settings == s.to_dict() and s.dump().lost == {}


@given(s=samplers(), engine=st.sampled_from(ENGINES))
def test_what_is_not_lost_is_read_back(s, engine):
    """And draws the tokens of the sampler that was written."""
    settings, lost = s.dump(engine)
    json.dumps(settings, allow_nan=False)
    back = Sampler.load(settings, like=engine)
    again = back.replace(seed=s.seed).dump(engine)
    names = {name.split(".")[0] for name in lost}
    for one in chain_of(s):
        if one.setting not in names:
            assert one in chain_of(back), (one, settings)
    if not lost.keys() - {"seed"}:
        assert same_chain(chain_of(back), chain_of(s))
        rows = np.random.default_rng(0).normal(0, 3, (20, 60))
        said = {"history": [History([1, 2, 3, 1, 2], [3, 1, 2])] * 20}
        if any(one.kind == "memory" for one in chain_of(s)):
            said["state"] = s.initial_state(20)
        drawn = [x.replace(seed=5).sample(rows, steps=1, **said) for x in (s, back)]
        assert np.array_equal(drawn[0].tokens, drawn[1].tokens)
        assert np.array_equal(drawn[0].logprobs, drawn[1].logprobs)
    assert back.replace(seed=1) == Sampler.load(again.settings, like=engine).replace(seed=1)


@pytest.mark.parametrize(
    ("engine", "s", "settings", "lost"),
    [
        ("vllm", Sampler(temperature=0.8, top_n_sigma=1.5), {"temperature": 0.8},
         {"top_n_sigma": 1.5}),
        ("vllm", Sampler(top_k=5, ties="all", seed=3), {"top_k": 5, "seed": 3}, {}),
        ("vllm", Sampler(top_k=5), {"top_k": 5}, {"ties": "id"}),
        ("vllm", Sampler([MinP(0.1), Temperature(0.5)]), {"temperature": 0.5, "min_p": 0.1},
         {"order": ["min_p", "temperature"]}),
        ("openai", Sampler(logit_bias={3: -inf, 4: 1.0}), {"logit_bias": {"4": 1.0}},
         {"logit_bias": ((3, -inf), (4, 1.0))}),
        ("llama.cpp", Sampler(logit_bias={3: -inf}, temperature=0.8, top_k=40),
         {"top_p": 1.0, "min_p": 0.0, "logit_bias": {"3": False}}, {}),
        ("llama.cpp", Sampler(temperature=2.0, min_p=0.05),
         {"temperature": 2.0, "top_k": 0, "top_p": 1.0,
          "samplers": ["penalties", "dry", "temperature", "min_p"]}, {}),
        ("hf", Sampler(temperature=0), {}, {}),
        ("hf", Sampler(repetition_penalty=1.2, top_k=50, ties="all"),
         {"repetition_penalty": 1.2, "do_sample": True}, {}),
        ("hf", Sampler(top_k=50, ties="all", seed=7), {"do_sample": True}, {"seed": 7}),
        ("mlx-lm", Sampler(repetition_penalty=1.1),
         {"temp": 1.0, "repetition_penalty": 1.1, "repetition_context_size": 0}, {}),
        ("text-generation-webui", Sampler([TopK(5), Temperature(2.0), Smoothing(0.2)], ties="all"),
         {"temperature": 2.0, "smoothing_factor": 0.2, "top_k": 5, "temperature_last": True}, {}),
        ("exllamav3", Sampler(xtc=(0.1, 0.5)), {"xtc_probability": 0.5}, {"xtc.expected": False}),
        ("koboldcpp", Sampler(adaptive_p=0.5),
         {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "adaptive_target": 0.5}, {}),
        ("ollama", Sampler([TopP(0.9), Temperature(0.8)]), {"top_k": 0, "repeat_penalty": 1.0}, {}),
    ],
)  # fmt: skip
def test_what_is_written_and_what_is_lost(engine, s, settings, lost):
    assert s.dump(engine) == (settings, lost)


ON = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "top_h", "top_a"), 0.5),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0.01),
    "top_n_sigma": 1.0, "tail_free": 0.9, "top_k": 7, "no_repeat_ngram_size": 3, "seed": 5,
    "repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5, "dry": 0.8,
    "xtc": (0.1, 0.5, (3,)), "mirostat": 2, "adaptive_p": 0.5, "smoothing": 0.3,
    "dynamic_temperature": (0.5, 1.5), "logit_bias": {3: 1.5}, "suppress_tokens": [3, 4],
    "bad_words": [[1, 2], [3]], "begin_suppress_tokens": [5], "sequence_bias": {(1, 2): 0.5},
    "min_new_tokens": (2, [3]), "min_tokens_to_keep": 2,
}  # fmt: skip


@EVERY
def test_what_has_a_key_is_not_lost(engine):
    for key in dialects.dialect(engine).keys.values():
        setting, _, parameter = key.paths[0].partition(".")
        setting = setting.rstrip("!")
        value = (ON[setting], 64) if parameter == "window" and setting != "dry" else ON[setting]
        lost = Sampler(**{setting: value}).dump(engine).lost
        assert setting not in lost, (engine, setting, lost)
        if setting != "dry":  # whose breakers are text
            assert f"{setting}.{parameter}" not in lost, (engine, lost)


def test_dump_writes_a_file(tmp_path):
    s = Sampler(temperature=0.8, top_p=0.9, seed=7)
    for name in ("s.json", "s.yaml"):
        s.dump(path=tmp_path / name)
        assert Sampler.load(tmp_path / name) == s
        s.dump("vllm", tmp_path / name)
        assert Sampler.load(tmp_path / name, like="vllm").replace(ties="id") == s
    with pytest.raises(ValueError, match=r"end in .json or .yaml"):
        s.dump(path=tmp_path / "s.txt")
    with pytest.raises(ValueError, match="`temperature`, but this sampler one per row"):
        Sampler(temperature=[1, 2]).dump("vllm")
    per_row = Sampler(temperature=[1, 2], top_h=[None, 0.5], min_tokens_to_keep=[1, 2], seed=1)
    assert Sampler.from_dict(json.loads(json.dumps(per_row.to_dict()))) == per_row


def test_an_engine_s_own_object():
    @dataclass
    class Params:
        temperature: float = 0.5
        top_k: int = -1
        _hidden: int = 3

    assert Sampler.load(Params(), like="vllm", seed=1).temperature == 0.5
    assert Sampler.load(SimpleNamespace(temperature=0.5), like="openai", seed=1).temperature == 0.5
    for source in (3, object(), Params, None):
        with pytest.raises(TypeError, match="`source` has to be a file"):
            Sampler.load(source, like="vllm")


def test_changes_take_the_place_of_what_is_there():
    body = {"temperature": 0.7, "top_p": 0.9, "response_format": {"type": "json_object"}}
    s = Sampler.load(body, like="openai", response_format=None, top_p=None, seed=3, threads=2)
    assert s == Sampler(temperature=0.7, seed=3, threads=2)
    assert Sampler.load({"seed": 5}, like="openai", seed=6).seed == 6
    assert Sampler.load({}, like="sglang", seed=6).seed == 6
    assert Sampler.load({}, like="ollama", step=4).step == 4


def test_breakers_are_text():
    body = {"dry_multiplier": 0.8, "temperature": 0}
    with pytest.raises(ValueError, match="give tokenizer=, or without breakers"):
        Sampler.load(body, like="llama.cpp")
    s = Sampler.load(body, like="llama.cpp", dry_sequence_breakers=[])
    assert s.dry == (0.8, 1.75, 2, 64, True, ())


def test_a_model_s_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is none: for a model of the hub"):
        Sampler.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(FileNotFoundError, match=r"has no generation_config\.json"):
        Sampler.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "top_p": 0.9}')
    s = Sampler.from_pretrained(tmp_path, temperature=0.5, seed=1)
    assert s == Sampler(temperature=0.5, top_k=50, top_p=0.9, ties="all", seed=1)
    with pytest.raises(FileNotFoundError, match=r"is a folder: Sampler\.from_pretrained reads"):
        Sampler.load(tmp_path, like="hf")
    with pytest.raises(TypeError, match="`folder`"):
        Sampler.from_pretrained(3)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('{"top_p": }', "no JSON"),
        ('{"top_p": 0.9, "top_p": 0.8}', "have 'top_p' twice"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deep"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested too deep"),
        ('{"top_k": ' + "9" * 5000 + "}", "digits"),
        ('{"top_p": 1e999}', "top_p"),
        ('{"top_p": NaN}', "top_p"),
        ("[1, 2]\n", "mapping"),
        ("top_p: 0.9\ntop_p: 0.8\n", "have 'top_p' twice"),
        ("a: &a [1]\nb: *a\n", "alias"),
        ("top_p: !!python/object/apply:os.system ['true']\n", "no YAML"),
        ("top_p: [\n", "no YAML"),
        ("1: 2\n", "strings for keys"),
        ("just words\n", "mapping"),
        ('{"top_p": [0.9, 0.8]}', "has to be a number"),
        ('{"top_p": "0.9"}', "top_p"),
        ('{"top_p": true}', "top_p"),
        ('{"temperature": -1}', "temperature"),
        ('{"top_k": ' + "9" * 400 + "}", "top_k"),
        ('{"logit_bias": 3}', "logit_bias"),
        ('{"logit_bias": {"a": 1}}', "logit_bias"),
        (" " * (1 << 20) + "\n", "1048576 bytes"),
    ],
)
def test_text_that_is_no_settings(text, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sampler.load(text, like="vllm")


@pytest.mark.parametrize("value", ["abc", "0.5", [1], {"a": 1}, b"x", True, 10**400])
@EVERY
def test_no_key_takes_what_is_no_number(engine, value):
    """Nor where its stage is off."""
    for name, key in dialects.dialect(engine).keys.items():
        setting, _, parameter = key.paths[0].partition(".")
        if setting not in STAGES or engine == "huggingface" or key.to.endswith("!"):
            continue
        stated = STAGES[setting].parameters.get(parameter)
        if stated is not None and not isinstance(stated.range, Range):
            continue  # ids, biases
        with pytest.raises((TypeError, ValueError), match=f"`{name}` of"):
            Sampler.load({name: value}, like=engine)


def test_files_that_are_none(tmp_path):
    for name in ("presets/mine", "../../etc/none", "min_p", "no.json", "x" * 300):
        with pytest.raises(
            OSError, match=r"has to be a file of settings, or their text|name too long"
        ):
            Sampler.load(name, like="vllm")
    big, odd = tmp_path / "big.json", tmp_path / "odd.json"
    big.write_text(" " * (1 << 20) + "{}")
    with pytest.raises(ValueError, match="1048576 bytes"):
        Sampler.load(big, like="vllm")
    odd.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="file of text"):
        Sampler.load(odd, like="vllm")
    odd.write_text("")
    with pytest.raises(ValueError, match="no JSON"):
        Sampler.load(odd, like="vllm")


@EVERY
def test_unknown_keys_are_one_error(engine):
    if engine == "huggingface":
        return  # `from_generation_config` has a message of its own
    with pytest.raises(ValueError, match="unknown settings of") as error:
        Sampler.load({"topp": 0.5, "Top-P": 0.5, "top_p": 1.0, "zzzz": 1}, like=engine)
    assert "'topp' (top_p?), 'Top-P' (top_p?)" in str(error.value)
    assert ("zzzz" in str(error.value)) == dialects.dialect(engine).strict


def test_paths_are_no_commands(tmp_path):
    for path in ("presets/llama - cold.json", "a -b.json", "my llama-cli file.json"):
        with pytest.raises(FileNotFoundError):
            Sampler.load(str(tmp_path / path), like="llama.cpp")
    for command in ("--temp 0.5", "./build/bin/llama-cli --temp 0.5", "llama-server --temp 0.5"):
        assert Sampler.load(command, like="llama.cpp").temperature == 0.5


def test_settings_that_are_no_command_are_yaml():
    for like in ("llama.cpp", "ollama", "mlx-lm"):
        s = Sampler.load("temperature: 0.2\ntop_k: 5\n", like=like, seed=1)
        assert (s.temperature, s.top_k) == (0.2, 5)


@pytest.mark.parametrize(
    "flags", ["--grammar x", "--grammar-file x", "-j {}", "--json-schema {}", "--ignore-eos -m x"]
)
def test_flags_that_are_refused(flags):
    with pytest.raises(ValueError, match=r"settings of llama\.cpp that are not read"):
        Sampler.load(f"llama-cli {flags} --temp 0.2", like="llama.cpp")
    s = Sampler.load("llama-cli --sampling-seq kt --min-keep 3", like="llama.cpp", seed=1)
    assert same_chain(chain_of(s), [TopK(40), Temperature(0.8)]) and s.min_tokens_to_keep == 3


@pytest.mark.parametrize(
    ("body", "like", "message"),
    [
        ({"options": 5}, "ollama", "`options` of Ollama has to be a mapping"),
        ({"sampler_order": [True]}, "koboldcpp", "`sampler_order` of KoboldCpp"),
        ({"temp": 0.2, "temperature": 1.5}, "llama.cpp", "have `temperature` twice"),
        ({"sampler_seed": 1.5}, "koboldcpp", "`sampler_seed` of KoboldCpp has to be an integer"),
        ({"min_keep": -1}, "llama.cpp", "`min_keep` of llama.cpp has to be at least 0"),
        ({"logit_bias": ["1-1.."]}, "llama.cpp", "`logit_bias`"),
        ({"logit_bias": {"3": 10**400}}, "vllm", "`logit_bias`"),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": {"a": 1}}, "llama.cpp", "breakers"),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": 5}, "llama.cpp", "breakers"),
        ('top_p: !!float ""\n', "vllm", "no YAML"),
        ('top_p: !!bool "abc"\n', "vllm", "no YAML"),
        ('top_p: !!timestamp "abc"\n', "vllm", "no YAML"),
    ],
)
def test_what_is_no_setting(body, like, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sampler.load(body, like=like)


def test_unknown_flags():
    with pytest.raises(ValueError, match=r"unknown flag --topk \(--top-k\?\)"):
        Sampler.load("llama-cli -m model.gguf --topk 40", like="llama.cpp")
    with pytest.raises(ValueError, match="--top-k has no value"):
        Sampler.load("llama-cli --top-k", like="llama.cpp")
    s = Sampler.load(
        "llama-server --samplers 'top_k;temp' --temp=0.5", like="llama.cpp", samplers="kt"
    )
    assert same_chain(chain_of(s), [TopK(40), Temperature(0.5)])


@pytest.mark.parametrize("like", ["vlm", "llamacpp", "", "../vllm", "_own", "os", "..", 3, None])
def test_engines_that_are_none(like):
    with pytest.raises((TypeError, ValueError), match="`like` has to be"):
        Sampler.load({}, like=like)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"samplers": ["top_k", "tpo_p"]}, r"`samplers` of llama.cpp: 'tpo_p' \(ty?o?p_p\?\)"),
        ({"samplers": 5}, "has to be a list"),
        ({"samplers": [["top_k"]]}, "unknown settings of"),
        ({"samplers": "xyzzy"}, "unknown settings of"),
    ],
)
def test_orders_that_are_none(order, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sampler.load(order, like="llama.cpp")


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ([], TypeError, "a mapping"),
        ({}, ValueError, "have none"),
        ({"version": 2}, ValueError, "but have 2"),
        ({"version": True}, ValueError, "but have True"),
        ({"version": "1"}, ValueError, "but have '1'"),
        ({"version": 1, "topk": 3, "xyz": 1}, ValueError, r"'topk' \(top_k\?\), 'xyz'"),
        ({"version": 1, "rng": 3}, ValueError, "unknown settings: 'rng'"),
        ({"version": 1, "top_k": "x"}, TypeError, "`top_k`"),
        ({"version": 1, "xtc": 0.5}, TypeError, "`xtc` has to be a mapping"),
        (
            {"version": 1, "xtc": {"thresh": 0.5}},
            ValueError,
            r"`xtc`: 'thresh' \(threshold\?\)",
        ),
        ({"version": 1, "stages": {"top_k": 3}}, TypeError, "`stages` has to be a list"),
        ({"version": 1, "stages": [3]}, ValueError, "one each"),
        ({"version": 1, "stages": [{"top_k": 3, "top_p": 1}]}, ValueError, "one each"),
        ({"version": 1, "stages": [{"tpo_k": 3}]}, ValueError, r"'tpo_k' \(top_k\?\)"),
        ({"version": 1, "top_k": 3, "stages": []}, TypeError, "not both"),
    ],
)
def test_our_own_form_when_it_is_wrong(found, error, message):
    with pytest.raises(error, match=message):
        Sampler.from_dict(found)


def test_a_table_names_what_is_there():
    """Every key's parameters are ours, and every order has all of them."""
    for engine in ENGINES:
        table = dialects.dialect(engine)
        assert table.engine and table.version
        settings = {
            path.split(".")[0].rstrip("!") for key in table.keys.values() for path in key.paths
        }
        assert settings - {"seed", "min_tokens_to_keep"} <= STAGES.keys()
        listed = set(table.order.split()) | set(" ".join(table.order_names.values()).split())
        assert settings - {"seed", "min_tokens_to_keep"} <= listed, engine
        assert len(table.order.split()) == len(set(table.order.split()))
        for key in table.keys.values():
            for path in key.paths:
                setting, _, parameter = path.rstrip("!").partition(".")
                if setting in STAGES and not path.endswith("!"):
                    assert parameter in (*STAGES[setting].parameters, "range"), path
        keys = [*table.keys, *(other for key in table.keys.values() for other in key.names)]
        assert not set(keys) & set(table.others.split()), engine
        assert not set(keys) & set(table.refused), engine
        assert not set(table.others.split()) & set(table.refused), engine
        assert len(keys) == len(set(keys)), engine
        assert not re.search(r"\s\s", table.others), engine
    assert AdaptiveP(0.5) in chain_of(
        Sampler.load({"adaptive_target": 0.5, "samplers": ["adaptive_p"]}, like="llama.cpp")
    )
    s = Sampler.load({"mirostat": 2, "temperature": 0.5}, like="llama.cpp")
    assert same_chain(chain_of(s), [Temperature(0.5), Mirostat(2)])
