"""What a sampler is made of: its settings, checked, as attributes, as a value and as text."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import numpy as np

from sampler import dialects
from sampler._arguments import (
    check_chain,
    check_seed,
    check_threads,
    check_together,
    no_attribute,
)
from sampler._checks import U64_END, Integers, check_choice, check_integer, integers
from sampler._engine import Engine, make_chain
from sampler._keywords import check_known, helps, keywords_of
from sampler.config import from_generation_config
from sampler.dialects import Dumped
from sampler.dialects import _own as own
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES, HasSettings, Settings

__all__ = ["SamplerSettings"]

_FLOOR = integers(1)  # what `min_tokens_to_keep` may be
_Kind = TypeVar("_Kind", bound="SamplerSettings")


class SamplerSettings(HasSettings):
    """What `Sampler` inherits: everything about its settings."""

    __slots__ = (
        "__weakref__",
        "_device",
        "_engine",
        "_min_tokens_to_keep",
        "_named",
        "_on_invalid",
        "_stages",
        "_threads",
        "_ties",
    )

    @helps
    def __init__(
        self,
        stages: Iterable[Stage] | None = None,
        *,
        min_tokens_to_keep: Integers | None = 1,
        ties: Literal["id", "all"] = "id",
        seed: int | None = None,
        rng: np.random.Generator | None = None,
        step: int = 0,
        on_invalid: Literal["raise", "flag"] = "raise",
        threads: int | Literal["auto"] = 1,
        device: Literal["auto", "host"] = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        if not settings.keys() <= STAGES.keys():
            check_known("Sampler", settings, keywords_of(type(self)))
        named = [one.of(settings.get(name)) for name, one in STAGES.items()]
        if stages is None:
            check_together(named)
        self._named = stages is None
        self._stages = tuple(named) if stages is None else check_chain(stages, named)
        if min_tokens_to_keep is None:
            min_tokens_to_keep = 1
        self._min_tokens_to_keep: Any = _FLOOR.check_per_row(
            "min_tokens_to_keep", min_tokens_to_keep
        )
        self._ties: Literal["id", "all"] = check_choice("ties", ties, ("id", "all"))
        self._on_invalid: Literal["raise", "flag"] = check_choice(
            "on_invalid", on_invalid, ("raise", "flag")
        )
        self._threads = check_threads(threads)
        self._device: Literal["auto", "host"] = check_choice(
            "device", device, ("auto", "host"), "leave it out, tensors of any device work"
        )
        self._engine = Engine(
            make_chain(self._stages, ties=ties, min_tokens_to_keep=self._min_tokens_to_keep),
            self._stages,
            seed=check_seed(seed, rng),
            step=check_integer("step", step, 0, U64_END + 1, "an integer in [0, 2**64]"),
            seed_is_fresh=seed is None and rng is None,
            flag_invalid=on_invalid == "flag",
            threads=self._threads,
        )

    @classmethod
    def from_generation_config(cls, config: Any, **changes: Any) -> Self:
        """Make the sampler that draws as Hugging Face's ``generate()`` would.

        Parameters
        ----------
        config : transformers.GenerationConfig, or mapping
            ``model.generation_config``, or what a model's generation_config.json holds. Where it
            leaves a field unset, Hugging Face's own default counts: ``top_k=50`` when it samples.
            A field that a GenerationConfig does not have is ignored, as ``generate()`` ignores it,
            unless it is a misspelling or another library's sampling setting that is on.
        **changes
            Fields of `config` to replace (None switches one off), and ``seed``, ``rng``, ``step``,
            ``on_invalid``, ``min_tokens_to_keep``, ``ties``, ``threads`` or ``device`` of the
            sampler.

        Returns
        -------
        Sampler
            Greedy (``temperature=0``) unless ``do_sample`` is True, as ``generate()`` is. Ties as
            Hugging Face's: ``ties="all"``.

        Raises
        ------
        TypeError, ValueError
            If `config` is not a configuration, or asks for what a Sampler does not do (beams,
            watermarks ...). One message has the call to type for all such fields. What
            ``model.generate()`` can apply before the draw may be left to it:
            ``repetition_penalty=None``. And as `Sampler`, if a setting is out of its range.

        Warns
        -----
        UserWarning
            If `config` has sampling settings, but ``do_sample`` is not True, so that they have no
            effect. The argument ``do_sample=True`` samples; the argument ``do_sample=False`` stays
            greedy, without a warning.

        See Also
        --------
        sampler.hf.generate_kwargs : runs the sampler inside ``generate()``.

        Examples
        --------
        >>> from sampler import Sampler
        >>> config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
        >>> Sampler.from_generation_config(config, seed=7)
        Sampler(temperature=0.6, top_k=50, top_p=0.9, ties='all', seed=7)
        """
        return cls(**from_generation_config(config, changes))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make the sampler of a mapping that `to_dict` has made, or that has its form.

        Parameters
        ----------
        settings : mapping
            ``version``: 1; and of the arguments of `Sampler` those that are not the default.
            Numbers, lists, strings and mappings, as JSON and YAML have them: "inf" for infinity, a
            mapping for a stage with several parameters, and for `stages` a list of mappings with
            one setting each, such as ``{"top_k": 40}``.

        Returns
        -------
        Sampler

        Raises
        ------
        TypeError, ValueError
            If it is not a mapping of this version, has unknown keys (all in one message), or as
            `Sampler`.

        See Also
        --------
        Sampler.load : reads files, and the settings of other engines.

        Examples
        --------
        >>> from sampler import Sampler
        >>> Sampler.from_dict({"version": 1, "top_p": 0.9, "xtc": {"probability": 0.5}, "seed": 7})
        Sampler(top_p=0.9, xtc=(0.1, 0.5, (), False), seed=7)
        """
        return cls(**own.read(settings))

    def to_dict(self) -> dict[str, Any]:
        """Return what makes an equal sampler, at the same step: for JSON and YAML.

        Returns
        -------
        dict
            As `from_dict` takes it.

        See Also
        --------
        Sampler.dump : writes the settings of other engines.

        Examples
        --------
        >>> from sampler import Sampler
        >>> Sampler(temperature=0.8, dry=0.5, seed=7).to_dict()
        {'version': 1, 'dry': {'multiplier': 0.5}, 'temperature': 0.8, 'seed': 7}
        """
        return own.write(self._settings(), _DEFAULTS)

    @classmethod
    def load(
        cls, source: Any, like: str = "sampler", *, tokenizer: Any = None, **changes: Any
    ) -> Self:
        """Make the sampler that an engine's settings describe.

        Parameters
        ----------
        source : mapping, str, path, or an engine's own object
            A file of JSON or YAML, its text, or what it holds; vLLM's ``SamplingParams``, a request
            body, ...; a Modelfile of Ollama, a command of llama.cpp. A str is text if it has a line
            break, begins with "{", or is a command; else a path. At most 1 MiB.
        like : str
            Whose settings they are: "llama.cpp", "vllm", "hf", ...: see docs/dialects.md. Ours by
            default: see `from_dict`.
        tokenizer : PreTrainedTokenizer, optional
            Makes ids of the texts that break a repetition, for `dry`.
        **changes
            Keys of the engine to replace before they are read (None leaves one out), and ``seed``,
            ``rng``, ``step``, ``on_invalid``, ``ties``, ``threads`` or ``device`` of the sampler.

        Returns
        -------
        Sampler
            With what the engine takes where a key is left out, in the engine's order: as an
            explicit chain, where that is another law than our order.

        Raises
        ------
        TypeError, ValueError
            If the settings are malformed; if there are keys that the engine does not have, or that
            no stage is for, each in one message; as `Sampler`.
        OSError
            If there is no such file.

        See Also
        --------
        Sampler.dump : the other way.
        Sampler.from_pretrained : reads a model's folder.

        Examples
        --------
        >>> from sampler import Sampler
        >>> body = {"temperature": 0.7, "top_k": 20, "min_p": 0.1, "n_predict": 64, "seed": 7}
        >>> Sampler.load(body, like="llama.cpp")
        Sampler([TopK(20), TopP(0.95), MinP(0.1), Temperature(0.7)], seed=7)
        >>> Sampler.load(
        ...     {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64}, like="openai", seed=7
        ... )
        Sampler(temperature=0.7, top_p=0.9, seed=7)
        """
        return cls(**dialects.load(source, like, tokenizer, changes))

    def dump(self, like: str = "sampler", path: Any = None) -> Dumped:
        """Return the settings as an engine has them, and what it cannot express.

        Parameters
        ----------
        like : str
            The engine, as for `load`. Ours by default: what `to_dict` returns.
        path : path, optional
            A file to write the settings to; its name ends in .json or .yaml.

        Returns
        -------
        Dumped
            ``(settings, lost)``: a dict of the engine's keys that differ from its defaults, and a
            dict of what is not in them: ours by name, such as ``"repetition_penalty.window"``.

        Raises
        ------
        ValueError
            If there is no such engine, or a setting is one per row.

        See Also
        --------
        Sampler.load : the other way.

        Examples
        --------
        >>> from sampler import Sampler
        >>> s = Sampler(temperature=0.8, top_p=0.9, top_n_sigma=1.5)
        >>> s.dump("vllm")
        Dumped(settings={'temperature': 0.8, 'top_p': 0.9}, lost={'top_n_sigma': 1.5})
        """
        known = not self._engine.seed_is_fresh
        arguments = {"min_tokens_to_keep": self._min_tokens_to_keep, "ties": self._ties}
        if known:
            arguments["seed"] = self.seed
        return dialects.dump(like, self.to_dict(), self._stages, arguments, path)

    @classmethod
    def from_pretrained(cls, folder: Any, **changes: Any) -> Self:
        """Make the sampler of a model's folder: of its generation_config.json.

        Parameters
        ----------
        folder : path
            The folder that holds the model.
        **changes
            As for `from_generation_config`.

        Returns
        -------
        Sampler

        Raises
        ------
        OSError
            If there is no such folder, or no such file in it.
        TypeError, ValueError
            As `from_generation_config`.

        See Also
        --------
        Sampler.from_generation_config : takes the configuration itself.
        """
        return cls(**from_generation_config(dialects.of_folder(folder), changes))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The chain, stages that are off included."""
        return self._stages

    @property
    def min_tokens_to_keep(self) -> Any:
        """The floor of every truncation: an int, or a read-only array of one per row."""
        return self._min_tokens_to_keep

    @property
    def ties(self) -> Literal["id", "all"]:
        """What top_k does with ties."""
        return self._ties

    @property
    def on_invalid(self) -> Literal["raise", "flag"]:
        """What an invalid row does."""
        return self._on_invalid

    @property
    def threads(self) -> int | Literal["auto"]:
        """How many threads a call may use."""
        return self._threads

    @property
    def device(self) -> Literal["auto", "host"]:
        """Where rows on another device are computed."""
        return self._device

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self._engine.seed

    @property
    def step(self) -> int:
        """The step that the next call takes."""
        return self._engine.step

    def replace(self, **changes: Any) -> Self:
        """Return a sampler with some settings changed; seed and step stay unless changed.

        Parameters
        ----------
        **changes
            Any parameter of `Sampler`. A new seed or rng starts at step 0. On a sampler made from
            `stages`, change `stages`.

        Returns
        -------
        Sampler

        Raises
        ------
        TypeError, ValueError
            As `Sampler`.

        See Also
        --------
        Sampler.from_generation_config : a sampler from Hugging Face's settings.

        Examples
        --------
        >>> from sampler import Sampler
        >>> Sampler(top_p=0.9, seed=7).replace(top_p=0.8)
        Sampler(top_p=0.8, seed=7)
        """
        settings = self._settings()
        if "stages" in changes:
            settings = {k: v for k, v in settings.items() if k not in STAGES}
        new_seed = "seed" in changes or "rng" in changes
        if new_seed:
            del settings["seed"], settings["step"]
        settings.update(changes)
        kind = type(self)
        fresh = self._engine.seed_is_fresh
        return kind(**settings) if new_seed else _restore(kind, settings, fresh)

    def _settings(self) -> dict[str, Any]:
        """Everything that makes an equal sampler."""
        settings: dict[str, Any] = {}
        if self._named:
            settings.update({stage.setting: stage.value for stage in self._stages})
        else:
            settings["stages"] = self._stages
        settings.update(
            min_tokens_to_keep=self._min_tokens_to_keep,
            ties=self._ties,
            seed=self.seed,
            step=self.step,
            on_invalid=self.on_invalid,
            threads=self._threads,
            device=self._device,
        )
        return settings

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SamplerSettings):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        """Return what equal samplers have in common: everything but the step."""
        floor = self._min_tokens_to_keep
        floor = tuple(floor) if isinstance(floor, np.ndarray) else floor
        calls = self._on_invalid, self._threads, self._device
        return self._stages, floor, self._ties, *calls, self.seed

    if not TYPE_CHECKING:  # which would take any name for one

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._settings(), self._engine.seed_is_fresh)

    def __repr__(self) -> str:
        settings = self._settings()
        parts = []
        if not self._named:
            parts.append(f"[{', '.join(map(repr, settings.pop('stages')))}]")
        ranges = {"min_tokens_to_keep": _FLOOR, **{n: one.range for n, one in STAGES.items()}}
        parts += [
            f"{name}={ranges[name].show(value) if name in ranges else repr(value)}"
            for name, value in settings.items()
            if name == "seed" or isinstance(value, np.ndarray) or value != _DEFAULTS[name]
        ]
        return f"Sampler({', '.join(parts)})"


_ARGUMENTS = inspect.signature(SamplerSettings).parameters.values()
_DEFAULTS = {name: stage.off for name, stage in STAGES.items()} | {
    one.name: one.default for one in _ARGUMENTS if one.kind is not one.VAR_KEYWORD
}


def _restore(kind: type[_Kind], settings: dict[str, Any], seed_is_fresh: bool) -> _Kind:
    sampler = kind(**settings)
    sampler._engine.seed_is_fresh = seed_is_fresh
    return sampler
