"""Cuts: they remove tokens."""

import math
from collections.abc import Collection
from typing import Any

from sampler._checks import Flag, HasArray, Ids, Integers, Reals, integers, reals
from sampler.stages.base import Stage, setting, stage

__all__ = [
    "XTC",
    "EpsilonCutoff",
    "EtaCutoff",
    "MinP",
    "PLess",
    "TailFree",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "TypicalP",
]


@stage
class TopNSigma(Stage):
    """Keep the tokens whose logit is at most `top_n_sigma` standard deviations below the largest.

    Parameters
    ----------
    top_n_sigma : float, in [0, inf], off at 0 or None
        How many standard deviations; inf is off as well.

    Raises
    ------
    TypeError
        If `top_n_sigma` is not a real number.
    ValueError
        If it is negative or NaN.

    See Also
    --------
    MinP : a threshold that moves with the temperature.

    Notes
    -----
    Keeps x >= max x - n sigma, with sigma the population deviation of the logits that are kept so
    far. No temperature changes what it keeps, except 0 and inf. Costs two reads of the row.

    References
    ----------
    C. Tang, J. Liu, H. Xu, L. Huang, "Top-nsigma: Not All Logits Are You Need", 2024,
    arXiv:2411.07641.
    """

    top_n_sigma: Reals | None = setting(
        default=0.0, range_=reals(0.0, math.inf, note=" (0 or None is off)")
    )

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row."""
        n: Any = self.top_n_sigma
        return (n == 0.0) | (n == math.inf)


@stage
class TopH(Stage):
    """Of the 100 likeliest tokens, keep the longest prefix with a share `top_h` of their entropy.

    Parameters
    ----------
    top_h : float, in (0, 1], off at None
        The largest share of the entropy. 1 keeps the 100 tokens, or all if there are fewer.

    Raises
    ------
    TypeError
        If `top_h` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : a share of the probability.

    Notes
    -----
    With q the probabilities of the first min(100, n) tokens in rank, renormalised, and H(q) their
    entropy: the longest prefix in rank whose sum of -q ln q is at most h H(q), and at least one
    token. Costs one read of the row.

    References
    ----------
    E. Baghaei Potraghloo, S. Azizi, S. Kundu, M. Pedram, "Top-H Decoding: Adapting the Creativity
    and Coherence with Bounded Entropy in Text Generation", 2025, arXiv:2509.02510.
    """

    top_h: Reals | None = setting(
        default=None, range_=reals(0.0, 1.0, "(]", note=" (None is off)", optional=True)
    )


@stage
class TopK(Stage):
    """Keep the `top_k` tokens of highest rank.

    Parameters
    ----------
    top_k : int, >= 0, off at 0 or None
        How many tokens; more than there are is all of them.

    Raises
    ------
    TypeError
        If `top_k` is not an integer.
    ValueError
        If it is negative.

    See Also
    --------
    TopP : adapts to how sure the model is.
    MinP : adapts to the probability of the likeliest token.

    Notes
    -----
    Tokens of equal logit rank by id, so exactly `top_k` are kept; under the sampler's
    ``ties="all"`` everything equal to the last of them is kept as well, as Hugging Face does.
    Costs one read of the row.

    References
    ----------
    A. Fan, M. Lewis, Y. Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833.
    """

    top_k: Integers | None = setting(default=0, range_=integers(0, note=" (0 or None is off)"))


@stage
class TopP(Stage):
    """Keep the smallest set of tokens whose probability reaches `top_p`.

    Parameters
    ----------
    top_p : float, in [0, 1], off at 1 or None
        The mass to reach. 0 keeps one token.

    Raises
    ------
    TypeError
        If `top_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    MinP : a threshold on each token.
    TopK : a count.

    Notes
    -----
    The shortest prefix in rank whose mass, among what the stages before have kept, is at least
    `top_p`: the token that crosses it stays. Exact to 1e-12. Costs one read of the row and one
    pass of exponentials, unless a stage before has left few tokens.

    References
    ----------
    A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi, "The Curious Case of Neural Text
    Degeneration", 2019, arXiv:1904.09751.
    """

    top_p: Reals | None = setting(default=1.0, range_=reals(0.0, 1.0))


@stage
class MinP(Stage):
    """Keep the tokens at least `min_p` times as likely as the likeliest.

    Parameters
    ----------
    min_p : float, in [0, 1], off at 0 or None
        The share of the largest probability. 1 keeps the likeliest, with its ties.

    Raises
    ------
    TypeError
        If `min_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    TopP : a threshold on the whole set.
    TopK : a count.

    Notes
    -----
    In terms of logits: x >= max x + temperature * ln(min_p), so no exponential is needed. Costs
    one read of the row.

    References
    ----------
    N. N. Minh et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
    Outputs", 2024, arXiv:2407.01082.
    """

    min_p: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))


@stage
class TypicalP(Stage):
    """Keep the tokens whose information is nearest to the entropy, up to the mass `typical_p`.

    Parameters
    ----------
    typical_p : float, in (0, 1], off at 1 or None
        The mass to reach.

    Raises
    ------
    TypeError
        If `typical_p` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : the likeliest tokens up to a mass.

    Notes
    -----
    By distance abs(-ln p - H), the smallest set of least distance whose mass is at least
    `typical_p`; all tokens at the last distance stay. What is kept is an interval of logits, which
    need not hold the likeliest token: a token above it counts as forbidden from there on. Of
    `min_tokens_to_keep`, the nearest tokens are kept. Costs what `TopP` costs and one pass more.

    References
    ----------
    C. Meister, T. Pimentel, G. Wiher, R. Cotterell, "Locally Typical Sampling", 2022,
    arXiv:2202.00666.
    """

    typical_p: Reals | None = setting(
        default=1.0, range_=reals(0.0, 1.0, "(]", note=" (1 or None is off)")
    )


@stage
class EpsilonCutoff(Stage):
    """Keep the tokens whose probability is at least `epsilon_cutoff`.

    Parameters
    ----------
    epsilon_cutoff : float, in [0, 1), off at 0 or None
        The least probability, often 3e-4 to 9e-4. Where no token has it, the first is kept.

    Raises
    ------
    TypeError
        If `epsilon_cutoff` is not a real number.
    ValueError
        If it is outside [0, 1) or NaN.

    See Also
    --------
    EtaCutoff : lower where the model is unsure.
    MinP : relative to the likeliest token.

    Notes
    -----
    The probability is that among what is kept so far. Costs one read of the row and one pass of
    exponentials, unless few tokens are left.

    References
    ----------
    J. Hewitt, C. D. Manning, P. Liang, "Truncation Sampling as Language Model Desmoothing", 2022,
    arXiv:2210.15191.
    """

    epsilon_cutoff: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0, "[)", unit=1e-4))


@stage
class EtaCutoff(Stage):
    """Keep the tokens whose probability is at least a threshold that falls with the entropy.

    Parameters
    ----------
    eta_cutoff : float, in [0, 1), off at 0 or None
        The threshold where the entropy is low, often 3e-4 to 4e-3. Where no token reaches it, the
        first is kept.

    Raises
    ------
    TypeError
        If `eta_cutoff` is not a real number.
    ValueError
        If it is outside [0, 1) or NaN.

    See Also
    --------
    EpsilonCutoff : the same threshold for every row.

    Notes
    -----
    Keeps p >= min(e, sqrt(e) exp(-H)), with H the entropy in nats of what is kept so far. Costs the
    same as `EpsilonCutoff`.

    References
    ----------
    J. Hewitt, C. D. Manning, P. Liang, "Truncation Sampling as Language Model Desmoothing", 2022,
    arXiv:2210.15191.
    """

    eta_cutoff: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0, "[)", unit=1e-4))


@stage
class TopA(Stage):
    """Keep the tokens whose probability is at least `top_a` times the square of the largest.

    Parameters
    ----------
    top_a : float, in [0, 1], off at 0 or None
        The factor. Where the model is sure, 1 keeps few tokens; on a flat row, nearly all.

    Raises
    ------
    TypeError
        If `top_a` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    MinP : the largest probability itself, not its square.

    Notes
    -----
    Keeps p >= a pmax^2. Costs the same as `EpsilonCutoff`.

    References
    ----------
    BlinkDL, "RWKV-LM", 2021: the sampler of its README; in KoboldAI and text-generation-webui as
    `top_a`.
    """

    top_a: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))


@stage
class TailFree(Stage):
    """Cut the tail where the probabilities in rank stop bending.

    Parameters
    ----------
    tail_free : float, in (0, 1], off at 1 or None
        The share of the bends to keep.

    Raises
    ------
    TypeError
        If `tail_free` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : a share of the probability.

    Notes
    -----
    With p_1 .. p_n in rank, the bends are s_i = abs((p_i - p_i+1) - (p_i+1 - p_i+2)), i = 1 ..
    n - 2, and c_i their running sum over the total (1 / (n - 2) each if the total is at most 1e-6).
    Keeps as many tokens as there are i before the first with c_i > z, and at least one; all if
    there is none, or if n is at most 2. Sorts what is kept: put a cut before it.

    References
    ----------
    trentbrick, "Tail Free Sampling", 2019, as in llama.cpp until 2024 (`tfs_z`).
    """

    tail_free: Reals | None = setting(
        default=1.0, range_=reals(0.0, 1.0, "(]", note=" (1 or None is off)")
    )


@stage
class PLess(Stage):
    """Keep the tokens whose probability is at least the chance that two draws agree.

    Parameters
    ----------
    p_less : bool, off at False or None
        Whether it is on; there is nothing to tune.

    Raises
    ------
    TypeError
        If `p_less` is not a bool.

    See Also
    --------
    EpsilonCutoff : a threshold that is given.

    Notes
    -----
    Keeps p >= the sum of p^2 over what is kept so far. Costs the same as `EpsilonCutoff`.

    References
    ----------
    R. Tan, S. Wu, P. Howard, "p-less Sampling: A Robust Hyperparameter-Free Approach for LLM
    Decoding", 2025, arXiv:2509.23234.
    """

    p_less: bool | Collection[bool] | HasArray | None = setting(default=False, range_=Flag())


@stage
class XTC(Stage):
    """Now and then remove the likeliest tokens, all but the last that is likely enough.

    Parameters
    ----------
    threshold : float, in [0, 1], off above 0.5
        The least probability of a token that may be removed.
    probability : float, in [0, 1], off at 0
        How often: the chance, per token, that the stage does anything.
    protected : sequence of int, each >= 0
        Ids that are never removed, such as the end of the text and line breaks.
    expected : bool
        Weigh down in place of removing by a coin: the law is then the mean over the coin.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range or NaN. A call raises it if an id is not in the vocabulary.

    See Also
    --------
    TypicalP : removes likely tokens in every row that is unsure.

    Notes
    -----
    For each draw a coin u is thrown, in a separate lane; if u < probability, the unprotected tokens
    with p >= threshold, if there are at least two, go, except the last of them in rank. Nothing
    happens where fewer than `min_tokens_to_keep` tokens would remain. What is removed counts as
    forbidden from there on. With `expected`, m the mass of those that would go, their weights are
    multiplied by (1 - q) / (1 + q m / (1 - m)), and the row is rebased. Costs the same as
    `EpsilonCutoff`, and where it removes something and many tokens are left, a copy of the row.

    References
    ----------
    p-e-w, "Exclude Top Choices", 2024, text-generation-webui pull request 6335; `expected` as in
    exllamav3.
    """

    has_coin = True
    looks_at_row = True
    switch = "probability"
    threshold: Reals | None = setting(default=0.1, range_=reals(0.0, 1.0))
    probability: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))
    protected: Collection[int] | None = setting(default=(), range_=Ids())
    expected: bool | Collection[bool] | HasArray | None = setting(default=False, range_=Flag())

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row."""
        threshold: Any = self.threshold
        return (self.probability == 0.0) | (threshold > 0.5)

    @property
    def scales(self) -> bool:
        """Whether it weighs down in place of removing, in every row."""
        return self.expected is True or bool(getattr(self.expected, "all", bool)())

    def branches(self) -> list[tuple[float, Stage]]:
        """What the coin decides between: to remove, and to do nothing."""
        falls: Any = self.probability
        if self.expected or self.is_off:
            return [(1.0, self)]
        how = self.protected, self.expected
        return [
            (falls, XTC(self.threshold, 1.0, *how)),
            (1.0 - falls, XTC(self.threshold, 0.0, *how)),
        ]
