"""What the tests share: recorded real logits, and hypothesis without surprises."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# The same examples on every run: a test that is red is red for everyone.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def real_logits():
    """SmolLM2's next-token logits for varied prompts: (rows, 49152), float16, read-only."""
    with np.load(Path(__file__).parent / "data" / "smollm2_logits.npz") as data:
        logits = data["logits"]
    logits.setflags(write=False)
    return logits
