"""Settings as files have them: our own form, and those of other engines.

Each engine has a file with a table, its dialect: its keys, defaults, values that are off, order,
and the version that all of it is of. `Sampler.load` reads one, and `Sampler.dump` writes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sampler.config import from_generation_config
from sampler.dialects import _own as own
from sampler.dialects._table import Dialect, Dumped
from sampler.dialects._text import read_source
from sampler.stages.base import Stage

__all__ = ["Dumped", "dialect", "dump", "load", "names", "of_folder"]

_OTHER_NAMES = {
    "hf": "huggingface",
    "transformers": "huggingface",
    "hugging_face": "huggingface",
    "llama_server": "llama_cpp",
    "oobabooga": "text_generation_webui",
    "webui": "text_generation_webui",
    "tabbyapi": "exllamav3",
}
_SPELLED = {"huggingface": "hf", "llama_cpp": "llama.cpp"}
OWN = "sampler"


def names() -> list[str]:
    """Return the names that `like` may be: ours, and those of the engines."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    return [OWN, *sorted(one.stem for one in files)]


def dialect(like: str) -> Dialect:
    """Return the dialect of an engine, by its name in any spelling.

    Raises
    ------
    TypeError, ValueError
        If there is none.
    """
    name = _name(like)
    found: Dialect = import_module(f"sampler.dialects.{name}").DIALECT
    return found


def _name(like: Any) -> str:
    if not isinstance(like, str):
        raise TypeError(f"`like` has to be the name of an engine, but is {like!r:.40}")
    name = like.lower().replace(".", "_").replace("-", "_").replace(" ", "_")
    name = _OTHER_NAMES.get(name, name)
    if name not in names():
        shown = {one: one.replace("_", "-") for one in names()} | _SPELLED
        near = get_close_matches(name, [*shown, *_OTHER_NAMES], n=1)
        hint = f" ({shown.get(near[0], near[0])}?)" if near else ""
        engines = ", ".join(shown.values())
        raise ValueError(f"`like` has to be one of {engines}, but is {like!r:.40}{hint}")
    return name


def load(source: Any, like: str, tokenizer: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Sampler` for the settings in a source: see `Sampler.load`."""
    name = _name(like)
    if name == OWN:
        return {**own.read(read_source(source)), **changes}
    if name == "huggingface":
        is_text = isinstance(source, (str, PathLike))
        return from_generation_config(read_source(source) if is_text else source, changes)
    table = dialect(like)
    found = read_source(source, table.form, table.flags())
    arguments = {key: value for key, value in changes.items() if key in own.CALLS}
    if "seed" in changes and "seed" not in table.all_names():
        arguments["seed"] = changes["seed"]
    theirs = {key: value for key, value in changes.items() if key not in arguments}
    return {**table.read(found, theirs, tokenizer), **arguments}


def of_folder(folder: Any) -> dict[str, Any]:
    """Return the generation_config.json of a model's folder."""
    if not isinstance(folder, (str, PathLike)):
        raise TypeError(f"`folder` has to be the path of a model's folder, but is {folder!r:.40}")
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"`folder` has to be a model's folder, but {str(folder)!r:.80} is none: for a model of "
            "the hub, give GenerationConfig.from_pretrained(name) to from_generation_config"
        )
    file = path / "generation_config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r:.80} has no generation_config.json, so that generate() is greedy: "
            "Sampler(temperature=0)"
        )
    return read_source(file)


def dump(
    like: str,
    settings: Mapping[str, Any],
    stages: Sequence[Stage],
    arguments: Mapping[str, Any],
    path: Any,
) -> Dumped:
    """Return a sampler's settings as an engine has them, and write them: see `Sampler.dump`."""
    found = Dumped(dict(settings), {})
    name = _name(like)
    if name != OWN:
        for one in stages:
            if any(isinstance(value, np.ndarray) for value in one.values):
                raise ValueError(
                    f"an engine has one value of `{one.setting}`, but this sampler one per row"
                )
        found = dialect(like).write(
            [one for one in stages if not one.is_off],
            arguments,
            (lambda found: from_generation_config(found, {})) if name == "huggingface" else None,
        )
    if path is not None:
        _write_file(Path(path), found.settings)
    return found


def _write_file(path: Path, settings: Mapping[str, Any]) -> None:
    if path.suffix == ".json":
        text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(settings, sort_keys=False)
    else:
        raise ValueError(f"`path` has to end in .json or .yaml, but is {str(path)!r:.80}")
    path.write_text(text, encoding="utf-8")
