"""Calls that do not fit a function: the error names the keyword that was meant, or the way out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from sampler._names import (
    ADVICE,
    ALGORITHMS,
    BY_NAME,
    IGNORED_FIELDS,
    OF_OTHERS,
    OFF,
    PARTS,
    PROCESSORS,
    SAME,
    SAME_IN_GENERATE,
    SAMPLER_ONLY,
    SPREAD,
)
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES

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


def unknown_keyword(function: str, given: Mapping[str, Any], known: Collection[str]) -> TypeError:
    """Return the error for those given that are not `known`: Python's words, and the way out."""
    names = [name for name in given if name not in known]
    off = [name for name in names if _is_off(name, given[name])]
    if len(names) == 1 and SAME.get(names[0]) in known and names[0] not in PARTS:
        off = []  # the one name, rather
    ways = [hint_for(one, given[one], known, function, given) for one in names if one not in off]
    if off and names != off:
        ways.append(f"leave out {', '.join(off)}: off")
    elif off:
        ways.append("off, so leave it out" if len(names) == 1 else "off, so leave them out")
    several = len(names) > 1
    quoted = ", ".join(f"'{name}'" for name in names)
    return TypeError(
        f"{function}() got {'' if several else 'an '}unexpected keyword argument"
        f"{'s' * several} {quoted}: {'; '.join(dict.fromkeys(ways))}"
    )


def _is_off(name: str, value: Any) -> bool:
    """Whether another library's setting has a value that asks for nothing."""
    if name not in OFF or name == "do_sample":
        return False
    return value is None or value is False or (np.isscalar(value) and value in OFF[name])


def hint_for(
    name: str,
    value: object,
    known: Collection[str],
    function: str = "",
    given: Mapping[str, Any] | None = None,
) -> str:
    """Say what to write for a keyword that `function` does not take, next to what is given."""
    plain = name.lower().replace("-", "_")
    if plain in ADVICE:
        return ADVICE[plain]
    ours, shown = SAME.get(plain, name), _short(value)
    if ours in STAGES and STAGES[ours].has_several:
        shown = _shown_parts(ours, {name: value} if given is None else given)
    takes_logits = function in ("Sampler.__call__", "Sampler.score", "Sampler.filter")
    if ours == "logprobs" and isinstance(value, bool):
        shown = "5"
    if ours == "rng" and not isinstance(value, np.random.Generator):  # torch's
        ours, shown = "seed", f"{name}.initial_seed()"
    if ours == "mask" and "attention_mask" in known:
        return (
            "write attention_mask=... for a prompt's padding; to allow only some tokens, give a "
            "processor as logits_processor=[mine]"
        )
    if ours in known:
        return f"write {ours}={shown}"
    if ours == "dtype" and "axis" in known:
        return "the result is float64 for float64, else float32: convert what goes in or comes out"
    if takes_logits and f"{ours}s" not in known and ours in ("stream", "step", "draw"):
        ours, shown = f"{ours}s", "[...]" if ours == "stream" else shown
    elif name not in IGNORED_FIELDS and (near := get_close_matches(plain, known, n=1, cutoff=0.85)):
        return f"did you mean {near[0]}?"
    if ours == "seed" and "filter_value" in known:
        return f"Hugging Face draws there, so write torch.manual_seed({shown})"
    if ours in STAGES or ours in SAMPLER_ONLY:
        if function == "generate_kwargs":
            return f"write generate_kwargs(Sampler({ours}={shown}))"
        return f"it is a setting of a Sampler, as in Sampler({ours}={shown})"
    if ours in _OF_CALLS:
        call = _OF_CALLS[ours].format(ours, shown)
        return f"write {call}" if takes_logits else f"it goes with the logits, as in {call}"
    ours = SAME_IN_GENERATE.get(plain, name)
    if ours == "do_sample":
        return "a Sampler always draws; greedy is temperature=0"
    if ours == "num_return_sequences":
        return f"write sampler.hf.generate(model, **inputs, sampler=s, {ours}={shown})"
    if ours in PROCESSORS:
        return f"generate() applies it before the draw: {_IN_GENERATE.format(ours, shown)}"
    if ours in ALGORITHMS:
        return (
            "it replaces the draw, so use it without a Sampler: "
            f"model.generate(**inputs, {ours}={shown})"
        )
    if ours in IGNORED_FIELDS and function == "generate":
        return f"write {ours}={shown}"
    if ours in IGNORED_FIELDS:
        return f"it goes to generate(): {_IN_GENERATE.format(ours, shown)}"
    if name not in OF_OTHERS and (near := get_close_matches(plain, known, cutoff=0.7)):
        return f"did you mean {' or '.join(near)}?"
    if name in OF_OTHERS:
        return "no stage of a Sampler does this: change the logits before the draw"
    if len(known) < 10:
        return f"it takes {', '.join(sorted(known))}"
    return "help(sampler.Sampler) lists the settings"


