"""`sampler.hf.generate(banned_phrases=)`: the loop goes back, and so does all that it keeps."""

import re

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM
from transformers.cache_utils import StaticLayer

import sampler.hf
from sampler import Sampler
from sampler.hf import _transformers
from sampler.history import History
from sampler.phrases import Phrases
from tiny import NEW, VOCAB, Puts, encoder_inputs, generate, prompts

PLAIN = Sampler(temperature=0.9, seed=7)


@torch.no_grad()
def by_hand(model, ids, s, phrases, new=NEW, **encoder):
    """The loop that one would write with `Phrases`, over whole texts."""
    rows = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    text, states = phrases.start(ids), [s.initial_state()] if s.mirostat else [None]
    while not text.is_over:
        if len(text) == new and not text.end():
            break
        h = History(ids, text.tokens)
        logits = model(**{rows: torch.tensor([[*ids, *text.tokens]])}, **encoder).logits[0, -1]
        del states[len(text) + 1 :]
        given = {"state": states[-1]} if s.mirostat else {}
        if s.frequency_penalty:
            given["history"] = h
        r = s.sample(
            logits.float(), mask=text.mask(VOCAB), steps=len(h), draws=text.draw, streams=0, **given
        )
        states.append(r.state)
        text.accept(r.tokens)
    return text


def banned_in(model, tokenizer, inputs, s, places=(2, 5, 6, 9)):
    """Phrases that the plain text has: a word, two words, a part of one, a pattern."""
    words = tokenizer.decode(generate(model, inputs, s)[0]).split()
    a, b, c, d = (words[place] for place in places)
    return [f" {a}", f"{b} {c}", re.compile(rf"\b{d[:-1]}\d?\b")]


def run(model, inputs, s, banned, tokenizer, new=NEW, **more):
    return sampler.hf.generate(
        model, **inputs, sampler=s, banned_phrases=banned, tokenizer=tokenizer,
        max_new_tokens=new, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=str,
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"frequency_penalty": 0.7, "top_p": 0.98}, {"mirostat": (2, 5.0, 0.5)}],
    ids=str,
)
def test_the_loop_is_the_one_by_hand(model, tokenizer, settings, more):
    s, inputs = Sampler(temperature=0.9, **settings, seed=7), prompts(1)
    banned = banned_in(model, tokenizer, inputs, s)
    ids = inputs["input_ids"][0].tolist()
    text = by_hand(model, ids, s, Phrases(banned, tokenizer=tokenizer))
    plain = generate(model, inputs, s)[0].tolist()
    assert len(text) == NEW
    assert text.tokens != plain
    if "cache_implementation" in more and not hasattr(StaticLayer, "crop"):
        with pytest.raises(ValueError, match="a cache that can go back"):  # of older transformers
            run(model, inputs, s, banned, tokenizer, **more)
        return
    out = run(model, inputs, s, banned, tokenizer, **more)
    assert out[0, 7:].tolist() == text.tokens
    decoded = tokenizer.decode(out[0, 7:])  # the prompt may have them
    assert not any(re.search(getattr(one, "pattern", None) or re.escape(one), decoded)
                   for one in banned)  # fmt: skip
    assert run(model, inputs, s, ["zzz"], tokenizer, **more)[0, 7:].tolist() == plain


def test_an_encoder_decoder(encoder_decoder, tokenizer):
    inputs = {name: value[:1] for name, value in encoder_inputs().items()}
    words = tokenizer.decode(generate(encoder_decoder, inputs, PLAIN)[0]).split()
    banned = [words[3], f"{words[6]} {words[7]}"]
    begin = [encoder_decoder.config.decoder_start_token_id]
    text = by_hand(encoder_decoder, begin, PLAIN, Phrases(banned, tokenizer=tokenizer), **inputs)
    out = run(encoder_decoder, inputs, PLAIN, banned, tokenizer)
    assert out[0, 1:].tolist() == text.tokens
    assert text.tokens != generate(encoder_decoder, inputs, PLAIN)[0].tolist()


def test_what_is_returned_is_of_the_text(model, tokenizer):
    inputs = prompts(1)
    banned = banned_in(model, tokenizer, inputs, PLAIN)
    more = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    r = run(model, inputs, PLAIN, banned, tokenizer, **more)
    new = r.sequences[0, 7:]
    assert r.samples.tokens[0].tolist() == new.tolist()
    assert r.texts == [
        tokenizer.decode(r.sequences[0])[len(tokenizer.decode(r.sequences[0, :7])) :]
    ]
    assert len(r.scores) == len(r.logits) == NEW
    with torch.no_grad():
        whole = model(r.sequences).logits[0, 6:-1].float()
    assert torch.allclose(torch.cat(r.logits), whole, atol=1e-4)
    assert torch.allclose(torch.cat(r.scores), whole, atol=1e-4)
    # Its cache goes on as one that never went back.
    assert r.cache.get_seq_length() == 7 + NEW - 1 if hasattr(r, "cache") else True


def test_nothing_that_is_shown_is_taken_back(model, tokenizer):
    inputs = prompts(1)
    banned = banned_in(model, tokenizer, inputs, PLAIN)
    streamed = Puts()
    out = run(model, inputs, PLAIN, banned, tokenizer, streamer=streamed)
    shown = [token for value in streamed.puts[1:] for token in value]
    assert shown == out[0, 7:].tolist()
    assert streamed.ended == 1
    # A phrase that never comes holds back what might be one.
    word = tokenizer.decode(out[0, 9:10])
    late = Puts()
    run(model, inputs, PLAIN, [*banned, f"{word} zzz"], tokenizer, streamer=late)
    assert [t for v in late.puts[1:] for t in v] == shown


