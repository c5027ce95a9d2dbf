"""What a dialect is: a table of an engine's keys, and how one is read and written.

A dialect knows stages, and never an array of logits. Its table says for each key of the engine
which parameter of ours it is, what the engine takes where it is left out, and which values are off;
all else is here, once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from sampler._checks import MOST_FLOAT, Flag, Range
from sampler.dialects._own import unknown_keys
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES

__all__ = ["Dialect", "Dumped", "Key"]

_EMPTY: Mapping[Any, Any] = MappingProxyType({})
_ARGUMENTS = {"seed": None, "min_tokens_to_keep": 1}  # of `Sampler`, that are no stages
_IDS = re.compile(r"\s*(?:\d{1,9}\s*(?:,\s*\d{1,9}\s*)*)?")  # as text
_TEMPERATURES = ("temperature", "dynamic_temperature", "smoothing")
_RANGE = "dynamic_temperature.range"
# Neighbours that may change places: the law stays the same, bit for bit.
_COMMUTE = {
    frozenset(pair)
    for pair in (
        ("temperature", "top_k"),
        ("temperature", "top_n_sigma"),
        ("top_k", "min_p"),
    )
}
# Where what no table can read belongs: it needs the model's end tokens, or its vocabulary.
_ELSEWHERE = {
    **dict.fromkeys(("min_tokens", "min_new_tokens", "min_length"), "min_new_tokens=(n, [eos])"),
    **dict.fromkeys(("ban_eos_token", "ignore_eos"), "suppress_tokens=[eos]"),
    **dict.fromkeys(("bad_words", "banned_tokens"), "bad_words=[ids]"),
    **dict.fromkeys(("grammar", "grammar_string", "json_schema"), "sampler.hf.generate(grammar=)"),
    "banned_strings": "sampler.hf.generate(banned_phrases=)",
    "allowed_token_ids": "mask=",
}
_BANS = {"bad_words", "suppress_tokens", "begin_suppress_tokens", "min_new_tokens", "n_tokens"}


class Dumped(NamedTuple):
    """What `Sampler.dump` returns.

    Attributes
    ----------
    settings : dict
        The engine's settings, those that differ from its defaults.
    lost : dict
        What the engine cannot express: our setting or parameter, such as
        ``"repetition_penalty.window"``, with its value; ``"order"`` with the stages in ours.
    """

    settings: dict[str, Any]
    lost: dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of an engine's settings.

    Attributes
    ----------
    to : str
        The parameters of ours that it is, with spaces between several: ``top_p``, ``dry.base``,
        ``seed``; ``mirostat`` is its version. ``xtc!`` is a bool without which XTC is off.
        ``dynamic_temperature.range`` is how far its ends are from the temperature.
    default : Any
        What the engine takes where it is left out, as the engine writes it.
    off : tuple
        Values with which the stage is off. The first is the one to write.
    none : tuple
        Values that are None of ours, such as a window of the whole text; of a bias, what forbids.
        The first is the one to write.
    per : float
        How many of the engine's units are 1 of ours.
    floor : (float, float), optional
        (a, b): a value below a counts as b; a temperature of 0 stays greedy.
    bias_limit : float
        Of biases, the largest size: others count as that.
    names : tuple of str
        Other names of the key.
    """

    to: str
    default: Any = None
    off: tuple[Any, ...] = ()
    none: tuple[Any, ...] = ()
    per: float = 1.0
    floor: tuple[float, float] | None = None
    bias_limit: float = math.inf
    names: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        """The parameters, each as setting and parameter; an argument of `Sampler` is alone."""
        return [_path(one) for one in self.to.split()]

    def ours(self, value: Any) -> Any:
        """Return a value of the engine's as ours."""
        if self.to == "logit_bias":
            return _biases(value, self.none, self.bias_limit)
        if self.to == "suppress_tokens" and isinstance(value, str) and _IDS.fullmatch(value):
            return [int(one) for one in re.findall(r"\d+", value)]
        if _among(value, self.none):
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return value
        greedy = value <= 0 < (self.floor or (0, 0))[1] and self.to == "temperature"
        if self.floor is not None and value < self.floor[0] and not greedy:
            return self.floor[1]
        return value if self.per == 1.0 else value / self.per

    def theirs(self, value: Any) -> Any:
        """Return a value of ours as the engine's."""
        if self.to == "logit_bias":
            banned = {-math.inf: self.none[0]} if self.none else {}
            return {str(i): banned.get(x, x) for i, x in value if x > -math.inf or self.none}
        if value is None and self.none:
            return self.none[0]
        if isinstance(value, tuple):
            return _lists(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or self.per == 1.0:
            return value
        near = round(value * self.per, 10)
        return near if near / self.per == value else value * self.per


@dataclass(frozen=True)
class Dialect:
    """An engine's settings.

    Attributes
    ----------
    engine, version : str
        Its name, and the release or the day of the source that the table was read from.
    keys : mapping of str to Key
    order : str
        Our settings as the engine applies them, with spaces between; edits come first in any case.
    order_key, order_names : str, mapping
        The key that holds another order, and what its entries stand for. Of two entries for the
        same, the last is the one to write.
    unlisted : {"off", "first"}
        What happens to settings that such an order leaves out.
    last_key, last_before : str
        The key that moves the temperature to the end, or before that setting.
    greedy_key, samples : str, bool
        The key whose False is greedy, and whether it is True where it is left out.
    alone : mapping
        Settings that act alone when on, but for those named.
    sees_prompt : str
        Settings that look at the prompt as well as at the output, where ours do not by default.
    fixed : mapping
        Other parameters that have no key, where the engine's value is not our default.
    ties : {"id", "all"}
        What top-k does with ties.
    form : {"", "flags", "modelfile"}
        What text is that is neither JSON nor YAML: see `_text.read_source`.
    more_flags : mapping
        Flags of a command that are the order, or keys that are refused.
    others : str
        Keys that do not touch the law of a token, with spaces between.
    ignored : str
        Keys that would, but that the engine passes over as well.
    refused : mapping
        Keys that do, and that no stage is for; with the values that are off.
    inside : str
        Keys under which a request's body holds settings, with spaces between.
    wraps : str
        The key of a mapping that may stand in place of a value.
    strict : bool
        Whether an unknown key is an error though nothing known has a name like it.
    """

    engine: str
    version: str
    keys: Mapping[str, Key]
    order: str
    order_key: str = ""
    order_names: Mapping[Any, str] = field(default_factory=dict)
    unlisted: str = "off"
    last_key: str = ""
    last_before: str = ""
    greedy_key: str = ""
    samples: bool = True
    alone: Mapping[str, str] = field(default_factory=dict)
    sees_prompt: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ties: str = "id"
    form: str = ""
    more_flags: Mapping[str, str] = field(default_factory=dict)
    others: str = ""
    ignored: str = ""
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inside: str = ""
    wraps: str = ""
    strict: bool = True

    # ------------------------------------------------------------------------------- reading

    def all_names(self) -> set[str]:
        """Return the keys that are parameters, by all their names."""
        return {one for name, key in self.keys.items() for one in (name, *key.names)}

    def flags(self) -> dict[str, tuple[str, bool]]:
        """Return the flags of a command: their keys, and whether all of several count."""
        flags = {
            flag: (name, isinstance(key.default, list) or key.to == "logit_bias")
            for name, key in self.keys.items()
            for flag in key.names
            if flag.startswith("-")
        }
        return flags | {flag: (name, False) for flag, name in self.more_flags.items()}

    def read(
        self, found: Mapping[str, Any], changes: Mapping[str, Any] = _EMPTY, tokenizer: Any = None
    ) -> dict[str, Any]:
        """Return the arguments of `Sampler` that some of the engine's settings stand for.

        Raises
        ------
        TypeError, ValueError
            If there are unknown keys, keys that no stage is for, or values out of range.
        """
        first = {other: name for name, key in self.keys.items() for other in key.names}
        changed = {first.get(name, name) for name in changes}
        kept = {n: one for n, one in self._flat(found).items() if first.get(n, n) not in changed}
        given = self._named({**kept, **changes})
        ours = dict(self.fixed) | {
            f"{name}.include_prompt": True for name in self.sees_prompt.split()
        }
        source: dict[str, str] = {}
        off = set()
        for name, key in self.keys.items():
            value = given[name] if given.get(name) is not None else key.default
            for path in key.paths if value is not None else ():
                setting, is_switch = path.partition(".")[0].rstrip("!"), path.endswith("!")
                if _among(value, key.off) or (is_switch and not self._flag(name, value)):
                    off.add(setting)
                elif not is_switch:
                    self._check_number(name, path, value)
                    ours[path], source[path] = key.ours(value), name
        _narrow_range(ours, off)
        arguments = {name: ours.pop(name) for name in _ARGUMENTS if ours.get(name) is not None}
        stages = self._stages(ours, off, source, tokenizer)
        if self.greedy_key and not self._flag(
            self.greedy_key, given.get(self.greedy_key, self.samples)
        ):
            stages = {name: one for name, one in stages.items() if one.kind == "edit"}
            stages["temperature"] = STAGES["temperature"](0.0)
        for setting, others in self.alone.items():
            if setting in stages:
                stages = {n: stages[n] for n in stages if n in (setting, *others.split())}
        ordered = self._ordered(stages, given)
        names = [one.setting for one in ordered]
        together = any(one.replaces in names for one in ordered)  # which keywords are not for
        if not together and are_one_law(names, [name for name in STAGES if name in names]):
            arguments |= {one.setting: one for one in ordered}
        else:
            arguments["stages"] = ordered
        return arguments if self.ties == "id" else {**arguments, "ties": self.ties}

    def _flat(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a request's body, and take values out of what they stand in."""
        flat = dict(found)
        for name in self.inside.split():
            inner = flat.pop(name, None)
            if not isinstance(inner, (Mapping, type(None))):
                raise TypeError(
                    f"`{name}` of {self.engine} has to be a mapping, but is {inner!r:.40}"
                )
            flat |= inner or {}
        for name, value in flat.items():
            if self.wraps and isinstance(value, Mapping) and self.wraps in value:
                flat[name] = value[self.wraps]
        return flat

    def _named(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings by the first names of keys; refuse what no stage is for."""
        names = {other: name for name, key in self.keys.items() for other in key.names}
        own = {self.order_key, self.last_key, self.greedy_key} - {""}
        known = [*self.keys, *names, *own, *self.refused, *f"{self.others} {self.ignored}".split()]
        unknown = [name for name in found if name not in known]
        if not self.strict:  # files of an interface have hundreds of other keys
            unknown = [
                one
                for one in unknown
                if get_close_matches(one.lower().replace("-", "_"), known, n=1, cutoff=0.85)
            ]
        if unknown:
            shown = [name for name in known if not name.startswith("-")]
            raise ValueError(unknown_keys(unknown, shown, self.engine))
        asked = {
            name: found[name]
            for name, off in self.refused.items()
            if found.get(name) is not None and not _among(found[name], off)
        }
        if asked:
            shown = [
                f"{name}={value!r:.40}" + (f" ({_ELSEWHERE[name]})" if name in _ELSEWHERE else "")
                for name, value in asked.items()
            ]
            raise ValueError(
                f"settings of {self.engine} that are not read: {', '.join(shown)}. To go without, "
                f"give {', '.join(f'{name}=None' for name in asked)}"
            )
        named: dict[str, Any] = {}
        for name, value in found.items():
            first = names.get(name, name)
            if named.get(first) is not None and value is not None:
                raise ValueError(
                    f"settings of {self.engine} have `{first}` twice: also as `{name}`"
                )
            named[first] = named.get(first) if value is None else value
        return named

    def _check_number(self, name: str, path: str, value: Any) -> None:
        """Refuse what is no number where an engine has one: a list would be one per row for us."""
        setting, _, parameter = path.partition(".")
        ours = STAGES[setting].parameters.get(parameter) if setting in STAGES else None
        is_flag = ours is not None and isinstance(ours.range, Flag)
        is_other = ours is not None and not isinstance(ours.range, (Range, Flag))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_other or (isinstance(value, bool) if is_flag else is_number)):
            wanted = "a bool" if is_flag else "a number"
            raise TypeError(f"`{name}` of {self.engine} has to be {wanted}, but is {value!r:.40}")
        if setting in _ARGUMENTS and not isinstance(value, int):
            raise TypeError(f"`{name}` of {self.engine} has to be an integer, but is {value!r:.40}")
        if setting == "min_tokens_to_keep" and value < 0:
            raise ValueError(f"`{name}` of {self.engine} has to be at least 0, but is {value}")
        if isinstance(value, int) and abs(value) > MOST_FLOAT:
            raise ValueError(f"`{name}` of {self.engine} has to be a number that a float holds")

    def _flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` of {self.engine} has to be a bool, but is {value!r:.40}")
        return value

    def _stages(
        self, ours: Mapping[str, Any], off: set[str], source: Mapping[str, str], tokenizer: Any
    ) -> dict[str, Stage]:
        """Make the stages that are on, by their settings."""
        made = {}
        for setting, kind in STAGES.items():
            values = {
                path.partition(".")[2]: value
                for path, value in ours.items()
                if path.startswith(f"{setting}.") and value is not None
            }
            if setting in off or kind.switch not in values:
                continue
            try:
                if kind(**{kind.switch: values[kind.switch]}).is_off:
                    continue
                if "breakers" in values:
                    values["breakers"] = _breakers(values["breakers"], tokenizer)
                stage = kind(**values)
            except (TypeError, ValueError) as error:
                named = {
                    f"`{kind.label(path.partition('.')[2])}`": one
                    for path, one in source.items()
                    if path.startswith(f"{setting}.")
                }
                name = next((one for label, one in named.items() if label in str(error)), setting)
                if name == setting:  # of what was made of a range
                    name = next(iter(named.values()), setting)
                raise type(error)(f"`{name}` of {self.engine}: {error}") from None
            if not stage.is_off:
                made[setting] = stage
        return made

    def _ordered(self, stages: Mapping[str, Stage], given: Mapping[str, Any]) -> list[Stage]:
        """Put stages in the order of the engine, or in one that is given."""
        order = self.order.split()
        listed = given.get(self.order_key) if self.order_key else None
        if listed is not None:
            wanted = [name for one in self._entries(listed) for name in one.split()]
            can_be_listed = set(" ".join(self.order_names.values()).split())
            unlisted = [name for name in order if name not in wanted]
            first = [name for name in unlisted if name in can_be_listed]
            last = [name for name in unlisted if name not in can_be_listed]
            order = [*(first if self.unlisted == "first" else ()), *wanted, *last]
        if self.last_key and self._flag(self.last_key, given.get(self.last_key, False)):
            order = self._tempered_last(order)
        place = {name: i for i, name in reversed(list(enumerate(order)))}
        kept = [one for name, one in stages.items() if name in place]
        kinds = {"edit": 0, "scale": 1, "cut": 1, "memory": 2}
        return sorted(kept, key=lambda one: (kinds[one.kind], place[one.setting]))

    def _tempered_last(self, order: Sequence[str]) -> list[str]:
        """Move what tempers to the end of an order."""
        moved = [name for name in order if name in _TEMPERATURES]
        others = [name for name in order if name not in _TEMPERATURES]
        end = others.index(self.last_before) if self.last_before in others else len(others)
        return [*others[:end], *moved, *others[end:]]

    def _entries(self, listed: Any) -> list[str]:
        """Return what the entries of an order stand for: those of a list, or of a text."""
        if isinstance(listed, str):
            parts = listed.replace(";", "\n").replace(",", "\n").split("\n")
            listed = [one.strip().lower().replace("-", "_") for one in parts if one.strip()]
            if len(listed) == 1 and listed[0] not in self.order_names:
                listed = list(listed[0])  # letters
        if not isinstance(listed, (list, tuple)):
            raise TypeError(
                f"`{self.order_key}` of {self.engine} has to be a list, but is {listed!r:.40}"
            )
        wrong = [
            str(one) for one in listed if not _may_be_entry(one) or one not in self.order_names
        ]
        if wrong:
            known = [one for one in self.order_names if isinstance(one, str)]
            where = f"`{self.order_key}` of {self.engine}"
            raise ValueError(unknown_keys(wrong, known, where))
        return [self.order_names[one] for one in listed]

    # ------------------------------------------------------------------------------- writing

    def write(
        self,
        stages: Sequence[Stage],
        arguments: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
    ) -> Dumped:
        """Return the engine's settings for stages that are on, and for other arguments.

        What is lost is what differs when they are read back: by the table, or by `read`.
        """
        values: dict[str, Any] = {
            name: arguments[name]
            for name, usual in _ARGUMENTS.items()
            if not _are_same(arguments.get(name, usual), usual)
        }
        for one in reversed(stages):
            for name, value in zip(one.parameters, one.values, strict=True):
                values[f"{one.setting}.{name}"] = value
        _widen_range(values, self.keys)
        settings: dict[str, Any] = {}
        for name, key in self.keys.items():
            value = self._value_of(key, values)
            if not _are_same(value, key.default) and value is not None:
                settings[name] = value
        names = [one.setting for one in stages if one.kind != "edit"]
        usual = [one.setting for one in self._ordered({n: STAGES[n]() for n in names}, {})]
        if not are_one_law(names, usual):
            settings |= self._order_of(names)
        is_greedy = values.get("temperature.temperature") == 0.0
        if self.greedy_key and is_greedy:
            cuts = {n for n, key in self.keys.items() if not _edits(_setting(key))}
            settings = {name: value for name, value in settings.items() if name not in cuts}
        if self.greedy_key and self.samples == is_greedy:
            settings[self.greedy_key] = not is_greedy
        back = (self.read if read is None else read)(settings)
        return Dumped(settings, _differences(stages, arguments, back))

    def _value_of(self, key: Key, values: Mapping[str, Any]) -> Any:
        """Return what to write for a key; its default where nothing is to be said."""
        setting = _setting(key)
        stage = STAGES.get(setting)
        if key.to.endswith("!"):
            return any(path.startswith(f"{setting}.") for path in values)
        found = next((path for path in key.paths if path in values), None)
        if key.to == "dry.breakers" and found is not None:
            return []  # ours are ids, and an engine's are text
        if found is not None:
            value = key.theirs(values[found])
            if value == math.inf:  # which JSON has not
                return key.default
            same = _are_same(key.ours(value), values[found]) or key.to == "logit_bias"
            return value if same and not _among(value, key.off) else key.default
        if stage is None or key.paths[0] == _RANGE or not key.paths[0].endswith(f".{stage.switch}"):
            return key.default
        off = key.off[0] if key.off else key.theirs(stage.parameters[stage.switch].off)
        is_off = key.default is None or _among(key.default, key.off)
        return key.default if is_off or _are_same(key.ours(key.default), off) else off

    def _order_of(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the keys that say in which order stages come, if there are such."""
        last = [name for name in self._tempered_last(self.order.split()) if name in names]
        if self.last_key and are_one_law(names, last):
            return {self.last_key: True}
        entry_of = {
            one: entry for entry, several in self.order_names.items() for one in several.split()
        }
        if not self.order_key or not all(name in entry_of for name in names):
            return {}
        entries = list(dict.fromkeys(entry_of.values()))
        edits = [one for one in entries if STAGES[self.order_names[one].split()[0]].kind == "edit"]
        wanted = [*edits, *(entry_of[name] for name in names)]
        return {self.order_key: list(dict.fromkeys(wanted))}


def are_one_law(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether stages in two orders are one law: those that do not commute stand alike."""
    if sorted(a) != sorted(b):
        return False
    place = {name: i for i, name in enumerate(b)}
    return all(
        place[first] < place[second]
        for first, second in combinations(a, 2)
        if frozenset((first, second)) not in _COMMUTE and not {first, second} & _BANS
    )


def _differences(
    stages: Sequence[Stage], arguments: Mapping[str, Any], back: dict[str, Any]
) -> dict[str, Any]:
    """Return what a sampler has, and what was read back has not."""
    lost: dict[str, Any] = {}
    chain = back.get("stages")
    if chain is None:
        chain = [kind.of(back[name]) for name, kind in STAGES.items() if name in back]
    others = {one.setting: one for one in chain if not one.is_off}
    seen = set()
    for one in stages:
        other = others.get(one.setting)
        if other is None or one.setting in seen:
            lost[one.setting] = one.value
        for name in one.parameters if other is not None else ():
            if not _are_same(getattr(one, name), getattr(other, name)):
                lost[f"{one.setting}.{name}" if one.has_several else name] = getattr(one, name)
        seen.add(one.setting)
    for name in others.keys() - seen:
        lost[name] = STAGES[name].off
    both = [one.setting for one in stages if one.setting in others]
    if not are_one_law(both, [name for name in others if name in both]):
        lost["order"] = both
    usual: dict[str, Any] = {**_ARGUMENTS, **({"ties": "id"} if "top_k" in seen else {})}
    for name, default in usual.items():
        value = arguments.get(name, default)
        if not _are_same(value, back.get(name, default)):
            lost[name] = value
    return lost


def _path(name: str) -> str:
    """Return a parameter's name with its setting's."""
    stage = STAGES.get(name)
    return name if stage is None else f"{name}.{stage.switch}"


def _setting(key: Key) -> str:
    return key.paths[0].partition(".")[0].rstrip("!")


def _edits(setting: str) -> bool:
    return setting not in STAGES or STAGES[setting].kind == "edit"


def _narrow_range(ours: dict[str, Any], off: set[str]) -> None:
    """Make the ends of a range around the temperature, which they take the place of."""
    spread = ours.pop(_RANGE, None)
    if spread is None or "dynamic_temperature" in off:
        return
    middle = ours.pop("temperature.temperature", 1.0)
    ours["dynamic_temperature.low"] = max(0.0, middle - spread)
    ours["dynamic_temperature.high"] = middle + spread


def _widen_range(values: dict[str, Any], keys: Mapping[str, Key]) -> None:
    """Write the ends as a range around a temperature, for engines that have that."""
    low = values.get("dynamic_temperature.low")
    high = values.get("dynamic_temperature.high")
    if any(_RANGE in key.paths for key in keys.values()) and low is not None and high is not None:
        values["temperature.temperature"] = (low + high) / 2
        values[_RANGE] = (high - low) / 2


def _may_be_entry(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _lists(value: Any) -> Any:
    return [_lists(one) for one in value] if isinstance(value, tuple) else value


def _among(value: Any, values: Sequence[Any]) -> bool:
    """Whether a value is one of several, as numbers: True is not 1."""
    return any(_are_same(value, one) for one in values)


def _are_same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_are_same, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    return type(a) is type(b) and bool(a == b)


def _biases(value: Any, banned: Sequence[Any], limit: float) -> Any:
    """Return biases by id: of a mapping with ids as strings, or of pairs."""
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    found = []
    for pair in value.items() if isinstance(value, Mapping) else value:
        if isinstance(pair, str) and (parts := re.fullmatch(r"(\d{1,9})([-+]\d+(?:\.\d*)?)", pair)):
            pair = parts.groups()  # of a flag
            pair = pair[0], float(pair[1])
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return value
        token, bias = pair
        if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12:
            token = int(token)
        if _among(bias, banned):
            bias = -math.inf
        elif isinstance(bias, int) and abs(bias) > MOST_FLOAT:
            raise ValueError("`logit_bias` has to hold numbers that a float holds")
        elif isinstance(bias, (int, float)) and abs(bias) > limit:
            bias = math.copysign(limit, bias)
        found.append((token, bias))
    return tuple(found)


def _breakers(strings: Any, tokenizer: Any) -> Any:
    """Return the sequences of ids that are some strings."""
    if isinstance(strings, str):  # a list as text, with or without its brackets
        text = strings.strip()
        try:
            strings = json.loads(text if text.startswith("[") else f"[{text}]")
        except ValueError:
            raise ValueError(f"breakers have to be a list of texts, but are {text!r:.40}") from None
    if not isinstance(strings, (list, tuple)):
        raise TypeError(f"breakers have to be a list of texts, but are {strings!r:.40}")
    if not strings or not all(isinstance(one, str) for one in strings):
        return strings
    if tokenizer is None:
        raise ValueError(
            f"breakers such as {strings[0]!r} are text: give tokenizer=, or without breakers "
            "dry_sequence_breakers=[]"
        )
    from sampler.hf import dry_breakers

    return dry_breakers(tokenizer, strings=strings)
