"""Hugging Face's ways to draw, as functions of logits. torch is imported when they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import U64_END, U64_TEXT, check_ids, check_integer


def from_processors(
    processors: Any, *, seed: int | None = None, input_ids: Any = None
) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Return the sampler that a list of logits processors and a multinomial draw make.

    Parameters
    ----------
    processors : LogitsProcessorList, or sequence of callables
        Each is called with ``(input_ids, scores)``, in order.
    seed : int, in [0, 2**64), optional
        The seed of a generator used only here. Without it, torch's global generator is used.
    input_ids : array_like of int of shape (length,), optional
        What comes before the token, the same for every row. One token 0 by default.

    Returns
    -------
    callable
        For `check_sampler`, or in ``lambda seed: from_processors(processors, seed=seed)`` for its
        ``seeded=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    See Also
    --------
    from_generate : the whole of ``generate()``.
    check_sampler : checks it.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import Sampler
    >>> from sampler.testing import check_sampler, from_processors
    >>> from transformers import TemperatureLogitsWarper, TopPLogitsWarper
    >>> draw = from_processors([TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)], seed=1)
    >>> logits = np.array([1.0, 3.0, 2.0, 0.0], dtype=np.float32)
    >>> law = Sampler(temperature=0.8, top_p=0.9)
    >>> check_sampler(draw, logits, law, draws=5000, tail=False).ok
    True
    """
    import torch

    steps = [processors] if callable(processors) and not _is_list(processors) else list(processors)
    for step in steps:
        if not callable(step):
            raise TypeError(f"`processors` have to be callables, but one is {step!r}")
    generator = None if seed is None else _generator(seed)
    before = _prompt(input_ids)

    def draw(logits: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        scores = _tensor(logits)
        ids = before.expand(len(scores), -1)
        for step in steps:
            scores = step(ids, scores)
        probs = torch.softmax(scores.float(), dim=-1)
        tokens: npt.NDArray[np.int64] = torch.multinomial(probs, 1, generator=generator)[
            :, 0
        ].numpy()
        return tokens

    return draw


def from_generate(
    model: Any,
    kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    seed: int = 0,
    input_ids: Any = None,
) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Return what ``model.generate(**kwargs)`` draws where the model gives the logits in question.

    The model runs, and its logits are replaced as they leave it. So all that `generate` does with
    them is checked, penalties and suppressed tokens too, for one token.

    Parameters
    ----------
    model : transformers.GenerationMixin
        A small one will do, of any vocabulary.
    kwargs : mapping, or function without arguments that returns one
        Arguments of ``generate``, such as ``{"do_sample": True, "top_p": 0.9}``, except lengths
        (`max_new_tokens`, `min_length` ...), which are not passed on. A function is asked again at
        each call: `sampler.hf.generate_kwargs` takes a seed each time it is called, if its Sampler
        has none. With one, as within one dict, every call would draw the same.
    seed : int, in [0, 2**64)
        Of torch's generator, which is put back after each call.
    input_ids : array_like of int of shape (length,), optional
        What comes before the token, the same for every row. One token 0 by default.

    Returns
    -------
    callable
        For `check_sampler`. Give the law of the settings: Hugging Face's defaults include a top_k
        of 50.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above; at the call, if the settings do not draw one token per row
        (beams, several sequences).

    See Also
    --------
    from_processors : processors alone, without a model.
    check_sampler : checks it.
    """
    import torch

    if not hasattr(model, "generate"):
        raise TypeError(f"`model` has to be a model that can generate, but is {model!r}")
    if not callable(kwargs) and not isinstance(kwargs, Mapping):
        raise TypeError(f"`kwargs` has to be a mapping, or a function, but is {kwargs!r}")
    state = _generator(seed).get_state()
    before = _prompt(input_ids)

    def draw(logits: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        nonlocal state
        given = dict(kwargs() if callable(kwargs) else kwargs)
        config = given.get("generation_config") or model.generation_config
        for name in ("num_beams", "num_return_sequences"):
            value = given.get(name, getattr(config, name, None))
            if value not in (None, 1):
                raise ValueError(
                    f"`{name}` has to be 1, to draw one token per row, but is {value!r}"
                )
        for name in _LENGTHS:
            given.pop(name, None)
        if "generation_config" in given:  # which would be at odds with an argument of its own
            given["generation_config"] = copy.deepcopy(config)
            given["generation_config"].update(**{**dict.fromkeys(_LENGTHS), "max_new_tokens": 1})
        else:
            given["max_new_tokens"] = 1
        wanted = _tensor(logits)[:, None]

        def replaced(module: Any, args: Any, output: Any) -> Any:
            output.logits = wanted
            return output

        prompt = before.expand(len(wanted), -1)
        given = {"attention_mask": torch.ones_like(prompt), **given}
        hook = model.register_forward_hook(replaced)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.set_rng_state(state)
                output = model.generate(prompt, **given)
                state = torch.get_rng_state()
        finally:
            hook.remove()
        tokens: npt.NDArray[np.int64] = getattr(output, "sequences", output)[:, -1].numpy()
        return tokens

    return draw


_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")


def _generator(seed: Any) -> Any:
    import torch

    number = check_integer("seed", seed, 0, U64_END, U64_TEXT)
    return torch.Generator().manual_seed(number - (number >> 63 << 64))  # as a signed number


def _prompt(input_ids: Any) -> Any:
    import torch

    ids = check_ids("input_ids", [0] if input_ids is None else input_ids, 2**63, _PROMPT)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(f"`input_ids` have to be {_PROMPT}, but have shape {ids.shape}")
    return torch.from_numpy(ids)


_PROMPT = "integers >= 0, of shape (length,)"


def _is_list(processors: Any) -> bool:
    return isinstance(processors, (list, tuple))  # LogitsProcessorList is a callable list


def _tensor(logits: npt.NDArray[Any]) -> Any:
    import torch

    # torch takes no negative strides.
    return torch.from_numpy(np.ascontiguousarray(logits).copy())
