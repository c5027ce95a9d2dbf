"""What a check finds, as data; and the one sentence that each finding becomes in a report.

Checks make `Finding`s, and filter, count and rewrite them by their fields. `sentence` writes one in
English when a `Result` is made of it, and nothing reads that English again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple, assert_never

from sampler.testing._rows import SHIFT
from sampler.testing._statistics import FIRST_IDS, LAST_IDS, LEAST_LIKELY, MOST_DRAWS

VERDICTS = {True: "ok", False: "NOT ok", None: "no conclusion"}


class Kind(Enum):
    """Every kind of finding, and what its fields `observed` and `expected` count."""

    # Of counts.
    IMPOSSIBLE = auto()  # draws of the token `subject`, of probability 0
    MORE_IMPOSSIBLE = auto()  # draws of `size` more such tokens
    COUNT = auto()  # draws of the token, or of the interval, `subject`
    GROUP = auto()  # draws of `size` tokens together: `subject` is the name of a tail
    FIT = auto()  # chi-square of `size` bins, and its degrees of freedom
    DIFFERENT = auto()  # the same, of two samples
    CHANGED = auto()  # the same, of a changed row and the plain one
    # Of uniforms.
    OUTSIDE = auto()  # how many numbers, such as `subject`
    COARSE = auto()  # bits
    EQUAL = auto()  # pairs of `size`
    CONSTANT = auto()  # nothing; `subject` is an argument
    CORRELATION = auto()  # a correlation, and the most by chance
    JOINT = auto()  # chi-square of `size` joint bins, and its degrees of freedom
    # Of a sampler.
    AGREEING = auto()  # the share of the pairs `subject` that agree
    DEPENDENT = auto()  # nothing; `subject` is a kind of pairs
    NOT_REPEATED = auto()  # the first call that differs
    NEIGHBOURS = auto()  # tokens, of `size`, that other rows changed
    PADDING = auto()  # tokens, of `size`, that were put in at -inf
    UNREACHABLE = auto()  # nothing; of `size` draws none was of the far tail, `subject`
    WRITES = auto()  # nothing
    # Of the core, against the reference.
    TOKENS = auto()  # tokens, of `size`, that are not the reference's
    UNIFORMS = auto()  # uniforms, of `size`, that are not NumPy's
    # Not faults: too few draws, and how many it takes.
    FEW_DRAWS = auto()
    FEW_NUMBERS = auto()
    FEW_BINS = auto()
    FEW_PAIRS = auto()


class Numbers(NamedTuple):
    """The numbers in [low, high); without bounds, those next to 0 and 1."""

    bounds: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.bounds is None:
            return "numbers next to 0 and 1"
        return "numbers in [{:.7g}, {:.7g})".format(*self.bounds)


class FarTail(NamedTuple):
    """So many tokens, so many nats below the first."""

    tokens: int
    depth: float


@dataclass(frozen=True)
class Finding:
    """One fault, or a lack of draws. `Kind` says which fields count, and what they hold."""

    kind: Kind
    subject: int | float | str | Numbers | FarTail | None = None
    observed: float = 0.0
    expected: float = 0.0
    size: int = 0
    probability: float = 0.0
    pvalue: float = 0.0
    change: str = ""  # the part whose change of the logits brings it out: a key of `_CHANGES`
    path: tuple[str, ...] = ()  # the parts it was found in, outermost first

    def within(self, part: str) -> Finding:
        """Return the finding as one of a check that has this part."""
        return replace(self, path=(part, *self.path))


_CHANGES = {
    "neighbours": "a row's law changes with the rows next to it",
    "shift up": f"adding {SHIFT:g} to all logits changes the law",
    "shift down": f"subtracting {SHIFT:g} from all logits changes the law",
    "permutation": "the law changes with the order of the vocabulary",
    "padding": "tokens put in at -inf change the law",
    "layout": "the law changes with the strides",
    "float64": "the law changes with float64 logits",
    "float32": "the law changes with float32 logits",
    "float16": "the law changes with float16 logits",
    "ties": "among tied logits, the sampler keeps different tokens than the law does",
}


def sentence(finding: Finding) -> str:
    """Write a finding in English, after the parts it was found in."""
    change = [_CHANGES[finding.change]] if finding.change else []
    return ": ".join([*finding.path, *change, _sentence(finding)])


def _sentence(f: Finding) -> str:
    match f.kind:
        case Kind.IMPOSSIBLE:
            return f"token {f.subject} was drawn {_times(f.observed)}; its probability is 0"
        case Kind.MORE_IMPOSSIBLE:
            tokens = "token" if f.size == 1 else "tokens"
            return (
                f"{f.size:,} more {tokens} of probability 0 were drawn, {_times(f.observed)} in all"
            )
        case Kind.COUNT:
            are_numbers = isinstance(f.subject, Numbers)
            which = f"{f.subject} were" if are_numbers else f"token {f.subject} was"
            return (
                f"{which} {_drawn(f)}; of probability {f.probability:.4g}, it is expected "
                f"{show_count(f.expected)} times"
            )
        case Kind.GROUP:
            return f"{_group(f)} {_drawn(f)}, where {show_count(f.expected)} times are expected"
        case Kind.FIT:
            return f"the counts do not fit the probabilities: {_chi_square(f)}"
        case Kind.DIFFERENT:
            return f"the counts differ: {_chi_square(f)}"
        case Kind.CHANGED:
            return f"chi-square {f.observed:,.0f} over {f.size:,} bins (p = {f.pvalue:.2g})"
        case Kind.OUTSIDE:
            return f"{f.observed:,} numbers are outside [0, 1), such as {f.subject}"
        case Kind.COARSE:
            return (
                f"every number is a multiple of 2**-{f.observed}: they have {f.observed} of "
                f"{f.expected} bits"
            )
        case Kind.EQUAL:
            share = show_share(f.observed / f.size)
            return f"{share} of pairs are equal, {_times(f.observed)}"
        case Kind.CONSTANT:
            return f"all numbers of `{f.subject}` are equal"
        case Kind.CORRELATION:
            return (
                f"the correlation is {f.observed:.3f}, where chance gives at most {f.expected:.3g}"
            )
        case Kind.JOINT:
            return (
                f"{f.size} joint bins: chi-square {show_count(f.observed)}, where "
                f"{f.expected} is expected (p = {f.pvalue:.2g})"
            )
        case Kind.AGREEING:
            return (
                f"{f.subject} are not independent: {show_share(f.observed)} of pairs agree, "
                f"where {show_share(f.expected)} are expected by chance"
            )
        case Kind.DEPENDENT:
            return f"{f.subject} are not independent: p = {f.pvalue:.2g}"
        case Kind.NOT_REPEATED:
            return (
                f"the same seed gives different tokens the second time, from call {f.observed} on"
            )
        case Kind.NEIGHBOURS:
            return (
                f"under the same seed, {f.observed:,} of {f.size:,} tokens change with the rows "
                "next to them"
            )
        case Kind.PADDING:
            return f"tokens put in at -inf were drawn {f.observed:,} times in {f.size:,}"
        case Kind.UNREACHABLE:
            assert isinstance(f.subject, FarTail)
            return (
                f"the {f.subject.tokens:,} tokens {f.subject.depth:g} nats down, "
                f"{show_share(f.probability)} together, were never drawn in {f.size:,}: they "
                "cannot be reached"
            )
        case Kind.WRITES:
            return "the sampler writes into its logits"
        case Kind.TOKENS:
            return f"{f.observed:,} of {f.size:,} tokens differ from the reference's"
        case Kind.UNIFORMS:
            return f"{f.observed:,} of {f.size:,} uniforms differ from those of NumPy's Philox"
        case Kind.FEW_DRAWS:
            takes = f"{f.expected:,}" if f.expected < MOST_DRAWS else "more than 2**40"
            return (
                f"{_TOO_FEW}: {f.observed:,}, where it takes {takes} to see even a bin that is "
                "never drawn, or drawn twice as often"
            )
        case Kind.FEW_NUMBERS:
            return f"{_TOO_FEW}: {f.observed:,}, where it takes about {f.expected:,}"
        case Kind.FEW_BINS:
            return f"{_TOO_FEW}: {f.observed:,}, nearly all of them of one bin"
        case Kind.FEW_PAIRS:
            return f"{_TOO_FEW}: {f.observed:,} pairs"
        case _:
            assert_never(f.kind)


_TOO_FEW = "too few draws for any conclusion"


_ONE = {
    LEAST_LIKELY: "least likely token", FIRST_IDS: "first token id", LAST_IDS: "last token id"
}  # fmt: skip


def _group(f: Finding) -> str:
    share = show_share(f.probability)
    of = f"{share} together" if f.size > 1 else f"of {share}"
    if isinstance(f.subject, Numbers):
        return f"{f.subject}, {of}, were"
    if f.size > 1:
        return f"the {f.size:,} {f.subject}, {of}, were"
    return f"the {_ONE[str(f.subject)]}, {of}, was"


def _chi_square(f: Finding) -> str:
    return (
        f"chi-square {f.observed:,.0f} over {f.size:,} bins, where {f.expected:,} is expected "
        f"(p = {f.pvalue:.2g})"
    )


def _drawn(f: Finding) -> str:
    return f"drawn {_times(f.observed)}" if f.observed else "never drawn"


def _times(count: float) -> str:
    return f"{count:,} {'time' if count == 1 else 'times'}"


def show_share(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.3g} %"


def show_count(number: float) -> str:
    """Write an expected count: whole where it is large."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