def test_stop_strings(model, tokenizer):
    inputs = prompts(2)
    plain = generate(model, inputs, PLAIN)
    stops = [tokenizer.decode(row[4:5]) + " " for row in plain]
    r = sampler.hf.generate(
        model, **inputs, sampler=PLAIN, max_new_tokens=NEW, tokenizer=tokenizer,
        stop_strings=stops, return_dict_in_generate=True,
    )  # fmt: skip
    ended = sampler.hf.generate(
        model, **inputs, sampler=PLAIN, max_new_tokens=NEW, tokenizer=tokenizer,
        return_dict_in_generate=True, eos_token_id=plain[0, 3].item(), pad_token_id=0,
    )  # fmt: skip
    assert ended.texts[0].strip() == tokenizer.decode(plain[0, :3])
    for text, row in zip(r.texts, plain, strict=True):
        whole = tokenizer.decode(row)
        assert text.strip() == whole[: min(whole.find(one) % 999 for one in stops)].strip()
    # Of one text by Phrases: without what follows, in the stream as well.
    one, streamed = prompts(1), Puts()
    phrases = Phrases(stop=stops[:1], tokenizer=tokenizer)
    out = run(model, one, PLAIN, phrases, tokenizer, streamer=streamed)
    assert out.shape[1] < 7 + NEW
    shown = [token for value in streamed.puts[1:] for token in value]
    assert shown == plain[0, :4].tolist()
    r = run(model, one, PLAIN, phrases, tokenizer, return_dict_in_generate=True)
    assert r.texts[0].strip() == tokenizer.decode(plain[0, :4])


def test_it_gives_up_where_nothing_else_follows(model, tokenizer):
    every, inputs = re.compile(r"w\d+|<|abc|user|ass|:"), prompts(1)
    with pytest.warns(UserWarning, match=r"^the text ends after 0 tokens: every token that was"):
        out = run(model, inputs, PLAIN, Phrases([every], tokenizer=tokenizer, most_tries=5), None)
    assert out.shape == (1, 7)
    with pytest.warns(UserWarning, match=r"the text ends after 0 tokens"):
        r = run(
            model, inputs, Sampler(top_k=2, seed=7, forced_tokens={0: 17}), ["w17"], tokenizer,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert r.sequences.shape == (1, 7)
    assert r.texts == [""]


def test_an_end_that_a_phrase_waits_for(model, tokenizer):
    inputs = prompts(1)
    plain = generate(model, inputs, PLAIN)[0]
    last = tokenizer.decode(plain[NEW - 2 : -1])
    banned = [re.compile(rf"\b{last}\b")]
    out = run(model, inputs, PLAIN, banned, tokenizer, new=NEW - 1)
    assert out.shape[1] == 7 + NEW - 1
    assert last not in tokenizer.decode(out[0, 7:]).split()
    assert out[0, 7:-1].tolist() == plain[:-2].tolist()
    # An end token is taken back with the phrase before it.
    end = plain[6].item()
    phrase = tokenizer.decode(plain[5:7])
    out = run(model, inputs, PLAIN, [phrase], tokenizer, eos_token_id=end, pad_token_id=0)
    assert phrase not in tokenizer.decode(out[0])


def test_bad_input(model, tokenizer):
    for call, error, message in (
        (lambda: run(model, prompts(2), PLAIN, ["a"], tokenizer), ValueError,
         "`banned_phrases` are for one text at a time, but there are 2"),
        (lambda: run(model, prompts(1), PLAIN, ["a"], tokenizer, num_return_sequences=2),
         ValueError, "`banned_phrases` are for one text at a time, but there are 2"),
        (lambda: run(model, prompts(1), PLAIN, ["a"], None), ValueError,
         "`banned_phrases` needs the tokenizer: pass tokenizer=... as well"),
        (lambda: run(model, prompts(1), PLAIN, "abc", tokenizer), TypeError, "`banned` has to be"),
        (lambda: run(model, prompts(1), PLAIN, [""], tokenizer), ValueError, "`banned` has to ho"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            call()


@pytest.mark.parametrize("seed", range(6))
def test_a_window_that_slides(tokenizer, seed):
    # Found: such a cache forgets what is outside of its window, unless it is told to keep it.
    torch.manual_seed(0)
    mistral = MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, sliding_window=4, pad_token_id=0,
            bos_token_id=1, eos_token_id=None, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    s, inputs = PLAIN.replace(seed=seed), prompts(1)
    banned = banned_in(mistral, tokenizer, inputs, s)
    if not hasattr(DynamicCache, "activate_past_recording"):  # of older transformers
        return
    out = run(mistral, inputs, s, banned, tokenizer)
    want = run(mistral, inputs, s, banned, tokenizer, use_cache=False)
    assert out.tolist() == want.tolist()


def test_a_cache_that_cannot_go_back_is_refused(model, tokenizer, monkeypatch):
    class Fixed(DynamicCache):
        crop = property()  # none

    assert not _transformers.can_crop(Fixed())
    assert not _transformers.can_crop(object())
    assert _transformers.can_crop(DynamicCache())
    monkeypatch.setattr(sampler.hf._phrases, "can_crop", lambda cache: False)
    with pytest.raises(ValueError, match=r"^`banned_phrases` need a cache that can go back, but a"):
        run(model, prompts(1), PLAIN, ["a"], tokenizer)
    out = run(model, prompts(1), PLAIN, ["a"], tokenizer, use_cache=False)
    assert out.shape == (1, 7 + NEW)
