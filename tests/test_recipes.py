"""The demos that put a Sampler into other engines: each against draws from the engine's rows."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from sampler import Sampler
from sampler.history import History

DEMOS = Path(__file__).parents[1] / "demos"
SCRIPTS = sorted(path.stem for path in DEMOS.glob("engine_*.py"))
# With a stage that looks at the text, so that a text without its prompt or a token fails.
S = Sampler(temperature=1.5, top_p=0.95, repetition_penalty=1.3, seed=7)
NEW = 12


def load(name):
    spec = importlib.util.spec_from_file_location(name, DEMOS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def redrawn(rows, prompt, tokens):
    """What S draws of the rows from which `tokens` were drawn, all in one call."""
    n, length = len(tokens), len(prompt)
    histories = [History(prompt, tokens[:i]) for i in range(n)]
    steps = range(length, length + n)
    return S.sample(rows, history=histories, streams=[0] * n, steps=steps).tokens.tolist()


@pytest.mark.recipes
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_runs(script):
    run = subprocess.run(
        [sys.executable, DEMOS / f"{script}.py"],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) >= 8, run.stdout


# ---- NumPy and torch, which are always there ----------------------------------------------------


def test_numpy():
    engine = load("engine_numpy")
    vocabulary, logits = engine.model([*"ababacabdbcdacb"])
    assert vocabulary == ["a", "b", "c", "d"]
    # The last word, b, is followed by the first, a.
    counts = [[0, 3, 2, 0], [3, 0, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0]]
    assert np.exp(logits).round(9).tolist() == counts
    tokens = engine.write(logits, S, [3, 0], NEW)
    assert len(tokens) == NEW
    assert tokens == redrawn(logits[[0, *tokens[:-1]]], [3, 0], tokens)


def test_numpy_needs_nothing_else():
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'click')))"
    subprocess.run([sys.executable, "-c", code, DEMOS / "engine_numpy.py"], check=True)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


# To Llama a row that is moved as a whole is the same row; GPT-2 has a vector for each place.
@pytest.mark.parametrize("make", [tiny.llama, gpt2])
def test_torch_writes_the_texts_of_generate(make):
    model = make()
    engine = load("engine_torch")
    inputs, seen = tiny.padded(7, 3, 5), []
    hook = model.register_forward_pre_hook(lambda model, args: seen.append(args[0].shape[1]))
    free = engine.write(model, **inputs, s=S, max_new_tokens=NEW)
    hook.remove()
    assert seen == [7] + [1] * (NEW - 1)  # the cache has the rest
    assert free == tiny.generate(model, inputs, S).tolist()
    end = free[1][4]
    tokens = engine.write(model, **inputs, s=S, max_new_tokens=NEW, eos_token_id=end)
    for row, text in enumerate(tokens):
        ends = free[row].index(end) + 1 if end in free[row] else NEW
        assert text == free[row][:ends]
    assert len(tokens[1]) == free[1].index(end) + 1 <= 5


# ---- other engines ------------------------------------------------------------------------------


@pytest.mark.recipes
def test_onnxruntime():
    engine = load("engine_onnxruntime")
    session, prompt = engine.session(), [11, 12, 13]
    tokens = engine.write(session, S, prompt, NEW)
    # All at once: no state is handed on.
    ids, state = np.array(prompt + tokens), np.zeros((1, 1, engine.HIDDEN), np.float32)
    (rows,) = session.run(["logits"], {"ids": ids, "state": state})
    assert tokens == redrawn(rows[len(prompt) - 1 : -1], prompt, tokens)


@pytest.fixture(scope="module")
def llama_cpp():
    return load("engine_llama_cpp")


@pytest.mark.recipes
def test_llama_cpp(llama_cpp, monkeypatch):
    rows, decode = [], llama_cpp.decode

    def recording(*args):
        row = decode(*args)
        rows.append(row.copy())
        return row

    monkeypatch.setattr(llama_cpp, "decode", recording)
    llm = llama_cpp.smollm2()
    prompt = llm.tokenize(b"The sea")
    tokens = llama_cpp.write(llm, S, prompt, NEW)
    assert len(tokens) == NEW
    assert tokens == redrawn(np.stack(rows[:NEW]), prompt, tokens)


@pytest.mark.recipes
def test_llama_cpp_copies_nothing(llama_cpp):
    from llama_cpp import llama_get_logits_ith

    llm = llama_cpp.smollm2()
    row = llama_cpp.decode(llm, llm.tokenize(b"The sea"))
    assert row.shape == (49152,) and not row.flags.owndata
    theirs = llama_get_logits_ith(llm.ctx, -1)
    assert row.ctypes.data == ctypes.addressof(theirs.contents)


@pytest.mark.recipes
def test_what_the_table_says_of_llama_cpp_processors(llama_cpp):
    from llama_cpp import LogitsProcessorList

    seen = []

    def processor(ids, scores):
        seen.append(scores.strides)
        return scores

    def text(**more):
        out = llm.create_completion("The sea", max_tokens=1, temperature=0, **more)
        return out["choices"][0]["text"]

    llm, bias = llama_cpp.smollm2(), {500: 100.0}
    processors = LogitsProcessorList([processor])
    free = text(logits_processor=processors)
    assert seen == [(12,)]
    assert text(logit_bias=bias) != free
    assert text(logits_processor=processors, logit_bias=bias) == free
    assert seen == [(12,)]


@pytest.mark.recipes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlx_lm(dtype):
    import mlx.core as mx
    from mlx_lm import stream_generate
    from mlx_lm.models import llama

    engine = load("engine_mlx_lm")
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs(
        model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5, vocab_size=tiny.VOCAB,
    ))  # fmt: skip
    model.set_dtype(getattr(mx, dtype))
    prompt = [11, 12, 13]
    ours = engine.MLXSampler(S, prompt)
    steps = list(stream_generate(model, tiny.tokenizer(), prompt, max_tokens=NEW, sampler=ours))
    tokens = [step.token for step in steps]
    assert len(tokens) == NEW and ours.history.output[:-1] == tokens
    rows = [step.logprobs for step in steps]
    assert {row.dtype for row in rows} == {getattr(mx, dtype)}
    rows = np.stack([np.asarray(row.astype(mx.float32)) for row in rows])
    assert tokens == redrawn(rows, prompt, tokens)


@pytest.mark.recipes
def test_lm_eval():
    import datasets
    from lm_eval import simple_evaluate

    engine, model, tokenizer = load("engine_lm_eval"), tiny.llama(), tiny.tokenizer()
    # generate() cannot guess where padding is if it is the end of a text.
    tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    prompts = ["w8 w9", "w10 w11 w12", "w13", "w14 w15 w16 w17", "w20 w21 w22"]
    task = engine.SUMS | {
        "task": "words",
        "custom_dataset": lambda **_: datasets.DatasetDict(
            test=datasets.Dataset.from_list([{"words": prompt} for prompt in prompts])
        ),
        "doc_to_text": "{{words}}",
        "doc_to_target": "w8",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": NEW, "temperature": 0.0},
        "repeats": 2,
    }

    def texts(batch_size):
        lm = engine.SamplerLM(
            model, sampler=S, tokenizer=tokenizer, batch_size=batch_size, device="cpu"
        )
        results = simple_evaluate(lm, tasks=[task], bootstrap_iters=0)
        return {
            sample["arguments"][0][0]: sample["resps"][0] for sample in results["samples"]["words"]
        }

    found = texts(4)
    assert found == texts(1)
    # By their length and then their letters, as the harness asks; each twice.
    order = sorted(prompts, key=lambda prompt: (-len(prompt.split()), prompt))
    for i, prompt in enumerate(order):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        new = [tiny.generate(model, inputs, S, streams=[2 * i + k])[0] for k in range(2)]
        assert found[prompt] == tokenizer.batch_decode(new, skip_special_tokens=True)
