"""Our own format of settings: a mapping of what is not the default, with a version.

Values are what JSON and YAML have: numbers, with "inf" and "-inf" as strings; lists; for a stage
with several parameters a mapping of those that are not the default.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from sampler._inputs import kind_of
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES

__all__ = ["CALLS", "read", "unknown_keys", "write"]

VERSION = 1
# Arguments of `Sampler` that are no stages, nor `seed`; those that no engine has.
CALLS = ("rng", "step", "on_invalid", "ties", "threads", "device")
_KNOWN = [*STAGES, "stages", "seed", "min_tokens_to_keep", *CALLS[1:]]
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def write(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping of a sampler's arguments: stages or settings by keyword, and others."""
    found: dict[str, Any] = {"version": VERSION}
    for name, value in settings.items():
        if name == "stages":
            found[name] = [{one.setting: _stage(one)} for one in value]
        elif name in STAGES:
            stage = STAGES[name].of(value)
            if not stage.is_default:
                found[name] = _stage(stage)
        elif isinstance(value, np.ndarray) or name == "seed" or value != defaults[name]:
            found[name] = _plain(value)
    return found


def read(found: Any) -> dict[str, Any]:
    """Return the arguments of `Sampler` that a mapping stands for.

    Raises
    ------
    TypeError, ValueError
        If it is not a mapping of this version, or has unknown keys, in one message.
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"the settings have to be a mapping, but are {kind_of(found)}")
    settings = dict(found)
    version = settings.pop("version", None)
    if type(version) is not int or version != VERSION:
        has = "none" if version is None else repr(version)
        raise ValueError(
            f"the settings have to have `version`: {VERSION}, the version of their form, but have "
            f"{has}; for those of an engine, give like="
        )
    if not settings.keys() <= set(_KNOWN):
        raise ValueError(unknown_keys(settings, _KNOWN))
    chain = settings.get("stages")
    if chain is not None:
        if not isinstance(chain, list):
            raise TypeError(f"`stages` has to be a list of stages, but is {kind_of(chain)}")
        settings["stages"] = [_stage_of(one) for one in chain]
    for name in STAGES.keys() & settings.keys():
        settings[name] = _read_stage(STAGES[name], settings[name])
    return settings


def unknown_keys(found: Collection[str], known: Collection[str], engine: str = "") -> str:
    """Say in one message which keys are not known, and which were meant."""
    shown = []
    for name in found:
        if name in known:
            continue
        near = get_close_matches(str(name).lower().replace("-", "_"), known, n=1, cutoff=0.6)
        shown.append(f"{str(name)[:60]!r}" + (f" ({near[0]}?)" if near else ""))
    shown = shown if len(shown) < 12 else [*shown[:10], f"and {len(shown) - 10} more"]
    return f"unknown settings{engine and f' of {engine}'}: {', '.join(shown)}"


def _stage(stage: Stage) -> Any:
    """Return a stage's value; of one with several parameters those that are not the default."""
    values = [_plain(value) for value in stage.given()]
    if not stage.has_several:
        return values[0]
    offs = [_plain(one.off) for one in stage.parameters.values()]
    named = zip(stage.parameters, values, offs, strict=True)
    return {name: value for name, value, off in named if value != off}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _stage_of(one: Any) -> Stage:
    """Make the stage of a mapping with one setting."""
    if not isinstance(one, Mapping) or len(one) != 1 or not one.keys() <= STAGES.keys():
        names = [name for name in one if name not in STAGES] if isinstance(one, Mapping) else []
        hint = f": {unknown_keys(names, STAGES)}" if names else ""
        raise ValueError(f"`stages` has to hold mappings such as {{top_k: 40}}, one each{hint}")
    ((name, value),) = one.items()
    return _read_stage(STAGES[name], value)


def _read_stage(kind: type[Stage], value: Any) -> Stage:
    if not kind.has_several:
        return kind(_numbers(value))
    if value is None:
        return kind()
    if not isinstance(value, Mapping):
        names = ", ".join(kind.parameters)
        raise TypeError(f"`{kind.setting}` has to be a mapping of {names}, but is {kind_of(value)}")
    if not value.keys() <= kind.parameters.keys():
        raise ValueError(unknown_keys(value, list(kind.parameters), f"`{kind.setting}`"))
    return kind(**{name: _numbers(one) for name, one in value.items()})


def _numbers(value: Any) -> Any:
    """Return a value with the numbers that JSON has as strings."""
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return _INFINITE.get(value, value) if isinstance(value, str) else value
