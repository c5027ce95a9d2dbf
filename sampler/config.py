"""The settings of other libraries' configurations, as `Sampler` takes them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

from sampler._inputs import kind_of
from sampler._keywords import check_known
from sampler._names import (
    APPLIED,
    EDITS,
    EDITS_OF_ONE,
    HF_DEFAULTS,
    HF_STAGES,
    IGNORED_FIELDS,
    OF_OTHERS,
    OF_THE_DRAW,
    OFF,
    SAME,
    SAMPLER_ONLY,
)
from sampler.stages.settings import STAGES

__all__ = ["from_generation_config"]


def from_generation_config(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the `Sampler` that draws as ``generate()`` would under a ``GenerationConfig``.

    A field that a ``GenerationConfig`` does not have is ignored, as ``generate()`` ignores it,
    unless it is a misspelling or another library's sampling setting that is on.

    Parameters
    ----------
    config : transformers.GenerationConfig, or the mapping that a generation_config.json holds
    changes : mapping
        Fields to replace before they are read (None switches one off), and arguments of `Sampler`.

    Returns
    -------
    dict
        Keyword arguments of `Sampler`.

    Raises
    ------
    TypeError
        If `config` is neither of these, or a change is not a field.
    ValueError
        If fields ask for what a Sampler does not do. One message says what to type for all.

    Warns
    -----
    UserWarning
        If sampling settings have no effect, because ``do_sample`` is not True.
    """
    fields = _fields_of(config)
    for name, default in HF_DEFAULTS.items():
        if fields.get(name) is None:
            fields[name] = default
    known = fields.keys() | OF_THE_DRAW.keys() | IGNORED_FIELDS | set(SAMPLER_ONLY)
    check_known("from_generation_config", changes, known)
    for name in (*HF_STAGES, *EDITS_OF_ONE):
        value = fields.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):  # only a change is per row
            if len(value):
                raise TypeError(f"`{name}` has to be a number in a configuration, but is {value!r}")
            fields[name] = None
    # Of the model's own configuration: generate() reads that, whatever is changed here.
    forces_first = fields.get("forced_bos_token_id") is not None
    fields |= changes  # where None means off
    draws = fields.pop("do_sample", None)
    if not isinstance(draws, (bool, type(None))):
        raise TypeError(f"`do_sample` has to be a bool, but is {draws!r}")
    own = {name: fields.pop(name) for name in SAMPLER_ONLY if name in changes}
    asked = {name: value for name, value in fields.items() if _asks(name, value)}
    refused = [name for name in asked if name not in (*HF_STAGES, *EDITS)]
    if "min_new_tokens" in asked and not (
        _ends(fields) or isinstance(fields["min_new_tokens"], tuple)
    ):
        refused.append("min_new_tokens")  # generate() may be given an end, or forbids nothing
    if "begin_suppress_tokens" in asked and forces_first:  # after which the text begins
        refused.append("begin_suppress_tokens")
    if refused:
        taken = asked.keys() | changes.keys() | ({"do_sample"} if draws is not None else set())
        raise ValueError(_refusal({name: asked[name] for name in refused}, changes, taken))
    if draws:
        settings = {name: fields.get(name) for name in HF_STAGES}
        settings["ties"] = "all"  # Hugging Face's rule
    else:
        if draws is None:
            _check_not_of_parts(config, fields, changes)
        _warn_of_greedy({k: v for k, v in asked.items() if k not in EDITS}, changes)
        settings = {"temperature": 0.0}
    settings |= dict(_edit(name, asked[name], _ends(fields)) for name in EDITS if name in asked)
    return settings | {name: value for name, value in own.items() if value is not None}


def _ends(fields: Mapping[str, Any]) -> list[int]:
    """Return the ids that end a text."""
    ends: Any = fields.get("eos_token_id")
    ends = ends.tolist() if hasattr(ends, "tolist") else ends
    return [] if ends is None else list(ends) if isinstance(ends, Sequence) else [ends]


def _edit(name: str, value: Any, ends: list[int]) -> tuple[str, Any]:
    """Return the setting that a field is."""
    if name == "min_new_tokens":
        return name, value if isinstance(value, tuple) else (value, ends)
    if name == "bad_words_ids":  # as generate() does, it leaves the ends alone
        if not isinstance(value, Iterable) or any(not isinstance(ids, Iterable) for ids in value):
            raise TypeError(f"`bad_words_ids` has to be lists of ids, but is {value!r}")
        return "bad_words", [ids for ids in value if list(ids) not in [[one] for one in ends]]
    return name, value


