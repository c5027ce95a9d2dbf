"""Settings out of files, text and objects: sizes are bounded, and nothing in them is run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from sampler._inputs import kind_of

__all__ = ["read_source"]

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 32
_COMMAND = re.compile(r"\s*(?:-|\S*\b(?:llama-[\w-]+|mlx_lm[\w.]*)\s)")  # a flag, or a program
_INSTRUCTION = re.compile(r"^\s*(?:FROM|PARAMETER)\s", re.IGNORECASE | re.MULTILINE)
# YAML 1.1 takes 1e-4 for a string, since it has no point.
_FLOAT = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$")


def read_source(
    source: Any, form: str = "", flags: Mapping[str, tuple[str, bool]] | None = None
) -> dict[str, Any]:
    """Return the mapping that a source of settings holds.

    Parameters
    ----------
    source : mapping, str, path, or object
        A str is text if it has a line break, or begins with "{", or is a command where `form` is
        "flags": it begins with "-", or with a program such as llama-cli. Else it is a path.
        Files that end in .json or .yaml are that. An object gives its fields.
    form : {"", "flags", "modelfile"}
        What other text is: YAML; the flags of a command; lines of ``PARAMETER key value``.
    flags : mapping
        Of a command, the flags that are settings: their keys, and whether all of several count.

    Raises
    ------
    TypeError, ValueError, OSError
        If there is no mapping, the text is malformed, larger than 1 MiB or nested too deep.
    """
    if isinstance(source, Mapping):
        found: Any = dict(source)
    elif isinstance(source, (str, PathLike)):
        path = None if isinstance(source, str) and _is_text(source, form) else Path(source)
        text = source if path is None else _read_file(path)
        assert isinstance(text, str)
        found = _parse(text, "" if path is None else path.suffix.lower(), form, flags or {})
        if not isinstance(found, dict):
            raise TypeError(f"the settings have to be a mapping, but are {kind_of(found)}")
    else:
        found = _fields_of(source)
    _check_depth(found)
    wrong = [key for key in found if not isinstance(key, str)]
    if wrong:
        raise TypeError(f"the settings have to have strings for keys, but one is {wrong[0]!r:.40}")
    return found  # type: ignore[no-any-return]


def _is_text(source: str, form: str) -> bool:
    if "\n" in source or source.lstrip().startswith("{"):
        return True
    return form == "flags" and _COMMAND.match(source) is not None


def _read_file(path: Path) -> str:
    if path.is_dir():
        raise FileNotFoundError(
            f"`source` has to be a file of settings, but {str(path)!r:.80} is a folder: "
            "Sampler.from_pretrained reads a model's"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"`source` has to be a file of settings, or their text with a line break, but there is "
            f"no {str(path)!r:.80}"
        )
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    _check_size(len(content))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"`source` has to be a file of text, but {path.name!r} is none") from None


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise ValueError(f"the settings have to be at most {_MOST_BYTES} bytes of text")


def _parse(text: str, suffix: str, form: str, flags: Mapping[str, tuple[str, bool]]) -> Any:
    _check_size(len(text))
    if suffix == ".json" or (not suffix.startswith(".y") and text.lstrip().startswith(("{", "["))):
        return _json(text)
    if suffix not in (".yaml", ".yml"):
        if form == "flags" and _COMMAND.match(text):
            return _flags(text, flags)
        if form == "modelfile" and _INSTRUCTION.search(text):
            return _modelfile(text)
    return _yaml(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("the settings are nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the settings are no JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the settings have {key[:40]!r} twice")
        found[key] = value
    return found


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("settings in YAML need the package PyYAML: pip install pyyaml") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("the settings have an alias of YAML, which is not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [one.value for one, _ in node.value if isinstance(one.value, str)]
            for key in keys:
                if keys.count(key) > 1:
                    raise ValueError(f"the settings have {key[:40]!r} twice")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    try:
        found = yaml.load(text, Loader)  # a SafeLoader
    except RecursionError:
        raise ValueError("the settings are nested too deep") from None
    # A value that is not what its tag says may raise anything.
    except (yaml.YAMLError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"the settings are no YAML: {' '.join(str(error).split())}") from None
    return {} if found is None else found


def _modelfile(text: str) -> dict[str, Any]:
    """Return the PARAMETER lines of a Modelfile; a later line counts."""
    found = {}
    for line in re.sub(r'""".*?"""', "", text, flags=re.DOTALL).splitlines():
        words = line.split(None, 2)
        if len(words) == 3 and words[0].upper() == "PARAMETER":
            found[words[1].lower()] = _scalar(words[2].strip().strip('"'))
    return found


def _flags(text: str, flags: Mapping[str, tuple[str, bool]]) -> dict[str, Any]:
    """Return what the flags of a command say; those that are no settings are passed over."""
    found: dict[str, Any] = {}
    words = shlex.split(text.replace("\\\n", " "))
    for place, word in enumerate(words):
        name, has_value, value = word.partition("=")
        if name in flags:
            if not has_value:
                value = words[place + 1] if place + 1 < len(words) else ""
            if not value:
                raise ValueError(f"the flag {name} has no value")
            key, all_count = flags[name]
            scalar = _scalar(value)
            found[key] = [*found.get(key, []), scalar] if all_count else scalar
        elif name.startswith("--") and (near := get_close_matches(name, flags, n=1, cutoff=0.85)):
            raise ValueError(f"unknown flag {name[:40]} ({near[0]}?)")
    return found


def _scalar(text: str) -> Any:
    """Return a number where a text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _fields_of(source: Any) -> dict[str, Any]:
    """Return the fields of an engine's own object."""
    for way in ("to_dict", "model_dump"):
        if callable(getattr(source, way, None)) and not isinstance(source, type):
            return dict(getattr(source, way)())
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        names = [one.name for one in dataclasses.fields(source)]
    else:
        names = list(getattr(source, "__struct_fields__", getattr(source, "__dict__", ())))
    names = [name for name in names if not name.startswith("_")]
    if not names or isinstance(source, type):
        raise TypeError(
            f"`source` has to be a file, text, a mapping, or an engine's settings, but is "
            f"{kind_of(source)}"
        )
    return {name: getattr(source, name) for name in names}


def _check_depth(found: Any, depth: int = 0) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError("the settings are nested too deep")
    if isinstance(found, Mapping):
        found = found.values()
    elif not isinstance(found, (list, tuple)):
        return
    for one in found:
        _check_depth(one, depth + 1)
