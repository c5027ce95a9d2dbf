"""What several test files share."""

import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import sampler
from sampler import _core

# The tiny models' matrices are too small to share: torch's threads would spend the time spinning.
# Read when torch is first imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")

INFO = sampler.build_info()

# A shared machine may stall any one example: so there is no deadline. In CI the same examples
# every time.
untimed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **untimed)
settings.register_profile("ci", **untimed, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_report_header():
    return f"transformers {version('transformers')}, torch {version('torch')}"


@pytest.fixture
def isas():
    """The names of the instruction sets that run here. After the test, the usual one runs again."""
    yield INFO["isas"]
    _core.choose_isa(INFO["isa"])


@pytest.fixture(scope="session")
def real_logits():
    """Next-token logits of SmolLM2-135M-Instruct, float16 of shape (28, 49152), read-only."""
    with np.load(Path(__file__).with_name("data") / "smollm2_logits.npz") as file:
        logits = file["logits"]
    logits.flags.writeable = False
    return logits


@pytest.fixture(scope="module")
def model():
    """A tiny random Llama; torch is imported by who asks for it."""
    import tiny

    return tiny.llama()


@pytest.fixture(scope="module", params=["t5", "bart"])
def encoder_decoder(request):
    """A tiny random encoder-decoder model."""
    import tiny

    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of whole words, of the tiny models' vocabulary."""
    import tiny

    return tiny.tokenizer()
