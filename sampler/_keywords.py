"""Unknown keywords: the error names the near one, or the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from sampler._names import (
    ALGORITHMS,
    IGNORED_FIELDS,
    OF_OTHERS,
    PARTS,
    PROCESSORS,
    SAME,
    SAMPLER_ONLY,
)
from sampler.stages import STAGES

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Where the arguments go that are given with logits.
_OF_CALLS = {
    **dict.fromkeys(("mask", "dtype"), "s(logits, {}={})"),
    **dict.fromkeys(
        ("streams", "steps", "draws", "n", "logprobs", "raw"), "s.sample(logits, {}={})"
    ),
    "out": "s.filter(logits, {}={})",
}
_IN_GENERATE = "model.generate(**inputs, **sampler.hf.generate_kwargs(s), {}={})"


def unknown_keyword(function: str, name: str, value: object, known: Collection[str]) -> TypeError:
    """Return the error for a keyword that is not `known`: Python's words, and the way out."""
    hint = _hint(name, value, known)
    return TypeError(f"{function}() got an unexpected keyword argument '{name}': {hint}")


def _hint(name: str, value: object, known: Collection[str]) -> str:
    plain = name.lower().replace("-", "_")
    ours, shown = SAME.get(plain, name), PARTS.get(plain, "{}").format(_short(value))
    if ours in known:
        return f"write {ours}={shown}"
    if near := get_close_matches(plain, known, n=1, cutoff=0.85):
        return f"did you mean {near[0]}?"
    if ours in STAGES or ours in SAMPLER_ONLY:
        return f"it is a setting of a Sampler, as in Sampler({ours}={shown})"
    if ours in _OF_CALLS:
        return f"it goes with the logits, as in {_OF_CALLS[ours].format(ours, shown)}"
    if name == "do_sample":
        return "a Sampler always draws; greedy is temperature=0"
    if name == "num_return_sequences":
        return f"write sampler.hf.generate(model, **inputs, sampler=s, {name}={shown})"
    if name in PROCESSORS:
        return f"generate() applies it before the draw: {_IN_GENERATE.format(name, shown)}"
    if name in ALGORITHMS:
        return (
            "it replaces the draw, so use it without a Sampler: "
            f"model.generate(**inputs, {name}={shown})"
        )
    if name in IGNORED_FIELDS:
        return f"it goes to generate(): {_IN_GENERATE.format(name, shown)}"
    if name not in OF_OTHERS and (near := get_close_matches(plain, known, cutoff=0.7)):
        return f"did you mean {' or '.join(near)}?"
    if name in OF_OTHERS:
        return "no step of a Sampler does this: change the logits before the draw"
    if len(known) < 10:
        return f"it takes {', '.join(sorted(known))}"
    return "help(sampler.Sampler) lists the settings"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 24 and "\n" not in shown else "..."


def check_known(function: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise the `unknown_keyword` for the first keyword that is not known, if there is one."""
    for name, value in given.items():
        if name not in known:
            raise unknown_keyword(function, name, value, known)


def hides_unknown(function: _Function) -> _Function:
    """Leave ``**unknown``, which a function has for its error message, out of its signature."""
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return function


def keywords_of(function: Callable[..., Any]) -> list[str]:
    """Return the names that a function takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
