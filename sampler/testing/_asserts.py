"""`assert_draws` and `assert_sampler`: the checks, for test suites."""

from __future__ import annotations

from typing import Any

from sampler.testing._draws import check_draws
from sampler.testing._result import Result
from sampler.testing._sampler import check_sampler


def assert_draws(tokens: Any, probs: Any, *, alpha: float = 1e-6, **settings: Any) -> Result:
    """Raise AssertionError with the report unless `check_draws` is ok; too few draws are not.

    Takes and returns what `check_draws` does.

    See Also
    --------
    check_draws : returns the result instead.
    assert_sampler : for a sampler.

    Examples
    --------
    >>> from sampler.testing import assert_draws
    >>> assert_draws([0, 1, 2], [0.5, 0.5, 0.0])
    Traceback (most recent call last):
    ...
    AssertionError: check_draws: NOT ok
    - token 2 was drawn 1 time; its probability is 0
    ...
    """
    __tracebackhide__ = True
    return _ok(check_draws(tokens, probs, alpha=alpha, **settings))


def assert_sampler(
    sampler: Any, logits: Any, law: Any = None, *, alpha: float = 1e-6, **settings: Any
) -> Result:
    """Raise AssertionError with the report unless `check_sampler` is ok.

    Takes and returns what `check_sampler` does.

    See Also
    --------
    check_sampler : returns the result instead.
    assert_draws : for recorded draws.
    """
    __tracebackhide__ = True
    return _ok(check_sampler(sampler, logits, law, alpha=alpha, **settings))


def _ok(result: Result) -> Result:
    __tracebackhide__ = True
    if result.ok is not True:
        raise AssertionError(str(result))
    return result
