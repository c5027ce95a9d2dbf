"""What comes after the arrays is given by name.

`softmax(x, 0)` took 0 for the temperature, where SciPy and torch take an axis.
"""

import inspect

import numpy as np
import pytest
import torch

import sampler.hf
import sampler.logprobs
import sampler.reference
import sampler.request
import sampler.temperature
import sampler.testing
import sampler.torch

MODULES = (
    sampler, sampler.torch, sampler.temperature, sampler.testing, sampler.hf, sampler.reference,
    sampler.request,
    sampler.logprobs,
)  # fmt: skip

# In Python's words, and what to write.
GIVEN = r"takes \d positional arguments? but \d were given(: give temperature[\w, .]* by name)?$"

# What may be given by position although it has a default: each is what its function is about.
BY_POSITION = {
    "sampler.Sampler.distribution": [],
    "sampler.Sampler.initial_state": ["batch"],
    "sampler.hf.FilterLogitsProcessor": ["sampler"],
    "sampler.hf.filter_kwargs": ["sampler"],
    "sampler.hf.generate": ["inputs"],
    "sampler.testing.assert_sampler": ["law"],
    "sampler.testing.check_sampler": ["law"],
    "sampler.reference.uniform": ["stream", "step", "draw", "lane"],  # a key; there is no array
}


def public_functions():
    for module in MODULES:
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]  # fmt: skip
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value) or name.endswith("Processor"):
                yield f"{module.__name__}.{name}", value
    for name, value in vars(sampler.Sampler).items():
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__call__"):
            yield f"sampler.Sampler.{name}", value


FUNCTIONS = {
    name: value
    for name, value in public_functions()
    if name.split(".")[-1][0] != "_" or name.endswith("__call__")
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_given_by_name(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    found = [
        p.name for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) and p.default is not p.empty
    ]  # fmt: skip
    assert found == BY_POSITION.get(name, [])


def test_a_second_position_is_no_temperature():
    x = torch.zeros(2, 3)
    calls = [
        lambda f=f: f(x, 0)
        for f in (sampler.softmax, sampler.log_softmax, sampler.logsumexp, sampler.sigmoid,
                  sampler.softmax_jacobian, sampler.softmax_dtemperature,
                  sampler.torch.softmax, sampler.torch.log_softmax, sampler.torch.logsumexp,
                  sampler.torch.entropy, sampler.temperature.entropy,
                  sampler.temperature.perplexity)
    ] + [
        lambda f=f: f(x, x, 1)
        for f in (sampler.softmax_jvp, sampler.softmax_vjp, sampler.cross_entropy,
                  sampler.cross_entropy_grad, sampler.torch.cross_entropy,
                  sampler.torch.distillation_loss, sampler.temperature.distillation_loss,
                  sampler.temperature.distillation_loss_grad, sampler.temperature.reliability,
                  sampler.temperature.fit_temperature, sampler.testing.check_same,
                  sampler.testing.check_draws, sampler.reference.kept)
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=GIVEN):
            call()
    assert np.array_equal(sampler.softmax([[1.0, 2.0]], axis=0), [[1.0, 1.0]])
