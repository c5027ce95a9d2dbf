"""Which kernels run, what the core was compiled with, and how the extras are installed."""

from __future__ import annotations

import os
from typing import Any

from sampler import _core

_isa, _isas = _core.choose_isa(os.environ.get("SAMPLER_ISA") or None)


def install(extra: str) -> str:
    """Say how to install what an extra needs: the one place for all error messages."""
    return f'pip install ".[{extra}]" in a clone of token-sampler'


def build_info() -> dict[str, Any]:
    """Return which instruction set the core runs on, which it could, and its compiler.

    The environment variable ``SAMPLER_ISA``, read at import, forces one: "baseline", "v3"
    (x86-64 with AVX2) or "v4" (with AVX-512). One that the machine lacks is a ValueError. All give
    the same results, bit for bit.

    Returns
    -------
    dict
        ``isa``: the one that runs; ``isas``: all that this machine can run, slowest first;
        ``compiler``: its name and version.

    Examples
    --------
    >>> import sampler
    >>> info = sampler.build_info()
    >>> info["isa"] in info["isas"]
    True
    """
    return {"isa": _isa, "isas": _isas, "compiler": _core.COMPILER}
