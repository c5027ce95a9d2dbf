"""What a figure was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import sampler


def describe() -> str:
    """Name the versions, the instruction set and the processor."""
    versions = [f"{name} {version(name.lower())}" for name in ("transformers", "torch", "NumPy")]
    info = sampler.build_info()
    ours = f"sampler {sampler.__version__} on {info['isa']} ({info['compiler']})"
    return ", ".join([ours, *versions, f"Python {platform.python_version()}", processor()])


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
