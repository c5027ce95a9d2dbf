"""Every kind of finding, and its sentence."""

import pytest

from sampler.testing._findings import FarTail, Finding, Kind, Numbers, sentence

TAIL = "last token ids"


SENTENCES = [
    (Finding(Kind.IMPOSSIBLE, 3, 1), "token 3 was drawn 1 time; its probability is 0"),
    (Finding(Kind.MORE_IMPOSSIBLE, observed=1, size=1),
     "1 more token of probability 0 were drawn, 1 time in all"),
    (Finding(Kind.MORE_IMPOSSIBLE, observed=2000, size=1000),
     "1,000 more tokens of probability 0 were drawn, 2,000 times in all"),
    (Finding(Kind.COUNT, 7, 1024, 659.4, probability=0.64391),
     "token 7 was drawn 1,024 times; of probability 0.6439, it is expected 659 times"),
    (Finding(Kind.COUNT, Numbers((0.5, 1.0)), 0, 9.1234, probability=0.5),
     "numbers in [0.5, 1) were never drawn; of probability 0.5, it is expected 9.12 times"),
    (Finding(Kind.GROUP, TAIL, 0, 100.4, size=1000, probability=0.01),
     "the 1,000 last token ids, 1 % together, were never drawn, where 100 times are expected"),
    (Finding(Kind.GROUP, TAIL, 5, 50, size=1, probability=0.01),
     "the last token id, of 1 %, was drawn 5 times, where 50 times are expected"),
    (Finding(Kind.GROUP, Numbers((0.0, 1 / 3)), 5, 50, size=2, probability=0.01),
     "numbers in [0, 0.3333333), 1 % together, were drawn 5 times, where 50 times are expected"),
    (Finding(Kind.GROUP, Numbers(), 1, 50, size=2, probability=0.01),
     "numbers next to 0 and 1, 1 % together, were drawn 1 time, where 50 times are expected"),
    (Finding(Kind.FIT, observed=1234.4, expected=1000, size=1001, pvalue=1e-9),
     ("the counts do not fit the probabilities: chi-square 1,234 over 1,001 bins, where 1,000 is "
     "expected (p = 1e-09)")),
    (Finding(Kind.DIFFERENT, observed=99.5, expected=3, size=4, pvalue=0.0),
     "the counts differ: chi-square 100 over 4 bins, where 3 is expected (p = 0)"),
    (Finding(Kind.CHANGED, observed=99.5, size=4, pvalue=0.0, change="layout", path=("layout",)),
     "layout: the law changes with the strides: chi-square 100 over 4 bins (p = 0)"),
    (Finding(Kind.OUTSIDE, 1.0, 1000), "1,000 numbers are outside [0, 1), such as 1.0"),
    (Finding(Kind.COARSE, observed=24, expected=53),
     "every number is a multiple of 2**-24: they have 24 of 53 bits"),
    (Finding(Kind.EQUAL, observed=1000, size=2000), "50 % of pairs are equal, 1,000 times"),
    (Finding(Kind.CONSTANT, "b"), "all numbers of `b` are equal"),
    (Finding(Kind.CORRELATION, observed=-1.0, expected=0.01614),
     "the correlation is -1.000, where chance gives at most 0.0161"),
    (Finding(Kind.JOINT, observed=1_500_000.2, expected=225, size=256),
     "256 joint bins: chi-square 1,500,000, where 225 is expected (p = 0)"),
    (Finding(Kind.AGREEING, "seeds s and s + 1", 1.0, 0.125),
     ("seeds s and s + 1 are not independent: 100 % of pairs agree, where 12.5 % are expected by "
     "chance")),
    (Finding(Kind.DEPENDENT, "rows", pvalue=1e-9), "rows are not independent: p = 1e-09"),
    (Finding(Kind.NOT_REPEATED, observed=3),
     "the same seed gives different tokens the second time, from call 3 on"),
    (Finding(Kind.NEIGHBOURS, observed=1000, size=2000),
     "under the same seed, 1,000 of 2,000 tokens change with the rows next to them"),
    (Finding(Kind.PADDING, observed=1000, size=2000),
     "tokens put in at -inf were drawn 1,000 times in 2,000"),
    (Finding(Kind.UNREACHABLE, FarTail(2**18, 20.5), size=1000, probability=0.01),
     ("the 262,144 tokens 20.5 nats down, 1 % together, were never drawn in 1,000: they cannot be "
     "reached")),
    (Finding(Kind.WRITES), "the sampler writes into its logits"),
    (Finding(Kind.TOKENS, observed=1, size=1000, path=("v4", "top-k")),
     "v4: top-k: 1 of 1,000 tokens differ from the reference's"),
    (Finding(Kind.UNIFORMS, observed=1000, size=1000),
     "1,000 of 1,000 uniforms differ from those of NumPy's Philox"),
    (Finding(Kind.FEW_DRAWS, observed=1000, expected=25_008),
     ("too few draws for any conclusion: 1,000, where it takes 25,008 to see even a bin that is "
     "never drawn, or drawn twice as often")),
    (Finding(Kind.FEW_DRAWS, observed=4, expected=2**40),
     ("too few draws for any conclusion: 4, where it takes more than 2**40 to see even a bin that "
     "is never drawn, or drawn twice as often")),
    (Finding(Kind.FEW_NUMBERS, observed=1000, expected=2000),
     "too few draws for any conclusion: 1,000, where it takes about 2,000"),
    (Finding(Kind.FEW_BINS, observed=1000),
     "too few draws for any conclusion: 1,000, nearly all of them of one bin"),
    (Finding(Kind.FEW_PAIRS, observed=1000),
     "too few draws for any conclusion: 1,000 pairs"),
]  # fmt: skip


@pytest.mark.parametrize("finding, words", SENTENCES)
def test_the_sentence_of_a_finding(finding, words):
    assert sentence(finding) == words


def test_every_kind_of_finding_has_its_sentence_here():
    assert {finding.kind for finding, _ in SENTENCES} == set(Kind)


@pytest.mark.parametrize(
    "change, words",
    [
        ("neighbours", "a row's law changes with the rows next to it"),
        ("shift up", "adding 128 to all logits changes the law"),
        ("shift down", "subtracting 128 from all logits changes the law"),
        ("permutation", "the law changes with the order of the vocabulary"),
        ("padding", "tokens put in at -inf change the law"),
        ("layout", "the law changes with the strides"),
        ("float64", "the law changes with float64 logits"),
        ("float32", "the law changes with float32 logits"),
        ("float16", "the law changes with float16 logits"),
        ("ties", "among tied logits, the sampler keeps different tokens than the law does"),
    ],
)
def test_the_words_for_a_change(change, words):
    finding = Finding(Kind.IMPOSSIBLE, 3, 2, change=change).within(change)
    assert sentence(finding).startswith(f"{change}: {words}: token 3 was drawn 2 times; ")
