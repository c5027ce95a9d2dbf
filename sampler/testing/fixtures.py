"""pytest fixtures: put ``pytest_plugins = ["sampler.testing.fixtures"]`` into conftest.py.

Override `sampling_alpha` there for another false-alarm rate of each check. A suite of a thousand
checks at the default of 1e-6 fails by chance once in a thousand runs, if its seeds change; with
fixed seeds it either always passes or never does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from sampler.testing import _asserts
from sampler.testing._result import Result

__all__ = [
    "assert_draws",
    "assert_sampler",
    "sampling_alpha",
]


@pytest.fixture(scope="session")
def sampling_alpha() -> float:
    """How often each check may fail a correct sampler."""
    return 1e-6


@pytest.fixture
def assert_draws(sampling_alpha: float) -> Callable[..., Result]:
    """`sampler.testing.assert_draws` at `sampling_alpha`."""
    return partial(_asserts.assert_draws, alpha=sampling_alpha)


@pytest.fixture
def assert_sampler(sampling_alpha: float) -> Callable[..., Result]:
    """`sampler.testing.assert_sampler` at `sampling_alpha`."""
    return partial(_asserts.assert_sampler, alpha=sampling_alpha)
