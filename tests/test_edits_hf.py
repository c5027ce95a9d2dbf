"""Our edits against the processors of the installed transformers: the same logits afterwards."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from sampler import (
    BadWords,
    BeginSuppressTokens,
    MinNewTokens,
    NoRepeatNgram,
    RepetitionPenalty,
    Sampler,
    SequenceBias,
    SuppressTokens,
)
from sampler.history import History
from sampler.reference import Text, edited

V = 24
inf = math.inf
UNIT = 2.0**-24  # half a step of float32, relatively


def random_ids(rng, n):
    """Few different ones, so that texts repeat themselves."""
    return rng.integers(0, rng.integers(2, V + 1), n).tolist()


def random_words(rng, tokens):
    """Sequences of one to four ids; half of them end as the text does, and one token more."""
    words = set()
    for _ in range(rng.integers(1, 6)):
        n = int(rng.integers(0, 4))
        start = tokens[len(tokens) - n :] if rng.random() < 0.5 and n <= len(tokens) else None
        words.add((*(random_ids(rng, n) if start is None else start), int(rng.integers(V))))
    return sorted(words)


def repetition(rng, prompt, output):
    penalty = float(rng.uniform(0.5, 2))
    if rng.random() < 0.5:
        return RepetitionPenalty(penalty), RepetitionPenaltyLogitsProcessor(penalty)
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt))
    return RepetitionPenalty(penalty, include_prompt=False), theirs


def ngram(rng, prompt, output):
    n = int(rng.integers(1, 5))
    return NoRepeatNgram(n), NoRepeatNGramLogitsProcessor(n)


def sequence_bias(rng, prompt, output):
    words = random_words(rng, prompt + output)
    bias = {word: float(rng.choice([rng.normal(0, 5), -inf], p=[0.9, 0.1])) for word in words}
    return SequenceBias(bias), SequenceBiasLogitsProcessor(bias)


def bad_words(rng, prompt, output):
    words = [[*word] for word in random_words(rng, prompt + output)]
    return BadWords(words), NoBadWordsLogitsProcessor(words)


def min_new_tokens(rng, prompt, output):
    least, ends = int(rng.integers(0, 8)), sorted(set(random_ids(rng, 2)))
    theirs = MinNewTokensLengthLogitsProcessor(len(prompt), least, ends)
    return MinNewTokens(least, ends), theirs


def suppress(rng, prompt, output):
    ids = sorted(set(random_ids(rng, 4)))
    return SuppressTokens(ids), SuppressTokensLogitsProcessor(ids)


def suppress_at_begin(rng, prompt, output):
    ids = sorted(set(random_ids(rng, 4)))
    return BeginSuppressTokens(ids), SuppressTokensAtBeginLogitsProcessor(ids, len(prompt))


KINDS = [
    repetition,
    ngram,
    sequence_bias,
    bad_words,
    min_new_tokens,
    suppress,
    suppress_at_begin,
]


def random_case(rng):
    """A row, a prompt and an output; either may be empty, and the output has others at times."""
    x = (rng.normal(0, 4, V) + rng.uniform(-5, 5)).astype(np.float32)
    x[rng.random(V) < 0.1] = rng.choice([0.0, -0.0, 1.0, -inf])
    prompt, output = random_ids(rng, rng.integers(0, 12)), random_ids(rng, rng.integers(0, 20))
    return x, prompt, output or prompt[:0]


def ids_of(prompt, output):
    return torch.tensor([prompt + output], dtype=torch.long)


def check_same(ours, theirs, largest, bound):
    """The same tokens forbidden; of the others no logit off by more than the bound."""
    assert np.array_equal(ours == -inf, theirs == -inf)
    left = ours > -inf
    assert np.abs(ours[left] - theirs[left]).max(initial=0) <= bound * UNIT * largest


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_processor(kind):
    # Ours is rounded to float32 once. Theirs computes in float32: it rounds the penalty, and each
    # sum of biases.
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(150):
        x, prompt, output = random_case(rng)
        stage, processor = kind(rng, prompt, output)
        ours = edited(x.astype(float), [stage], Text(prompt, output)).astype(np.float32)
        theirs = processor(ids_of(prompt, output), torch.tensor(x[None]))[0].numpy()
        largest = max(np.abs(a[np.isfinite(a)]).max(initial=0) for a in (x, ours, theirs))
        check_same(ours, theirs, largest + 25, 2 if kind is repetition else 8)
        changed += not np.array_equal(ours, x)
        law_and_core(x, [stage], prompt, output, ours)
    assert changed > 5


def law_and_core(x, stages, prompt, output, edited_row):
    """A Sampler draws from the row that was compared: the same log-probabilities as of a copy."""
    if not (edited_row > -inf).any():
        with pytest.raises(ValueError, match="row"):
            Sampler(stages, seed=0).distribution(x, history=History(prompt, output))
        return
    a = Sampler(stages, seed=0).distribution(x, history=History(prompt, output))
    b = Sampler(seed=0).distribution(edited_row)
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.logprobs, b.logprobs)


def test_a_list_of_processors():
    """In the order in which `generate` has them."""
    rng = np.random.default_rng(1)
    order = [sequence_bias, repetition, ngram, bad_words, min_new_tokens, suppress]
    order.append(suppress_at_begin)
    for _ in range(150):
        x, prompt, output = random_case(rng)
        pairs = [kind(rng, prompt, output) for kind in order if rng.random() < 0.6]
        stages = [stage for stage, _ in pairs]
        theirs = LogitsProcessorList(processor for _, processor in pairs)
        theirs = theirs(ids_of(prompt, output), torch.tensor(x[None]))[0].numpy()
        ours = edited(x.astype(float), stages, Text(prompt, output)).astype(np.float32)
        check_same(ours, theirs, 2 * (np.abs(x[np.isfinite(x)]).max() + 50), 16)


def test_the_bos_and_eos_that_are_forced():
    # Theirs counts the prompt, and leaves 0 for the forced token; ours keeps its logit. One token
    # is left, so the law is the same.
    rng = np.random.default_rng(2)
    for n_prompt in (0, 1, 3):
        for n in range(8):
            x = rng.normal(0, 4, V).astype(np.float32)
            prompt, output = random_ids(rng, n_prompt), random_ids(rng, n)
            pairs = [(7 - n_prompt, ForcedEOSTokenLogitsProcessor(8, 9))]
            if n_prompt <= 1:
                pairs.append((1 - n_prompt, ForcedBOSTokenLogitsProcessor(9)))
            for place, processor in pairs:
                theirs = processor(ids_of(prompt, output), torch.tensor(x[None]))[0].numpy()
                s = Sampler(forced_tokens={place: 9}, seed=0)
                ours = s.distribution(x, history=History(prompt, output))
                assert np.array_equal(np.sort(ours.ids), np.flatnonzero(theirs > -inf))
                assert len(ours.ids) == (1 if n == place else V)


def test_a_text_with_ids_beyond_the_row():
    """Theirs ignores them; ours is asked for a history of another vocabulary, and says so."""
    theirs = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([[0, 7]]), torch.ones(1, 3))
    assert theirs.tolist() == [[0.5, 1.0, 1.0]]
    with pytest.raises(ValueError, match="7"):
        Sampler(repetition_penalty=2.0, seed=0)(np.ones(3), history=History([0, 7]))


def test_a_bias_of_inf():
    """Theirs makes NaN of it where the logit is -inf; ours refuses it."""
    x = torch.tensor([[-inf, 1.0]])
    assert SequenceBiasLogitsProcessor({(0,): inf})(torch.tensor([[1]]), x)[0, 0].isnan()
    with pytest.raises(ValueError, match="inf"):
        SequenceBias({(0,): inf})