def _shown_parts(ours: str, given: Mapping[str, Any]) -> str:
    """Show the value of a stage with several parameters, of the parts that are given."""
    stage = STAGES[ours]
    first = next(iter(stage.parameters))
    parts = {PARTS.get(name, first): _short(value) for name, value in given.items()
             if SAME.get(name) == ours and not _is_off(name, value)}  # fmt: skip
    spread, middle = given.get(SPREAD), given.get(stage.replaces)
    if SAME[SPREAD] == ours and isinstance(spread, (int, float)):
        if isinstance(middle, (int, float)):
            parts |= {"low": f"{max(middle - spread, 0.0):g}", "high": f"{middle + spread:g}"}
        else:
            parts |= {"low": f"temperature - {spread}", "high": f"temperature + {spread}"}
    places = [place for place, name in enumerate(stage.parameters, 1) if name in parts]
    last = max([stage.range.least, *places])
    shown = [parts.get(name, name) for name in list(stage.parameters)[:last]]
    text = shown[0] if len(shown) == 1 else f"({', '.join(shown)})"
    if stage.replaces in given:
        text += f" without `{stage.replaces}`"
    return text


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 24 and "\n" not in shown else "..."


def check_known(function: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise the `unknown_keyword` for the keywords that are not known, if there are any."""
    if not given.keys() <= set(known):
        raise unknown_keyword(function, given, known)


def helps(function: _Function) -> _Function:
    """Say what to write where a call does not fit a function, and take its old name for `steps`.

    Costs a tenth of a microsecond per call.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # from inside the function
            if "step" not in kwargs or "steps" in kwargs or "steps" not in keywords_of(function):
                raise _explained(error, function, args, kwargs) from None
        warnings.warn(
            f"`step` is now called `steps`: write {function.__name__}(..., steps=...)",
            DeprecationWarning,
            stacklevel=2,
        )
        return call(*args, steps=kwargs.pop("step"), **kwargs)

    return call  # type: ignore[return-value]


def _explained(
    error: TypeError, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> TypeError:
    """Return Python's error for a call that does not fit, with what to write."""
    # A class is called by its own name, whichever class it has its `__init__` from.
    name = type(args[0]).__name__ if function.__name__ == "__init__" else function.__qualname__
    signature = inspect.signature(function).parameters
    parameters = signature.values()
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = keywords_of(function)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_known(name, kwargs, [k for k in (*first, *by_name) if k != "self"])
    extra = args[len(first) :]
    if extra and name == "Sampler" and isinstance(args[1], (int, float)):  # no chain of stages
        extra = args[1:]
    if extra and name == "Sampler" and isinstance(args[1], Stage):
        return TypeError(f"Sampler() takes a sequence of stages: write Sampler({list(args[1:])!r})")
    missing = [
        k for k in by_name if k not in kwargs and signature[k].default is inspect.Parameter.empty
    ]
    if extra and name in BY_NAME:
        given = [f"{k}={_short(v)}" for k, v in zip(BY_NAME[name], extra, strict=False)]
        hint = f"write {', '.join(given)}"
    elif extra:
        hint = f"give {', '.join(by_name[:4])}{' ...' * (len(by_name) > 4)} by name"
    elif missing:
        hint = f"write {missing[0]}=..."
    else:
        return error
    return TypeError(f"{str(error).replace(function.__qualname__, name)}: {hint}")


def keywords_of(function: Callable[..., Any]) -> list[str]:
    """Return the names that a function takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
