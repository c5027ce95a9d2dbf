"""Tiny random models, and the loops that their texts are compared with."""

import dataclasses
import logging
import re
from functools import wraps

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging as hf_logging

from sampler import Samples
from sampler.hf import generate_kwargs

VOCAB = 199
# Beyond the vocabulary, so never drawn. In its first releases transformers 5 wants some end of text
# for prompt lookup.
NEVER = VOCAB
NEW = 12
# The cache of a model: its field in outputs, its argument.
FIELDS = CausalLMOutputWithPast.__dataclass_fields__
CACHE_NAME = "cache" if "cache" in FIELDS else "past_key_values"
SMALL = {"vocab_size": VOCAB, "d_model": 32, "pad_token_id": 0, "eos_token_id": None}


def label(value):
    """The text of a parameter less addresses: a test has the same name in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def llama(seed=0, hidden_size=32, vocab=VOCAB):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def t5():
    torch.manual_seed(0)
    config = T5Config(
        **SMALL, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    # T5 ties its head to the embeddings whatever the config says, and then repeats its input.
    model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(VOCAB, 32))
    return model


def bart():
    torch.manual_seed(0)
    config = BartConfig(
        **SMALL, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=64, bos_token_id=1, decoder_start_token_id=1,
        forced_eos_token_id=None, init_std=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def tokenizer(words=None):
    """One word per token, "w8" ... "w198", and a chat template; other words in another order."""
    if words is None:
        words = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", ":", "abcdef"]
        words += [f"w{i}" for i in range(len(words), VOCAB)]
    ids = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", padding_side="left", model_max_length=256,
    )  # fmt: skip
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    return made


def prompts(batch=3, length=7, seed=0):
    ids = np.random.default_rng(seed).integers(2, VOCAB, (batch, length))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(batch, length).long()}


def padded(*lengths):
    """Prompts of these lengths, padded on the left."""
    width = max(lengths)
    ids, mask = torch.zeros(2, len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = prompts(1, length, length)["input_ids"]
        mask[row, width - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def encoder_inputs():
    """Two rows of 7 and 4 tokens, padded on the right."""
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 4:] = mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, s, *, streams=None, eos_token_id=None, **more):
    """The new tokens of `model.generate` under `generate_kwargs`."""
    encoder_decoder = model.config.is_encoder_decoder
    mask = None if encoder_decoder else inputs.get("attention_mask")
    kwargs = generate_kwargs(s, attention_mask=mask, streams=streams, eos_token_id=eos_token_id)
    out = model.generate(**inputs, **kwargs, **{"max_new_tokens": NEW, **more})
    return out[:, 1 if encoder_decoder else inputs["input_ids"].shape[1] :]


@torch.no_grad()
def by_hand(model, ids, s, stream, new=NEW, draw=0, **encoder):
    """The loop over raw logits that one would write with the standalone sampler, one row."""
    rows = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    ids = list(ids)
    for _ in range(new):
        logits = model(**{rows: torch.tensor([ids])}, **encoder).logits[0, -1].float()
        drawn = s.sample(logits, streams=stream, steps=len(ids), n=draw + 1).tokens
        ids.append(int(drawn[draw]))
    return ids[-new:]


def sample(s, logits, steps, logprobs, draw, raw=True):
    """What `Sampler.sample` returns of one draw of each row: draw 0 is that without `n`."""
    if draw == 0:
        return s.sample(logits, steps=steps, logprobs=logprobs, raw=raw)
    r = s.sample(logits, steps=steps, logprobs=logprobs, raw=raw, n=draw + 1)
    return Samples(*(
        value if value is None or field.name.startswith(("top_", "raw_top_")) or value.ndim < 2
        else value[:, draw]
        for field in dataclasses.fields(r) for value in [getattr(r, field.name)]
    ))  # fmt: skip


def same_samples(a, b):
    """Assert that two Samples are alike, up to the rounding of the model."""
    for name in ("tokens", "ranks", "n_kept", "raw_ranks", "top_ids", "raw_top_ids"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist()
    for name in (
        "logprobs",
        "entropy",
        "raw_logprobs",
        "log_mass",
        "top_logprobs",
        "raw_top_logprobs",
    ):
        x, y = getattr(a, name), getattr(b, name)
        assert x.shape == y.shape
        assert np.allclose(x, y, rtol=0, atol=1e-4, equal_nan=True)


def count(owner, name, monkeypatch):
    """A list that grows with each call of the method."""
    calls, method = [], getattr(owner, name)

    @wraps(method)
    def counted(*args, **kwargs):
        calls.append(name)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


class Records(logging.Handler):
    """`with Records() as heard`: `heard.records` are transformers' warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record.getMessage())

    def __enter__(self):
        for name in ("warning_once", "info_once"):  # once for the process, and that may be before
            getattr(getattr(hf_logging, name, None), "cache_clear", lambda: None)()
        self.logger = logging.getLogger("transformers")
        self.before = self.logger.level
        self.logger.addHandler(self)
        self.logger.setLevel(logging.WARNING)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)


class Puts(BaseStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        self.puts.append(value.tolist())

    def end(self):
        self.ended += 1