def _fields_of(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict") and hasattr(config, "do_sample"):
        return dict(config.to_dict())
    kind = kind_of(config)
    if isinstance(config, (str, PathLike)):
        kind += ": read a file with json.load, a model's by GenerationConfig.from_pretrained"
    elif hasattr(config, "generation_config") or hasattr(
        config, "to_dict"
    ):  # a model, or its config
        kind += ": write model.generation_config"
    raise TypeError(f"`config` has to be a GenerationConfig or a mapping, but is {kind}")


def _asks(name: str, value: Any) -> bool:
    if value is None or value is False or (isinstance(value, (Sequence, Mapping)) and not value):
        return False
    off = OFF.get(_meant(name))
    # Of an array, which has one value per row, `in` would compare each.
    return off is not None and bool(getattr(value, "ndim", 0) or value not in off)


def _meant(name: str) -> str:
    """Return the field that `name` is, or is a misspelling of."""
    if name in OFF or name in IGNORED_FIELDS:
        return name
    # 0.86 lets the fields of published cards pass, text_temperature for example.
    near = get_close_matches(str(name).lower().replace("-", "_"), OF_THE_DRAW, n=1, cutoff=0.86)
    return near[0] if near else name


def _refusal(asked: Mapping[str, Any], changes: Mapping[str, Any], taken: set[str]) -> str:
    # Of many fields only the first are shown: misspelled ones, then what generate() does not apply.
    order = sorted(asked, key=lambda name: (_meant(name) == name, name in APPLIED, name))
    more: dict[str, Any] = {}
    for name in order:
        meant, value = _meant(name), asked[name]
        is_argument = name in SAMPLER_ONLY and name in STAGES and not STAGES[name].has_several
        is_argument = is_argument and not isinstance(value, (Sequence, Mapping))  # perhaps of words
        more[name] = value if is_argument else None
        meant = SAME.get(name, meant) if SAME.get(name) in HF_STAGES else meant
        is_ours = meant in HF_STAGES or meant in EDITS or (meant == "do_sample" and value is True)
        if meant not in taken and is_ours:
            more.setdefault(meant, value)
    applied = [name for name in order if name in APPLIED]
    lost = [name for name in order if name not in APPLIED]
    if not applied:
        instead = len(more) > len(order) or any(value is not None for value in more.values())
        do = "Instead" if instead else "To go without"
    else:
        these = "these" if len(applied) > 1 else "this"
        if lost:
            few = len(lost) < len(applied)
            these = f"all but {', '.join(lost)}" if few else ", ".join(applied)
        do = f"model.generate() applies {these} before the draw"
    ignored = all(name in OF_OTHERS for name in order)
    asks = "generate() ignores" if ignored else "a Sampler does not do"
    if order == ["min_new_tokens"]:
        return (
            f"`config` asks for {_shown(asked)[0]}, but has no `eos_token_id`: give that, or leave "
            f"it to model.generate(): {_call(changes, more)}"
        )
    return (
        f"`config` asks for what {asks}: "
        f"{', '.join(_shown({name: asked[name] for name in order}))}. {do}: {_call(changes, more)}"
    )


def _warn_of_greedy(asked: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    if "do_sample" in changes:  # the caller asks for greedy, whatever the card has
        asked = {name: value for name, value in asked.items() if name in changes}
    if asked:
        *others, last = _shown(asked)
        these = f"{', '.join(others)} {last if len(asked) > 3 else f'and {last}'} have"
        rest = {name: value for name, value in changes.items() if name not in asked}
        warnings.warn(
            "`do_sample` is not True, so the sampler is greedy, as generate() is: "
            f"{these if others else f'{last} has'} no effect. "
            f"To sample: {_call(changes, {'do_sample': True})}; "
            f"to stay greedy without this warning: {_call(rest, {'do_sample': False})}",
            stacklevel=4,
        )


def _check_not_of_parts(config: Any, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value.keys() & {"do_sample", *HF_STAGES}:
            part = f"[{name!r}]" if isinstance(config, Mapping) else f".{name}"
            raise ValueError(
                "`config` has sampling settings for each part of the model. Choose one: "
                f"{_call(changes, {}, part)}"
            )


def _call(changes: Mapping[str, Any], more: Mapping[str, Any], part: str = "") -> str:
    """Return the call to type."""
    arguments = [
        f"{name}={value!r}" if name.isidentifier() else f"**{{{name!r}: {value!r}}}"
        for name, value in {**changes, **more}.items()
    ]
    return f"Sampler.from_generation_config({', '.join([f'config{part}', *arguments])})"


def _shown(asked: Mapping[str, Any]) -> list[str]:
    shown, misspelled = [], 0
    for name, value in asked.items():
        text = repr(value)
        if len(text) > 24:
            text = f"{text[:20]}...{text[-1]}"
        meant = _meant(name)
        if name in SAMPLER_ONLY:
            text += " (an argument, not a field)"
        elif meant != name:
            text += f" ({meant}?)"
            misspelled += 1
        elif name in OF_OTHERS:
            text += " (transformers ignores it)"
        shown.append(f"{name}={text}")
    first = len(shown) if len(shown) <= 3 else max(2, misspelled)
    rest = len(shown) - first
    return [*shown[:first], f"and {rest} more"] if rest else shown
